"""Convolutions with the double backward that an input gradient's needs.

torch's own is right and slow: it takes the weights' gradient by a convolution with a filter the
size of the image. Here it is the ordinary gradient of the weights. On the CPU, float32 convolutions
of 3 x 3 and stride 1, of which most networks consist, are our own, by Winograd's minimal filtering
(Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016), for all their passes;
they round to about 1e-6 of the norm, where torch's round to 2e-7.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore import _C
from robustcore.ops.autograd import apply, dense, needed, present, raw, register_loop

_conv3x3 = raw.conv3x3.default
_conv3x3_weight_gradient = raw.conv3x3_weight_gradient.default
_convolution_backward = torch.ops.aten.convolution_backward.default

# Sizes below which torch's own were as fast: channels, which fill vectors, and pixels of the batch,
# which share one transform of the filter.
_MIN_CHANNELS, _MIN_PIXELS = 16, 128


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """A convolution ``[N, C, *D]`` with a number a dimension, differentiable to any order."""
    geometry = _Geometry(stride, padding, dilation, groups)
    result: Tensor = apply(_Convolution, x, weight, bias, geometry)
    return result


class _Geometry(NamedTuple):
    """How the filter moves, a number a dimension."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def of_torch(self) -> tuple[Any, ...]:
        """The arguments of torch's convolutions, which may be transposed: these are not."""
        none = [0] * len(self.stride)
        return self.stride, self.padding, self.dilation, False, none, self.groups


class _Convolution(torch.autograd.Function):
    """``torch.convolution`` of any dimensions, not transposed; differentiable to any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, geometry):
        if _is_ours(x, weight, geometry):
            return _conv3x3(dense(x), weight.contiguous(), bias, *geometry.padding, False)
        return torch.convolution(x, weight, bias, *geometry.of_torch())

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        needs = needed(ctx, 3)
        grads = apply(_ConvolutionBackward, grad, *ctx.saved_tensors, needs, ctx.geometry)
        return *present(grads, needs), None


class _ConvolutionBackward(torch.autograd.Function):
    """Linear in the gradient and, each for itself, in input and weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, weight, needs, geometry):
        if _is_ours(x, weight, geometry):
            padding = geometry.padding
            need_x, need_weight, need_bias = needs
            grad, flipped = dense(grad), [2 - p for p in padding]
            grads = (
                _conv3x3(grad, weight.contiguous(), None, *flipped, True) if need_x else None,
                _conv3x3_weight_gradient(grad, dense(x), *padding) if need_weight else None,
                grad.sum([0, 2, 3]) if need_bias else None,
            )
        else:
            grads = _convolution_backward(
                grad, x, weight, [weight.shape[0]], *geometry.of_torch(), needs
            )
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.needs, ctx.geometry = inputs
        ctx.mark_non_differentiable(*[o for o, n in zip(output, ctx.needs, strict=True) if not n])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, v_x, v_weight, v_bias):
        grad, x, weight = ctx.saved_tensors
        need_grad, need_x, need_weight = needed(ctx, 3)
        d_grad = d_x = d_weight = None
        geometry = ctx.geometry
        if need_grad:
            terms = []
            if v_x is not None:
                terms.append(apply(_Convolution, v_x, weight, v_bias, geometry))
            if v_weight is not None:
                bias = None if terms else v_bias
                terms.append(apply(_Convolution, x, v_weight, bias, geometry))
            if not terms and v_bias is not None:
                terms.append(v_bias.view(-1, *[1] * (grad.dim() - 2)).expand_as(grad))
            d_grad = functools.reduce(torch.add, terms) if terms else None
        if need_weight and v_x is not None:
            only = [False, True, False]
            d_weight = apply(_ConvolutionBackward, grad, v_x, weight, only, geometry)[1]
        if need_x and v_weight is not None:
            only = [True, False, False]
            d_x = apply(_ConvolutionBackward, grad, x, v_weight, only, geometry)[0]
        return d_grad, d_x, d_weight, None, None


def _is_ours(x: Tensor, weight: Tensor, geometry: _Geometry) -> bool:
    """Whether our own kernel takes this convolution, and is worth it."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if geometry.groups != 1 or tuple(weight.shape[2:]) != (3, 3) or x.dim() != 4:
        return False
    padding = geometry.padding
    moves_by_one = all(n == 1 for n in (*geometry.stride, *geometry.dilation))
    if not moves_by_one or any(not 0 <= p <= 2 for p in padding):
        return False
    n, channels, height, width = x.shape
    if min(channels, weight.shape[0]) < _MIN_CHANNELS or n * height * width < _MIN_PIXELS:
        return False
    out = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    return min(out) > 0 and _C.winograd_block() > 0


@torch.library.register_fake("robustcore::conv3x3")
def _(x, weight, bias, pad_y, pad_x, transposed):
    n, _, height, width = x.shape
    y = x.new_empty(n, weight.shape[1 if transposed else 0], height + 2 * pad_y - 2,
                    width + 2 * pad_x - 2)  # fmt: skip
    return y if x.is_contiguous() else y.to(memory_format=torch.channels_last)


@torch.library.register_fake("robustcore::conv3x3_weight_gradient")
def _(grad, x, pad_y, pad_x):
    return x.new_empty(grad.shape[1], x.shape[1], 3, 3)


# Mapped weights are convolutions of their own, and mapped images may be too.
register_loop(_conv3x3, dense)
register_loop(_conv3x3_weight_gradient, dense)
