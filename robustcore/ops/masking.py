"""Ops of the masking family: filling what a mask hides, and convolutions and pools under a mask.

A mask is ``[N | 1, 1, H, W]``, bool or floating in [0, 1], 1 = visible; its values are not checked.
It is a constant: none of these ops has a derivative in it. Where it is 0, x is not read at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.ops.common import check_floating, needs_grad
from robustcore.ops.masking_autograd import (
    MAX_ITERS,
    _apply_epilogue,
    _epilogue_,
    _fill_,
    _filled,
    _is_channels_last,
    _is_plain,
    _NeighborFill,
)

FILLS = ("neighbor", "zero", "partial")

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # (before, after) of the rows, of the columns


def neighbor_fill(
    x: Tensor, mask: Tensor, iters: int, *, fill: str = "neighbor", detach: bool = True
) -> Tensor:
    """What a mask hides, filled from what it shows, outwards by one pixel an iteration.

    ``x = x * mask``, then ``iters`` times: ``x += (1 - m) * box(x) / (box(m) + 1e-5)``,
    ``m = min(m + box(m), 1)``, with ``box`` the 3x3 sum, zeros outside the image. All iterations
    are one pass over tiles; nothing of the image's size is held beside the output (with more than
    8 iterations, one such tensor for every 8).

    Args:
        x: ``[N | 1, C, H, W]`` floating, any strides; channels_last is kept.
        mask: ``[N | 1, 1, H, W]``, bool or floating in [0, 1]; one image with N masks is not
            expanded in memory.
        iters: how far to fill, at least 0.
        fill: ``"neighbor"`` as above; ``"zero"`` and ``"partial"`` are ``x * mask`` (a partial
            convolution corrects what comes after: see :func:`masked_conv2d`).
        detach: as published, gradients pass through ``x * mask`` alone; with False, through the
            filled values too.

    Returns:
        ``[N, C, H, W]`` of x's dtype. Arithmetic is in float32, in float64 if x is. The bits do
        not depend on the layout, the device or the number of threads.

    Raises TypeError, ValueError or RuntimeError naming the argument. Differentiable to any order in
    x; the gradient is exactly 0 where the mask is.

    Source: Balasubramanian and Feizi, "Towards improved input masking for convolutional neural
    networks", 2023.
    """
    mask = _check(x, mask)
    if not isinstance(iters, int) or isinstance(iters, bool) or iters < 0:
        raise ValueError(f"iters: got {iters!r}, want an int of at least 0")
    if _check_fill(fill) != "neighbor" or iters == 0:
        return mask_multiply(x, mask)
    if needs_grad(x):
        return _NeighborFill.apply(x, mask, iters, detach)
    return _filled(x, mask, iters)


def mask_multiply(x: Tensor, mask: Tensor) -> Tensor:
    """``x * mask``, and 0 where the mask is 0 whatever x is there; one image with N masks gives N.

    Args, gradients and errors as in :func:`neighbor_fill`.
    """
    return _apply_epilogue(x, _check(x, mask), None, None, False)


def consume_fill(x: Tensor, mask: Tensor, iters: int) -> Tensor:
    """:func:`neighbor_fill` of an x that nobody else reads: in place where that can be."""
    if iters <= MAX_ITERS and x.device.type == "cpu" and _may_write(x, mask):
        _fill_(x, mask, iters)
        return x
    return neighbor_fill(x, mask, iters)


def consume_multiply(x: Tensor, mask: Tensor) -> Tensor:
    """:func:`mask_multiply` of an x that nobody else reads: in place where that can be."""
    if _may_write(x, mask):
        _epilogue_(x, mask, None, None, False)
        return x
    return mask_multiply(x, mask)


def _may_write(x: Tensor, mask: Tensor) -> bool:
    if torch.compiler.is_compiling() or needs_grad(x) or not _is_plain(x):
        return False
    return len(mask) in (1, len(x)) and (x.is_contiguous() or _is_channels_last(x))


def masked_conv2d(
    x: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    fill: str = "neighbor",
    iters: int | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """A convolution of what a mask shows: fill, convolve, ``* scale + shift``, ReLU, new mask.

    Args:
        x, mask: as in :func:`neighbor_fill`.
        weight, bias, stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``.
        fill: ``"neighbor"``; ``"zero"``; ``"partial"``, a partial convolution: the sum over the
            window is divided by the visible fraction of that part of it which is in the image.
        iters: of the fill. Default: the fewest that reach every pixel that a visible output reads,
            ``dilation * (kernel - 1)``; the published code makes one more, which changes nothing.
        scale, shift: ``[C_out]``, a folded normalisation.
        relu: whether a ReLU follows.

    Returns:
        ``(y, mask')``: ``y`` is 0 where ``mask'`` is; ``mask'`` is the mask's maximum over each
        window, float32 (float64 if x is).

    The convolution is torch's (oneDNN, cuDNN); scale, shift, ReLU and mask are one pass after it.
    Differentiable to any order in x, weight, bias, scale and shift. Raises TypeError, ValueError
    or RuntimeError naming the argument.
    Source: as :func:`neighbor_fill`; Liu et al., "Image inpainting for irregular holes using
    partial convolutions", 2018.
    """
    mask = _check(x, mask)
    kernel = (weight.shape[2], weight.shape[3])
    strides, dilations = _pair("stride", stride), _pair("dilation", dilation)
    pads = conv_pads(padding, kernel, dilations)
    if iters is None:
        iters = max(d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
    shown = neighbor_fill(x, mask, iters, fill=fill)
    y = functional.conv2d(shown, weight, bias, strides, padding, dilations, groups)
    if fill == "partial":
        y = partial_correction(y, mask, bias, kernel, strides, pads, dilations)
    out_mask = mask_pool(mask, kernel, strides, pads, dilations)
    arithmetic = _arithmetic(y)
    scale, shift = (None if t is None else t.to(arithmetic) for t in (scale, shift))
    return _apply_epilogue(y, out_mask, scale, shift, relu, in_place=True), out_mask


def partial_correction(
    y: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
) -> Tensor:
    """A convolution of ``x * mask`` divided, but for the bias, by each window's visible fraction.

    Of a window, only what lies in the image counts; where all of that is visible, y stays as it is
    to the bit. ``y``: ``[N, C, H', W']``, ``mask``: ``[N, 1, H, W]``, the rest as of the
    convolution.
    """
    ones = mask.new_ones(1, 1, *kernel)
    padded = functional.pad(mask, (*pads[1], *pads[0]))
    visible = functional.conv2d(padded, ones, None, stride, 0, dilation)
    inside = functional.pad(torch.ones_like(mask[:1]), (*pads[1], *pads[0]))
    inside = functional.conv2d(inside, ones, None, stride, 0, dilation)
    excess = torch.where(visible > 0, inside / visible.clamp(min=1e-8) - 1, 0).to(y.dtype)
    return y + excess * (y if bias is None else y - bias.to(y.dtype).view(-1, 1, 1))


def mask_pool(
    mask: Tensor,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """The mask of a window's output: the largest value in it. A 1x1 window is a view.

    ``mask``: ``[N, 1, H, W]`` floating; ``pads``: (before, after) of rows and of columns. Not
    differentiable.
    """
    if kernel == (1, 1) and pads == ((0, 0), (0, 0)) and not ceil_mode:
        return mask[:, :, :: stride[0], :: stride[1]]
    symmetric = all(a == b and 2 * a <= k for (a, b), k in zip(pads, kernel, strict=True))
    if not symmetric:  # max_pool2d has no such padding
        mask = functional.pad(mask, (*pads[1], *pads[0]))
    padding = (pads[0][0], pads[1][0]) if symmetric else 0
    return functional.max_pool2d(mask.detach(), kernel, stride, padding, dilation, ceil_mode)


def masked_pool(
    x: Tensor,
    mask: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    *,
    kind: str = "max",
) -> tuple[Tensor, Tensor]:
    """``(pool(x * mask) * mask', mask')`` with ``mask'`` visible where the window sees anything.

    ``kind``: ``"max"`` (``mask'`` is the maximum of the mask) or ``"avg"`` (``mask'`` is 1 where
    the mask's average is above 0), otherwise as ``torch.nn.functional.max_pool2d``. Differentiable
    to any order in x. Source: as :func:`neighbor_fill`.
    """
    mask = _check(x, mask)
    if kind not in ("max", "avg"):
        raise ValueError(f"kind: got {kind!r}, want 'max' or 'avg'")
    pool: Any = functional.max_pool2d if kind == "max" else functional.avg_pool2d
    options = dict(stride=stride, padding=padding, ceil_mode=ceil_mode)
    out_mask: Tensor = pool(mask, kernel_size, **options)
    if kind == "avg":
        out_mask = (out_mask > 0).to(mask.dtype)
    return mask_multiply(pool(mask_multiply(x, mask), kernel_size, **options), out_mask), out_mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over visible pixels, ``[N, C]``; 0 where a sample shows nothing.

    ``mean(x * m) / (mean(m) + 1e-8)``; a sample that is visible everywhere is divided by exactly 1.
    Args, gradients and errors as in :func:`neighbor_fill`.
    """
    mask = _check(x, mask)
    return mean_correction(mask_multiply(x, mask).mean((2, 3)), mask)


def mean_correction(mean: Tensor, mask: Tensor) -> Tensor:
    """Means over all pixels of ``x * mask`` (``[N, C]`` or ``[N, C, 1, 1]``) as visible ones'."""
    share = mask.mean((2, 3), keepdim=mean.dim() == 4)
    share = torch.where((share == 0) | (share == 1), 1, share + 1e-8)
    return (mean / share).to(mean.dtype)


def conv_pads(padding: Any, kernel: Pair, dilation: Pair) -> Pads:
    """A convolution's padding as (before, after) of rows and of columns."""
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (
            (total[0] // 2, total[0] - total[0] // 2),
            (total[1] // 2, total[1] - total[1] // 2),
        )
    if padding == "valid":
        padding = 0
    rows, columns = _pair("padding", padding)
    return (rows, rows), (columns, columns)


def _pair(name: str, value: Any) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) == 1:
        pair = pair * 2
    if len(pair) != 2:
        raise ValueError(f"{name}: got {value!r}, want an int or two")
    return pair


def _arithmetic(t: Tensor) -> torch.dtype:
    """What the ops compute in, and masks are kept in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _check_fill(fill: str) -> str:
    if fill not in FILLS:
        raise ValueError(f"fill: got {fill!r}, want one of {', '.join(map(repr, FILLS))}")
    return fill


def _check(x: Any, mask: Any) -> Tensor:
    """mask in floating point; an error if it or x cannot be what they are for."""
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, C, H, W]")
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: got {type(mask).__name__}, want a tensor")
    if mask.dtype == torch.bool:
        mask = mask.to(_arithmetic(x))
    check_floating("mask", mask)
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError("mask: requires a gradient; a mask is a constant here, detach it")
    fits = mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2:] == x.shape[2:]
    if not fits:
        raise ValueError(
            f"mask: got shape {list(mask.shape)}, want [N, 1, {x.shape[2]}, {x.shape[3]}] for an x "
            f"of shape {list(x.shape)}"
        )
    if mask.shape[0] != x.shape[0] and 1 not in (mask.shape[0], x.shape[0]):
        raise ValueError(
            f"mask: got {mask.shape[0]} masks for {x.shape[0]} images, want as many, or one of "
            "either"
        )
    return mask
