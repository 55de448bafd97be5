"""Arguments of the masking ops.

A mask is ``[N | 1, 1, H, W]``, bool or floating in [0, 1], 1 = visible; its values are not checked.
It is a constant: none of these ops has a derivative in it. Where it is 0, x is not read at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, fake_dense, is_channels_last
from robustcore.ops.checks import check_device, check_floating, check_tensor

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # (before, after) of the rows, of the columns


def check_mask(x: Any, mask: Any) -> Tensor:
    """mask in floating point; an error if it or x cannot be what they are for."""
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, C, H, W]")
    check_tensor("mask", mask)
    if mask.dtype == torch.bool:
        mask = mask.to(arithmetic(x))
    check_floating("mask", mask)
    check_device("mask", mask, x)
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


def check_window(name: str, image: Tensor, kernel: Pair, pads: Pads, dilation: Pair) -> None:
    """A window fits into the padded image ``[N, C, H, W]``; ``name`` is what gives its size."""
    for size, k, (before, after), d in zip(image.shape[2:], kernel, pads, dilation, strict=True):
        reach = d * (k - 1) + 1
        if size < 1 or reach > size + before + after:
            raise ValueError(
                f"{name}: got {k}, whose window of {reach} pixels does not fit into {size} padded "
                f"by {before} and {after}"
            )


def output_images(x: Tensor, mask: Tensor | None) -> Any:
    """How many images an op makes of x: one image with N masks gives N."""
    return x.shape[0] if mask is None or x.shape[0] != 1 else mask.shape[0]


def sum_images(grad: Tensor, images: int) -> Tensor:
    """grad of a broadcast x: summed over the masks if x was one image."""
    return grad.sum(0, keepdim=True) if images == 1 and grad.shape[0] != 1 else grad


def fake_like(x: Tensor, images: Any) -> Tensor:
    """An empty tensor of so many images, laid out as x is."""
    return fake_dense(x, [images, *x.shape[1:]], is_channels_last(x))


def merged_images(
    size: int, tensors: Sequence[Tensor | None], dims: Sequence[int | None]
) -> list[Any]:
    """The mapped dimension joined with the images; what is one image is repeated where it must."""
    given = [
        None if t is None else t.unsqueeze(0) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, dims, strict=True)
    ]
    images = max(t.shape[1] for t in given if t is not None)
    return [
        None if t is None else t.expand(size, images, *t.shape[2:]).flatten(0, 1) for t in given
    ]
