"""The log-sum-exp of a linear layer's logits, so that no ``[N, K]`` ever exists."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.ops.autograd import needed, needs_grad, present
from robustcore.ops.checks import check_device, check_floating, check_like, check_tensor
from robustcore.ops.density.linear_chunks import backward_op, double_backward_op, forward_op


def linear_logsumexp(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, *, targets: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """``logsumexp(features @ weight.T + bias)`` of each row, without the logits.

    Args:
        features: ``[N, D]``, floating.
        weight: ``[K, D]`` of the same dtype, K >= 1.
        bias: ``[K]`` of the same dtype.
        targets: int64 ``[N]``, a class of each row. Their logits come from the same pass: the
            cross entropy is ``(lse - target).mean()``. Not checked to be in [0, K): the logit of a
            class outside is NaN.

    Returns:
        ``[N]`` in the dtype of features; with targets a pair, the second the targets' logits.

    Products and sums are in float32 whatever the input, in float64 for float64; the extra memory is
    a buffer of at most 1024 x 1024 of them (on a GPU 4096 x 1024; two in the double backward) and a
    few times the features. Where features require a gradient, it is taken along with the value, up
    to the upstream factor, and kept. Raises TypeError or ValueError naming the argument.

    Differentiable twice, in features, weight and bias: the gradient of the weight and the double
    backward recompute the chunks. Autocast leaves it alone.

    The double backward is ours; the chunked forward and backward follow Wijmans et al., "Cut your
    losses in large-vocabulary language models", 2024.
    """
    _check_arguments(features, weight, bias, targets)
    if needs_grad(features, weight, bias):
        lse, target, _ = _LinearLogSumExp.apply(
            features, weight, bias, targets, features.requires_grad
        )
    else:
        lse, target, _ = forward_op(features, weight, bias, targets, False)
    lse = lse.to(features.dtype)
    return lse if targets is None else (lse, target.to(features.dtype))


def _check_arguments(features: Any, weight: Any, bias: Any, targets: Any) -> None:
    check_floating("features", features)
    if features.dim() != 2:
        raise ValueError(f"features: got shape {list(features.shape)}, want [N, D]")
    n, d = features.shape
    check_like("weight", weight, features, "features")
    if weight.dim() != 2 or weight.shape[1] != d or weight.shape[0] < 1:
        raise ValueError(f"weight: got shape {list(weight.shape)}, want [K, {d}] with K >= 1")
    if bias is not None:
        check_like("bias", bias, features, "features")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: got shape {list(bias.shape)}, want [{weight.shape[0]}]")
    if targets is not None:
        check_tensor("targets", targets)
        if targets.dtype != torch.int64:
            raise TypeError(f"targets: got {targets.dtype}, want an int64 tensor")
        check_device("targets", targets, features, "features")
        if targets.shape != (n,):
            raise ValueError(f"targets: got shape {list(targets.shape)}, want [{n}]")


class _LinearLogSumExp(torch.autograd.Function):
    """(lse, the targets' logits, mean): what the forward op returns."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features, weight, bias, targets, with_mean):
        return forward_op(features, weight, bias, targets, with_mean)

    @staticmethod
    def setup_context(ctx, inputs, output):
        lse, target, mean = output
        ctx.save_for_backward(*inputs[:4], lse, mean)
        ctx.mark_non_differentiable(*([mean] if inputs[3] is not None else [target, mean]))

    @staticmethod
    def backward(ctx, grad, grad_target, _):
        *inputs, lse, mean = ctx.saved_tensors
        needs = _Needs(*needed(ctx, 3))
        if inputs[3] is None:
            grad_target = None
        # Detached: constants, or the engine would come back here with gradients of zeros.
        grads = _LinearLogSumExpBackward.apply(
            grad, grad_target, *inputs, lse.detach(), mean.detach(), needs
        )
        return *present(grads, needs), None, None


class _Needs(NamedTuple):
    """Whose gradients are wanted."""

    features: bool
    weight: bool
    bias: bool


class _LinearLogSumExpBackward(torch.autograd.Function):
    """Gradients of features, weight and bias; lse and mean count as constants, as in logsumexp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, grad_target, features, weight, bias, targets, lse, mean, needs):
        return backward_op(grad, grad_target, features, weight, bias, targets, lse, mean, *needs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.needs = inputs
        ctx.mark_non_differentiable(*[o for o, n in zip(output, ctx.needs, strict=True) if not n])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        if all(v is None for v in cotangents):
            return (None,) * 9
        need_grad, need_target, *needs = ctx.needs_input_grad[:5]
        results = _LinearLogSumExpDoubleBackward.apply(
            *cotangents, *ctx.saved_tensors, _Needs(*needs)
        )
        return *present(results, (need_grad, need_target, *needs)), *[None] * 4


class _LinearLogSumExpDoubleBackward(torch.autograd.Function):
    """Derivatives along cotangents of the three gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        *tensors, needs = arguments
        return double_backward_op(*tensors, *needs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("linear_logsumexp: differentiable twice, and this is the third time")
