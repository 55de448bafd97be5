"""Products with a random matrix that is a function of its seed and never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, needs_grad, raw, register_rows
from robustcore.ops.checks import check_floating, check_integer

KINDS = ("rademacher", "normal")

_projection = raw.random_projection.default
_transposed = raw.random_projection_transposed.default


def random_projection(
    x: Tensor,
    k: int,
    *,
    seed: int,
    row_offset: int = 0,
    kind: str = "rademacher",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Each row of x times a random matrix P ``[D, k]``: ``x @ P``, and P is never in memory.

    Entry (i, c) of the matrix depends on seed, ``row_offset + i``, c and kind alone, so it is the
    same on the CPU and on CUDA, in any batch and in any piece of x: parameters projected one by
    one, each with the ``row_offset`` where it begins, add up to the projection of them all.

    Args:
        x: ``[N, D]``, floating, any strides.
        k: columns of P, in [1, 2**31).
        seed: in [0, 2**64).
        row_offset: the row of P that meets the first column of x; below 2**62.
        kind: entries "rademacher", 1 or -1 with equal probability, or "normal", of mean 0 and
            variance 1. A sign costs 1/128 of a Philox block, a normal 1/4.
        dtype: of the result; None: that of x.

    Returns:
        ``[N, k]``. ``|result[n]|^2 / k`` is |x[n]|^2 in the mean, with variance 2 |x|^4 / k for
        normals, and ``2 (|x|^4 - sum_i x_i^4) / k`` for signs. Sums are taken in float64 for
        float64, else in float32, in one fixed order: a row has the same bits in any batch, on any
        number of threads and on a GPU.

    Raises TypeError or ValueError naming the argument. Linear in x, and differentiable to any
    order: the backward is :func:`random_projection_transposed`. No autocast: sums are in float32
    whatever comes in. The stream is documented in ``csrc/influence/projection.h``. Source:
    Achlioptas, "Database-friendly random projections", 2003; for influence: Park et al., "TRAK",
    2023.

    >>> random_projection(torch.eye(2), 4, seed=0)
    tensor([[-1., -1., -1., -1.],
            [ 1.,  1., -1., -1.]])
    """
    _check_matrix("x", x, "[N, D]")
    return _project(x, check_integer("k", k, 1, 1 << 31), seed, row_offset, kind, dtype, False)


def random_projection_transposed(
    y: Tensor,
    rows: int,
    *,
    seed: int,
    row_offset: int = 0,
    kind: str = "rademacher",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``y @ P.T`` with the matrix P ``[rows, k]`` of :func:`random_projection`, its adjoint.

    Args:
        y: ``[N, k]``, floating, any strides; k below 2**31.
        rows: of P, from row_offset on; their last is below 2**62.
        seed, row_offset, kind: of the matrix, as in :func:`random_projection`.
        dtype: of the result; None: that of y.

    Returns:
        ``[N, rows]``, computed as there.

    Raises TypeError or ValueError naming the argument. Differentiable to any order: the backward is
    :func:`random_projection`.
    """
    _check_matrix("y", y, "[N, k]")
    return _project(y, check_integer("rows", rows), seed, row_offset, kind, dtype, True)


def _check_matrix(name: str, t: Any, shape: str) -> None:
    check_floating(name, t)
    if t.dim() != 2:
        raise ValueError(f"{name}: got shape {list(t.shape)}, want {shape}")


def _project(
    x: Tensor, size: int, seed: Any, row_offset: Any, kind: Any, dtype: Any, transposed: bool
) -> Tensor:
    seed = check_integer("seed", seed, below=1 << 64)
    seed = seed - (1 << 64) if seed >= 1 << 63 else seed  # the schema's integers are signed
    row_offset = check_integer("row_offset", row_offset)
    if not isinstance(kind, str) or kind not in KINDS:
        raise (ValueError if isinstance(kind, str) else TypeError)(
            f"kind: got {kind!r:.60}, want one of {', '.join(KINDS)}"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: got {dtype!r:.60}, want a floating torch.dtype")
    matrix = seed, row_offset, kind == "normal"
    if needs_grad(x):
        y = _Projection.apply(x, size, matrix, transposed)
    else:
        y = (_transposed if transposed else _projection)(x, size, *matrix)
    return y.to(dtype or x.dtype)


class _Projection(torch.autograd.Function):
    """x P or x P^T; the derivative of one is the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, size, matrix, transposed):
        return (_transposed if transposed else _projection)(x, size, *matrix)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, ctx.matrix, ctx.transposed = inputs
        ctx.size, ctx.dtype = x.shape[1], x.dtype

    @staticmethod
    def backward(ctx, upstream):
        grad = _Projection.apply(upstream, ctx.size, ctx.matrix, not ctx.transposed)
        return grad.to(ctx.dtype), None, None, None


@torch.library.register_fake("robustcore::random_projection")
def _(x, k, seed, row_offset, normal):
    return x.new_empty([x.shape[0], k], dtype=arithmetic(x))


@torch.library.register_fake("robustcore::random_projection_transposed")
def _(y, rows, seed, row_offset, normal):
    return y.new_empty([y.shape[0], rows], dtype=arithmetic(y))


register_rows(_projection, 1)
register_rows(_transposed, 1)
