"""Norms over pixels, to any derivative."""

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, needs_grad, raw, register_rows
from robustcore.ops.checks import check_floating, check_p

_norm = raw.grad_norm.default


_norm_backward = raw.grad_norm_backward.default


_norm_double_backward = raw.grad_norm_double_backward.default


def grad_norm(grad: Tensor, p: float = 2.0) -> Tensor:
    """The p-norm of each sample, ``(sum |grad[n]|^p)^(1/p)``, safe at zero.

    Args:
        grad: ``[N, *D]``, floating, any strides.
        p: in [1, inf].

    Returns:
        ``[N]`` in the dtype of grad, computed in float32 (float64 for float64). Scaled inside, so
        that nothing overflows or vanishes on the way.

    Raises TypeError or ValueError naming the argument. Differentiable to any order. Where the norm
    is 0, every derivative is 0; so is the second at an element that is 0 when p < 2. At p = inf the
    gradient is shared evenly by the elements that reach the maximum.

    >>> grad_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([5., 0.])
    """
    check_floating("grad", grad)
    if grad.dim() < 1:
        raise ValueError("grad: got a 0-d tensor, want [N, *D]")
    p = check_p(p)
    norm: Tensor = _GradNorm.apply(grad, p) if needs_grad(grad) else _norm(grad, p)
    return norm.to(grad.dtype)


def dual_direction(grad: Tensor, p: float) -> Tensor:
    """The direction v ``[N, *D]`` with ``<v, grad> = grad_norm(grad, p)`` and dual norm 1."""
    norm = _norm(grad, p)
    direction: Tensor = _norm_backward(torch.ones_like(norm), grad, norm, p)
    return direction


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
            dot, curvature = norm_curvature_any_order(v, upstream, grad, ctx.p)
        else:
            dot, curvature = _norm_double_backward(v, upstream, grad, norm, ctx.p)
        return dot, curvature, None, None


def norm_curvature_any_order(
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


@torch.library.register_fake("robustcore::grad_norm")
def _(grad, p):
    return grad.new_empty([grad.shape[0]], dtype=arithmetic(grad))


@torch.library.register_fake("robustcore::grad_norm_backward")
def _(upstream, grad, norm, p):
    return grad.new_empty(grad.shape)


@torch.library.register_fake("robustcore::grad_norm_double_backward")
def _(v, upstream, grad, norm, p):
    return norm.new_empty(norm.shape), grad.new_empty(grad.shape)


register_rows(_norm, 1)
register_rows(_norm_backward, 3)
register_rows(_norm_double_backward, 4)
