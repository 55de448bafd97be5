"""The training map of a SOC layer, keeping for backward no more than the weight it has anyway."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.ops.autograd import fake_dense, is_channels_last, laid_out, raw, transforming
from robustcore.ops.lipschitz.conv_exp import apply_series
from robustcore.ops.lipschitz.recurrence import (
    FilterWork,
    Prepared,
    adjoint,
    adjoint_of_x,
    evaluate,
    filter_gradient,
    gradient_parts,
    prepare,
    reference,
    wants_channels_last,
)
from robustcore.ops.lipschitz.series import Series
from robustcore.ops.lipschitz.skew import skew

_power = raw.skew_power.default
_filter = raw.skew_filter.default
_filter_backward = raw.skew_filter_backward.default

# Of kernels of ours: the largest side of a filter.
_MAX_SIDE = 7


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


def has_kernels(weight: Tensor, scale: Tensor) -> bool:
    """Whether kernels of ours make such a filter: no tracer is to go through their checks."""
    if transforming() or torch.compiler.is_compiling():
        return False
    fits = weight.shape[2] <= _MAX_SIDE and weight.numel() < 1 << 31
    return fits and weight.dtype == scale.dtype == torch.float32


def power_step(weight: Tensor, vectors: SingularVectors) -> tuple[SingularVectors, Tensor]:
    """One step of power iteration on the skew part, where :func:`has_kernels`.

    The vectors after it, which those given become too, and what :func:`skew_conv_exp` takes as
    their norms.
    """
    kept = [t.contiguous() for t in vectors]
    *fresh, norms = _power(weight.detach().contiguous(), *kept)
    for old, new in zip(vectors, kept, strict=True):
        if old is not new:  # module.to(memory_format=torch.channels_last) reaches buffers too
            old.copy_(new)
    return SingularVectors(*fresh), norms


def skew_conv_exp(
    x: Tensor, weight: Tensor, scale: Tensor, vectors: SingularVectors, series: Series,
    recompute: bool, norms: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``p(L) x`` with ``L = normalised_filter(weight, scale, vectors)``, unchecked.

    Keeps the weight and what :func:`conv_exp` keeps of x; L, as large as the weight, is built again
    in backward. ``norms``: of ``power_step``, else computed.
    """
    # A compiled graph keeps what it likes, and its tracer does not go through our checks.
    if series.degree and x.numel() and not (transforming() or torch.compiler.is_compiling()):
        if norms is None:
            with torch.no_grad():
                norms = torch.stack((*_norms(skew(weight), vectors), _least_norm(weight)))
        y: Tensor = _SkewConvExp.apply(x, weight, scale, norms, *vectors, series, recompute)[0]
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


def _factor(scale: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """``scale / sigma`` and the smaller norm."""
    sigma = torch.minimum(norms[0], norms[1])
    return scale / torch.maximum(sigma, norms[2]), sigma


def _prepared(x: Tensor, weight: Tensor, scale: Tensor, norms: Tensor, series: Series) -> Prepared:
    """The normalised filter, as images like x want it."""
    if has_kernels(weight, scale) and x.dtype != torch.float64:
        last = wants_channels_last(x, weight, series)
        filter = _filter(weight.contiguous(), scale, norms, x, last)
    else:
        filter = skew(weight).mul_(_factor(scale, norms)[0]).to(x.dtype)
    return prepare(x, filter, series)


class _SkewConvExp(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, scale, norms, u1, v1, u3, v3, series, recompute):
        prepared = _prepared(x, weight, scale, norms, series)
        return evaluate(x, prepared, series, keep=not recompute)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.series, ctx.recompute = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, _):
        x, weight, scale, norms, u1, v1, u3, v3, kept = ctx.saved_tensors
        vectors, series = SingularVectors(u1, v1, u3, v3), ctx.series
        if grad is None:
            return (None,) * 10
        if torch.is_grad_enabled():  # create_graph: through operations that torch differentiates

            def forward(x, weight):
                filter = normalised_filter(weight, scale, vectors).to(x.dtype)
                return reference(x, filter, series)

            return *torch.func.vjp(forward, x, weight)[1](grad), *(None,) * 8
        prepared = _prepared(x, weight, scale, norms, series)
        if not ctx.needs_input_grad[1]:
            return adjoint_of_x(grad, prepared, series), *(None,) * 9
        grad_x, work = adjoint(x, prepared, kept, grad, series, ctx.needs_input_grad[0])
        del prepared  # as large as the weight
        if has_kernels(weight, scale) and x.dtype != torch.float64:
            parts = gradient_parts(x, work, series)
            grad_weight = _fused_gradient(parts, weight, scale, norms, vectors)
        else:
            grad_filter = filter_gradient(x, work, series)
            grad_weight = _weight_gradient(grad_filter, weight, scale, norms, vectors)
        return grad_x, grad_weight, *(None,) * 8


def _fused_gradient(
    parts: FilterWork, weight: Tensor, scale: Tensor, norms: Tensor, vectors: SingularVectors
) -> Tensor:
    last = is_channels_last(parts.tensor)
    grad = laid_out(parts.tensor, last)
    other = None if parts.other is None else laid_out(parts.other, last)
    given = (t.contiguous() for t in (weight, scale, norms, *vectors))
    result: Tensor = _filter_backward(grad, other, *parts.scales, *given)
    return result


def _weight_gradient(
    grad_filter: Tensor, weight: Tensor, scale: Tensor, norms: Tensor, vectors: SingularVectors
) -> Tensor:
    """The gradient of ``scale S / sigma`` in the weight, out of that of its value; in place."""
    grad = grad_filter.to(weight.dtype).contiguous()
    factor, sigma = _factor(scale, norms)
    # <grad, S> = <skew(grad), weight>
    inner = torch.dot(skew(grad).flatten(), weight.flatten())
    grad.mul_(factor)
    # d sigma = v^T dS u of the smaller norm, spread over its entries; none where it is clamped.
    slope = torch.where(sigma > norms[2], -factor * inner / sigma, 0.0 * inner)
    mixed = norms[0] < norms[1]
    c, _, k, _ = weight.shape
    grad.view(c, -1).addr_((slope * ~mixed) * vectors.v3.flatten(), vectors.u3.flatten())
    v1, u1 = vectors.v1.reshape(c, k), (slope * mixed) * vectors.u1.reshape(c, k)
    for i in range(k):
        for j in range(k):
            grad[:, :, i, j].addr_(v1[:, i], u1[:, j])
    return skew(grad)


@torch.library.register_fake("robustcore::skew_power")
def _(weight, u1, v1, u3, v3):
    return *map(torch.empty_like, (u1, v1, u3, v3)), weight.new_empty(3)


@torch.library.register_fake("robustcore::skew_filter")
def _(weight, scale, norms, like, channels_last):
    return fake_dense(like, weight.shape, channels_last)


@torch.library.register_fake("robustcore::skew_filter_backward")
def _(grad, other, first, second, weight, scale, norms, u1, v1, u3, v3):
    return torch.empty_like(weight)
