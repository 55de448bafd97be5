"""ops.uniform_noise, laplace_noise, splitting_noise: their streams, laws and derivatives."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustcore import ops
from smoothing import stream
from smoothing.inputs import DTYPES, SEED, images
from testing import assert_close, assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

DOMAIN = {"uniform": 1, "laplace": 2, "splitting": 3}
OPS = {kind: getattr(ops, f"{kind}_noise") for kind in DOMAIN}


def unit_noise(kind, image, sample, elements, seed=SEED):
    """One sample of the stream, in float64, from its documentation."""
    words = stream.words(seed, image, sample, elements, DOMAIN[kind]).astype(np.float64)
    if kind == "uniform":
        signed = np.where(words >= 2**31, words - 2**32, words)
        return (signed + 0.5) / 2**31
    if kind == "laplace":
        u = ((words * 2 % 2**32) + 1) / 2**32
        return np.where(words >= 2**31, 1, -1) * np.log(u)
    return (words + 0.5) / 2**32


def split(x, s, width):
    """Levine and Feizi's value of x in float64, by their two cases."""
    if width >= 1:
        return ((x > s) + np.minimum(s, 1)) / 2
    c = np.ceil((x - s) / width) * width + s
    return (np.minimum(c, 1) + np.maximum(c - width, 0)) / 2


def reference(kind, x, samples, scale, image_offset=0, sample_offset=0):
    out = []
    for b, image in enumerate(x.double().numpy()):
        flat = image.ravel()
        rows = []
        for s in range(samples):
            z = unit_noise(kind, image_offset + b, sample_offset + s, flat.size)
            rows.append(
                split(flat, 2 * scale * z, 2 * scale) if kind == "splitting" else flat + scale * z
            )
        out.append(np.stack(rows).reshape(samples, *image.shape))
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("kind", DOMAIN)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 5, 7), (2, 1, 8, 8), (3, 70)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference(kind, shape, dtype, device):
    x = images(*shape, dtype=dtype)
    offsets = dict(image_offset=2**33 + 1, sample_offset=2**32 + 5)
    for scale in (0.2, 0.9):
        got = OPS[kind](x.to(device), 3, scale, seed=SEED, **offsets)
        want = reference(kind, x, 3, scale, **offsets)
        assert got.shape == (shape[0], 3, *shape[1:])
        if kind == "splitting":  # a pixel at a threshold may fall to either side by rounding
            near = (got.cpu().double() - want).abs() < 1e-2
            assert near.double().mean() > 0.995
        else:
            assert_close(got, want, torch.float32 if dtype == torch.float64 else dtype)


@pytest.mark.parametrize("kind", DOMAIN)
def test_normalisation(kind):
    x = images(2, 3, 4, 4)
    plain = OPS[kind](x, 4, 0.3, seed=SEED).double()
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    got = OPS[kind](x, 4, 0.3, seed=SEED, mean=mean, std=std)
    view = (1, 1, 3, 1, 1)
    assert_close(got, (plain - mean.double().view(view)) / std.double().view(view))


GOLDEN = {
    "uniform": [
        "0x1.8d69540000000p-1",
        "-0x1.d4a0f00000000p-4",
        "0x1.6d6a5e0000000p-3",
        "0x1.4634460000000p-3",
        "0x1.adb3d40000000p-2",
        "-0x1.89b1b60000000p-3",
    ],
    "laplace": [
        "0x1.a8e4180000000p+0",
        "-0x1.b054160000000p-2",
        "0x1.a40c680000000p-1",
        "-0x1.cf8d3a0000000p-1",
        "-0x1.3667d80000000p+0",
        "0x1.39cd0e0000000p-3",
    ],
    "splitting": [
        "0x1.0000000000000p-1",
        "0x1.575b860000000p-2",
        "0x1.d1fbf00000000p-2",
        "0x1.694e540000000p-2",
        "0x1.154d700000000p-1",
        "0x1.3f21540000000p-1",
    ],
}


@pytest.mark.parametrize("kind", DOMAIN)
def test_golden(kind):
    # Pinned: within a major version no bit of a stream changes.
    got = OPS[kind](torch.full((1, 6), 0.5), 1, 0.75, seed=1, sample_offset=3).flatten()
    assert [v.hex() for v in got.tolist()] == GOLDEN[kind]


LAWS = {
    "uniform": stats.uniform(-1, 2).cdf,
    "laplace": stats.laplace.cdf,
}


