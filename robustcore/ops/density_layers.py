"""Batch normalisation with the double backward that an input gradient's needs.

torch's own is right and slow: it makes some thirty passes over memory. Here it is one ordinary
backward and five passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_batch_norm = torch.ops.aten.native_batch_norm.default
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default

# Whether the engine's present run goes on to a node. It is torch's own, and not public: what is
# public, needs_input_grad, says what could have a gradient, not what was asked for, and a penalty
# asks for that of the input alone. Without it all gradients are computed: as right, only slower.
_will_execute = getattr(torch._C, "_will_engine_execute_node", None)


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


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """``[N, C, *D]`` by the batch's own statistics, which join the running ones if there are any.

    Differentiable to any order.
    """
    result: Tensor = _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)[0]
    return result


class _BatchNorm(torch.autograd.Function):
    """``batch_norm`` by the batch's own statistics; differentiable to any order.

    Gives the mean and the inverse deviation of each channel as well, as constants.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, running_mean, running_var, momentum, eps):
        return _batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, *_, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx, grad, *_):
        needs = needed(ctx, 3)
        grads = _BatchNormBackward.apply(grad, *ctx.saved_tensors, ctx.eps)
        return *present(grads, needs), *[None] * 4


class _BatchNormBackward(torch.autograd.Function):
    """(d x, d weight, d bias); its derivative in x takes in that of the statistics."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, weight, mean, inverse, eps):
        return _batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, eps, [True] * 3
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.eps = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, v, v_weight, v_bias):
        grad, x, weight, mean, inverse, d_x, d_weight, d_bias = ctx.saved_tensors
        if v is None and v_weight is None and v_bias is None:
            return (None,) * 6
        if torch.is_grad_enabled() or v_weight is not None or v_bias is not None:
            results = _batch_norm_any_order(grad, x, weight, ctx.eps, (v, v_weight, v_bias))
        else:
            results = _batch_norm_double_backward(
                v, grad, x, weight, mean, inverse, ctx.eps, d_x, d_weight, d_bias
            )
        return *results, None, None, None


def _batch_norm_double_backward(
    v: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    eps: float,
    d_x: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    # With h = (x - mean) inverse, means m over a channel, and the backward pass
    # B(g) = weight inverse (g - m(g) - h m(g h)), the first derivative meets its cotangent v in
    # <v, B(grad)> = count weight inverse q, q = m(v grad) - m(v) m(grad) - m(v h) m(grad h). So:
    #   grad: B(v), weight: count inverse q,
    #   x: -inverse (m(grad h) B(v) + m(v h) B(grad) + weight inverse q h).
    d_grad, v_h, v_1 = _batch_norm_backward(
        v, x, weight, None, None, mean, inverse, True, eps, [True] * 3
    )
    count = x.numel() / x.shape[1]
    over = [0, *range(2, x.dim())]
    sum_q = (v * grad).sum(over) - (v_1 * d_bias + v_h * d_weight) / count
    scale = inverse if weight is None else weight * inverse
    slope = -scale * inverse.square() * (sum_q / count)
    rows = [1, -1, *[1] * (x.dim() - 2)]
    by_x, by_d_grad, by_d_x, constant = (
        t.view(rows)
        for t in (slope, -inverse * d_weight / count, -inverse * v_h / count, -slope * mean)
    )
    curvature = torch.addcmul(constant, x, by_x)
    curvature.addcmul_(d_grad, by_d_grad).addcmul_(d_x, by_d_x)
    return d_grad, curvature, None if weight is None else inverse * sum_q


def _batch_norm_any_order(grad, x, weight, eps, cotangents):
    """The double backward by torch's own differentiation of the backward formula."""
    tracked = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that what grad itself owes to x is left to the engine.
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
                  for t in (grad, x, weight) if t is not None]  # fmt: skip
        g, x = inputs[:2]
        over = [0, *range(2, x.dim())]
        rows = [1, -1, *[1] * (x.dim() - 2)]
        var, mean = torch.var_mean(x, over, correction=0, keepdim=True)
        inverse = (var + eps).rsqrt()
        h = (x - mean) * inverse
        d_weight, d_bias = (g * h).sum(over, keepdim=True), g.sum(over, keepdim=True)
        count = x.numel() / x.shape[1]
        d_x = inverse * (g - d_bias / count - h * d_weight / count)
        if weight is not None:
            d_x = d_x * inputs[2].view(rows)
        outputs = d_x, d_weight.flatten(), d_bias.flatten()
        pairs = [(o, v) for o, v in zip(outputs, cotangents, strict=True) if v is not None]
        outputs, cotangents = zip(*pairs, strict=True)
        results = torch.autograd.grad(
            outputs, inputs, cotangents, create_graph=tracked, allow_unused=True
        )
    return *results, *[None] * (3 - len(results))
