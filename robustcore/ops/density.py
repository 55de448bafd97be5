"""Ops of the density family: log-sum-exp over classes and norms over pixels, to any derivative."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robustcore import _C  # noqa: F401  (registers torch.ops.robustcore)

_lse = torch.ops.robustcore.logsumexp.default
_lse_backward = torch.ops.robustcore.logsumexp_backward.default
_lse_double_backward = torch.ops.robustcore.logsumexp_double_backward.default
_norm = torch.ops.robustcore.grad_norm.default
_norm_backward = torch.ops.robustcore.grad_norm_backward.default
_norm_double_backward = torch.ops.robustcore.grad_norm_double_backward.default


def logsumexp(logits: Tensor) -> Tensor:
    """``log sum_k exp(logits[n, k])`` of each row, in one pass over memory.

    Args:
        logits: ``[N, K]``, K >= 1, floating, any strides.

    Returns:
        ``[N]`` in the dtype of logits; computed, and kept for backward, in float32 (float64 for
        float64). A row of -inf gives -inf and the gradient 0; a row with +inf gives +inf, the
        gradient NaN at +inf and 0 elsewhere; a NaN gives NaN.

    Raises TypeError or RuntimeError naming the argument. Differentiable to any order: forward,
    backward and double backward are one kernel each, and only logits and the result are kept, whose
    rounding the gradients carry (a relative 6e-8 |lse|). The same bits on any number of threads
    and, but for float64, on any device. Autocast leaves it alone: it is as exact as its input.
    """
    _check_floating("logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [N, K]")
    lse: Tensor = _LogSumExp.apply(logits) if _tracked(logits) else _lse(logits)
    return lse.to(logits.dtype)


def grad_norm(grad: Tensor, p: float = 2.0) -> Tensor:
    """The p-norm of each sample, ``(sum |grad[n]|^p)^(1/p)``, safe at zero.

    Args:
        grad: ``[N, *D]``, floating, any strides.
        p: in [1, inf].

    Returns:
        ``[N]`` in the dtype of grad, computed in float32 (float64 for float64). Scaled inside, so
        that nothing overflows or vanishes on the way.

    Raises TypeError, ValueError or RuntimeError naming the argument. Differentiable to any order.
    Where the norm is 0, every derivative is 0; so is the second at an element that is 0 when p < 2.
    At p = inf the gradient is shared evenly by the elements that reach the maximum.
    """
    _check_floating("grad", grad)
    if grad.dim() < 1:
        raise ValueError("grad: got a 0-d tensor, want [N, *D]")
    p = check_p(p)
    norm: Tensor = _GradNorm.apply(grad, p) if _tracked(grad) else _norm(grad, p)
    return norm.to(grad.dtype)


def dual_direction(grad: Tensor, p: float) -> Tensor:
    """The direction v ``[N, *D]`` with ``<v, grad> = grad_norm(grad, p)`` and dual norm 1."""
    norm = _norm(grad, p)
    direction: Tensor = _norm_backward(torch.ones_like(norm), grad, norm, p)
    return direction


def check_p(p: Any) -> float:
    """p as a float in [1, inf]."""
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"p: got {p!r}, want a number in [1, inf]")
    if not p >= 1:
        raise ValueError(f"p: got {p}, want at least 1 (inf included)")
    return float(p)


def _check_floating(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: got {type(t).__name__}, want a tensor (see robustcore.as_tensor)")
    if not t.is_floating_point():
        raise TypeError(f"{name}: got {t.dtype}, want a floating dtype")


def _tracked(*tensors: Tensor | None) -> bool:
    """Whether a derivative is asked for; a raw op has none, and forward mode would not notice."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _LogSumExp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits):
        return _lse(logits)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad):
        logits, lse = ctx.saved_tensors
        # Detached: a constant, or the engine would come back here with a gradient of zeros.
        return _LogSumExpBackward.apply(grad, logits, lse.detach())


class _LogSumExpBackward(torch.autograd.Function):
    """grad * p. Its derivative in logits takes in that of lse, which counts as a constant here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, logits, lse):
        return _lse_backward(grad, logits, lse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, v):
        dot, curvature = _LogSumExpDoubleBackward.apply(v, *ctx.saved_tensors)
        return dot, curvature, None


class _LogSumExpDoubleBackward(torch.autograd.Function):
    """(<p, v>, grad * p * (v - <p, v>))."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v, grad, logits, lse):
        return _lse_double_backward(v, grad, logits, lse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, a, b):
        # Of L = a s + <b, g p (v - s)> with s = <p, v>, in float32 or float64; all of it
        # differentiable again.
        v, g, logits, lse = ctx.saved_tensors
        p = _LogSumExpBackward.apply(torch.ones_like(lse), logits, lse).to(lse.dtype)
        v, b = v.to(lse.dtype), b.to(lse.dtype)
        s, mean_b, mean_bv = (p * v).sum(1), (p * b).sum(1), (p * b * v).sum(1)
        weight = a.unsqueeze(1) + g.unsqueeze(1) * (b - mean_b.unsqueeze(1))  # dL/dv = p * weight
        dp = v * weight - (g * s).unsqueeze(1) * b
        mean_dp = a * s + g * (mean_bv - 2 * s * mean_b)
        return (
            (p * weight).to(logits.dtype),
            mean_bv - s * mean_b,
            (p * (dp - mean_dp.unsqueeze(1))).to(logits.dtype),
            None,
        )


