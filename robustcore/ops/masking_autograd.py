"""What is under the masking ops: derivatives, fake kernels and vmap rules of the raw ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore import _C  # noqa: F401  (registers torch.ops.robustcore)
from robustcore.ops.common import needs_grad

_fill = torch.ops.robustcore.neighbor_fill.default
_fill_ = torch.ops.robustcore.neighbor_fill_.default
_state = torch.ops.robustcore.fill_state.default
_epilogue = torch.ops.robustcore.mask_epilogue.default
_epilogue_ = torch.ops.robustcore.mask_epilogue_.default

# Of one pass: kMaxIters and kMaxItersTransposed in csrc/masking/masking.h.
MAX_ITERS, MAX_ITERS_TRANSPOSED = 8, 4


def _is_channels_last(x: Tensor) -> bool:
    # By strides: vmap does not answer is_contiguous(memory_format=...).
    n, c, h, w = x.shape
    if c <= 1 or h * w <= 1 or x.stride()[1:] != (1, w * c, c):
        return False
    return bool(n == 1 or x.stride(0) == h * w * c)


def _dense(x: Tensor) -> Tensor:
    """x as the epilogue takes it: contiguous or channels_last."""
    return x if _is_channels_last(x) else x.contiguous()


def _filled(x: Tensor, mask: Tensor, iters: int) -> Tensor:
    for first in range(0, iters, MAX_ITERS):
        if first:
            mask = _state(mask, MAX_ITERS)
        x = _fill(x, mask, min(MAX_ITERS, iters - first), first == 0, False)
    return x


def _fill_transposed(x: Tensor, mask: Tensor, iters: int) -> Tensor:
    """The transpose of ``x -> _filled(x, mask, iters)``, which is linear."""
    most = MAX_ITERS_TRANSPOSED
    passes = [(mask, min(most, iters))]
    for first in range(most, iters, most):
        passes.append((_state(passes[-1][0], most), min(most, iters - first)))
    for index in reversed(range(len(passes))):
        x = _fill(x, *passes[index], index == 0, True)
    return x


def _sum_images(grad: Tensor, images: int) -> Tensor:
    """grad of a broadcast x: summed over the masks if x was one image."""
    return grad.sum(0, keepdim=True) if images == 1 and grad.shape[0] != 1 else grad


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
            grad = _apply_epilogue(grad, mask, None, None, False)
        else:
            grad = _FillTransposed.apply(grad, mask, ctx.iters)
        return _sum_images(grad, ctx.images), None, None, None


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


def _apply_epilogue(
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
        x = _dense(x)
        _epilogue_(x, mask, scale, shift, relu)
        return x
    return _epilogue(_dense(x), mask, scale, shift, relu)


def _is_plain(x: Tensor) -> bool:
    """Not a wrapper of torch.func's, which nothing may write through."""
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


class _Epilogue(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mask, scale, shift, relu):
        return _epilogue(_dense(x), mask, scale, shift, relu)

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
            grad = _apply_epilogue(grad, mask, None, None, False)
        per_channel = (None if t is None else t.view(-1, 1, 1) for t in (scale, shift))
        factor, offset = per_channel
        if ctx.relu:
            before = x if factor is None else x * factor
            before = before if offset is None else before + offset
            grad = torch.where(before > 0, grad, 0)
        grad_x = grad if factor is None else (grad * factor).to(grad.dtype)
        grads: list[Tensor | None] = [_sum_images(grad_x, ctx.images), None, None, None, None]
        if ctx.needs_input_grad[2]:
            grads[2] = (grad * x).to(scale.dtype).sum((0, 2, 3))
        if ctx.needs_input_grad[3]:
            grads[3] = grad.to(shift.dtype).sum((0, 2, 3))
        return tuple(grads)


def _fake_like(x: Tensor, images: Any) -> Tensor:
    sizes = [images, *x.shape[1:]]
    _, c, h, w = sizes
    if _is_channels_last(x):
        strides = [torch.sym_max(c * h * w, 1), 1, w * c, c]
        return torch.empty_strided(sizes, strides, dtype=x.dtype, device=x.device)
    return torch.empty(sizes, dtype=x.dtype, device=x.device)


def _images(x: Tensor, mask: Tensor | None) -> Any:
    return x.shape[0] if mask is None or x.shape[0] != 1 else mask.shape[0]


@torch.library.register_fake("robustcore::neighbor_fill")
def _(x, mask, iters, multiply, transpose):
    return _fake_like(x, _images(x, mask))


@torch.library.register_fake("robustcore::neighbor_fill_")
def _(x, mask, iters):
    return None


@torch.library.register_fake("robustcore::fill_state")
def _(mask, iters):
    return _fake_like(mask, mask.shape[0])


@torch.library.register_fake("robustcore::mask_epilogue")
def _(x, mask, scale, shift, relu):
    return _fake_like(x, _images(x, mask))


@torch.library.register_fake("robustcore::mask_epilogue_")
def _(x, mask, scale, shift, relu):
    return None


def _merged(size: int, tensors: Sequence[Tensor | None], dims: Sequence[int | None]) -> list[Any]:
    """The mapped dimension joined with the images; what is one image is repeated where it must."""
    given = [
        None if t is None else t.unsqueeze(0) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, dims, strict=True)
    ]
    images = max(t.shape[1] for t in given if t is not None)
    return [
        None if t is None else t.expand(size, images, *t.shape[2:]).flatten(0, 1) for t in given
    ]


@torch.library.register_vmap("robustcore::neighbor_fill")
def _(info, in_dims, x, mask, iters, multiply, transpose):
    x, mask = _merged(info.batch_size, (x, mask), in_dims[:2])
    return _fill(x, mask, iters, multiply, transpose).unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("robustcore::fill_state")
def _(info, in_dims, mask, iters):
    (mask,) = _merged(info.batch_size, (mask,), in_dims[:1])
    return _state(mask, iters).unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("robustcore::mask_epilogue")
def _(info, in_dims, x, mask, scale, shift, relu):
    size = info.batch_size
    if in_dims[2] is not None or in_dims[3] is not None:  # a scale of its own for each call
        parts: list[Any] = [
            [None if t is None else t if d is None else t.select(d, i)
             for t, d in zip((x, mask, scale, shift), in_dims, strict=False)]
            for i in range(size)
        ]  # fmt: skip
        return torch.stack([_epilogue(_dense(p[0]), *p[1:], relu) for p in parts]), 0
    x, mask = _merged(size, (x, mask), in_dims[:2])
    return _epilogue(_dense(x), mask, scale, shift, relu).unflatten(0, (size, -1)), 0
