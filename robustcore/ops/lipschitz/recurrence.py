"""A polynomial of a skew convolution applied to images, and its adjoint.

On the CPU, float32 filters of 3 x 3 run as kernels of ours, all degrees of a few images at a time;
so they may on a GPU, see series_block.py. Else each convolution is torch's, followed by one fused
pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore import _C
from robustcore.ops.autograd import constant_when_compiled, fake_nothing, is_channels_last, raw
from robustcore.ops.lipschitz import series_block as block
from robustcore.ops.lipschitz.series import Series

_pack = raw.conv_exp_pack.default
_series = raw.conv_exp_series.default
_series_backward = raw.conv_exp_series_backward.default
_series_gradient = raw.conv_exp_series_gradient.default
_update = raw.conv_exp_update.default
_convolution_backward = torch.ops.aten.convolution_backward

# Sizes at which our own kernel was no faster, and the error above which the rounding of its
# coarser tile cannot matter.
_MIN_CHANNELS, _MIN_TILES, _COARSE_ERROR = 24, 16, 1e-5

# In the place of a tile: all degrees in one kernel of a GPU.
_BLOCK = -1


class Prepared(NamedTuple):
    """A filter in the form that one way of evaluating a series reads."""

    tile: int
    """The Winograd tile of our own CPU kernel; 0 where torch's convolutions run, or ``_BLOCK``."""
    filter: Tensor


def form_for(
    x: Tensor, filter: Tensor, series: Series
) -> tuple[int, torch.dtype, torch.memory_format]:
    """Images of one form take the same :class:`Prepared`."""
    return _choose_tile(x, filter, series), x.dtype, _memory_format(x)


def _choose_tile(x: Tensor, filter: Tensor, series: Series) -> int:
    if block.chosen(x, filter, series):
        return _BLOCK
    n, c, h, w = x.shape
    if x.device.type != "cpu" or x.dtype != torch.float32 or tuple(filter.shape[2:]) != (3, 3):
        return 0
    if c < _MIN_CHANNELS or min(h, w) < 2 or n * h * w < 4 * _MIN_TILES:
        return 0
    if series.degree > _C.MAX_SERIES_DEGREE:
        return 0
    if _block() == 0:
        return 0
    return 4 if series.error > _COARSE_ERROR and min(h, w) >= 4 else 2


def prepare(x: Tensor, filter: Tensor, series: Series) -> Prepared:
    """The filter as :func:`evaluate` and :func:`backward` want it for such images."""
    tile = _choose_tile(x, filter, series)
    if tile == _BLOCK:
        return Prepared(tile, block.prepare(filter))
    if tile:
        return Prepared(tile, _pack(filter.contiguous(), tile))
    return Prepared(0, filter.contiguous(memory_format=_memory_format(x)))


def wants_channels_last(x: Tensor, filter: Tensor, series: Series) -> bool:
    """The layout of a filter that :func:`prepare` takes as it is."""
    tile = _choose_tile(x, filter, series)
    return tile == _BLOCK or (tile == 0 and _memory_format(x) is torch.channels_last)


def evaluate(x: Tensor, prepared: Prepared, series: Series, keep: bool) -> tuple[Tensor, Tensor]:
    """p(L) x, degree >= 1, and what backward wants of it: the u[k], 1 <= k < degree, or nothing."""
    keep = keep and series.degree > 1
    tile, filter = prepared
    if tile == _BLOCK:
        kept = _slots(x, series.degree - 1, last=True)[0] if keep else x.new_empty(0)
        return block.evaluate(x, filter, series, kept=kept if keep else None), kept
    x = x.contiguous(memory_format=_memory_format(x))
    if tile:
        y, kept = _series(x, filter, *_numbers(series), tile, keep)
        return y, kept
    if not keep:
        return _evaluate(x, filter, series, None), x.new_empty(0)
    kept, parts = _slots(x, series.degree - 1)
    return _evaluate(x, filter, series, parts), kept


class FilterWork(NamedTuple):
    """What the filter's gradient is made of: of our own kernel its work, else a sum."""

    tile: int
    tensor: Tensor
    other: Tensor | None = None
    scales: tuple[float, float] = (1.0, 0.0)
    """The gradient is ``scales[0] tensor + scales[1] other``."""


def adjoint(
    x: Tensor, prepared: Prepared, kept: Tensor, grad: Tensor, series: Series, need_x: bool
) -> tuple[Tensor | None, FilterWork]:
    """The gradient of x, and the filter's up to :func:`filter_gradient`.

    ``kept`` is what :func:`evaluate` returned. Two steps, so that a caller can let go of a wide
    filter in between.
    """
    tile, filter = prepared
    if tile == _BLOCK:
        maps = _block_maps(x, filter, kept, grad, series, need_x)
        return maps.grad_x, _filter_work(x, filter, maps, series)
    x = x.contiguous(memory_format=_memory_format(x))
    grad = _like(grad, x)
    if tile == 0:
        maps = _adjoint_maps(x, filter, kept, grad, series, need_x)
        return maps.grad_x, _filter_work(x, filter, maps, series)
    given = kept if kept.numel() else None
    grad_x, work = _series_backward(grad, x, filter, given, *_numbers(series), tile)
    return grad_x, FilterWork(tile, work)


