"""Upper bounds of the norms of linear maps, in float64, their rounding counted.

Each is remembered by the content of what it was computed from: weights are looked at anew at every
call, so that a bound is never of weights that a model had before.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.lipschitz.norm_bounds import symbol_norm

# Relative: a sum of nonnegative numbers, and what is left to chance in a decomposition.
_MARGIN = 1e-12
# Results that are kept, a number each.
_KEPT = 1 << 14
_memory: OrderedDict[bytes, float] = OrderedDict()


def digest(tensor: Tensor, *form: Any) -> bytes:
    """Of the content of a tensor, its dtype and sizes, and of plain arguments."""
    whole = (*form, tensor.dtype, tuple(tensor.shape))
    found = hashlib.blake2b(repr(whole).encode(), digest_size=32)
    found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def remembered(function: Callable[..., float]) -> Callable[..., float]:
    """``function`` of a tensor and plain arguments, computed once for the same content."""

    @functools.wraps(function)
    def call(tensor: Tensor, *arguments: Any) -> float:
        tensor = tensor.detach()
        key = digest(tensor, function.__name__, arguments)
        if key not in _memory:
            with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
                _memory[key] = function(tensor.double(), *arguments)
            if len(_memory) > _KEPT:
                _memory.popitem(last=False)
        return _memory[key]

    return call


@remembered
def matrix_norm_bound(matrix: Tensor) -> float:
    """The largest singular value of ``[..., m, n]``, of the largest where there are several.

    Raises ValueError where the matrix is not finite.
    """
    if not bool(matrix.isfinite().all()):
        raise ValueError("matrix: is not finite, nothing bounds it")
    rows, columns = matrix.shape[-2:]
    if matrix.numel() == 0:
        return 0.0
    if min(rows, columns) <= 512:
        # A decomposition errs by a slowly growing multiple of eps times the norm.
        margin = _MARGIN + 4 * max(rows, columns) * torch.finfo(torch.float64).eps
        return float(torch.linalg.matrix_norm(matrix, ord=2).max()) * (1 + margin)
    # Of a wide one, the Gram matrix: its rounding is at most that of its sums.
    scale = float(matrix.abs().max()) or 1.0
    matrix = matrix / scale
    gram = matrix @ matrix.mT if rows <= columns else matrix.mT @ matrix
    error = 2 * (rows + columns) * torch.finfo(torch.float64).eps
    square = float(torch.linalg.eigvalsh(gram)[..., -1].max())
    square += error * float(matrix.square().sum((-2, -1)).max())
    return scale * math.sqrt(square) * (1 + _MARGIN)


@remembered
def row_sum_bound(matrix: Tensor) -> float:
    """The largest sum of absolute values of a row of ``[..., n]``: the norm of linf."""
    if matrix.numel() == 0:
        return 0.0
    return float(matrix.abs().sum(-1).max()) * (1 + _MARGIN)


@remembered
def filter_norm_bound(weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> float:
    """Norm of the convolution on the infinite grid, which zero padding and cropping do not raise.

    ``weight``: ``[groups, O, I, *k]``. A stride is part of it: with the pixels of one step as
    channels, the same map has a filter ``[O, I * prod(stride), *ceil(k / stride)]`` without one. A
    dilation alone changes nothing.

    Raises ValueError where the weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise ValueError("weight: is not finite, nothing bounds it")
    if max(stride) > 1:
        weight = without_stride(weight, stride, dilation)
    sides, channels = weight.shape[3:], min(weight.shape[1:3])
    grid = 32 if channels <= 64 else 16 if channels <= 256 else 8
    if len(sides) > 2:
        grid = min(grid, 16)
    sampled = float(symbol_norm(weight, max(grid, 2 * max(sides))).max())
    mean = float(weight.square().sum((1, 2)).reshape(len(weight), -1).sum(1).max()) / channels
    return min(sampled, _gram_bound(weight)) if sampled**2 <= 1.25 * mean else sampled


def _gram_bound(weight: Tensor) -> float:
    """The same from the filter's products with itself: close where it is nearly orthogonal.

    The symbol's Gram matrix is the sum over all offsets of ``G_t exp(i t w)``, so its norm is at
    most the sum of theirs; of G_0 the largest diagonal element and the norm of the rest.
    """
    if weight.shape[1] > weight.shape[2]:
        weight = weight.transpose(1, 2)
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[weight.dim() - 4]
    reach = [k - 1 for k in weight.shape[3:]]
    bounds = []
    for rows in weight:
        products = convolve(rows, rows, padding=reach)
        centre: Any = (..., *reach)
        diagonal = products[centre].diagonal()
        largest = float(diagonal.max())
        diagonal.zero_()
        rest = float(torch.linalg.matrix_norm(products.movedim((0, 1), (-2, -1))).sum())
        error = rows[0].numel() * torch.finfo(torch.float64).eps * products[0, 0].numel()
        bounds.append(largest + rest + error * float(rows.square().sum()))
    return math.sqrt(max(bounds)) * (1 + _MARGIN)


def without_stride(weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """``[groups, O, I, *k]`` for images whose pixels of one step are channels."""
    if max(dilation) > 1:
        dilated = [(k - 1) * d + 1 for k, d in zip(weight.shape[3:], dilation, strict=True)]
        wide = weight.new_zeros((*weight.shape[:3], *dilated))
        every: Any = (..., *(slice(None, None, d) for d in dilation))
        wide[every] = weight
        weight = wide
    groups, rows, columns, *sides = weight.shape
    steps = [-(-k // s) for k, s in zip(sides, stride, strict=True)]
    pads = [n * s - k for n, s, k in zip(steps, stride, sides, strict=True)]
    weight = torch.nn.functional.pad(weight, [p for pad in reversed(pads) for p in (0, pad)])
    split = [size for pair in zip(steps, stride, strict=True) for size in pair]
    weight = weight.reshape(groups, rows, columns, *split)
    phases = range(4, weight.dim(), 2)
    weight = weight.permute(0, 1, 2, *phases, *range(3, weight.dim(), 2))
    return weight.reshape(groups, rows, columns * math.prod(stride), *steps)


@functools.lru_cache(maxsize=1 << 10)
def nonnegative_norm(operation: Callable[[Tensor], Tensor], sizes: Sequence[int]) -> float:
    """l2 norm of a linear map of tensors of ``sizes`` whose matrix A has no negative entry.

    By Collatz and Wielandt, ``max((A^T A v) / v)`` bounds the largest eigenvalue for any v > 0: v
    comes of power iteration, so the bound is tight, and holds after any number of steps.
    """
    v = torch.ones(tuple(sizes), dtype=torch.float64)
    best = math.inf
    for _ in range(40):
        back = _gram(operation, v)
        best = min(best, float((back / v).max()))
        v = back / back.max().clamp(min=1e-300) + 1e-9
    return math.sqrt(best) * (1 + _MARGIN)


def _gram(operation: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = v.clone().requires_grad_()
        y = operation(leaf)
        (back,) = torch.autograd.grad(y, leaf, y.detach())
    return back


@functools.lru_cache(maxsize=1 << 10)
def nonnegative_sums(
    operation: Callable[[Tensor], Tensor], sizes: Sequence[int]
) -> tuple[float, float]:
    """The largest sum of a row, and of a column, of such a map's matrix: norms of linf and l1."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.ones(tuple(sizes), dtype=torch.float64, requires_grad=True)
        y = operation(leaf)
        (columns,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return float(y.detach().max()) * (1 + _MARGIN), float(columns.max()) * (1 + _MARGIN)