class _GradNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, p):
        return _norm(grad, p)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, ctx.p = inputs
        ctx.save_for_backward(grad, output)

    @staticmethod
    def backward(ctx, upstream):
        grad, norm = ctx.saved_tensors
        return _GradNormBackward.apply(upstream, grad, norm.detach(), ctx.p), None


class _GradNormBackward(torch.autograd.Function):
    """upstream * dual(grad); its derivative in grad takes in that of the norm."""

    generate_vmap_rule = True

    @staticmethod
    def forward(upstream, grad, norm, p):
        return _norm_backward(upstream, grad, norm, p)

    @staticmethod
    def setup_context(ctx, inputs, output):
        upstream, grad, norm, ctx.p = inputs
        ctx.save_for_backward(upstream, grad, norm)

    @staticmethod
    def backward(ctx, v):
        upstream, grad, norm = ctx.saved_tensors
        if torch.is_grad_enabled():  # there may be a third derivative
            dot, curvature = _norm_curvature_any_order(v, upstream, grad, ctx.p)
        else:
            dot, curvature = _norm_double_backward(v, upstream, grad, norm, ctx.p)
        return dot, curvature, None, None


def _norm_curvature_any_order(
    v: Tensor, upstream: Tensor, grad: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """What grad_norm_double_backward computes, out of what can be differentiated again."""
    # With w the dual and u = |grad| / norm: dw/dgrad v = (p - 1) / norm (u^(p-2) v - w <w, v>).
    dims = tuple(range(1, grad.dim()))
    rows = (-1, *[1] * len(dims))
    norm = _GradNorm.apply(grad, p)
    w = _GradNormBackward.apply(torch.ones_like(norm), grad, norm.detach(), p).to(norm.dtype)
    v = v.to(norm.dtype)
    dot = (w * v).sum(dims) if dims else w * v
    if p in (1.0, float("inf")):
        return dot, torch.zeros_like(grad)
    zero = norm == 0
    scale = (upstream * (p - 1) / torch.where(zero, 1, norm)).masked_fill(zero, 0).view(rows)
    curved = v
    if p != 2:
        u = grad.to(norm.dtype).abs() / torch.where(zero, 1, norm).view(rows)
        curved = torch.where(u == 0, 0, torch.where(u == 0, 1, u) ** (p - 2)) * v
    curvature: Tensor = scale * (curved - w * dot.view(rows))
    return dot, curvature.to(grad.dtype)


@torch.library.register_fake("robustcore::logsumexp")
def _(logits):
    return logits.new_empty([logits.shape[0]], dtype=_arithmetic(logits))


@torch.library.register_fake("robustcore::logsumexp_backward")
def _(grad, logits, lse):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("robustcore::logsumexp_double_backward")
def _(v, grad, logits, lse):
    return logits.new_empty([logits.shape[0]], dtype=lse.dtype), logits.new_empty(logits.shape)


@torch.library.register_fake("robustcore::grad_norm")
def _(grad, p):
    return grad.new_empty([grad.shape[0]], dtype=_arithmetic(grad))


@torch.library.register_fake("robustcore::grad_norm_backward")
def _(upstream, grad, norm, p):
    return grad.new_empty(grad.shape)


@torch.library.register_fake("robustcore::grad_norm_double_backward")
def _(v, upstream, grad, norm, p):
    return norm.new_empty(norm.shape), grad.new_empty(grad.shape)


def _arithmetic(t: Tensor) -> torch.dtype:
    """What sums over t are taken in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _rows_are_independent(op, columns):
    """A vmap rule: the mapped dimension joins the rows. ``columns``: tensors among the inputs."""

    def rule(info, in_dims, *arguments):
        tensors = [
            a.unsqueeze(0).expand(info.batch_size, *a.shape) if d is None else a.movedim(d, 0)
            for a, d in zip(arguments[:columns], in_dims, strict=False)
        ]
        sizes = tensors[0].shape[:2]
        results = op(*[t.flatten(0, 1) for t in tensors], *arguments[columns:])
        if isinstance(results, tuple):
            return tuple(r.unflatten(0, sizes) for r in results), tuple(0 for _ in results)
        return results.unflatten(0, sizes), 0

    return rule


for _op, _tensors in [
    (_lse, 1), (_lse_backward, 3), (_lse_double_backward, 4), (_norm, 1), (_norm_backward, 3),
    (_norm_double_backward, 4),
]:  # fmt: skip
    torch.library.register_vmap(_op, _rows_are_independent(_op, _tensors))