def filter_gradient(x: Tensor, work: FilterWork, series: Series) -> Tensor:
    """The filter's gradient out of the work of :func:`adjoint` on x."""
    _, grad, other, scales = gradient_parts(x, work, series)
    if scales[0] != 1:
        grad.mul_(scales[0])
    return grad if other is None else grad.add_(other, alpha=scales[1])


def gradient_parts(x: Tensor, work: FilterWork, series: Series) -> FilterWork:
    """The same as a sum, for those who have one more thing to do with it."""
    if work.tile == 0:
        return work
    x = x.contiguous(memory_format=_memory_format(x))
    return FilterWork(0, _series_gradient(work.tensor, x, series.degree, work.tile))


def adjoint_of_x(grad: Tensor, prepared: Prepared, series: Series) -> Tensor:
    """The gradient of x alone: the same operator with the filter's negative, its transpose."""
    negative = series._replace(first=-series.first, step=-series.step)
    return evaluate(grad, prepared, negative, keep=False)[0]


def reference(x: Tensor, filter: Tensor, series: Series) -> Tensor:
    """p(L) x in operations of torch."""
    c, d = series.coefficients, series.degree
    after, current = None, c[d] * x
    for k in range(d - 1, -1, -1):
        scale = series.step if k else series.first
        u = c[k] * x + scale * _convolve(current, filter)
        if after is not None and series.carry:
            u = u + series.carry * after
        after, current = current, u
    return current


def _numbers(series: Series) -> tuple[list[float], float, float, float]:
    return list(series.coefficients), series.first, series.step, series.carry


@constant_when_compiled
def _block() -> int:
    """Channels that our own kernel pads to a multiple of; 0 where there is none."""
    return _C.winograd_block()


def _memory_format(x: Tensor) -> torch.memory_format:
    """The layout whose convolutions are fastest."""
    last = x.device.type == "cpu" or is_channels_last(x)
    return torch.channels_last if last else torch.contiguous_format


