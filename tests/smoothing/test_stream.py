"""The noise stream: known answers, golden vectors, distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from robustcore import _C, ops
from smoothing import stream

pytestmark = pytest.mark.kernel

# Random123, kat_vectors, philox4x32 10: counter, key, output.
RANDOM123 = [
    (
        [0, 0, 0, 0],
        0,
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
    ),
    (
        [0xFFFFFFFF] * 4,
        0xFFFFFFFFFFFFFFFF,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def noise(elements, samples=1, images=1, dtype=torch.float32, **kwargs):
    """z itself: zeros plus noise of level 1."""
    kwargs.setdefault("seed", 20190208)
    return ops.gaussian_noise(torch.zeros(images, elements, dtype=dtype), samples, 1.0, **kwargs)


@pytest.mark.parametrize(("counter", "key", "expected"), RANDOM123)
def test_philox_known_answers(counter, key, expected):
    assert _C.philox4x32(counter, key) == expected
    assert stream.philox4x32([[c] for c in counter], key).ravel().tolist() == expected


# (seed, image, sample, element) -> the bits of z as float32. They pin version 1 of the stream.
GOLDEN = [
    (0, 0, 0, 0, 0xBF7DBB31),
    (0, 0, 0, 1, 0x3F6CB6B0),
    (0, 0, 0, 2, 0xBF1E1BA0),
    (0, 0, 0, 3, 0xBEF6D1B3),
    (0, 0, 0, 63, 0x3D80444E),
    (1, 0, 0, 0, 0xBEC2C3E4),
    (0, 1, 0, 0, 0xBF88A6CB),
    (0, 0, 1, 0, 0xBF91747C),
    (20190208, 7, 99999, 3071, 0xBE513832),
    (2**64 - 1, 2**48 - 1, 2**40 - 1, 150527, 0x3E3EB307),
    (2**63, 2**32, 2**32, 5, 0xC010EAD2),
]


def test_golden_vectors(simd):
    simd()
    for seed, image, sample, element, bits in GOLDEN:
        z = noise(element + 1, seed=seed, image_offset=image, sample_offset=sample)[0, 0, element]
        assert z.view(torch.int32).item() & 0xFFFFFFFF == bits


@pytest.mark.parametrize(
    ("seed", "image", "sample"),
    [(0, 0, 0), (2**64 - 1, 2**48 - 1, 2**40 - 1), (1 << 40, 1 << 33, 3), (7, 5, (1 << 35) + 11)],
)
def test_matches_the_documentation(simd, seed, image, sample):
    simd()
    z = noise(4999, seed=seed, image_offset=image, sample_offset=sample)[0, 0].double().numpy()
    expected = stream.normals(seed, image, sample, 4999)
    # A few float32 roundings of a number of this size.
    assert (np.abs(z - expected) / np.maximum(np.abs(expected), 1)).max() < 1e-6


def test_every_index_changes_the_noise():
    base = dict(seed=3, image_offset=4, sample_offset=5)
    seen = [noise(64, **base)]
    for name in base:
        for step in (1, 2**32):
            seen.append(noise(64, **{**base, name: base[name] + step}))
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert (a != b).float().mean() > 0.95


@pytest.fixture(scope="module")
def many():
    """2**24 normals from 64 images, so that a flaw of any index would show."""
    return noise(2**12, samples=64, images=64).double().flatten().numpy()


def test_moments(many):
    n = many.size
    # Six standard errors: sqrt of the variance of z^k is sqrt((2k-1)!! - E[z^k]^2).
    for k, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)]:
        assert abs((many**k).mean() - moment) < 6 * np.sqrt(variance / n)


def test_kolmogorov_smirnov(many):
    assert stats.kstest(many[: 2**21], "norm").pvalue > 1e-4
    # The first normals of a counter and the last come from different words.
    for word in range(4):
        assert stats.kstest(many[word : 2**20 : 4], "norm").pvalue > 1e-4


@pytest.mark.parametrize("level", [3.0, 4.0, 5.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tails(many, level, sign):
    count = int((sign * many > level).sum())
    expected = many.size * stats.norm.sf(level)
    assert stats.poisson.cdf(count, expected) > 1e-5
    assert stats.poisson.sf(count - 1, expected) > 1e-5


def test_neighbours_are_uncorrelated(many):
    z = many.reshape(64, 64, 2**12)
    n = many.size
    pairs = [(z[..., :-1], z[..., 1:]), (z[:, :-1], z[:, 1:]), (z[:-1], z[1:])]
    pairs.append((z[..., 0::4], z[..., 1::4]))  # cosine and sine of one pair
    for a, b in pairs:
        assert abs((a * b).mean()) < 6 / np.sqrt(min(a.size, n))
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 12 / np.sqrt(a.size)


def test_largest_value_is_documented(many):
    # u >= 2**-33, so |z| <= sqrt(66 ln 2) = 6.77.
    assert np.abs(many).max() < 6.77
    assert np.isfinite(many).all()


def simd():
    simd()
