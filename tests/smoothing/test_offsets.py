"""Offsets of the noise stream that the kernels read from the device, in every op that draws."""

import pytest
import torch

from robustcore import build_info, ops
from testing import assert_same

pytestmark = pytest.mark.kernel

SEED = 2**63 + 12345
OPS = {
    "gaussian": lambda x, **options: ops.gaussian_noise(x, 3, 0.5, **options),
    "uniform": lambda x, **options: ops.uniform_noise(x, 3, 0.5, **options),
    "laplace": lambda x, **options: ops.laplace_noise(x, 3, 0.5, **options),
    "splitting": lambda x, **options: ops.splitting_noise(x, 3, 0.4, **options),
    "pixels": lambda x, **options: ops.ablate_pixels(x, 3, 7, fill=0.5, **options),
}
OFFSETS = [(0, 0), (3, 7), (2**32 - 1, 2**32 - 2), (2**33 + 5, 2**39 + 1), (2**47 + 9, 2**40 - 4)]


@pytest.fixture
def images():
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def on(device, *values):
    return [torch.tensor(value, device=device) for value in values]


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_as_with_integers(op, offsets, simd, images, device):
    image, sample = offsets
    expected = OPS[op](images, seed=SEED, image_offset=image, sample_offset=sample)
    x = images.to(device)
    image_at, sample_at = on(device, image, sample)
    simd()
    if device.type == "cuda" and build_info()["simd"] != "baseline":
        pytest.skip("once is enough on a GPU")
    both = OPS[op](x, seed=SEED, image_offset=image_at, sample_offset=sample_at)
    assert_same(both, expected)
    assert_same(OPS[op](x, seed=SEED, image_offset=image_at, sample_offset=sample), expected)
    assert_same(OPS[op](x, seed=SEED, image_offset=image, sample_offset=sample_at), expected)


@pytest.mark.parametrize("op", OPS)
def test_the_kernel_reads_them_at_each_call(op, images, device):
    x = images.to(device)
    image_at, sample_at = on(device, 0, 2**32 - 4)
    for turn in range(3):
        got = OPS[op](x, seed=SEED, image_offset=image_at, sample_offset=sample_at)
        offsets = {"image_offset": 2 * turn, "sample_offset": 2**32 - 4 + 3 * turn}
        assert_same(got, OPS[op](images, seed=SEED, **offsets))
        image_at += 2
        sample_at += 3


def test_thresholds_in_turn_wrap_around(images):
    def split(offset, samples):
        return ops.splitting_noise(
            images, samples, 0.1, seed=SEED, derandomized=True, sample_offset=offset
        )

    whole = split(0, ops.splitting_levels(0.1))
    assert_same(split(torch.tensor(2), 4), whole[:, 2:6])
    assert_same(split(torch.tensor(49), 4), torch.cat([whole[:, 49:], whole[:, :2]], 1))


def test_derivatives_are_those_with_integers(images):
    def gradients(**offsets):
        x, sigma = images.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
        out = ops.gaussian_noise(x, 3, sigma, seed=SEED, **offsets)
        first = torch.autograd.grad(out.pow(3).sum(), (x, sigma), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, sigma))
        return [*first, *second]

    got = gradients(image_offset=torch.tensor(2**40), sample_offset=torch.tensor(2**35 + 1))
    expected = gradients(image_offset=2**40, sample_offset=2**35 + 1)
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("op", ["gaussian", "pixels"])
def test_opcheck(op, images):
    offsets = (9, 0, 0, torch.tensor(4), torch.tensor(5))
    if op == "gaussian":
        raw, sums = torch.ops.robustcore.gaussian_noise, torch.ops.robustcore.gaussian_noise_sums
        arguments = (images, 3, 0.5, None, None, None, *offsets, torch.float32, False)
        rest = (*offsets, True)
    else:
        raw, sums = torch.ops.robustcore.ablate_pixels, torch.ops.robustcore.ablate_pixels_sums
        arguments = (images, None, 3, 5, *offsets, torch.float32, False)
        rest = (5, *offsets)
    torch.library.opcheck(raw.default, arguments)
    torch.library.opcheck(sums.default, (torch.rand(2, 3, 3, 4, 5), *rest))


def test_vmap(images):
    batch = torch.stack([images, images + 1])
    at = torch.tensor([3, 2**34])
    mapped = torch.func.vmap(lambda x, s: ops.gaussian_noise(x, 3, 0.5, seed=1, sample_offset=s))
    one_by_one = [
        ops.gaussian_noise(x, 3, 0.5, seed=1, sample_offset=int(s))
        for x, s in zip(batch, at, strict=True)
    ]
    assert_same(mapped(batch, at), torch.stack(one_by_one))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile(images):
    def noisy(x, image, sample):
        return ops.gaussian_noise(x, 3, 0.5, seed=1, image_offset=image, sample_offset=sample) + 0

    got = torch.compile(noisy, fullgraph=True)(images, *on("cpu", 2**40, 2**33))
    assert_same(got, noisy(images, 2**40, 2**33))


@pytest.mark.parametrize("name", ["image_offset", "sample_offset"])
@pytest.mark.parametrize("value", [torch.tensor([1]), torch.tensor(1.0), torch.tensor(1).int()])
@pytest.mark.parametrize("op", OPS)
def test_bad_offsets_are_named(op, value, name, images):
    with pytest.raises(ValueError, match=rf"{name}: got .* want a 0-d int64 tensor"):
        OPS[op](images, seed=1, **{name: value})