def _convolve(x: Tensor, filter: Tensor) -> Tensor:
    return torch.conv2d(x, filter, padding=(filter.shape[2] // 2, filter.shape[3] // 2))


def _slots(like: Tensor, count: int, last: bool = False) -> tuple[Tensor, list[Tensor]]:
    """``[count * N, C, H, W]`` laid out as ``like`` or channels last, and its ``count`` parts."""
    n, c, h, w = like.shape
    last = last or is_channels_last(like)
    memory_format = torch.channels_last if last else torch.contiguous_format
    whole = torch.empty(
        count * n, c, h, w, dtype=like.dtype, device=like.device, memory_format=memory_format
    )
    return whole, list(whole.unflatten(0, (count, n)).unbind())


def _step(
    z: Tensor, a: Tensor | None, b: Tensor | None, scales: tuple[float, float, float], out: Tensor
) -> Tensor:
    _update(z, a, b, None, *scales, 0.0, 0.0, out, None)
    return out


def _like(t: Tensor, x: Tensor) -> Tensor:
    """t with x's strides; where a size is 1 the stride says nothing."""
    same = all(
        size == 1 or ours == theirs
        for size, ours, theirs in zip(x.shape, t.stride(), x.stride(), strict=True)
    )
    return t if same else torch.empty_like(x).copy_(t)


def _evaluate(x: Tensor, filter: Tensor, series: Series, keep: list[Tensor] | None) -> Tensor:
    """p(L) x. ``keep[k - 1]`` receives u[k], 1 <= k < degree."""
    c, d = series.coefficients, series.degree
    after: Tensor | None = None  # u[k + 2], where it is not a multiple of x
    current, weight = x, c[d]  # u[k + 1] = weight * current
    for k in range(d - 1, -1, -1):
        z = _like(_convolve(current, filter), x)
        scale = (series.step if k else series.first) * weight
        own = c[k] + (series.carry * c[d] if k == d - 2 else 0.0)
        out = z if k == 0 or keep is None else keep[k - 1]
        _step(z, x, after, (scale, own, series.carry), out)
        after = current if k < d - 1 and series.carry else None
        current, weight = out, 1.0
    return current


class _Maps(NamedTuple):
    """Of both recurrences, what the gradients are made of."""

    grad_x: Tensor | None
    kept: Tensor
    """u[1], ..., u[degree - 1], one behind the other."""
    side: Tensor
    """m[0], ..., m[degree - 2], m[0] scaled so that all pairs with u count the same."""
    last: Tensor
    """m[degree - 1]."""


def _adjoint_maps(
    x: Tensor, filter: Tensor, kept: Tensor, grad: Tensor, series: Series, need_x: bool
) -> _Maps:
    """The adjoint recurrence: ``m[k + 1] = step L^T m[k] + carry m[k - 1]``, ``m[0] = grad``."""
    c, d = series.coefficients, series.degree
    if d > 1 and kept.numel() == 0:
        kept, parts = _slots(x, d - 1)
        _evaluate_kept(x, filter, series, parts)
    side, slots = _slots(x, max(d - 1, 1))
    total = torch.empty_like(x) if need_x else None
    _update(
        grad, None, None, grad if need_x else None, _ratio(series), 0.0, 0.0, c[0], 0.0, slots[0],
        total,
    )  # fmt: skip
    before, current, scale, last = None, grad, -series.first, grad
    for k in range(1, d + 1 if need_x else d):
        z = _like(_convolve(current, filter), x)
        out = slots[k] if k < d - 1 else z
        _update(
            z, before if series.carry else None, None, total, scale, series.carry, 0.0, 1.0, c[k],
            out, total,
        )  # fmt: skip
        before, current, scale = current, out, -series.step
        if k == d - 1:
            last = out
    return _Maps(total, kept, side, last)


def _block_maps(
    x: Tensor, filter: Tensor, kept: Tensor, grad: Tensor, series: Series, need_x: bool
) -> _Maps:
    """The same, each recurrence in one kernel."""
    n, d = x.shape[0], series.degree
    grad = block.aligned(grad)
    if d > 1 and kept.numel() == 0:
        kept, parts = _slots(x, d - 1, last=True)
        block.evaluate(x, filter, _later(series), parts[0], kept[n:])
    whole, slots = _slots(x, d, last=True)
    torch.mul(grad, _ratio(series), out=slots[0])
    total = block.adjoint(grad, filter, series, whole[n:], need_x)
    return _Maps(total, kept, whole[: (d - 1) * n], slots[-1] if d > 1 else grad)


def _ratio(series: Series) -> float:
    return series.first / series.step if series.degree > 1 else 1.0


def _filter_work(x: Tensor, filter: Tensor, maps: _Maps, series: Series) -> FilterWork:
    """The sum of the weight gradients of the pairs (u[k + 1], m[k])."""
    c, d = series.coefficients, series.degree
    last = _weight_gradient(maps.last, x, filter)
    if d == 1:
        return FilterWork(0, last, scales=(series.first * c[1], 0.0))
    side = _weight_gradient(maps.side, maps.kept, filter)
    return FilterWork(0, last, side, (series.step * c[d], series.step))


def _later(series: Series) -> Series:
    """u[1] is the value of the polynomial whose coefficients are the later ones."""
    return series._replace(coefficients=series.coefficients[1:], first=series.step)


def _evaluate_kept(x: Tensor, filter: Tensor, series: Series, parts: list[Tensor]) -> None:
    """Fills ``parts`` as :func:`_evaluate` does, without the last convolution."""
    value = _evaluate(x, filter, _later(series), parts[1:] if series.degree > 2 else None)
    parts[0].copy_(value)


def _weight_gradient(grad: Tensor, x: Tensor, filter: Tensor) -> Tensor:
    padding = [filter.shape[2] // 2, filter.shape[3] // 2]
    gradients = _convolution_backward(
        grad, x, filter, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [False, True, False]
    )
    weight_gradient: Tensor = gradients[1]
    return weight_gradient


@torch.library.register_fake("robustcore::conv_exp_pack")
def _(filter, tile):
    block = _block()
    padded = (filter.shape[0] + block - 1) // block * block
    return filter.new_empty((tile + 2) ** 2 * padded**2)


@torch.library.register_fake("robustcore::conv_exp_series")
def _(x, packed, coefficients, first, step, carry, tile, keep):
    n, c, h, w = x.shape
    degree = len(coefficients) - 1
    kept = x.new_empty((degree - 1) * n if keep else 0, c, h, w)
    last = torch.channels_last
    return x.new_empty(x.shape).to(memory_format=last), kept.to(memory_format=last)


@torch.library.register_fake("robustcore::conv_exp_series_backward")
def _(grad, x, packed, kept, coefficients, first, step, carry, tile):
    size = torch.library.get_ctx().new_dynamic_size()  # its plan is the kernel's own affair
    return x.new_empty(x.shape).to(memory_format=torch.channels_last), x.new_empty(size)


@torch.library.register_fake("robustcore::conv_exp_series_gradient")
def _(work, x, degree, tile):
    return x.new_empty(x.shape[1], x.shape[1], 3, 3)


torch.library.register_fake("robustcore::conv_exp_update", fake_nothing)
