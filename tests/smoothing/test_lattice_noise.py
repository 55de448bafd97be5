"""Noise on a lattice: its exact distribution, its stream, and that outputs are integers' images."""

import math

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy import stats

from robustcore import ops
from robustcore.ops.smoothing.lattice import lattice_table
from smoothing import stream
from testing import assert_same, check_repeatable, needs_vectors, relayouts

pytestmark = pytest.mark.kernel

KINDS = ("gaussian", "uniform", "laplace")
SIGMA = 0.25
MIDDLE, LOW = 9, 10  # domains of the words that 31 bits leave to decide, csrc/common/stream.h
DOMAIN = {"gaussian": 6, "uniform": 7, "laplace": 8}


def images(*shape, q=255, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, q + 1, shape, generator=generator) / q


def noise_of(out, x, q=255):
    """N itself, out of samples and images on the grid q."""
    return (out.double() * q).round() - (x.double() * q).round().unsqueeze(1)


def exact(kind, sigma, q, words):
    """N of 96-bit words, by bisection in exact arithmetic."""
    table = lattice_table(kind, sigma, q).thresholds.numpy().view(np.uint32).astype(object)
    thresholds = [(int(a) << 64) | (int(b) << 32) | int(c) for a, b, c in table]
    result = []
    for word in words:
        value = word & ((1 << 95) - 1)
        low, high = 0, len(thresholds)
        while low < high:
            middle = (low + high) // 2
            if thresholds[middle] <= value:
                low = middle + 1
            else:
                high = middle
        result.append(-low if word >> 95 else low)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sigma", "grid"), [(0.25, 255), (1.0, 255), (0.12, (255, 3)), (0.001, 255), (0.2, 65535)]
)
def test_table_is_the_distribution(kind, sigma, grid):
    table = lattice_table(kind, sigma, grid)
    q, m = grid if isinstance(grid, tuple) else (grid, 1)
    values = table.thresholds.numpy().view(np.uint32)
    with mp.workprec(300):
        width = mp.mpf(sigma) * q * m
        some = {0, 1, len(values) - 1, *np.linspace(0, len(values) - 1, 40).astype(int).tolist()}
        for k in some & set(range(len(values))):
            border = k + mp.mpf(1) / 2
            want = {
                "gaussian": lambda v: 1 - 2 * mp.ncdf(-v / width),
                "uniform": lambda v: min(v / width, mp.mpf(1)),
                "laplace": lambda v: 1 - mp.exp(-v / width),
            }[kind](border)
            got = mp.mpf((int(values[k, 0]) << 64) | (int(values[k, 1]) << 32) | int(values[k, 2]))
            assert abs(got - mp.ldexp(want, 95)) <= 1
    assert 0 < table.total_variation < 1e-22


def check_words(kind, sigma, first, units):
    table = lattice_table(kind, sigma, 255)
    check = getattr(torch.ops.robustcore, f"lattice_{kind}_check")
    unsure, wrong = check(table.thresholds, table.spread, first, units).tolist()
    assert wrong == 0
    return unsure


every_law = pytest.mark.parametrize(
    ("kind", "sigma"),
    [("gaussian", 0.12), ("gaussian", 1.0), ("uniform", 0.5), ("laplace", 0.25)],
)


# Five seconds each with vectors; the baseline (AVX2's formula without fma) takes minutes.
@pytest.mark.slow
@needs_vectors
@every_law
def test_decisions_are_exact_for_all_words(kind, sigma):
    assert 0 < check_words(kind, sigma, 0, 2**11) < 2**31 * 0.01


@every_law
@pytest.mark.parametrize("unit", [0, 1024, 2047])
def test_decisions_are_exact_in_the_middle_and_in_the_tail(simd, kind, sigma, unit):
    simd()
    check_words(kind, sigma, unit, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.02, 0.25, 1.0])
