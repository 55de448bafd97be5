"""Bounds of the Hessian of a smooth perceptron's margins, over the whole input space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustcore.lipschitz.curvature.mlp import Mlp

# (weight, [P, out] of diagonals d >= 0) -> [P], of weight^T diag(d) weight
Largest = Callable[[Tensor, Tensor], Tensor]


def most_negative(net: Mlp, rows: Tensor, largest: Largest) -> Tensor:
    """``m >= 0`` with ``Hessian >= -m I`` everywhere.

    The Hessian of a margin is the sum over the activations k of ``J_k^T diag(F_k a_k'') J_k``, J_k
    the Jacobian of what enters them and F_k the margin's gradient in what leaves them. Intervals of
    F_k follow from those of the slopes, from the last layer down; ``J_1`` is the first weight, and
    from then on ``J_k = W_k diag(a') J_(k-1)``, whose inner factor ``W_k^T diag(.) W_k`` counts by
    its largest eigenvalue and the rest by its norm.

    Args:
        rows: ``[P, hidden]``, the last layer's row of one class less that of another.
        largest: eigenvalues, as upper bounds for a certificate.

    Returns:
        ``[P]``. Source: Singla and Feizi, "Second-order provable defenses", 2020, made tighter by
        the signs of F_k.
    """
    low = high = rows
    total = rows.new_zeros(len(rows))
    for k in reversed(range(len(net.activations))):
        activation, weight = net.activations[k], net.weights[k]
        least, most = activation.bend
        ends = torch.stack([low * least, low * most, high * least, high * most])
        term = largest(weight, (-ends).amax(0).clamp(min=0))
        total = total + term * _jacobian_norm(net, k, largest) ** 2
        if k > 0:
            low = low.clamp(max=0) * activation.max_slope
            high = high.clamp(min=0) * activation.max_slope
            positive, negative = weight.clamp(min=0), weight.clamp(max=0)
            low, high = low @ positive + high @ negative, high @ positive + low @ negative
    # The intervals are sums of terms of one sign: rounding moves them by far less than this.
    return total * (1 + 1e-9)


def _jacobian_norm(net: Mlp, k: int, largest: Largest) -> Tensor:
    """Of what enters weight k, as a function of the input."""
    norm = net.weights[0].new_ones(())
    for weight, activation in zip(net.weights[:k], net.activations[:k], strict=True):
        ones = weight.new_ones(1, len(weight))
        norm = norm * largest(weight, ones)[0].sqrt() * activation.max_slope
    return norm


def upper_eigenvalues(weight: Tensor, diagonals: Tensor) -> Tensor:
    """Never below the largest eigenvalues of ``weight^T diag(d) weight``, in float64.

    An estimate is raised until a Cholesky factorisation of ``bound I - matrix`` succeeds; the
    rounding errors of the product and the factorisation (Rump, "Verification of positive
    definiteness", 2006) are added.
    """
    gram = weight @ weight.T if len(weight) <= weight.shape[1] else None
    found = []
    for d in diagonals:
        kept = d > 0
        if not bool(kept.any()):
            found.append(0.0)
            continue
        root, rows = d[kept].sqrt(), weight[kept]
        if gram is not None:
            matrix = root[:, None] * gram[kept][:, kept] * root
        else:
            scaled = root[:, None] * rows
            matrix = scaled.T @ scaled if len(rows) > rows.shape[1] else scaled @ scaled.T
        found.append(_verified(matrix, sum(weight.shape), float(root**2 @ rows.square().sum(1))))
    return weight.new_tensor(found)


def _verified(matrix: Tensor, terms: int, trace: float) -> float:
    """Above the largest eigenvalue of what ``matrix`` is but for rounding, of sums of ``terms``."""
    # Above 0, which no factor raises, where all rows are zero.
    estimate, size = max(float(_rayleigh(matrix)), 1e-300), len(matrix)
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    raised = 1e-4
    while math.isfinite(estimate):
        bound = estimate * (1 + raised)
        if not torch.linalg.cholesky_ex(bound * identity - matrix)[1]:
            epsilon = torch.finfo(matrix.dtype).eps
            return bound + epsilon * (4 * terms * trace + size * (size + 4) * bound)
        raised *= 4
    return math.inf


def _rayleigh(matrix: Tensor, steps: int = 40) -> Tensor:
    """An estimate from below, by power iteration from the largest row."""
    v = matrix[matrix.diagonal().argmax()]
    for _ in range(steps):
        v = matrix @ v
        v = v / torch.linalg.vector_norm(v).clamp(min=1e-300)
    return v @ matrix @ v


def estimated_eigenvalues(weight: Tensor, diagonals: Tensor, steps: int = 10) -> Tensor:
    """The same estimated from below by power iteration, differentiable."""
    with torch.no_grad():
        v = diagonals.sqrt() @ weight  # a vector that no sign cancels
        for _ in range(steps):
            v = (v @ weight.T * diagonals) @ weight
            v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-30)
    return ((v @ weight.T).square() * diagonals).sum(1)