@pytest.mark.parametrize("kind", ["uniform", "laplace"])
def test_law(kind):
    z = OPS[kind](torch.zeros(2, 3, 16, 16), 200, 1.0, seed=7).double()
    assert stats.kstest(z.flatten().numpy(), LAWS[kind]).pvalue > 1e-3
    assert stats.kstest(z[0, :, 0, 0, 0].numpy(), LAWS[kind]).pvalue > 1e-3
    rows = z.flatten(2)
    flat = rows.flatten(0, 1)
    correlation = np.corrcoef(flat.numpy().T)
    off = correlation[~np.eye(len(correlation), dtype=bool)]
    assert abs(off).max() < 5.5 / math.sqrt(len(flat))
    assert abs(float((z[0] * z[1]).mean())) < 0.02  # images differ
    if kind == "uniform":
        assert float(z.abs().max()) <= 1
        assert abs(float(z.var()) - 1 / 3) < 0.003
    else:
        assert float(z.abs().max()) < 22.2
        assert abs(float(z.var()) - 2) < 0.03
        assert abs(float((z > 3).double().mean()) - math.exp(-3) / 2) < 0.002


@pytest.mark.parametrize("scale", [0.1, 0.37, 0.5, 0.9, 2.0])
def test_splitting_law(scale):
    # The thresholds are uniform: the chance that a change of x is seen is its part of the width.
    for a, b in ((0.2, 0.25), (0.0, 0.15), (0.9, 1.0)):
        first, second = (
            ops.splitting_noise(torch.full((1, 64), v), 500, scale, seed=3) for v in (a, b)
        )
        differ = float((first != second).double().mean())
        chance = min(1, (b - a) / (2 * scale))
        assert abs(differ - chance) < 4.5 * math.sqrt(chance * (1 - chance) / 32000) + 1e-3
        assert float(first.min()) >= 0
        assert float(first.max()) <= 1


