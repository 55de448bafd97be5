"""Noise on a grid in Smooth: batches, bounds, images that are not on it, names."""

import math

import pytest
import torch

from robustcore.ops.smoothing.lattice import lattice_table
from robustcore.smoothing import (
    Certificates,
    Dual,
    Gaussian,
    Laplace,
    PixelAblation,
    Smooth,
    Splitting,
    Uniform,
    clopper_pearson_lower,
    gaussian_radius,
    noise_augment,
)
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.theory import grids
from smoothing.models import Constant, Pixels
from testing import assert_same

BLACK = torch.zeros(1, 1, 2, 2)
KINDS = {"gaussian": Gaussian, "uniform": Uniform, "laplace": Laplace}


def images(*shape, q=255, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, q + 1, shape, generator=generator) / q


class Shapes(Pixels):
    """Pixels, and the batch sizes that it met."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        assert torch.isfinite(x).all()
        return super().forward(x)


def test_batches_of_the_estimation_have_one_shape():
    model, x = Shapes(3), images(4, 1, 2, 2)
    smooth = Smooth(model, 3, 0.25, grid=255, seed=3)
    result = smooth.certify(x, n0=5, n=70, batch_size=32)
    assert model.sizes == [20] + [32] * 9
    # Padding votes for nobody, and the batches make no difference where the model sees none.
    assert result.counts.sum(1).tolist() == [70] * 4
    other = smooth.certify(x, n0=5, n=70, batch_size=1000)
    assert_same(other.counts, result.counts)
    assert_same(other.radius, result.radius)
    model.sizes.clear()
    Smooth(model, 3, 0.25, seed=3).certify(x, n0=5, n=70, batch_size=32)
    assert model.sizes[-1] == 280 % 32


@pytest.mark.parametrize("noise", [Gaussian(0.25, grid=255), Uniform(0.5, grid=(255, 4))])
def test_looks_meet_one_shape_and_stop(noise):
    model, x = Shapes(4), images(6, 1, 2, 2, seed=2)
    smooth = Smooth(model, 4, noise=noise, seed=5)
    stopped = smooth.certify(x, n0=10, n=1000, batch_size=64, early_stop=True)
    assert set(model.sizes[1:]) == {64}
    assert stopped.sound
    assert stopped.total_variation > 0
    assert all(s % 64 == 0 or s == 1000 for s in stopped.samples.tolist())
    full = smooth.certify(x, n0=10, n=1000, batch_size=64)
    assert_same(stopped.counts0, full.counts0)
    assert (stopped.radius <= full.radius).all()
    model.sizes.clear()
    tests = smooth.certify_at(x, 0.1, max_n=1000, n0=10, batch_size=64)
    assert set(model.sizes[1:]) == {64}
    assert tests.sound
    assert (full.radius[tests.certified] > 0).all()
    assert tests.certified.any()
    assert tests.refuted.any()


def test_certificates_say_what_is_counted_in():
    x = images(2, 1, 4, 4)
    result = Smooth(Constant([1.0, 0.0]), 2, 0.25, grid=255, seed=1).certify(x, n0=10, n=100)
    table = lattice_table("gaussian", 0.25, 255)
    assert result.sound
    assert result.total_variation == pytest.approx(16 * table.total_variation, rel=1e-12)
    bound = clopper_pearson_lower(100, 100, 0.001)
    assert result.p_lower.tolist() == [math.nextafter(bound, 0)] * 2
    real = Smooth(Constant([1.0, 0.0]), 2, 0.25, seed=1).certify(x, n0=10, n=100)
    assert not real.sound
    assert real.total_variation == 0
    assert (result.radius < real.radius).all()
    torch.testing.assert_close(result.radius, real.radius, rtol=1e-11, atol=0)
    exact = Smooth(Constant([1.0, 0.0]), 2, noise=Splitting(0.75, derandomized=True)).certify(x)
    assert exact.sound
    assert Splitting(0.75).sound is PixelAblation(3).sound is False


def test_a_variation_is_taken_from_every_bound(monkeypatch):
    # As if the table were far coarser: the amount must reach bounds, tests and top-k.
    monkeypatch.setattr(grids, "total_variation", lambda *_: 0.01)
    x, model = images(1, 1, 2, 4), Constant([1.0, 0.0, -1.0])
    smooth = Smooth(model, 3, 0.25, grid=255, seed=1)
    result = smooth.certify(x, n0=10, n=1000)
    bound = clopper_pearson_lower(1000, 1000, 0.001)
    assert float(result.p_lower) == pytest.approx(bound - 0.01, abs=1e-15)
    assert float(result.radius) == pytest.approx(
        float(gaussian_radius(bound - 0.01, 0.25)), rel=1e-11
    )
    stopped = smooth.certify(x, n0=10, n=1000, early_stop=True)
    assert float(stopped.p_lower) < bound - 0.01
    level = clopper_pearson_lower(1000, 1000, 0.001 / 3)
    one = result.top_k_radius([0], 1)
    real = Smooth(model, 3, 0.25, seed=1).certify(x, n0=10, n=1000).top_k_radius([0], 1)
    assert float(one) < float(real)
    own = torch.tensor([level - 0.01, 1 - level + 0.01]).double()
    margin = 0.25 * (torch.special.ndtri(own[0]) - torch.special.ndtri(own[1])) / 2
    assert float(one) == pytest.approx(float(margin), rel=1e-6)
    smooth.certify_at(x, 0.50, max_n=1000, n0=10)
    with pytest.raises(ValueError, match=r"^radius: "):
        smooth.certify_at(x, 0.60, max_n=1000, n0=10)
    Smooth(model, 3, 0.25, seed=1).certify_at(x, 0.60, max_n=1000, n0=10)
    two = Smooth(model, 3, noise=Dual(Gaussian(0.25, grid=255)), seed=1).certify(x, n0=10, n=1000)
    half = clopper_pearson_lower(1000, 1000, 0.0005)
    assert float(two.p_lower) == pytest.approx(half - 0.01, abs=1e-15)


def test_dual_halves_are_on_the_grid():
    x = images(2, 1, 4, 4)
    noise = Dual(Gaussian(0.25, grid=255))
    result = Smooth(Constant([1.0, 0.0]), 2, noise=noise, seed=1).certify(x, n0=10, n=100)
    assert result.sound
    assert result.total_variation == Gaussian(0.25, grid=255).total_variation((1, 4, 2))
    with pytest.raises(ValueError, match=r"^x: "):
        Smooth(Constant([1.0, 0.0]), 2, noise=noise).certify(x + 0.001, n0=10, n=100)


def test_a_grid_needs_the_size_of_an_image():
    counts = torch.tensor([[100, 0]])
    arguments = dict(n0=100, n=100, alpha=0.001, sigma=0.25, seed=0)
    with pytest.raises(ValueError, match=r"^shape: "):
        Certificates.from_counts(counts, counts, noise=Gaussian(0.25, grid=255), **arguments)
    assert not Certificates.from_counts(counts, counts, **arguments).sound


# ---- images that are not on the grid -------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "grid", "message"),
    [
        (0.5, 255, r"x: got 0.5 at \[1, 0, 2, 3\], no multiple of 1/255 \(the nearest is 128/255"),
        (1000 / 65535, 255, "take grid=65535"),
        (1 / 3, (256, 2), "take grid=255"),
        (0.5 + 1e-4, 255, "grid=None"),
    ],
)
def test_the_first_value_off_the_grid_is_named(value, grid, message):
    x = torch.zeros(2, 1, 4, 4)
    x[1, 0, 2, 3] = value
    x[1, 0, 3, 3] = 0.123456
    if "take grid" in message:
        x[1, 0, 3, 3] = value
    smooth = Smooth(Constant([1.0, 0.0]), 2, 0.25, grid=grid)
    for call in (smooth.certify, smooth.certify_at, smooth.predict):
        arguments = (0.1,) if call == smooth.certify_at else ()
        with pytest.raises(ValueError, match=f"^{message}|^x: .*{message}"):
            call(x, *arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("grid", [255, 65535, (255, 16)])
def test_images_on_the_grid_pass_in_every_dtype_that_holds_it(dtype, grid):
    q = grid if isinstance(grid, int) else grid[0]
    x = torch.arange(q + 1).double().div(q).to(dtype)[None]
    steps = grids.steps_of("gaussian", 0.01, grid)
    if dtype == torch.float16 and q == 65535:
        with pytest.raises(ValueError, match=r"^x: got torch\.float16"):
            grids.check_on_grid(x, grid, steps)
        return
    grids.check_on_grid(x, grid, steps)
    # What the check lets pass is what the noise rounds to.
    wide = Gaussian(1e-6, grid=grid).sample(x, 1, seed=1, dtype=torch.float64)
    assert torch.equal((wide * q).round().flatten(), torch.arange(q + 1).double())


@pytest.mark.parametrize("x", [
    torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16),  # does not hold multiples of 1/255
    torch.full((1, 1, 2, 2), 70_000.0),
])  # fmt: skip
def test_images_that_a_grid_cannot_have(x):
    with pytest.raises(ValueError, match=r"^x: "):
        Gaussian(0.25, grid=255).check(x, normalized=False)


def test_black_images_fit_anything_and_none_is_fine():
    for q in grids.COMMON:
        assert grids.fits(torch.zeros(1, 1, 2, 2), q)
    grids.check_on_grid(torch.zeros(0, 1, 2, 2), 255, 100)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("grid", lambda: Gaussian(0.25, grid=0)),
        ("grid", lambda: Gaussian(0.25, grid="255")),
        ("grid", lambda: Uniform(0.25, grid=(255, 0))),
        ("grid", lambda: Laplace(100.0, grid=65535)),
        ("grid", lambda: Smooth(Pixels(2), 2, 0.25, grid=-1)),
        ("grid", lambda: Smooth(Pixels(2), 2, noise=Gaussian(0.25), grid=255)),
        ("alpha", lambda: Smooth(Pixels(2), 2, 0.25, grid=255).certify(BLACK, alpha=0.3)),
    ],
)  # fmt: skip
def test_bad_input(name, call):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        call()


# ---- names, training -----------------------------------------------------------------------------


def test_names_and_equality():
    assert repr(Gaussian(0.25)) == "Gaussian(level=0.25, norm='l2')"
    noise = Gaussian(0.25, grid=(255, 16))
    assert repr(noise) == "Gaussian(level=0.25, norm='l2', grid=(255, 16))"
    assert parse_noise(repr(noise)) == noise != Gaussian(0.25)
    assert Uniform(0.5, grid=(255, 1)) == Uniform(0.5, grid=255)


@pytest.mark.parametrize("kind", KINDS)
def test_training_takes_any_image(kind):
    x = torch.rand(3, 1, 2, 2, requires_grad=True)
    on_grid = noise_augment(x, KINDS[kind](0.25, grid=255), seed=1)
    assert_same(on_grid, noise_augment(x, KINDS[kind](0.25), seed=1))
    assert on_grid.requires_grad
