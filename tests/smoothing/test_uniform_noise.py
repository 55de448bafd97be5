"""ops.uniform_noise: its stream, law and derivatives."""

import pytest
from scipy import stats

from smoothing.noise_tests import AddedNoise

pytestmark = pytest.mark.kernel


class TestUniformNoise(AddedNoise):
    kind = "uniform"
    golden = (
        "0x1.8d69540000000p-1",
        "-0x1.d4a0f00000000p-4",
        "0x1.6d6a5e0000000p-3",
        "0x1.4634460000000p-3",
        "0x1.adb3d40000000p-2",
        "-0x1.89b1b60000000p-3",
    )
    law = staticmethod(stats.uniform(-1, 2).cdf)

    def check_moments(self, z):
        assert float(z.abs().max()) <= 1
        assert abs(float(z.var()) - 1 / 3) < 0.003
