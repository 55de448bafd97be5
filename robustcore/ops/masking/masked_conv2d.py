"""Convolutions of what a mask shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.common.checks import require_flag
from robustcore.ops.autograd import arithmetic
from robustcore.ops.checks import check_device, check_floating, check_integer, check_like, pair
from robustcore.ops.masking.arguments import Pads, Pair, check_mask, check_window
from robustcore.ops.masking.epilogue import apply_epilogue
from robustcore.ops.masking.fill import neighbor_fill
from robustcore.ops.masking.pools import mask_pool


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
    Differentiable to any order in x, weight, bias, scale and shift. Raises TypeError or ValueError
    naming the argument.
    Source: as :func:`neighbor_fill`; Liu et al., "Image inpainting for irregular holes using
    partial convolutions", 2018.
    """
    mask = check_mask(x, mask)
    _check_weights(x, weight, bias, scale, shift, check_integer("groups", groups, 1))
    kernel = (weight.shape[2], weight.shape[3])
    strides, dilations = pair("stride", stride), pair("dilation", dilation)
    pads = conv_pads(padding, kernel, dilations)
    check_window("weight", x, kernel, pads, dilations)
    if isinstance(padding, str):
        if padding == "same" and strides != (1, 1):
            raise ValueError(f"padding: got 'same' with stride {strides}, want stride 1")
    else:
        padding = (pads[0][0], pads[1][0])
    if iters is None:
        iters = max(d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
    relu = require_flag("relu", relu)
    shown = neighbor_fill(x, mask, iters, fill=fill)
    y = functional.conv2d(shown, weight, bias, strides, padding, dilations, groups)
    if fill == "partial":
        y = partial_correction(y, mask, bias, kernel, strides, pads, dilations)
    out_mask = mask_pool(mask, kernel, strides, pads, dilations)
    wide = arithmetic(y)
    scale, shift = (None if t is None else t.to(wide).contiguous() for t in (scale, shift))
    return apply_epilogue(y, out_mask, scale, shift, relu, in_place=True), out_mask


def _check_weights(x: Tensor, weight: Any, bias: Any, scale: Any, shift: Any, groups: int) -> None:
    autocast = torch.is_autocast_enabled(x.device.type)  # which gives x and weight one dtype
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and autocast:
            check_floating(name, t)
            check_device(name, t, x)
        elif t is not None or name == "weight":
            check_like(name, t, x)
    shape, inner = list(weight.shape), x.shape[1] // groups
    fits = len(shape) == 4 and shape[1] == inner and 0 not in shape
    if x.shape[1] % groups or not fits or shape[0] % groups:
        raise ValueError(
            f"weight: got shape {shape}, want [C_out, {x.shape[1]} / groups, kh, kw], both numbers "
            f"of channels multiples of groups = {groups}"
        )
    for name, t in (("bias", bias), ("scale", scale), ("shift", shift)):
        if t is None:
            continue
        check_floating(name, t)
        check_device(name, t, x)
        if t.shape != weight.shape[:1]:
            raise ValueError(f"{name}: got shape {list(t.shape)}, want [{shape[0]}]")


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


def conv_pads(padding: Any, kernel: Pair, dilation: Pair) -> Pads:
    """A convolution's padding as (before, after) of rows and of columns."""
    if isinstance(padding, str) and padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (
            (total[0] // 2, total[0] - total[0] // 2),
            (total[1] // 2, total[1] - total[1] // 2),
        )
    if isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"padding: got {padding!r}, want an int, two, 'same' or 'valid'")
        padding = 0
    rows, columns = pair("padding", padding, 0)
    return (rows, rows), (columns, columns)
