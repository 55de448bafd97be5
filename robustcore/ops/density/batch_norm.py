"""Batch normalisation with the double backward that an input gradient's needs.

torch's own batch normalisation is right to the second derivative, and slow: its double backward
makes some thirty passes over memory. Here forward, backward and double backward are an op each, by
one sweep for all sums and one that writes: on the CPU in float32 and float64, on CUDA the two
backward passes in float32. Elsewhere they are torch's kernels for the first two, and one more
backward and five passes for the third.

By given statistics it is linear in x, and its double backward is one call of torch's backward, as
its backward is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import apply, graph_wanted, needed, present, raw

_torchs = torch.ops.aten.native_batch_norm.default
_torchs_backward = torch.ops.aten.native_batch_norm_backward.default
_batch_norm = raw.batch_norm.default
_batch_norm_backward = raw.batch_norm_backward.default
_batch_norm_double_backward = raw.batch_norm_double_backward.default


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

    Not empty; all tensors of one floating dtype. Differentiable to any order. On the CPU the bits
    depend on shape and layout (contiguous or channels last), not on the number of threads.
    """
    result: Tensor = apply(_BatchNorm, x, weight, bias, running_mean, running_var, momentum, eps)[0]
    return result


def batch_norm_by(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> Tensor:
    """``[N, C, *D]`` by a mean and a variance ``[C]``, which count as constants.

    All tensors of one floating dtype. Differentiable to any order.
    """
    result: Tensor = apply(_BatchNormBy, x, weight, bias, mean, var, eps)[0]
    return result


def _forward_is_ours(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _backward_is_ours(x: Tensor) -> bool:
    # Meta tensors go the way that those on a GPU do.
    on_gpu = x.device.type in ("cuda", "meta") and x.dtype == torch.float32
    return on_gpu or _forward_is_ours(x)


class _BatchNorm(torch.autograd.Function):
    """(y, mean, inverse deviation, x): the statistics as constants, x as it came.

    Backward works on that x. So what the double backward has to say about x comes here with the
    gradient of y, and is added in the sweep that writes the gradient of x.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, running_mean, running_var, momentum, eps):
        if _forward_is_ours(x):
            results = _batch_norm(x, weight, bias, running_mean, running_var, momentum, eps)
        else:
            results = _torchs(x, weight, bias, running_mean, running_var, True, momentum, eps)
        return *results, x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight, *_, ctx.eps = inputs
        _, mean, inverse, x = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, inverse)

    @staticmethod
    def backward(ctx, grad, _mean, _inverse, more):
        if grad is None:
            return more, *[None] * 6
        x, weight, mean, inverse = ctx.saved_tensors
        needs = needed(ctx, 3)
        if graph_wanted():
            grads = apply(_BatchNormBackward, grad, x, weight, mean, inverse, ctx.eps)
            if more is not None:
                grads = (grads[0] + more, *grads[1:])
        else:
            grads = _backward(grad, x, weight, mean, inverse, ctx.eps, more)
        return *present(grads, needs), *[None] * 4


class _BatchNormBackward(torch.autograd.Function):
    """(d x, d weight, d bias); its derivative in x takes in that of the statistics."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, weight, mean, inverse, eps):
        return _backward(grad, x, weight, mean, inverse, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.eps = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx, v, v_weight, v_bias):
        grad, x, weight, mean, inverse, d_weight, d_bias = ctx.saved_tensors
        if v is None and v_weight is None and v_bias is None:
            return (None,) * 6
        if graph_wanted() or v_weight is not None or v_bias is not None:
            results = _any_order(grad, x, weight, ctx.eps, (v, v_weight, v_bias))
        else:
            results = _double_backward(v, grad, x, weight, mean, inverse, ctx.eps, d_weight, d_bias)
        return *results, None, None, None


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    eps: float,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d x + more, d weight, d bias)."""
    results: tuple[Tensor, Tensor, Tensor]
    if _backward_is_ours(x):
        results = _batch_norm_backward(grad, x, weight, mean, inverse, more)
        return results
    results = _torchs_backward(grad, x, weight, None, None, mean, inverse, True, eps, [True] * 3)
    return results if more is None else (results[0] + more, *results[1:])


def _double_backward(
    v: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    eps: float,
    d_weight: Tensor,
    d_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the cotangent v of d x gives for grad, x and weight; formulas in batch_norm.h."""
    if _backward_is_ours(x):
        d_grad, d_x, second = _batch_norm_double_backward(
            v, grad, x, weight, mean, inverse, d_weight, d_bias
        )
        return d_grad, d_x, None if weight is None else second
    d_grad, sum_v_h, sum_v = _torchs_backward(
        v, x, weight, None, None, mean, inverse, True, eps, [True] * 3
    )
    count = x.numel() / x.shape[1]
    g_1, g_h, v_1, v_h = (t / count for t in (d_bias, d_weight, sum_v, sum_v_h))
    q = (v * grad).sum([0, *range(2, x.dim())]) / count - v_1 * g_1 - v_h * g_h
    scale = -inverse.square() if weight is None else -weight * inverse.square()
    by_grad, by_x = scale * v_h, scale * inverse * (q - v_h * g_h)
    constant = -by_grad * g_1 - by_x * mean
    rows = [1, -1, *[1] * (x.dim() - 2)]
    d_x = torch.addcmul(constant.view(rows), x, by_x.view(rows))
    d_x.addcmul_(grad, by_grad.view(rows)).addcmul_(d_grad, (-inverse * g_h).view(rows))
    return d_grad, d_x, None if weight is None else count * inverse * q


class _BatchNormBy(torch.autograd.Function):
    """(y, what torch's backward wants kept)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, mean, var, eps):
        return _torchs(x, weight, bias, mean, var, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, mean, var, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, var, *output[1:])

    @staticmethod
    def backward(ctx, grad, _mean, _inverse):
        if grad is None:
            return (None,) * 6
        needs = needed(ctx, 3)
        grads = apply(_BatchNormByBackward, grad, *ctx.saved_tensors, ctx.eps, needs)
        return *present(grads, needs), *[None] * 3


class _BatchNormByBackward(torch.autograd.Function):
    """(d x, d weight, d bias) as needed: d x is linear in grad alone, d weight in x as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, weight, mean, var, kept_mean, kept_inverse, eps, needs):
        # torch's CUDA kernels take what was kept, where there is something, for mean and var.
        grads = _torchs_backward(
            grad, x, weight, mean, var, kept_mean, kept_inverse, False, eps, needs
        )
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.eps, needs = inputs
        ctx.mark_non_differentiable(*[o for o, n in zip(output, needs, strict=True) if not n])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, v, v_weight, v_bias):
        grad, x, weight, mean, var, kept_mean, kept_inverse = ctx.saved_tensors
        needs = needed(ctx, 3)
        d_grad = d_x = d_weight = None
        if v is not None:
            # d x is k grad, so by grad <v, d x> is k v, and by weight what it is in d weight with
            # grad in the place of x and no mean.
            none = torch.zeros_like(mean)
            kept = none.to(kept_mean.dtype) if kept_mean.numel() else kept_mean
            only = [needs[0], needs[2], False]
            d_grad, d_weight, _ = apply(
                _BatchNormByBackward, v, grad, weight, none, var, kept, kept_inverse, ctx.eps, only
            )
        rows = [1, -1, *[1] * (x.dim() - 2)]
        if v_weight is not None:
            along = (v_weight * (var + ctx.eps).rsqrt()).view(rows)
            d_x, by_grad = along * grad, along * (x - mean.view(rows))
            d_grad = by_grad if d_grad is None else d_grad + by_grad
        if v_bias is not None:
            by_grad = v_bias.view(rows).expand_as(grad)
            d_grad = by_grad if d_grad is None else d_grad + by_grad
        return *present((d_grad, d_x, d_weight), needs), *[None] * 6


