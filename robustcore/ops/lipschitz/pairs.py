"""Maps of channel pairs: channel c of the first half with channel c of the second."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustcore import _C
from robustcore.ops.autograd import (
    fake_dense,
    is_channels_last,
    joined,
    laid_out,
    loop,
    needs_grad,
    raw,
    separated,
)
from robustcore.ops.checks import check_device, check_floating

_maxmin = raw.maxmin.default
_swap = raw.maxmin_swap.default
_pair_map = raw.pair_map.default
_pair_map_backward = raw.pair_map_backward.default


def maxmin(x: Tensor) -> Tensor:
    """``cat(max(a, b), min(a, b))`` of the halves a, b of the channels: an isometry.

    Args:
        x: ``[N, 2 C, *D]``, floating, any strides; channels_last is kept.

    Returns:
        As x. Every output is one of its pair's inputs, NaNs keep their place.

    Keeps one bit a pair for backward. Differentiable to any order; where a pair ties, the gradients
    keep their places. Raises TypeError or ValueError naming x.
    Source: Anil, Lucas, Grosse, "Sorting out Lipschitz function approximation", 2019.

    >>> maxmin(torch.tensor([[1.0, 5.0, 4.0, 2.0]]))
    tensor([[4., 5., 1., 2.]])
    """
    _check_pairs(x)
    last = is_channels_last(x)
    x = laid_out(x, last)
    out: Tensor = (_MaxMin.apply(x, last) if needs_grad(x) else _maxmin(x, last))[0]
    return out


def householder(x: Tensor, theta: Tensor) -> Tensor:
    """Pairs folded by learnable reflections (order 1) or reflections and a rotation (order 2).

    Order 1, at angle t: where ``s = a sin(t/2) - b cos(t/2)`` is above 0 the pair (a, b) becomes
    ``(a cos t + b sin t, a sin t - b cos t)``; t = pi/2 sorts the pair. Order 2 cuts the plane into
    four sectors. Both are isometries on each piece, and 1-Lipschitz.

    Args:
        x: ``[N, 2 C, *D]``, floating, any strides; channels_last is kept.
        theta: ``[C]`` for order 1; ``[3, C]`` for order 2, clamped to [0, 2 pi]. Radians.

    Returns:
        As x. Differentiable to any order in x and theta. Raises TypeError or ValueError naming the
        argument.
    Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2022.
    """
    _check_pairs(x)
    check_floating("theta", theta)
    order2 = theta.dim() == 2
    _check_theta(x, theta, 3 if order2 else 1)
    if order2:
        theta = theta.clamp(0.0, 2 * math.pi)
    return _apply_map(x, theta, _C.HOUSEHOLDER2 if order2 else _C.HOUSEHOLDER)


def projection_pool(x: Tensor, theta: Tensor) -> Tensor:
    """Each pair replaced by its signed distance to a set with a corner: 1-Lipschitz pooling.

    With ``phi = atan2(b, a)`` in [0, 2 pi) and t in [0, pi]: up to ``(t + pi)/2`` the value is ``-a
    sin(t/2) + b cos(t/2)``, up to ``(3 pi - t)/2`` it is ``hypot(a, b)``, beyond ``-a sin(t/2) - b
    cos(t/2)``.

    Args:
        x: ``[N, 2 C, *D]``, floating, any strides; channels_last is kept.
        theta: ``[C]``, clamped to [0, pi]. Radians.

    Returns:
        ``[N, C, *D]``. Differentiable to any order in x and theta. Raises TypeError or ValueError
        naming the argument.
    Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2022.
    """
    _check_pairs(x)
    check_floating("theta", theta)
    _check_theta(x, theta, 1)
    return _apply_map(x, theta.clamp(0.0, math.pi), _C.PROJECTION)


def _check_pairs(x: Any) -> None:
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, C, *D]")
    if x.shape[1] % 2:
        raise ValueError(f"x: got {x.shape[1]} channels, want an even number: they pair up")


def _check_theta(x: Tensor, theta: Tensor, rows: int) -> None:
    want = [x.shape[1] // 2] if rows == 1 else [rows, x.shape[1] // 2]
    if list(theta.shape) != want:
        raise ValueError(
            f"theta: got shape {list(theta.shape)}, want {want}, angles of each channel pair"
        )
    check_device("theta", theta, x)


def _apply_map(x: Tensor, theta: Tensor, index: int) -> Tensor:
    last = is_channels_last(x)
    x = laid_out(x, last)
    if needs_grad(x, theta):
        return _PairMap.apply(x, theta, index, last)
    return _pair_map(x, _table(theta, x.dtype, index), index, last)


class _MaxMin(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, last):
        return _maxmin(x, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.last = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        (bits,) = ctx.saved_tensors
        return _Swap.apply(grad, bits, ctx.last), None


class _Swap(torch.autograd.Function):
    """Linear, and its own transpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, bits, last):
        return _swap(laid_out(x, last), bits, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, bits, ctx.last = inputs
        ctx.save_for_backward(bits)

    @staticmethod
    def backward(ctx, grad):
        (bits,) = ctx.saved_tensors
        return _Swap.apply(grad, bits, ctx.last), None, None


class _PairMap(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, theta, index, last):
        return _pair_map(x, _table(theta, x.dtype, index), index, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, theta, ctx.index, ctx.last = inputs
        ctx.save_for_backward(x, theta)

    @staticmethod
    def backward(ctx, grad):
        x, theta = ctx.saved_tensors
        index, last = ctx.index, ctx.last
        if torch.is_grad_enabled():  # create_graph: through operations that torch differentiates
            vjp = torch.func.vjp(lambda x, theta: _reference(x, theta, index), x, theta)[1]
            return *vjp(grad), None, None
        table = _table(theta, x.dtype, index)
        grad_x, terms = _pair_map_backward(laid_out(grad, last), x, table, index, last)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        dims, angles = [0, *range(2, x.dim())], _C.PAIR_MAP_ANGLES[index]
        grad_theta = terms.sum(dims, dtype=table.dtype).unflatten(0, (angles, -1))
        if index == _C.HOUSEHOLDER2:
            both, turn, first = grad_theta
            grad_theta = torch.stack([both + first, both, turn])
        else:
            grad_theta = grad_theta[0]
        return grad_x, grad_theta.to(theta.dtype), None, None


def _table(theta: Tensor, dtype: torch.dtype, index: int) -> Tensor:
    """The numbers a channel that the kernels read, see csrc/lipschitz/pairs.h."""
    theta = theta.detach().to(torch.float64 if dtype == torch.float64 else torch.float32)
    if index != _C.HOUSEHOLDER2:
        angles = [theta / 2, theta] if index == _C.HOUSEHOLDER else [theta / 2]
        return torch.stack([f for angle in angles for f in (angle.cos(), angle.sin())])
    first, second, third = theta
    ends = [second / 2, (second + third) / 2, math.pi + third / 2]
    numbers = [f for angle in [first / 2, *ends[:2]] for f in (angle.cos(), angle.sin())]
    numbers.append((ends[1] > math.pi).to(theta.dtype))
    rest = [ends[2], first + second, third, first]
    return torch.stack(numbers + [f for angle in rest for f in (angle.cos(), angle.sin())])


def _reference(x: Tensor, theta: Tensor, index: int) -> Tensor:
    """The maps in operations of torch."""
    a, b = x.chunk(2, dim=1)
    shape = [-1, *[1] * (x.dim() - 2)]
    table = [row.reshape(shape).to(x.dtype) for row in _table(theta, x.dtype, index)]

    def angle(t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.reshape(shape).to(x.dtype)
        return t.cos(), t.sin()

    if index == _C.HOUSEHOLDER:
        cos, sin = angle(theta)
        fold = a * table[1] - b * table[0] > 0
        return torch.cat(
            [torch.where(fold, a * cos + b * sin, a), torch.where(fold, a * sin - b * cos, b)], 1
        )
    if index == _C.PROJECTION:
        cos, sin = angle(theta / 2)
        up = _upper(a, b)
        near = up & (a * table[0] + b * table[1] > 0)
        middle = (up | (b * table[1] - a * table[0] > 0)) & ~near
        norm = torch.linalg.vector_norm(torch.stack([a, b]), dim=0)
        side = torch.where(near, b, -b)
        return torch.where(middle, norm, side * cos - a * sin)
    u, v = a * table[0] + b * table[1], b * table[0] - a * table[1]
    up = _upper(u, v)
    left = [u * table[j + 1] - v * table[j] > 0 for j in (2, 4, 7)]
    before = [up & left[0], torch.where(table[6] > 0, up | left[1], up & left[1]), up | left[2]]
    first, second, third = theta
    out_a, out_b = a, b
    for condition, t, sign in (
        (~before[2], first, 1),
        (before[2] & ~before[1], third, -1),
        (before[1] & ~before[0], first + second, 1),
    ):
        cos, sin = angle(t)
        out_a = torch.where(condition, a * cos + b * sin, out_a)
        out_b = torch.where(condition, sign * (a * sin - b * cos), out_b)
    return torch.cat([torch.where(before[0], a, out_a), torch.where(before[0], b, out_b)], 1)


def _upper(a: Tensor, b: Tensor) -> Tensor:
    return (b > 0) | ((b == 0) & (a >= 0))


def _bits_shape(x: Tensor, last: bool) -> tuple[Any, Any]:
    pixels = math.prod(x.shape[2:])
    rows, run = x.shape[0], x.shape[1] // 2 * pixels
    return (rows * pixels, (x.shape[1] // 2 + 7) // 8) if last else (rows, (run + 7) // 8)


@torch.library.register_fake("robustcore::maxmin")
def _(x, last):
    out = fake_dense(x, [x.shape[0], x.shape[1], *x.shape[2:]], last)
    return out, x.new_empty(_bits_shape(x, last), dtype=torch.uint8)


@torch.library.register_fake("robustcore::maxmin_swap")
def _(x, bits, last):
    return fake_dense(x, [x.shape[0], x.shape[1], *x.shape[2:]], last)


@torch.library.register_fake("robustcore::pair_map")
def _(x, table, index, last):
    channels = x.shape[1] // 2 if index == _C.PROJECTION else x.shape[1]
    return fake_dense(x, [x.shape[0], channels, *x.shape[2:]], last)


@torch.library.register_fake("robustcore::pair_map_backward")
def _(grad, x, table, index, last):
    n, channels, *rest = x.shape
    angles = channels // 2 * _C.PAIR_MAP_ANGLES[index]
    return fake_dense(x, x.shape, last), fake_dense(x, [n, angles, *rest], last)


def _merged(t: Tensor, dim: int | None, size: int, last: bool) -> Tensor:
    """Images of all mapped calls behind each other."""
    return laid_out(joined(t, dim, size), last)


@torch.library.register_vmap("robustcore::maxmin")
def _(info, in_dims, x, last):
    size = info.batch_size
    return separated(_maxmin(_merged(x, in_dims[0], size, last), last), size)


@torch.library.register_vmap("robustcore::maxmin_swap")
def _(info, in_dims, x, bits, last):
    size = info.batch_size
    merged = _merged(x, in_dims[0], size, last)
    bits = joined(bits, in_dims[1], size).contiguous()
    return separated(_swap(merged, bits, last), size)


def _one_by_one(op, info, in_dims, arguments, last):
    """For tables that differ from call to call."""
    return loop(op, info, in_dims, arguments, lambda t: laid_out(t, last and t.dim() == 4))


@torch.library.register_vmap("robustcore::pair_map")
def _(info, in_dims, x, table, index, last):
    if in_dims[1] is not None:
        return _one_by_one(_pair_map, info, in_dims, (x, table, index, last), last)
    size = info.batch_size
    return separated(_pair_map(_merged(x, in_dims[0], size, last), table, index, last), size)


@torch.library.register_vmap("robustcore::pair_map_backward")
def _(info, in_dims, grad, x, table, index, last):
    size = info.batch_size
    if in_dims[2] is not None:
        return _one_by_one(_pair_map_backward, info, in_dims, (grad, x, table, index, last), last)
    grad, x = (_merged(t, d, size, last) for t, d in zip((grad, x), in_dims[:2], strict=True))
    return separated(_pair_map_backward(grad, x, table, index, last), size)
