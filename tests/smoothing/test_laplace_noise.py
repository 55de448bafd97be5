"""ops.laplace_noise: its stream, law and derivatives."""

import math

import pytest
from scipy import stats

from smoothing.noise_tests import AddedNoise

pytestmark = pytest.mark.kernel


class TestLaplaceNoise(AddedNoise):
    kind = "laplace"
    golden = (
        "0x1.a8e4180000000p+0",
        "-0x1.b054160000000p-2",
        "0x1.a40c680000000p-1",
        "-0x1.cf8d3a0000000p-1",
        "-0x1.3667d80000000p+0",
        "0x1.39cd0e0000000p-3",
    )
    law = staticmethod(stats.laplace.cdf)

    def check_moments(self, z):
        assert float(z.abs().max()) < 22.2
        assert abs(float(z.var()) - 2) < 0.03
        assert abs(float((z > 3).double().mean()) - math.exp(-3) / 2) < 0.002
