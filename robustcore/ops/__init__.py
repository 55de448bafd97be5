"""The ops: differentiable functions on tensors, CPU and CUDA, one module a family."""

from robustcore.ops.density import grad_norm, logsumexp
from robustcore.ops.density_linear import linear_logsumexp
from robustcore.ops.smoothing import count_votes, gaussian_noise

__all__ = ["count_votes", "gaussian_noise", "grad_norm", "linear_logsumexp", "logsumexp"]
