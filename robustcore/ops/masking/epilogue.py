"""What follows a masked convolution in one pass: scale, shift, ReLU and mask."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.autograd import (
    dense,
    fake_nothing,
    is_channels_last,
    loop,
    needs_grad,
    raw,
    separated,
)
from robustcore.ops.masking.arguments import (
    check_mask,
    fake_like,
    merged_images,
    output_images,
    sum_images,
)

_epilogue = raw.mask_epilogue.default
_epilogue_ = raw.mask_epilogue_.default


def mask_multiply(x: Tensor, mask: Tensor) -> Tensor:
    """``x * mask``, and 0 where the mask is 0 whatever x is there; one image with N masks gives N.

    Arguments and errors are as in :func:`neighbor_fill`; the result is ``[N, C, H, W]`` of x's
    dtype. Differentiable to any order in x; the gradient is exactly 0 where the mask is.

    >>> mask_multiply(torch.tensor([[[[1.0, torch.nan]]]]), torch.tensor([[[[1.0, 0.0]]]]))
    tensor([[[[1., 0.]]]])
    """
    return apply_epilogue(x, check_mask(x, mask), None, None, False)


def consume_multiply(x: Tensor, mask: Tensor) -> Tensor:
    """:func:`mask_multiply` of an x that nobody else reads: in place where that can be."""
    if may_write(x, mask):
        _epilogue_(x, mask, None, None, False)
        return x
    return mask_multiply(x, mask)


def may_write(x: Tensor, mask: Tensor) -> bool:
    if torch.compiler.is_compiling() or needs_grad(x) or not _is_plain(x):
        return False
    return len(mask) in (1, len(x)) and (x.is_contiguous() or is_channels_last(x))


def apply_epilogue(
    x: Tensor,
    mask: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    *,
    in_place: bool = False,
) -> Tensor:
    """``in_place``: x is nobody else's, and as many images as there are masks."""
    if needs_grad(x, scale, shift):
        return _Epilogue.apply(x, mask, scale, shift, relu)
    if in_place and not torch.compiler.is_compiling() and _is_plain(x):
        x = dense(x)
        _epilogue_(x, mask, scale, shift, relu)
        return x
    return _epilogue(dense(x), mask, scale, shift, relu)


def _is_plain(x: Tensor) -> bool:
    """Not a wrapper of torch.func's, which nothing may write through."""
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


class _Epilogue(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mask, scale, shift, relu):
        return _epilogue(dense(x), mask, scale, shift, relu)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, mask, scale, shift, ctx.relu = inputs
        ctx.images = x.shape[0]
        # x only where a derivative depends on it.
        ctx.save_for_backward(x if ctx.relu or scale is not None else None, mask, scale, shift)

    @staticmethod
    def backward(ctx, grad):
        x, mask, scale, shift = ctx.saved_tensors
        if mask is not None:
            grad = apply_epilogue(grad, mask, None, None, False)
        per_channel = (None if t is None else t.view(-1, 1, 1) for t in (scale, shift))
        factor, offset = per_channel
        if ctx.relu:
            before = x if factor is None else x * factor
            before = before if offset is None else before + offset
            grad = torch.where(before > 0, grad, 0)
        grad_x = grad if factor is None else (grad * factor).to(grad.dtype)
        grads: list[Tensor | None] = [sum_images(grad_x, ctx.images), None, None, None, None]
        if ctx.needs_input_grad[2]:
            grads[2] = (grad * x).to(scale.dtype).sum((0, 2, 3))
        if ctx.needs_input_grad[3]:
            grads[3] = grad.to(shift.dtype).sum((0, 2, 3))
        return tuple(grads)


@torch.library.register_fake("robustcore::mask_epilogue")
def _(x, mask, scale, shift, relu):
    return fake_like(x, output_images(x, mask))


torch.library.register_fake("robustcore::mask_epilogue_", fake_nothing)


@torch.library.register_vmap("robustcore::mask_epilogue")
def _(info, in_dims, x, mask, scale, shift, relu):
    size = info.batch_size
    if in_dims[2] is not None or in_dims[3] is not None:  # a scale of its own for each call
        return loop(_epilogue, info, in_dims, (x, mask, scale, shift, relu), dense)
    x, mask = merged_images(size, (x, mask), in_dims[:2])
    return separated(_epilogue(dense(x), mask, scale, shift, relu), size)
