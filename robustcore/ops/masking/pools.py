"""Pools and means under a mask, and the masks of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.common.checks import require_choice, require_flag
from robustcore.ops.checks import check_floating, pair
from robustcore.ops.masking.arguments import Pads, Pair, check_mask, check_window
from robustcore.ops.masking.epilogue import mask_multiply


def mask_pool(
    mask: Tensor,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """The mask of a window's output: the largest value in it. A 1x1 window is a view.

    Args:
        mask: ``[N, 1, H, W]``, floating, in [0, 1], 1 = visible.
        kernel, stride, dilation: (rows, columns), in pixels.
        pads: (before, after) of rows, and of columns.
        ceil_mode: as in ``torch.nn.functional.max_pool2d``.

    Returns:
        ``[N, 1, H', W']`` of mask's dtype. Not differentiable.

    Raises TypeError or ValueError naming the argument.
    Source: Balasubramanian and Feizi, 2023.
    """
    check_floating("mask", mask)
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask: got shape {list(mask.shape)}, want [N, 1, H, W]")
    kernel, stride = pair("kernel", kernel), pair("stride", stride)
    dilation, ceil_mode = pair("dilation", dilation), require_flag("ceil_mode", ceil_mode)
    if not isinstance(pads, (tuple, list)) or len(pads) != 2:
        raise TypeError(f"pads: got {pads!r}, want (before, after) of rows and of columns")
    pads = pair("pads", pads[0], 0), pair("pads", pads[1], 0)
    check_window("kernel", mask, kernel, pads, dilation)
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

    Args:
        x, mask: as in :func:`neighbor_fill`.
        kernel_size, stride, padding, ceil_mode: as in ``torch.nn.functional.max_pool2d``.
        kind: ``"max"`` (``mask'`` is the maximum of the mask) or ``"avg"`` (``mask'`` is 1 where
            the mask's average is above 0).

    Returns:
        ``[N, C, H', W']`` of x's dtype and ``[N, 1, H', W']``.

    Raises TypeError or ValueError naming the argument. Differentiable to any order in x.
    Source: Balasubramanian and Feizi, 2023.
    """
    mask = check_mask(x, mask)
    if x.shape[1] < 1:
        raise ValueError(f"x: got shape {list(x.shape)}, want at least one channel")
    require_choice("kind", kind, ("max", "avg"))
    kernel = pair("kernel_size", kernel_size)
    stride = kernel if stride is None else pair("stride", stride)
    rows, columns = padding = pair("padding", padding, 0)
    if 2 * rows > kernel[0] or 2 * columns > kernel[1]:
        raise ValueError(f"padding: got {padding}, want at most half of kernel_size {kernel}")
    check_window("kernel_size", x, kernel, ((rows, rows), (columns, columns)), (1, 1))
    pool: Any = functional.max_pool2d if kind == "max" else functional.avg_pool2d
    options = dict(stride=stride, padding=padding, ceil_mode=require_flag("ceil_mode", ceil_mode))
    out_mask: Tensor = pool(mask, kernel, **options)
    if kind == "avg":
        out_mask = (out_mask > 0).to(mask.dtype)
    return mask_multiply(pool(mask_multiply(x, mask), kernel, **options), out_mask), out_mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over visible pixels, ``[N, C]``; 0 where a sample shows nothing.

    ``mean(x * m) / (mean(m) + 1e-8)``; a sample that is visible everywhere is divided by exactly 1.
    Arguments, errors and source are as in :func:`neighbor_fill`. Differentiable to any order in x.

    >>> x, mask = torch.tensor([[[[1.0, 2.0, 99.0]]]]), torch.tensor([[[[1.0, 1.0, 0.0]]]])
    >>> masked_mean(x, mask)
    tensor([[1.5000]])
    """
    mask = check_mask(x, mask)
    return mean_correction(mask_multiply(x, mask).mean((2, 3)), mask)


def mean_correction(mean: Tensor, mask: Tensor) -> Tensor:
    """Means over all pixels of ``x * mask`` (``[N, C]`` or ``[N, C, 1, 1]``) as visible ones'."""
    share = mask.mean((2, 3), keepdim=mean.dim() == 4)
    share = torch.where((share == 0) | (share == 1), 1, share + 1e-8)
    return (mean / share).to(mean.dtype)
