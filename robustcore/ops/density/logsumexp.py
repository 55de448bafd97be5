"""Log-sum-exp over classes, to any derivative."""

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, needs_grad, raw, register_rows
from robustcore.ops.checks import check_dtype, check_floating

_lse = raw.logsumexp.default
_lse_backward = raw.logsumexp_backward.default
_lse_double_backward = raw.logsumexp_double_backward.default


def logsumexp(logits: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """``log sum_k exp(logits[..., k])`` of each row, in one pass over memory.

    Args:
        logits: ``[N, K]``, or ``[N, T, K]`` of tokens and the like; K >= 1, floating, any strides.
        dtype: of the result; default that of logits. Narrow logits have a float32 result.

    Returns:
        ``[N]`` or ``[N, T]``; computed, and kept for backward, in float32 (float64 for float64). A
        row of -inf gives -inf and the gradient 0; a row with +inf gives +inf, the
        gradient NaN at +inf and 0 elsewhere; a NaN gives NaN.

    Raises TypeError or ValueError naming the argument. Differentiable to any order: forward,
    backward and double backward are one kernel each, and only logits and the result are kept, whose
    rounding the gradients carry (a relative 6e-8 |lse|). The same bits on any number of threads
    and, but for float64, on any device. Autocast leaves it alone: it is as exact as its input.

    >>> logsumexp(torch.tensor([[1000.0, 1000.0], [0.0, -torch.inf]])).round(decimals=2)
    tensor([1000.6900,    0.0000])
    """
    check_floating("logits", logits)
    if logits.dim() < 2:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [N, K] or [N, T, K]")
    dtype = check_dtype(dtype, logits)
    rows = logits.flatten(0, -2)
    lse: Tensor = _LogSumExp.apply(rows) if needs_grad(logits) else _lse(rows)
    return lse.to(dtype).view(logits.shape[:-1])


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


@torch.library.register_fake("robustcore::logsumexp")
def _(logits):
    return logits.new_empty([logits.shape[0]], dtype=arithmetic(logits))


@torch.library.register_fake("robustcore::logsumexp_backward")
def _(grad, logits, lse):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("robustcore::logsumexp_double_backward")
def _(v, grad, logits, lse):
    return logits.new_empty([logits.shape[0]], dtype=lse.dtype), logits.new_empty(logits.shape)


register_rows(_lse, 1)
register_rows(_lse_backward, 3)
register_rows(_lse_double_backward, 4)
