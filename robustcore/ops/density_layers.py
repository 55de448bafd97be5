"""Convolution with the double backward that an input gradient's needs.

torch's own is right and slow: it takes the weights' gradient by a convolution with a kernel the
size of the image. Here it is the ordinary gradient of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_convolution_backward = torch.ops.aten.convolution_backward.default

# Whether the engine's present run goes on to a node. It is torch's own, and not public: what is
# public, needs_input_grad, says what could have a gradient, not what was asked for, and a penalty
# asks for that of the input alone. Without it all gradients are computed: as right, only slower.
_will_execute = getattr(torch._C, "_will_engine_execute_node", None)


# Whether torch.func is at work; also torch's own. Without it Functions are called the long way.
_transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, all arguments given.

    That looks up the signature of ``forward`` at each call, for defaults; this does so only where
    torch.func wants it, and takes half as long.
    """
    if _transforming():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def needed(ctx: Any, inputs: int) -> list[bool]:
    """Which of a Function's first inputs this backward pass is for."""
    needs = list(ctx.needs_input_grad[:inputs])
    if _will_execute is None or torch.compiler.is_compiling():
        return needs
    if not hasattr(ctx, "next_functions"):  # under torch.func
        return needs
    for i, (node, _) in enumerate(ctx.next_functions[:inputs]):
        try:
            needs[i] = needs[i] and _will_execute(node)
        except RuntimeError:  # it does not say for a leaf that is itself asked for
            continue
    return needs


def present(results: Sequence[Any], needs: Sequence[bool]) -> list[Any]:
    """The results that are needed, None for the others."""
    return [r if n else None for r, n in zip(results, needs, strict=False)]


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
    result: Tensor = _Convolution.apply(x, weight, bias, stride, padding, dilation, groups)
    return result


class _Convolution(torch.autograd.Function):
    """``torch.convolution`` of any dimensions, not transposed; differentiable to any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, stride, padding, dilation, groups):
        return torch.convolution(
            x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, *ctx.settings = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        needs = needed(ctx, 3)
        grads = _ConvolutionBackward.apply(grad, *ctx.saved_tensors, needs, *ctx.settings)
        return *present(grads, needs), *[None] * 4


class _ConvolutionBackward(torch.autograd.Function):
    """Linear in the gradient and, each for itself, in input and weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, weight, needs, stride, padding, dilation, groups):
        grads = _convolution_backward(
            grad, x, weight, [weight.shape[0]], stride, padding, dilation, False,
            [0] * len(stride), groups, needs,
        )  # fmt: skip
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.needs, stride, padding, dilation, groups = inputs
        ctx.settings = stride, padding, dilation, groups
        ctx.mark_non_differentiable(*[o for o, n in zip(output, ctx.needs, strict=True) if not n])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, v_x, v_weight, v_bias):
        grad, x, weight = ctx.saved_tensors
        need_grad, need_x, need_weight = needed(ctx, 3)
        d_grad = d_x = d_weight = None
        settings = ctx.settings
        if need_grad:
            terms = []
            if v_x is not None:
                terms.append(_Convolution.apply(v_x, weight, v_bias, *settings))
            if v_weight is not None:
                bias = None if terms else v_bias
                terms.append(_Convolution.apply(x, v_weight, bias, *settings))
            if not terms and v_bias is not None:
                terms.append(v_bias.view(-1, *[1] * (grad.dim() - 2)).expand_as(grad))
            d_grad = sum(terms) if terms else None
        if need_weight and v_x is not None:
            only = [False, True, False]
            d_weight = _ConvolutionBackward.apply(grad, v_x, weight, only, *settings)[1]
        if need_x and v_weight is not None:
            only = [True, False, False]
            d_x = _ConvolutionBackward.apply(grad, x, v_weight, only, *settings)[0]
        return d_grad, d_x, d_weight, *[None] * 5
