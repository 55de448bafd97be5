"""The ops: differentiable functions on tensors, CPU and CUDA, one module a family."""

from robustcore.ops.density import grad_norm, logsumexp
from robustcore.ops.density_linear import linear_logsumexp
from robustcore.ops.lipschitz import (
    conv_exp,
    conv_norm_bound,
    conv_spectral_bound,
    exp_series,
    householder,
    maxmin,
    projection_pool,
    skew_kernel,
)
from robustcore.ops.masking import (
    mask_multiply,
    mask_pool,
    masked_conv2d,
    masked_mean,
    masked_pool,
    neighbor_fill,
)
from robustcore.ops.smoothing import (
    count_votes,
    gaussian_noise,
    laplace_noise,
    splitting_levels,
    splitting_noise,
    uniform_noise,
)
from robustcore.ops.smoothing_ablation import ablate_patches, ablate_pixels

__all__ = [
    "ablate_patches",
    "ablate_pixels",
    "conv_exp",
    "conv_norm_bound",
    "conv_spectral_bound",
    "count_votes",
    "exp_series",
    "gaussian_noise",
    "grad_norm",
    "householder",
    "laplace_noise",
    "linear_logsumexp",
    "logsumexp",
    "mask_multiply",
    "mask_pool",
    "masked_conv2d",
    "masked_mean",
    "masked_pool",
    "maxmin",
    "neighbor_fill",
    "projection_pool",
    "skew_kernel",
    "splitting_levels",
    "splitting_noise",
    "uniform_noise",
]
