"""The mean softmax of noisy copies, in logarithms: what losses of certified training share."""

import math

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, needs_grad, raw, register_rows
from robustcore.ops.checks import check_floating, check_number

_forward = raw.mean_softmax.default
_backward = raw.mean_softmax_backward.default
_double_backward = raw.mean_softmax_double_backward.default


def mean_softmax(logits: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """What the copies of an image predict together: the log of their mean, the mean of their logs.

    With ``l = log_softmax(scale * logits)`` over the classes: ``log(mean_i exp(l_i))`` and
    ``mean_i l_i``, in one pass over the logits. Finite wherever the logits are, however sure a
    copy is; the derivatives too.

    Args:
        logits: ``[B, m, K]``, of m copies of each of B images, m and K at least 1, floating, any
            strides.
        scale: inverse temperature, above 0.

    Returns:
        Two tensors ``[B, K]``, float32 (float64 for float64), in which all is computed.

    Raises TypeError or ValueError naming the argument. Differentiable to any order in logits:
    forward, backward and double backward are one kernel each, which read the logits and keep three
    numbers a copy. In float32 the same bits on any device and number of threads.

    >>> log_mean, mean_log = mean_softmax(torch.tensor([[[0.0, 0.0], [200.0, 0.0]]]))
    >>> log_mean.exp().tolist(), mean_log[0, 1].round().item()
    ([[0.75, 0.25]], -100.0)
    """
    check_floating("logits", logits)
    if logits.dim() != 3:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [B, m, K]")
    scale = check_number("scale", scale)
    forward = _MeanSoftmax.apply if needs_grad(logits) else _forward
    results = forward(logits, scale)
    return results[0], results[1]


def formula(logits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same by torch: its derivatives beyond the second."""
    each = (scale * logits.to(arithmetic(logits))).log_softmax(2)
    return each.logsumexp(1) - math.log(each.shape[1]), each.mean(1)


class _MeanSoftmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, scale):
        return _forward(logits, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, ctx.scale = inputs
        log_mean, _, rows = output
        ctx.mark_non_differentiable(rows)
        ctx.save_for_backward(logits, log_mean, rows)

    @staticmethod
    def backward(ctx, grad_log_mean, grad_mean_log, _):
        logits, log_mean, rows = ctx.saved_tensors
        # Detached: a constant, or the engine would come back here with a gradient of zeros.
        return _MeanSoftmaxBackward.apply(
            grad_log_mean, grad_mean_log, logits, log_mean.detach(), rows,
            ctx.scale,
        ), None  # fmt: skip


class _MeanSoftmaxBackward(torch.autograd.Function):
    """The gradient. Its derivative in logits takes in those of what was saved, constants here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_log_mean, grad_mean_log, logits, log_mean, rows, scale):
        grad = _backward(grad_log_mean, grad_mean_log, logits, log_mean, rows, scale)
        return grad.to(logits.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, v):
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative may follow
            first, second, logits, *_ = tensors
            return *_second_by_formula(v, (first, second), logits, ctx.scale), None, None, None
        first, second, logits = _double_backward(v.to(arithmetic(v)), *tensors, ctx.scale)
        return first, second, logits.to(tensors[2].dtype), None, None, None


def _second_by_formula(v, grads, logits, scale):
    """What the double backward kernel computes, of torch's own differentiable ops."""

    def gradient(grads, logits):
        return torch.func.vjp(lambda z: formula(z, scale), logits)[1](grads)[0]

    (first, second), third = torch.func.vjp(gradient, grads, logits)[1](v)
    return first, second, third


@torch.library.register_fake("robustcore::mean_softmax")
def _(logits, scale):
    images, copies, classes = logits.shape
    dtype = arithmetic(logits)
    means = [logits.new_empty([images, classes], dtype=dtype) for _ in range(2)]
    return *means, logits.new_empty([images, 3, copies], dtype=dtype)


@torch.library.register_fake("robustcore::mean_softmax_backward")
def _(grad_log_mean, grad_mean_log, logits, log_mean, rows, scale):
    return logits.new_empty(logits.shape, dtype=arithmetic(logits))


@torch.library.register_fake("robustcore::mean_softmax_double_backward")
def _(v, grad_log_mean, grad_mean_log, logits, log_mean, rows, scale):
    dtype = arithmetic(logits)
    means = [logits.new_empty(log_mean.shape, dtype=dtype) for _ in range(2)]
    return *means, logits.new_empty(logits.shape, dtype=dtype)


register_rows(_forward, 1)
register_rows(_backward, 5)
register_rows(_double_backward, 6)
