"""The training map of a SOC layer, keeping for backward no more than the weight it has anyway."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.ops.autograd import transforming
from robustcore.ops.lipschitz.conv_exp import apply_series
from robustcore.ops.lipschitz.recurrence import (
    adjoint,
    adjoint_of_x,
    evaluate,
    filter_gradient,
    prepare,
    reference,
)
from robustcore.ops.lipschitz.series import Series
from robustcore.ops.lipschitz.skew import skew


class SingularVectors(NamedTuple):
    """Of the reshapes (out h) x (in w), u1 and v1, and out x (in h w), u3 and v3, in any shape.

    The other two reshapes of a skew filter have the same norms.
    """

    u1: Tensor
    v1: Tensor
    u3: Tensor
    v3: Tensor


def reshapes(filter: Tensor) -> tuple[Tensor, Tensor]:
    """``[C, C, k, k]`` as the matrices (out h) x (in w) and out x (in h w)."""
    c, _, k, _ = filter.shape
    return filter.permute(0, 2, 1, 3).reshape(c * k, c * k), filter.reshape(c, -1)


def normalised_filter(weight: Tensor, scale: Tensor, vectors: SingularVectors) -> Tensor:
    """``scale S / sigma``, S the skew part of ``weight [C, C, k, k]``, sigma its smallest norm.

    ``sigma`` is that of ``v^T S u`` over the two reshapes; the vectors count as constants.
    Differentiable to any order in the weight. Below ``_least_norm`` sigma counts as that, which
    is constant in the gradient.
    """
    skewed = skew(weight)
    sigma = torch.minimum(*_norms(skewed, vectors))
    return skewed * (scale / torch.maximum(sigma, _least_norm(weight)))


def skew_conv_exp(
    x: Tensor, weight: Tensor, scale: Tensor, vectors: SingularVectors, series: Series,
    recompute: bool,
) -> Tensor:  # fmt: skip
    """``p(L) x`` with ``L = normalised_filter(weight, scale, vectors)``, unchecked.

    Keeps the weight and what :func:`conv_exp` keeps of x; L, as large as the weight, is built again
    in backward.
    """
    # A compiled graph keeps what it likes, and its tracer does not go through our checks.
    if series.degree and x.numel() and not (transforming() or torch.compiler.is_compiling()):
        y: Tensor = _SkewConvExp.apply(x, weight, scale, *vectors, series, recompute)[0]
        return y
    filter = normalised_filter(weight, scale, vectors).to(x.dtype)
    return apply_series(x, filter, series, recompute)


def _least_norm(weight: Tensor) -> Tensor:
    """What sigma is at least: where the skew part is next to nothing its quotient says nothing.

    A thousandth of the largest entry, or of a tenth of the initialisation's.
    """
    least = 0.1 * weight.shape[0] ** -0.5
    return 1e-3 * torch.linalg.vector_norm(weight.detach(), math.inf).clamp(min=least)


def _norms(skewed: Tensor, vectors: SingularVectors) -> tuple[Tensor, Tensor]:
    u1, v1, u3, v3 = (t.flatten() for t in vectors)
    mixed, flat = reshapes(skewed)
    with torch.autocast(skewed.device.type, enabled=False):
        return torch.dot(v1, mixed @ u1), torch.dot(v3, flat @ u3)


def _built(
    weight: Tensor, scale: Tensor, vectors: SingularVectors
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The normalised filter, in the memory of the skew one, the norms and their least."""
    skewed = skew(weight)
    norms = _norms(skewed, vectors)
    least = _least_norm(weight)
    return skewed.mul_(scale / torch.maximum(torch.minimum(*norms), least)), (*norms, least)


class _SkewConvExp(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, scale, u1, v1, u3, v3, series, recompute):
        filter, _ = _built(weight, scale, SingularVectors(u1, v1, u3, v3))
        return evaluate(x, prepare(x, filter.to(x.dtype), series), series, keep=not recompute)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.series, ctx.recompute = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, _):
        x, weight, scale, u1, v1, u3, v3, kept = ctx.saved_tensors
        vectors, series = SingularVectors(u1, v1, u3, v3), ctx.series
        if grad is None:
            return (None,) * 9
        if torch.is_grad_enabled():  # create_graph: through operations that torch differentiates

            def forward(x, weight):
                filter = normalised_filter(weight, scale, vectors).to(x.dtype)
                return reference(x, filter, series)

            return *torch.func.vjp(forward, x, weight)[1](grad), *(None,) * 7
        filter, norms = _built(weight, scale, vectors)
        prepared = prepare(x, filter.to(x.dtype), series)
        del filter  # as large as the weight
        if not ctx.needs_input_grad[1]:
            return adjoint_of_x(grad, prepared, series), *(None,) * 8
        grad_x, work = adjoint(x, prepared, kept, grad, series, ctx.needs_input_grad[0])
        del prepared
        grad_filter = filter_gradient(x, work, series)
        del work
        grad_weight = _weight_gradient(grad_filter, weight, scale, norms, vectors)
        return grad_x, grad_weight, *(None,) * 7


def _weight_gradient(
    grad_filter: Tensor,
    weight: Tensor,
    scale: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    vectors: SingularVectors,
) -> Tensor:
    """The gradient of ``scale S / sigma`` in the weight, out of that of its value; in place."""
    grad = grad_filter.to(weight.dtype).contiguous()
    *both, least = norms
    sigma = torch.minimum(*both)
    factor = scale / torch.maximum(sigma, least)
    # <grad, S> = <skew(grad), weight>
    inner = torch.dot(skew(grad).flatten(), weight.flatten())
    grad.mul_(factor)
    # d sigma = v^T dS u of the smaller norm, spread over its entries; none where it is clamped.
    slope = torch.where(sigma > least, -factor * inner / sigma, 0.0 * inner)
    mixed = norms[0] < norms[1]
    c, _, k, _ = weight.shape
    grad.view(c, -1).addr_((slope * ~mixed) * vectors.v3.flatten(), vectors.u3.flatten())
    v1, u1 = vectors.v1.reshape(c, k), (slope * mixed) * vectors.u1.reshape(c, k)
    for i in range(k):
        for j in range(k):
            grad[:, :, i, j].addr_(v1[:, i], u1[:, j])
    return skew(grad)
