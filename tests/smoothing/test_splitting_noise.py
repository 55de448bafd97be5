"""ops.splitting_noise: its stream, law and derandomized thresholds."""

import math

import numpy as np
import pytest
import torch

from robustcore import ops
from smoothing.inputs import images
from smoothing.noise_tests import NoiseTests, unit_noise

pytestmark = pytest.mark.kernel


class TestSplittingNoise(NoiseTests):
    kind = "splitting"
    golden = (
        "0x1.0000000000000p-1",
        "0x1.575b860000000p-2",
        "0x1.d1fbf00000000p-2",
        "0x1.694e540000000p-2",
        "0x1.154d700000000p-1",
        "0x1.3f21540000000p-1",
    )

    def samples(self):
        yield from super().samples()
        yield ops.splitting_noise(images(2, 50), 20, 0.3, seed=1, derandomized=True)


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


def test_splitting_records_no_gradient():
    x = images(1, 3, 4, 4).requires_grad_()
    assert not ops.splitting_noise(x, 2, 0.3, seed=1).requires_grad


def test_bad_derandomized():
    x = images(1, 4)
    with pytest.raises(ValueError, match="there are 102 levels"):
        ops.splitting_noise(x, 103, 0.2, seed=1, derandomized=True)
    with pytest.raises(ValueError, match=r"scale: got 0\.001"):
        ops.splitting_noise(x, 1, 0.001, seed=1, derandomized=True)
