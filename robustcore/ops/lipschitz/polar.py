"""Orthonormal matrices from free ones: polar factor, basis of the columns, Cayley transform."""

from __future__ import annotations

import torch
from torch import Tensor

# Newton's steps after the decomposition: each squares the error, eps times the square of the
# condition number before the first.
_STEPS = 2
# On the CPU, torch's LU of a batch of wide matrices gives wrong numbers on two threads and more
# (torch 2.13 with MKL: residuals above 1 at 256 x 256, right at 128); of one matrix it is right.
_WIDEST_BATCHED = 64


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix ``[..., m, n]`` with orthonormal columns, or rows where m < n.

    ``M (M^T M)^(-1/2)``, by one decomposition of the smaller Gram matrix. Backward solves the
    equation that the factor fulfils, in the same basis, and goes through no iteration.
    Differentiable to any order. Directions that M lacks are shortened, in the value and in the
    gradient: the norm is at most 1 up to rounding, whatever M.
    Source: Higham, "Computing the polar decomposition, with applications", 1986.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return polar_factor(matrix.mT).mT
    factor: Tensor = _Polar.apply(_unit_scale(matrix))[0]
    return factor


def orthonormal_basis(matrix: Tensor) -> Tensor:
    """``[..., m, n]``, m >= n, with orthonormal columns that span those of ``matrix``.

    Two Cholesky factorisations of the Gram matrix: the second one removes what rounding left.
    """
    if matrix.numel() == 0:
        return matrix
    basis = _unit_scale(matrix)
    eps = torch.finfo(matrix.dtype).eps
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(2):
        gram = basis.mT @ basis
        # So little that dependent columns have a factor too; they come out shorter.
        size = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=eps)[..., None, None]
        lower, _ = torch.linalg.cholesky_ex(gram + eps * size * identity)
        basis = torch.linalg.solve_triangular(lower, basis.mT, upper=False).mT
    return basis


def cayley(matrix: Tensor) -> Tensor:
    """``[..., m, n]`` with orthonormal columns, or rows where m < n, by one solve; complex too.

    The upper square U and the rest V of a tall matrix give ``A = U - U^* + V^* V`` and ``[(I - A)
    (I + A)^(-1); -2 V (I + A)^(-1)]``. Differentiable to any order.
    Source: Trockman and Kolter, 2021.
    """
    rows, columns = matrix.shape[-2:]
    if rows < columns:
        return cayley(matrix.mH).mH
    upper, rest = matrix[..., :columns, :], matrix[..., columns:, :]
    identity = torch.eye(columns, dtype=matrix.dtype, device=matrix.device)
    skewed = upper - upper.mH + rest.mH @ rest
    numerator = torch.cat([identity - skewed, -2 * rest], -2)
    return _solved(identity + skewed, numerator)


def distance(matrix: Tensor) -> float:
    """How far the columns, or rows, are from orthonormal: ``norm(U^* U - I)``, over the batch.

    Its Frobenius norm, which is no smaller. The norm of U is at most ``sqrt(1 + distance)``.
    """
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mH
    gram = tall.mH @ tall
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return float(torch.linalg.matrix_norm(gram).max()) if gram.numel() else 0.0


def _solved(left: Tensor, right: Tensor) -> Tensor:
    """X with ``X left = right``, over leading dimensions."""
    if left.dim() == 2 or left.shape[-1] <= _WIDEST_BATCHED or left.device.type != "cpu":
        return torch.linalg.solve(left, right, left=False)
    pairs = zip(left.flatten(0, -3).unbind(), right.flatten(0, -3).unbind(), strict=True)
    each = [torch.linalg.solve(*pair, left=False) for pair in pairs]
    return torch.stack(each).view(right.shape)


def _unit_scale(matrix: Tensor) -> Tensor:
    """The matrix over its largest entry: what does not depend on its scale cannot overflow."""
    largest = matrix.detach().abs().amax((-2, -1), keepdim=True)
    return matrix / largest.where(largest > 0, 1)


class _Polar(torch.autograd.Function):
    """The factor U, and the eigenvectors and eigenvalues of H = (M^T M)^(1/2) = U^T M."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix):
        squares, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        least = torch.finfo(matrix.dtype).eps * squares[..., -1:].clamp(min=1)  # but of zeros it is
        values = torch.maximum(squares, least).sqrt()
        factor = (matrix @ (vectors / values[..., None, :])) @ vectors.mT
        for _ in range(_STEPS):
            factor = 1.5 * factor - 0.5 * factor @ (factor.mT @ factor)
        return factor, vectors, values

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx, grad, *_):
        matrix, factor, vectors, values = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: as functions of the matrix
            factor = _Polar.apply(matrix)[0]
        stretch = factor.mT @ matrix
        inner = factor.mT @ grad
        turn = _Sylvester.apply(stretch, inner - inner.mT, vectors, values)
        grad_matrix = factor @ turn
        if matrix.shape[-2] > matrix.shape[-1]:
            twice = 2 * (grad - factor @ inner)  # of Y with H Y + Y H = 2: the inverse of H
            identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            inverse = _Sylvester.apply(stretch, identity.expand_as(stretch), vectors, values)
            grad_matrix = grad_matrix + twice @ inverse
        return grad_matrix


class _Sylvester(torch.autograd.Function):
    """Y with ``H Y + Y H = C``, from the eigenvectors and eigenvalues of H."""

    generate_vmap_rule = True

    @staticmethod
    def forward(stretch, right, vectors, values):
        sums = values[..., :, None] + values[..., None, :]
        return vectors @ ((vectors.mT @ right @ vectors) / sums) @ vectors.mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        stretch, _, vectors, values = inputs
        ctx.save_for_backward(stretch, vectors, values, output)

    @staticmethod
    def backward(ctx, grad):
        stretch, vectors, values, solution = ctx.saved_tensors
        grad_right = _Sylvester.apply(stretch, grad, vectors, values)
        grad_stretch = -(grad_right @ solution.mT + solution.mT @ grad_right)
        return grad_stretch, grad_right, None, None
