"""The log-sum-exp of a linear layer's logits, so that no ``[N, K]`` ever exists."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, needed, needs_grad, present
from robustcore.ops.checks import (
    check_device,
    check_dtype,
    check_floating,
    check_integer,
    check_tensor,
)
from robustcore.ops.density import linear_fused
from robustcore.ops.density.linear_chunks import backward_op, double_backward_op, forward_op


def linear_logsumexp(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    ignore_index: int = -100,
    dtype: torch.dtype | None = None,
    fused: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``logsumexp(features @ weight.T + bias)`` of each row, without the logits.

    Args:
        features: ``[N, D]``, or ``[B, T, D]`` of tokens and the like, floating.
        weight: ``[K, D]``, K >= 1, of that dtype or a narrower one (a bfloat16 head).
        bias: ``[K]``, likewise.
        targets: int64 ``[N]`` or ``[B, T]``, a class of each row. Their logits come from the same
            pass: the cross entropy is ``(lse - target).mean()``. Not checked to be in [0, K): the
            logit of a class outside is NaN.
        ignore_index: a target whose row counts for nothing: both its results are 0, and their
            gradients. Divide a sum by ``(targets != ignore_index).sum()``.
        dtype: of the result; default that of features. Narrow features have a float32 result.
        fused: True takes kernels that make logits on the tensor cores tile by tile: float32 or
            bfloat16 of both, compute capability 8.0 to 9.0, features and weight finite; else a
            ValueError says what is missing. False never does, and None does where a table of
            measurements says that it is faster, which is empty as yet.

    Returns:
        ``[N]`` or ``[B, T]``; with targets a pair, the second the targets' logits.

    Products and sums are in float32 whatever the input, in float64 for float64; the extra memory is
    a buffer of at most 1024 x 1024 of them (on a GPU 4096 x 1024; two in the double backward) and a
    few times the features. Where features require a gradient, it is taken along with the value, up
    to the upstream factor, and kept. Raises TypeError or ValueError naming the argument.

    Fused, the extra memory is float32 sums of 256 rows a multiprocessor and a few times the
    features. Results are the same in every run on one device, not the bits of the chunks. Logits
    are sums in float32, of exact products of bfloat16, or of three TF32 products with an error of
    2^-21 each. Probabilities multiply with 16 bits in the gradient of bfloat16 features, in other
    gradients of bfloat16 with 8.

    Differentiable twice, in features, weight and bias: the gradient of the weight and the double
    backward recompute the chunks, or tiles. Autocast leaves it alone.

    The double backward is ours; the chunked forward and backward follow Wijmans et al., "Cut your
    losses in large-vocabulary language models", 2024.
    """
    _check_arguments(features, weight, bias, targets)
    ignore_index = check_integer("ignore_index", ignore_index, -(1 << 62))
    dtype = check_dtype(dtype, features)
    fused = linear_fused.chosen(fused, features, weight)
    rows, shape = features.flatten(0, -2), features.shape[:-1]
    flat = None if targets is None else targets.flatten()
    if needs_grad(features, weight, bias):
        lse, target, _ = _LinearLogSumExp.apply(
            rows, weight, bias, flat, features.requires_grad, fused
        )
    else:
        lse, target, _ = forward_op(rows, weight, bias, flat, False, fused)
    if targets is None:
        return lse.to(dtype).view(shape)
    # Not a product with 0: the logit of a target outside the classes is NaN.
    ignored = flat == ignore_index
    lse, target = (t.masked_fill(ignored, 0).to(dtype).view(shape) for t in (lse, target))
    return lse, target


def _check_arguments(features: Any, weight: Any, bias: Any, targets: Any) -> None:
    check_floating("features", features)
    if features.dim() < 2:
        raise ValueError(f"features: got shape {list(features.shape)}, want [N, D] or [B, T, D]")
    d = features.shape[-1]
    _check_head("weight", weight, features)
    if weight.dim() != 2 or weight.shape[1] != d or weight.shape[0] < 1:
        raise ValueError(f"weight: got shape {list(weight.shape)}, want [K, {d}] with K >= 1")
    if bias is not None:
        _check_head("bias", bias, features)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: got shape {list(bias.shape)}, want [{weight.shape[0]}]")
    if targets is not None:
        check_tensor("targets", targets)
        if targets.dtype != torch.int64:
            raise TypeError(f"targets: got {targets.dtype}, want an int64 tensor")
        check_device("targets", targets, features, "features")
        if targets.shape != features.shape[:-1]:
            raise ValueError(
                f"targets: got shape {list(targets.shape)}, want {list(features.shape[:-1])}"
            )


def _check_head(name: str, t: Any, features: Tensor) -> None:
    """Of the head, beside features: what products in their arithmetic hold."""
    check_floating(name, t)
    if t.dtype.itemsize > arithmetic(features).itemsize:
        raise TypeError(f"{name}: got {t.dtype}, want {features.dtype} as features, or narrower")
    check_device(name, t, features, "features")


class _LinearLogSumExp(torch.autograd.Function):
    """(lse, the targets' logits, mean): what the forward op returns."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features, weight, bias, targets, with_mean, fused):
        return forward_op(features, weight, bias, targets, with_mean, fused)

    @staticmethod
    def setup_context(ctx, inputs, output):
        lse, target, mean = output
        ctx.fused = inputs[5]
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
            grad, grad_target, *inputs, lse.detach(), mean.detach(), needs, ctx.fused
        )
        return *present(grads, needs), None, None, None


class _Needs(NamedTuple):
    """Whose gradients are wanted."""

    features: bool
    weight: bool
    bias: bool


class _LinearLogSumExpBackward(torch.autograd.Function):
    """Gradients of features, weight and bias; lse and mean count as constants, as in logsumexp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, grad_target, features, weight, bias, targets, lse, mean, needs, fused):
        return backward_op(
            grad, grad_target, features, weight, bias, targets, lse, mean, *needs, fused
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.needs, ctx.fused = inputs
        ctx.mark_non_differentiable(*[o for o, n in zip(output, ctx.needs, strict=True) if not n])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        if all(v is None for v in cotangents):
            return (None,) * 10
        need_grad, need_target, *needs = ctx.needs_input_grad[:5]
        results = _LinearLogSumExpDoubleBackward.apply(
            *cotangents, *ctx.saved_tensors, _Needs(*needs), ctx.fused
        )
        return *present(results, (need_grad, need_target, *needs)), *[None] * 5


class _LinearLogSumExpDoubleBackward(torch.autograd.Function):
    """Derivatives along cotangents of the three gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        *tensors, needs, fused = arguments
        return double_backward_op(*tensors, *needs, fused)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("linear_logsumexp: differentiable twice, and this is the third time")
