"""Ops of the lipschitz family: exponentials of convolutions, maps of channel pairs, norm bounds."""

from robustcore.ops.lipschitz.conv_exp import conv_exp
from robustcore.ops.lipschitz.kernels import (
    SkewKernel,
    conv_norm_bound,
    conv_spectral_bound,
    skew_kernel,
)
from robustcore.ops.lipschitz.pairs import householder, maxmin, projection_pool
from robustcore.ops.lipschitz.series import Series, exp_series

__all__ = [
    "Series",
    "SkewKernel",
    "conv_exp",
    "conv_norm_bound",
    "conv_spectral_bound",
    "exp_series",
    "householder",
    "maxmin",
    "projection_pool",
    "skew_kernel",
]
