"""Smoothing distributions: certificates against closed forms, adversaries and published runs."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from robustcore import ops
from robustcore.smoothing import (
    BandAblation,
    BlockAblation,
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
from robustcore.smoothing.theory import norms
from testing import assert_same

DATA = Path(__file__).parent / "data"
SHAPE = (3, 4, 4)
D = math.prod(SHAPE)
P = torch.tensor([0.5, 0.6, 0.75, 0.9, 0.99, 1 - 1e-9], dtype=torch.float64)
ALL = [
    Gaussian(0.5), Gaussian(0.5, norm="linf"), Uniform(0.5), Uniform(0.5, norm="linf"),
    Laplace(0.3), Splitting(0.4), PixelAblation(9), PixelAblation(9, fill=0.5), BandAblation(2),
    BlockAblation(3, stride=2, threshold=None), Dual(Gaussian(0.5)),
    Splitting(0.4, derandomized=True),
]  # fmt: skip


def images(*shape, seed=0):
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (pixels * 255).round() / 255


def brightness(x):
    """A base classifier that takes any number of channels and any size."""
    v = 20 * (x.mean((1, 2, 3)) - 0.35)
    return torch.stack([v, -v, v * 0], 1)


def test_formulas():
    p = P.numpy()
    np.testing.assert_allclose(Gaussian(0.5).radius(P, SHAPE), 0.5 * stats.norm.ppf(p), rtol=1e-12)
    np.testing.assert_allclose(Uniform(0.5).radius(P, SHAPE)[1], 2 * 0.5 * 0.1, rtol=1e-12)
    np.testing.assert_allclose(
        Uniform(0.5, norm="linf").radius(P, SHAPE), 2 * 0.5 * (1 - (1.5 - p) ** (1 / D)), rtol=1e-7,
        atol=1e-15,
    )  # fmt: skip
    np.testing.assert_allclose(
        Laplace(0.3).radius(P, SHAPE), -0.3 * np.log(2 * (1 - p)), rtol=1e-6, atol=1e-15
    )
    np.testing.assert_allclose(Splitting(0.3).radius(P, SHAPE), 0.6 * (p - 0.5), rtol=1e-12)
    for noise in ALL:
        if not noise.deterministic and not isinstance(noise, Dual):
            radius = noise.radius(P, SHAPE)
            assert radius.dtype == torch.float64
            assert float(radius[0]) == 0
            assert bool((radius.diff() >= 0).all())


@pytest.mark.parametrize(("have", "want"), list(itertools.product(norms.ORDER, norms.ORDER)))
def test_norm_conversion_is_sound_and_tight(have, want):
    def norm(v, name):
        return float(torch.linalg.vector_norm(v, norms.ORDER[name]))

    d = 16
    r = float(norms.convert(torch.ones(1).double(), d, have, want))
    # The extreme points: one coordinate, and all alike.
    worst = 0.0
    for v in (torch.eye(d).double()[0], torch.ones(d).double()):
        worst = max(worst, norm(v / norm(v, want) * r, have))
    assert worst <= 1
    assert worst > 1 - 1e-12


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        (Gaussian(0.5), stats.norm(scale=0.5)),
        (Laplace(0.3), stats.laplace(scale=0.3)),
    ],
)
def test_linear_classifiers_are_tight(noise, law):
    # Half-space along one axis: x_1 + z > 0 has probability law.cdf(x_1), and breaks at x_1.
    for margin in (0.1, 0.4, 0.9):
        p = torch.tensor([law.cdf(margin)])
        assert float(noise.radius(p, SHAPE)) == pytest.approx(margin, rel=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_uniform_is_tight(scale):
    # An interval classifier 1[u < c] with uniform noise on [-scale, scale]: p falls linearly.
    for margin in (0.05, 0.2):
        p = torch.tensor([stats.uniform(-scale, 2 * scale).cdf(margin)])
        assert float(Uniform(scale).radius(p, SHAPE)) == pytest.approx(margin, rel=1e-9)


@pytest.mark.parametrize(("d", "k", "radius"), [(784, 45, 11), (1024, 75, 9), (50176, 1000, 34)])
def test_published_l0(d, k, radius):
    p = torch.tensor([clopper_pearson_lower(10_000, 10_000, 0.05)])
    assert float(norms.ablation_l0(p, d, k)) == radius


@pytest.mark.parametrize(("d", "k"), [(6, 2), (7, 3), (8, 1), (5, 5), (9, 8)])
def test_l0_is_exact(d, k):
    # Every p that is a multiple of 1/1024, against fractions.
    p = torch.arange(512, 1025).double() / 1024
    got = norms.ablation_l0(p, d, k)
    for value, radius in zip(p.tolist(), got.tolist(), strict=True):
        left = Fraction(3, 2) - Fraction(value)
        fits = [r for r in range(d + 1) if left < Fraction(math.comb(d - r, k), math.comb(d, k))]
        assert radius == (max(fits) if fits else 0)


@pytest.mark.parametrize(("d", "k"), [(6, 2), (7, 2), (7, 1)])
def test_l0_against_every_adversary(d, k):
    # All subsets vote; an adversary owns the subsets that meet the pixels it changes.
    subsets = list(itertools.combinations(range(d), k))
    n = len(subsets)
    for won in range(n // 2 + 1, n + 1):
        # The certificate takes p itself here, rounded down: all subsets were counted.
        p = torch.tensor([math.nextafter(won / n, 0)])
        radius = int(norms.ablation_l0(p, d, k))
        for r in range(d + 1):
            owned = sum(1 for s in subsets if set(s) & set(range(r)))
            worst = won - min(owned, won)
            if r <= radius:
                assert 2 * worst > n
        # Tight: one pixel more can take the majority (a tie is a loss).
        if radius < d:
            owned = sum(1 for s in subsets if set(s) & set(range(radius + 1)))
            assert 2 * (won - min(owned, won)) <= n


@pytest.mark.parametrize(
    "noise",
    [
        BandAblation(2, threshold=None), BandAblation(3, stride=2, threshold=None),
        BandAblation(2, threshold=0.2), BlockAblation(2, stride=2, threshold=None),
    ],
)  # fmt: skip
def test_patches_against_every_adversary(noise):
    shape = (1, 5, 5)
    positions = noise.num_samples(shape)
    ones = torch.ones(1, *shape)
    masks = ops.ablate_patches(
        ones, noise._window(shape)[0], stride=noise._window(shape)[1], fill=0.0
    )[0, :, 0].bool()
    several = noise.several_votes
    checked = 0
    for votes_of_b in range(positions + 1):
        for b_first in (False, True):
            # Class 0 and 1 in both orders, so that ties matter.
            ballots = [0] * (positions - votes_of_b) + [1] * votes_of_b
            if b_first:
                ballots = [1 - v for v in ballots]
            counts = torch.bincount(torch.tensor(ballots), minlength=2)[None]
            certificate = Certificates.from_votes(counts, n=positions, noise=noise, shape=shape)
            winner, m = int(certificate.prediction), int(certificate.radius)
            for top, left in itertools.product(range(5 - m + 1), repeat=2) if m else ():
                met = masks[:, top : top + m, left : left + m].any(-1).any(-1)
                # Worst case over where the ballots lie: as many as can be of the winner's.
                taken = min(int(met.sum()), int(counts[0, winner]))
                after = counts[0].clone()
                after[winner] -= taken
                after[1 - winner] += taken
                assert int(after.argmax()) == winner
                checked += 1
            if m < 5:  # tight: a larger patch meets enough positions to break the margin
                most = noise.influence(shape)[m + 1]
                taken = min(most, int(counts[0, winner]))
                after = counts[0].clone()
                after[winner] -= taken
                after[1 - winner] += taken
                assert int(after.argmax()) != winner
    assert checked or several or noise.stride > 1  # strides this wide certify no patch of 5 x 5


def test_published_derandomized_splitting():
    data = np.loadtxt(DATA / "cifar10_dssn_sigma1.0.txt", dtype=np.int64)
    counts = torch.from_numpy(data[:, :10])
    certificates = Certificates.from_votes(
        counts, n=441, noise=Splitting(441 / 510, derandomized=True), shape=(3, 32, 32)
    )
    assert certificates.prediction.tolist() == data[:, 11].tolist()
    # The published radii are float32 numbers of 255ths.
    assert (certificates.radius * 255).round().long().tolist() == data[:, 12].tolist()


def test_published_top_3_radii_to_the_digit():
    table = np.loadtxt(DATA / "cifar10_top3_sigma0.25.txt")
    counts = torch.from_numpy(table[:, :10]).long()
    certificates = Certificates.from_counts(
        counts, counts, n0=100, n=100_000, alpha=0.001, sigma=0.25, seed=0
    )
    got = certificates.top_k_radius(table[:, 10].astype(int), 3)
    for ours, published in zip(got.tolist(), table[:, 11].tolist(), strict=True):
        # The published search stops within 1e-5 below the root.
        assert (
            f"{max(ours - 1e-5, 0.0):.3}" == f"{published:.3}" or f"{ours:.3}" == f"{published:.3}"
        )


@pytest.mark.parametrize(
    "noise", [Gaussian(0.5), Uniform(0.5), Laplace(0.3), Splitting(0.4), PixelAblation(5)]
)
def test_top_1_is_about_the_certificate(noise):
    counts = torch.tensor([[900, 60, 40], [1000, 0, 0], [520, 480, 0], [0, 990, 10]])
    certificates = Certificates.from_counts(
        counts, counts, n0=10, n=1000, alpha=0.001, sigma=0.5, seed=0, noise=noise, shape=SHAPE
    )
    one = certificates.top_k_radius(counts.argmax(1), 1)
    two = certificates.top_k_radius(counts.argmax(1), 2)
    assert bool((one <= two).all())
    # A union bound over the classes costs a little.
    assert bool((one >= certificates.radius * 0.8 - 0.02 - float(noise.norm == "l0")).all())
    # Where the shift is at the certified radius, the class holds half.
    edge = certificates.radius
    half = noise.shift(1 - certificates.p_lower, edge, SHAPE)
    sure = certificates.prediction >= 0
    assert bool((half[sure] <= 0.5 + 1e-9).all())


def test_dual():
    x = images(3, 1, 6, 6)
    noise = Dual(Gaussian(0.25))
    smooth = Smooth(brightness, 3, noise=noise, seed=5)
    certificates = smooth.certify(x, n0=50, n=400)
    halves = [x[..., 0::2], x[..., 1::2]]
    bounds = []
    for i, half in enumerate(halves):
        one = Smooth(brightness, 3, 0.25, seed=5).certify(
            half, n0=50, n=400, image_offset=i * 2**47
        )
        own = one.counts.gather(1, certificates.counts0.argmax(1)[:, None]).squeeze(1)
        bounds.append(clopper_pearson_lower(own, 400, 0.0005))
    radius = (gaussian_radius(bounds[0], 0.25) + gaussian_radius(bounds[1], 0.25)) / math.sqrt(2)
    want = torch.where(radius >= 0, radius, 0.0)
    torch.testing.assert_close(certificates.radius, want)
    # Smaller than the unsound sqrt(r_l^2 + r_r^2), and negative halves count.
    split = torch.tensor([[0.99, 0.3], [0.6, 0.45]], dtype=torch.float64)
    low = noise.radius(split, SHAPE)
    assert float(low[0]) < float(gaussian_radius(split[0, 0], 0.25))
    pair = Smooth((brightness, brightness), 3, noise=noise, seed=5).certify(x, n0=50, n=400)
    assert_same(pair.counts, certificates.counts)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_one_argument_changes_the_certificate(noise):
    x = images(3, *SHAPE)
    smooth = Smooth(brightness, 3, noise=noise, seed=3)
    certificates = smooth.certify(x, n0=20, n=200)
    assert_same(smooth.certify(x, n0=20, n=200, batch_size=7).counts, certificates.counts)
    assert certificates.noise == noise
    assert certificates.radius.dtype == torch.float64
    one = smooth.certify(x[0], n0=20, n=200)
    assert one == (int(certificates.prediction[0]), float(certificates.radius[0]))
    if noise.deterministic:
        assert certificates.n == noise.num_samples(SHAPE)
        assert certificates.alpha == 0
        assert_same(Smooth(brightness, 3, noise=noise).certify(x).counts, certificates.counts)
        with pytest.raises(ValueError, match="no test for predict"):
            smooth.predict(x)
    last = Smooth(brightness, 3, noise=noise, seed=3, memory_format=torch.channels_last).certify(
        x, n0=20, n=200
    )
    assert last.counts.shape == certificates.counts.shape
    noisy = noise_augment(x, noise, seed=4)
    view = noise.views(x)[0]
    if not isinstance(noise, Dual):
        assert noisy.shape == (3, *noise.output_shape(view.shape[1:]))


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_plot(noise, tmp_path):
    pytest.importorskip("matplotlib")
    x = images(3, *SHAPE)
    Smooth(brightness, 3, noise=noise, seed=3).certify(x, n0=20, n=200).plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_float_is_gaussian():
    x = images(2, *SHAPE)
    a = Smooth(brightness, 3, 0.25, seed=1).certify(x, n=200)
    b = Smooth(brightness, 3, noise=Gaussian(0.25), seed=1).certify(x, n=200)
    assert_same(a.counts, b.counts)
    assert_same(a.radius, b.radius)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Smooth(brightness, 3), TypeError, "exactly one of them"),
        (lambda: Smooth(brightness, 3, 0.1, noise=Gaussian(0.1)), TypeError, "exactly one"),
        (lambda: Smooth(brightness, 3, noise=0.5), TypeError, "noise: got 0.5"),
        (lambda: Smooth((brightness,) * 2, 3, 0.5), TypeError, "base_classifier"),
        (lambda: Gaussian(-1), ValueError, "level: got -1"),
        (lambda: Gaussian(1, norm="l0"), ValueError, "norm: got 'l0'"),
        (lambda: Uniform(0), ValueError, "scale: got 0"),
        (lambda: Laplace("a"), TypeError, "scale: got 'a'"),
        (lambda: Splitting(1e-4, derandomized=True), ValueError, "scale: got 0.0001"),
        (lambda: PixelAblation(0), ValueError, "k: got 0"),
        (lambda: PixelAblation(3, fill="x"), TypeError, "fill: got 'x'"),
        (lambda: BandAblation(2, stride=3), ValueError, "leaves pixels that no window"),
        (lambda: BandAblation(2, threshold=0), ValueError, "threshold: got 0"),
        (lambda: BlockAblation(0), ValueError, "size: got 0"),
        (lambda: Dual(0.5), TypeError, "base: got 0.5"),
        (lambda: certify(PixelAblation(17)), ValueError, "k: got 17 for images of 16 pixels"),
        (lambda: certify(BandAblation(5)), ValueError, "got a window of 5"),
        (lambda: certify(PixelAblation(3), mean=0.5), ValueError, "cannot normalise the NULL"),
        (lambda: certify(Dual(Gaussian(1)), shape=(1, 4, 5)), ValueError, "want an even one"),
        (
            lambda: certify(Splitting(0.4, derandomized=True), shift=1e-3), ValueError,
            "no multiples of 1/255",
        ),
        (
            lambda: certify(Splitting(0.4, derandomized=True), dtype=torch.bfloat16), ValueError,
            "does not hold 8-bit levels",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def certify(noise, shape=SHAPE, shift=0.0, dtype=torch.float32, **kwargs):
    x = (images(2, *shape) * 0.9).mul(255).round().div(255) + shift
    return Smooth(brightness, 3, noise=noise, **kwargs).certify(x.to(dtype), n=100)