def test_every_sample_is_the_exact_one(simd, kind, sigma):
    simd()
    n = 1024
    x = images(2, n)
    out = ops.lattice_noise(
        x, 3, sigma, kind=kind, seed=2**63 + 5, image_offset=2**33, sample_offset=2**34
    )
    got = noise_of(out, x)
    for b, s in ((0, 0), (1, 2)):
        rows = [
            stream.words(2**63 + 5, 2**33 + b, 2**34 + s, n, domain)
            for domain in (DOMAIN[kind], MIDDLE, LOW)
        ]
        words = [
            (int(h) << 64) | (int(m) << 32) | int(low) for h, m, low in zip(*rows, strict=True)
        ]
        assert got[b, s].tolist() == exact(kind, sigma, 255, words)


def test_words_that_31_bits_leave_open():
    # A threshold inside the bucket of one word: only the next 64 bits decide. At such a spread the
    # float approximation is never sure.
    seed, n = 11, 64
    rows = [stream.words(seed, 0, 0, n, domain) for domain in (6, MIDDLE, LOW)]
    element = 17
    high, middle, low = (int(row[element]) for row in rows)
    exactly = [[high & 0x7FFFFFFF, middle, low]]
    above = [[high & 0x7FFFFFFF, middle, low + 1]]
    x = torch.zeros(1, n)
    for thresholds, count in ((exactly, 1), (above, 0)):
        t = torch.tensor(thresholds)
        t = torch.where(t >= 2**31, t - 2**32, t).int()
        out = torch.ops.robustcore.lattice_gaussian_noise(
            x, 1, t, 1e7, 1.0, 1.0, None, None, seed, 0, 0, None, None, torch.float32, False
        )
        assert abs(out[0, 0, element].item()) == count


# (kind, seed, image, sample, element) -> N at sigma 1 on the grid 255: version 1 of the streams.
GOLDEN = {
    ("gaussian", 0, 0, 0, 0): -12,
    ("gaussian", 0, 0, 0, 3): -117,
    ("gaussian", 1, 0, 0, 63): 78,
    ("gaussian", 20190208, 7, 99999, 3071): 56,
    ("gaussian", 2**64 - 1, 2**48 - 1, 2**40 - 1, 150527): -182,
    ("uniform", 0, 0, 0, 0): 174,
    ("uniform", 2**63, 2**32, 2**32, 5): -234,
    ("laplace", 0, 0, 0, 0): -108,
    ("laplace", 20190208, 7, 99999, 3071): 371,
    # V within 3 / 2^31 of 1, where a float approximation may be anything, -22 000 steps too.
    ("gaussian", 1, 0, 12270208, 3): -1552,
    ("gaussian", 1, 0, 135787257, 3): 1570,
}


def test_golden_vectors(simd):
    simd()
    for (kind, seed, image, sample, element), want in GOLDEN.items():
        x = torch.zeros(1, element + 1)
        out = ops.lattice_noise(
            x, 1, 1.0, kind=kind, seed=seed, image_offset=image, sample_offset=sample
        )
        assert noise_of(out, x)[0, 0, element] == want


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies(kind):
    sigma = 0.015  # about 4 steps
    x = torch.zeros(1, 1 << 20)
    n = noise_of(ops.lattice_noise(x, 1, sigma, kind=kind, seed=3), x).flatten()
    assert torch.equal(n, n.round())
    s = sigma * 255
    law = {
        "gaussian": stats.norm(scale=s),
        "uniform": stats.uniform(-s, 2 * s),
        "laplace": stats.laplace(scale=s),
    }[kind]
    steps = np.arange(-8, 9)
    borders = np.concatenate([[-np.inf], steps[:-1] + 0.5, [np.inf]])
    expected = np.diff(law.cdf(borders)) * n.numel()
    seen = np.histogram(n.numpy(), bins=np.concatenate([[-1e9], steps[:-1] + 0.5, [1e9]]))[0]
    keep = expected > 0
    assert seen[~keep].sum() == 0
    assert stats.chisquare(seen[keep], expected[keep]).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("grid", [255, (255, 16), 65535])
