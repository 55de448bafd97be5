"""Filling what a mask hides from what it shows."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore import _C
from robustcore.common.checks import require_choice, require_flag
from robustcore.ops.autograd import fake_nothing, needs_grad, raw, separated
from robustcore.ops.checks import check_integer
from robustcore.ops.masking.arguments import (
    check_mask,
    fake_like,
    merged_images,
    output_images,
    sum_images,
)
from robustcore.ops.masking.epilogue import apply_epilogue, mask_multiply, may_write

_fill = raw.neighbor_fill.default
_fill_ = raw.neighbor_fill_.default
_state = raw.fill_state.default

FILLS = ("neighbor", "zero", "partial")


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

    Raises TypeError or ValueError naming the argument. Differentiable to any order in x; the
    gradient is exactly 0 where the mask is.

    Source: Balasubramanian and Feizi, "Towards improved input masking for convolutional neural
    networks", 2023.

    >>> x, mask = torch.tensor([[[[7.0, 3.0, 5.0]]]]), torch.tensor([[[[1.0, 0.0, 0.0]]]])
    >>> neighbor_fill(x, mask, 1).round(decimals=2)  # as far as one pixel
    tensor([[[[7., 7., 0.]]]])
    """
    mask = check_mask(x, mask)
    iters, detach = check_integer("iters", iters, below=1 << 16), require_flag("detach", detach)
    if require_choice("fill", fill, FILLS) != "neighbor" or iters == 0:
        return mask_multiply(x, mask)
    if needs_grad(x):
        return _NeighborFill.apply(x, mask, iters, detach)
    return _filled(x, mask, iters)


def consume_fill(x: Tensor, mask: Tensor, iters: int) -> Tensor:
    """:func:`neighbor_fill` of an x that nobody else reads: in place where that can be."""
    if iters <= _C.MAX_FILL_ITERS and x.device.type == "cpu" and may_write(x, mask):
        _fill_(x, mask, iters)
        return x
    return neighbor_fill(x, mask, iters)


def _filled(x: Tensor, mask: Tensor, iters: int) -> Tensor:
    for first in range(0, iters, _C.MAX_FILL_ITERS):
        if first:
            mask = _state(mask, _C.MAX_FILL_ITERS)
        x = _fill(x, mask, min(_C.MAX_FILL_ITERS, iters - first), first == 0, False)
    return x


def _fill_transposed(x: Tensor, mask: Tensor, iters: int) -> Tensor:
    """The transpose of ``x -> _filled(x, mask, iters)``, which is linear."""
    most = _C.MAX_FILL_ITERS_TRANSPOSED
    passes = [(mask, min(most, iters))]
    for first in range(most, iters, most):
        passes.append((_state(passes[-1][0], most), min(most, iters - first)))
    for index in reversed(range(len(passes))):
        x = _fill(x, *passes[index], index == 0, True)
    return x


class _NeighborFill(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mask, iters, detach):
        return _filled(x, mask, iters)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, mask, ctx.iters, ctx.detach = inputs
        ctx.images = x.shape[0]
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        if ctx.detach:
            grad = apply_epilogue(grad, mask, None, None, False)
        else:
            grad = _FillTransposed.apply(grad, mask, ctx.iters)
        return sum_images(grad, ctx.images), None, None, None


class _FillTransposed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, mask, iters):
        return _fill_transposed(grad, mask, iters)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, mask, ctx.iters = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx, v):
        (mask,) = ctx.saved_tensors
        return _NeighborFill.apply(v, mask, ctx.iters, False), None, None


@torch.library.register_fake("robustcore::neighbor_fill")
def _(x, mask, iters, multiply, transpose):
    return fake_like(x, output_images(x, mask))


torch.library.register_fake("robustcore::neighbor_fill_", fake_nothing)


@torch.library.register_fake("robustcore::fill_state")
def _(mask, iters):
    return fake_like(mask, mask.shape[0])


@torch.library.register_vmap("robustcore::neighbor_fill")
def _(info, in_dims, x, mask, iters, multiply, transpose):
    x, mask = merged_images(info.batch_size, (x, mask), in_dims[:2])
    return separated(_fill(x, mask, iters, multiply, transpose), info.batch_size)


@torch.library.register_vmap("robustcore::fill_state")
def _(info, in_dims, mask, iters):
    (mask,) = merged_images(info.batch_size, (mask,), in_dims[:1])
    return separated(_state(mask, iters), info.batch_size)