@pytest.mark.parametrize("levels", [3, 40, 254, 255, 300, 441, 1000])
def test_derandomized_splitting(levels, device):
    scale = levels / 510
    assert ops.splitting_levels(scale) == levels
    x = (torch.arange(256) / 255).view(1, 256)
    got = ops.splitting_noise(x.to(device), levels, scale, seed=5, derandomized=True).cpu()
    # Integers: thresholds (2 ((offset + i) mod L) + 1) in units of 1/510.
    numerator = got.double() * 1020
    assert float((numerator - numerator.round()).abs().max()) < 1e-3
    u = unit_noise("splitting", 0, 0, 256, seed=5).astype(np.float32)
    offset = np.minimum(np.floor(np.float32(levels) * u), levels - 1).astype(int)
    for i in range(levels):
        s = 2 * ((offset + i) % levels) + 1
        c = -((s - 2 * np.arange(256)) // (2 * levels)) * 2 * levels + s  # ceil, in integers
        want = np.minimum(c, 510) + np.maximum(c - 2 * levels, 0)
        np.testing.assert_array_equal(numerator[0, i].round().numpy(), want)
    # One level more or less changes no more than one of the samples: what the certificate says.
    same = ops.splitting_noise(
        torch.stack([x[0, 100:101], x[0, 101:102]]), levels, scale, seed=5, derandomized=True
    )
    assert int((same[0] != same[1]).sum()) <= 1


@pytest.mark.parametrize("levels", [7, 255, 441])
def test_one_level_changes_one_sample(levels):
    x = (torch.arange(256) / 255).view(256, 1)
    out = ops.splitting_noise(x, levels, levels / 510, seed=9, derandomized=True)
    changed = (out[1:] != out[:-1]).sum((1, 2))
    assert int(changed.max()) <= 1


@pytest.mark.parametrize("kind", DOMAIN)
def test_layouts_splits_threads(kind, device):
    x = images(2, 3, 5, 7).to(device)
    expected = OPS[kind](x, 6, 0.3, seed=SEED, std=0.4)
    for laid in relayouts(x).values():
        assert_same(OPS[kind](laid, 6, 0.3, seed=SEED, std=0.4), expected)
    last = OPS[kind](x, 6, 0.3, seed=SEED, std=0.4, memory_format=torch.channels_last)
    assert last.view(-1, 3, 5, 7).is_contiguous(memory_format=torch.channels_last)
    assert_same(last, expected)
    for b in range(2):
        part = OPS[kind](x[b : b + 1], 2, 0.3, seed=SEED, std=0.4, image_offset=b, sample_offset=3)
        assert_same(part, expected[b : b + 1, 3:5])
    buffer = torch.empty_like(expected)
    OPS[kind](x, 6, 0.3, seed=SEED, std=0.4, out=buffer)
    assert_same(buffer, expected)
    if device.type == "cpu":
        check_repeatable(lambda: OPS[kind](images(3, 3, 32, 32), 40, 0.3, seed=SEED))


def test_instruction_sets_agree(simd):
    def run():
        for kind, op in OPS.items():
            for shape in ((2, 3, 5, 7), (1, 3000)):
                for dtype in DTYPES:
                    yield op(images(*shape), 3, 0.3, seed=SEED, std=0.7, mean=0.2, dtype=dtype)
            if kind != "splitting":
                x = images(2, 3, 4, 4).requires_grad_()
                level = torch.tensor(0.4, requires_grad=True)
                op(x, 40, level, seed=SEED).square().sum().backward()
                yield from (x.grad, level.grad)
        yield ops.splitting_noise(images(2, 50), 20, 0.3, seed=1, derandomized=True)

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", DOMAIN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_agree_to_the_bit(kind, dtype):
    for shape in ((2, 3, 5, 7), (1, 3, 32, 32), (2, 1, 8, 8)):
        x = images(*shape, dtype=dtype)
        cpu = OPS[kind](x, 37, 0.3, seed=SEED, mean=0.4, std=0.3)
        assert_same(OPS[kind](x.cuda(), 37, 0.3, seed=SEED, mean=0.4, std=0.3).cpu(), cpu)


@pytest.mark.parametrize("kind", ["uniform", "laplace"])
def test_gradients(kind):
    x, scale, mean, std = (
        (images(*shape, seed=i).double() + low).requires_grad_()
        for i, (shape, low) in enumerate([((2, 3, 2, 2), 0), ((2,), 0.1), ((3,), 0), ((3,), 0.5)])
    )
    check_gradients(
        lambda x, scale, mean, std: OPS[kind](x, 3, scale, seed=SEED, mean=mean, std=std),
        x, scale, mean, std,
    )  # fmt: skip


def test_splitting_records_no_gradient():
    x = images(1, 3, 4, 4).requires_grad_()
    assert not ops.splitting_noise(x, 2, 0.3, seed=1).requires_grad


@pytest.mark.parametrize("kind", DOMAIN)
def test_opcheck_and_transforms(kind):
    op = getattr(torch.ops.robustcore, f"{kind}_noise").default
    level = (0.5, 0) if kind == "splitting" else (0.5, None)
    torch.library.opcheck(
        op, (images(2, 3, 4, 5), 3, *level, None, None, 9, 0, 0, None, None, torch.float32, True)
    )
    batch = images(2, 2, 3, 4, 4)
    mapped = torch.func.vmap(lambda x: OPS[kind](x, 3, 0.5, seed=SEED))(batch)
    assert_same(mapped, torch.stack([OPS[kind](x, 3, 0.5, seed=SEED) for x in batch]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert OPS[kind](batch[0], 2, 0.5, seed=SEED).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DOMAIN)
def test_compile(kind):
    def loss(x, offset):
        return OPS[kind](2 * x, 3, 0.4, seed=SEED, sample_offset=offset).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    for offset in (0, 4):
        x = images(2, 3, 4, 4).requires_grad_()
        torch.testing.assert_close(compiled(x, offset), loss(x, offset))


@pytest.mark.parametrize("kind", DOMAIN)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scale=-1.0), "scale: got -1"),
        (dict(scale=float("nan")), "scale: got nan"),
        (dict(num_samples=-1), "num_samples: got -1"),
        (dict(seed=-1), "seed: got -1"),
        (dict(image_offset=-1), "image_offset: got -1"),
        (dict(sample_offset=2**40), "sample_offset"),
        (dict(std=[0.1, 0.2]), "std: got shape"),
        (dict(x=torch.zeros(2, 3, dtype=torch.uint8)), "x: got torch.uint8"),
        (dict(out=torch.empty(2, 2, 3)), "out: got shape"),
    ],
)
def test_bad_input(kind, change, message):
    arguments = {"x": images(2, 3, 4, 4), "num_samples": 2, "scale": 0.5, "seed": 1, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        OPS[kind](**arguments)


def test_bad_derandomized():
    x = images(1, 4)
    with pytest.raises(ValueError, match="there are 102 levels"):
        ops.splitting_noise(x, 103, 0.2, seed=1, derandomized=True)
    with pytest.raises(ValueError, match=r"scale: got 0\.001"):
        ops.splitting_noise(x, 1, 0.001, seed=1, derandomized=True)