def test_output_is_a_function_of_the_integer(dtype, grid):
    q, m = grid if isinstance(grid, tuple) else (grid, 1)
    x = images(2, 3, 8, 8, q=q)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    plain = ops.lattice_noise(x, 5, 0.01, grid=grid, seed=1, dtype=torch.float64)
    integer = (plain * (q * m)).round()
    assert (plain * (q * m) - integer).abs().max() < 1e-6
    out = ops.lattice_noise(x, 5, 0.01, grid=grid, seed=1, mean=mean, std=std, dtype=dtype)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    mean, std = (torch.tensor(v).to(arithmetic).view(3, 1, 1) for v in (mean, std))
    gain, shift = 1 / (q * m * std), -mean / std
    reference = torch.addcmul(shift.double(), gain.double(), integer).to(arithmetic).to(dtype)
    if dtype == torch.float64:
        torch.testing.assert_close(out, reference, rtol=1e-14, atol=1e-14)
    else:
        assert_same(out, reference)


def test_images_a_step_apart_share_their_samples():
    # What makes certificates exact: x + 1/255 gives the same integers, moved by one.
    x = images(1, 3, 16, 16) * (254 / 255)
    x = (x * 255).round() / 255
    a = ops.lattice_noise(x, 50, SIGMA, seed=5, dtype=torch.float64) * 255
    b = ops.lattice_noise(x + 1 / 255, 50, SIGMA, seed=5, dtype=torch.float64) * 255
    assert torch.equal(b.round() - a.round(), torch.ones_like(a))


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_batches_and_threads(kind):
    x = images(4, 3, 9, 7)
    kwargs = dict(kind=kind, seed=9)
    whole = ops.lattice_noise(x, 70, SIGMA, **kwargs)
    for layout in relayouts(x).values():
        assert_same(ops.lattice_noise(layout, 70, SIGMA, **kwargs), whole)
    part = ops.lattice_noise(x[1:3], 30, SIGMA, image_offset=1, sample_offset=40, **kwargs)
    assert_same(part, whole[1:3, 40:])
    last = ops.lattice_noise(x, 70, SIGMA, memory_format=torch.channels_last, **kwargs)
    assert_same(last.contiguous(), whole)
    out = torch.empty_like(whole)
    assert ops.lattice_noise(x, 70, SIGMA, out=out, **kwargs) is out
    assert_same(out, whole)
    check_repeatable(lambda: ops.lattice_noise(x, 70, SIGMA, **kwargs))


def test_compiles_and_vmaps():
    x = images(3, 2, 8)
    compiled = torch.compile(
        lambda x: ops.lattice_noise(x, 4, SIGMA, seed=1), fullgraph=True, backend="aot_eager"
    )
    assert_same(compiled(x), ops.lattice_noise(x, 4, SIGMA, seed=1))
    mapped = torch.func.vmap(lambda x: ops.lattice_noise(x, 4, SIGMA, seed=1))(x)
    assert_same(mapped, torch.stack([ops.lattice_noise(v, 4, SIGMA, seed=1) for v in x]))
    torch.library.opcheck(
        torch.ops.robustcore.lattice_gaussian_noise.default,
        (x, 4, lattice_table("gaussian", SIGMA, 255).thresholds, SIGMA * 255, 255.0, 1.0, None,
         None, 1, 0, 0, None, None, torch.float32, False),
    )  # fmt: skip


def test_no_gradient_is_recorded():
    x = images(1, 8).requires_grad_()
    assert not ops.lattice_noise(x, 2, SIGMA, seed=1).requires_grad


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("sigma", dict(sigma=0.0)),
        ("sigma", dict(sigma=math.nan)),
        ("sigma", dict(sigma=torch.tensor(0.5))),
        ("sigma", dict(sigma=1e6)),
        ("grid", dict(grid=0)),
        ("grid", dict(grid=2**24)),
        ("grid", dict(grid=(255, 2**17))),
        ("grid", dict(grid="255")),
        ("grid", dict(grid=(255, 1, 1))),
        ("grid", dict(grid=(2**24 - 2, 1), sigma=1e-6)),
        ("kind", dict(kind="cauchy")),
        ("num_samples", dict(num_samples=-1)),
        ("x", dict(x=torch.zeros(3, dtype=torch.int64))),
    ],
)
def test_bad_input(name, kwargs):
    arguments = dict(x=torch.zeros(1, 4), num_samples=2, sigma=0.25, seed=0) | kwargs
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        ops.lattice_noise(**arguments)