def _any_order(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The derivatives of _backward along cotangents of its three results, differentiable again."""
    v, v_weight, v_bias = cotangents
    over = [0, *range(2, x.dim())]
    rows = [1, -1, *[1] * (x.dim() - 2)]
    var, center = torch.var_mean(x, over, correction=0, keepdim=True)
    inverse = (var + eps).rsqrt()
    h = (x - center) * inverse
    k = inverse if weight is None else inverse * weight.view(rows)

    def mean(t: Tensor) -> Tensor:
        return t.mean(over, keepdim=True)

    def residual(t: Tensor) -> Tensor:
        """t less its parts along 1 and h."""
        return t - mean(t) - h * mean(t * h)

    rest = residual(grad)
    d_grad, d_x, d_weight = torch.zeros_like(grad), torch.zeros_like(x), None
    if v is not None:
        rest_v = residual(v)
        q = mean(v * rest)
        d_grad = k * rest_v
        d_x = -inverse * k * (mean(grad * h) * rest_v + mean(v * h) * rest + q * h)
        if weight is not None:
            d_weight = (x.numel() / x.shape[1] * inverse * q).flatten()
    if v_weight is not None:
        along = v_weight.view(rows)
        d_grad, d_x = d_grad + along * h, d_x + along * inverse * rest
    if v_bias is not None:
        d_grad = d_grad + v_bias.view(rows)
    return d_grad, d_x, d_weight


@torch.library.register_fake("robustcore::batch_norm")
def _(x, weight, bias, running_mean, running_var, momentum, eps):
    return _like(x), x.new_empty([x.shape[1]]), x.new_empty([x.shape[1]])


@torch.library.register_fake("robustcore::batch_norm_backward")
def _(grad, x, weight, mean, inverse, more):
    return _like(x), x.new_empty([x.shape[1]]), x.new_empty([x.shape[1]])


@torch.library.register_fake("robustcore::batch_norm_double_backward")
def _(v, grad, x, weight, mean, inverse, d_weight, d_bias):
    return _like(x), _like(x), x.new_empty([x.shape[1]])


def _like(x: Any) -> Tensor:
    """Without gaps: channels last if x is so and not contiguous as well, else contiguous."""
    last = x.movedim(1, -1)
    if x.dim() > 2 and last.is_contiguous() and not x.is_contiguous():
        result: Tensor = last.new_empty(last.shape).movedim(-1, 1)
        return result
    return x.new_empty(x.shape)


def _channels_are_independent(op, whole, vectors):
    """A vmap rule: the mapped dimension joins the channels.

    ``whole`` and ``vectors``: which arguments are like x, and which hold a value a channel.
    """

    def rule(info, in_dims, *arguments):
        size = info.batch_size

        def folded(t, dim, like_x):
            if t is None:
                return None
            t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            return t.movedim(0, 1).flatten(1, 2) if like_x else t.flatten(0, 1)

        inputs = list(arguments)
        for i in whole + vectors:
            inputs[i] = folded(arguments[i], in_dims[i], i in whole)
        results = op(*inputs)
        for i in _WRITTEN.get(op, ()):
            if arguments[i] is None:
                continue
            if in_dims[i] is None:
                raise RuntimeError("running statistics: one set for many batches; want one each")
            arguments[i].movedim(in_dims[i], 0).copy_(inputs[i].unflatten(0, (size, -1)))
        return tuple(
            r.unflatten(1, (size, -1)).movedim(1, 0) if r.dim() > 1 else r.unflatten(0, (size, -1))
            for r in results
        ), tuple(0 for _ in results)

    return rule


_WRITTEN = {_batch_norm: (3, 4)}
for _op, _whole, _vectors in [
    (_batch_norm, (0,), (1, 2, 3, 4)),
    (_batch_norm_backward, (0, 1, 5), (2, 3, 4)),
    (_batch_norm_double_backward, (0, 1, 2), (3, 4, 5, 6, 7)),
]:
    torch.library.register_vmap(_op, _channels_are_independent(_op, _whole, _vectors))
