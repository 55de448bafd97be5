"""The ops: differentiable functions on tensors, CPU and CUDA, a folder a family, a file a topic."""

from robustcore.ops.attacks.apgd import apgd_step
from robustcore.ops.attacks.hyperplane import hyperplane_projection
from robustcore.ops.attacks.loss import attack_loss
from robustcore.ops.attacks.perceptual import perceptual_distance
from robustcore.ops.attacks.square import square_propose, square_start
from robustcore.ops.attacks.start import random_start
from robustcore.ops.attacks.step import attack_step, project
from robustcore.ops.attacks.warp import spatial_warp
from robustcore.ops.attacks.watch import attack_watch
from robustcore.ops.density.attention import attention
from robustcore.ops.density.grad_norm import grad_norm
from robustcore.ops.density.linear_logsumexp import linear_logsumexp
from robustcore.ops.density.logsumexp import logsumexp
from robustcore.ops.influence.projection import (
    random_projection,
    random_projection_transposed,
)
from robustcore.ops.lipschitz.conv_exp import conv_exp
from robustcore.ops.lipschitz.norm_bounds import conv_norm_bound, conv_spectral_bound
from robustcore.ops.lipschitz.pairs import householder, maxmin, projection_pool
from robustcore.ops.lipschitz.series import exp_series
from robustcore.ops.lipschitz.skew import skew_kernel
from robustcore.ops.masking.epilogue import mask_multiply
from robustcore.ops.masking.fill import neighbor_fill
from robustcore.ops.masking.masked_conv2d import masked_conv2d
from robustcore.ops.masking.pools import mask_pool, masked_mean, masked_pool
from robustcore.ops.smoothing.ablation import ablate_patches, ablate_pixels
from robustcore.ops.smoothing.lattice import lattice_noise
from robustcore.ops.smoothing.mean_softmax import mean_softmax
from robustcore.ops.smoothing.noise import (
    gaussian_noise,
    laplace_noise,
    splitting_levels,
    splitting_noise,
    uniform_noise,
)
from robustcore.ops.smoothing.pixel_votes import add_pixel_votes
from robustcore.ops.smoothing.votes import count_votes

__all__ = [
    "ablate_patches",
    "ablate_pixels",
    "add_pixel_votes",
    "apgd_step",
    "attack_loss",
    "attack_step",
    "attack_watch",
    "attention",
    "conv_exp",
    "conv_norm_bound",
    "conv_spectral_bound",
    "count_votes",
    "exp_series",
    "gaussian_noise",
    "grad_norm",
    "householder",
    "hyperplane_projection",
    "laplace_noise",
    "lattice_noise",
    "linear_logsumexp",
    "logsumexp",
    "mask_multiply",
    "mask_pool",
    "masked_conv2d",
    "masked_mean",
    "masked_pool",
    "maxmin",
    "mean_softmax",
    "neighbor_fill",
    "perceptual_distance",
    "project",
    "projection_pool",
    "random_projection",
    "random_projection_transposed",
    "random_start",
    "skew_kernel",
    "spatial_warp",
    "splitting_levels",
    "splitting_noise",
    "square_propose",
    "square_start",
    "uniform_noise",
]
