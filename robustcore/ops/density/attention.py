"""Softmax attention with a double backward, in memory that is linear in its tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.ops.autograd import (
    arithmetic,
    graph_wanted,
    joined,
    needs_grad,
    raw,
    separated,
)
from robustcore.ops.checks import check_device, check_floating, check_like, check_number

_attention = raw.attention.default
_attention_backward = raw.attention_backward.default
_attention_double_backward = raw.attention_double_backward.default


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """``softmax(scale q k^T + mask) v``, to any derivative, without the N x M weights.

    Args:
        q: ``[*B, N, D]``, floating.
        k: ``[*B, M, D]`` of the same dtype, M >= 1; the leading dimensions broadcast, so that a
            key may serve several heads.
        v: ``[*B, M, E]`` of the same dtype.
        scale: of the logits; default ``1 / sqrt(D)``.
        causal: whether token i sees the tokens up to i only.
        mask: broadcasts to ``[*B, N, M]``: bool, True where a token is seen, or floating, added to
            the logits. A token that sees none gets 0. It has no gradient.

    Returns:
        ``[*B, N, E]`` in the dtype of q.

    Products and sums are in float32 whatever the input, in float64 for float64; of the weights
    there are tiles of 32 tokens by M (on a GPU 32 by 32). Raises TypeError or ValueError naming the
    argument. Differentiable to any order in q, k and v; forward, backward and double backward are
    ours, and the third is made of torch's operations, with all weights. The same bits on any
    number of threads and any instruction set. Autocast leaves it alone.

    Source: Dao et al., "FlashAttention", 2022, for the forward pass and its backward pass by tiles;
    the double backward is ours.

    >>> q = torch.eye(2)
    >>> attention(10 * q, 10 * q, q).round(decimals=2)
    tensor([[1., 0.],
            [0., 1.]])
    """
    mask = _check_arguments(q, k, v, causal, mask)
    number = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else check_number("scale", scale)
    if not math.isfinite(number):
        raise ValueError(f"scale: got {number}, want a finite number")
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])

    def wide(t: Tensor) -> Tensor:
        """[batch, heads, tokens, width]"""
        t = t.expand(*batch, *t.shape[-2:])
        return t.reshape(math.prod(batch[:-1]), *(batch[-1:] or (1,)), *t.shape[-2:])

    q4, k4, v4 = (wide(t).to(arithmetic(q)).contiguous() for t in (q, k, v))
    if mask is not None:
        mask = wide(mask.expand(*batch, q.shape[-2], k.shape[-2]))
    options = _Options(causal, number)
    run = _Attention.apply if needs_grad(q, k, v) else _forward
    out: Tensor = run(q4, k4, v4, mask, options)[0]
    return out.to(q.dtype).reshape(*batch, q.shape[-2], v.shape[-1])


class _Options(NamedTuple):
    causal: bool
    scale: float


def _check_arguments(q: Any, k: Any, v: Any, causal: Any, mask: Any) -> Tensor | None:
    """Checked, and the mask as what is added to the logits."""
    check_floating("q", q)
    for name, t in (("q", q), ("k", k), ("v", v)):
        check_like(name, t, q, "q")
        if t.dim() < 2:
            raise ValueError(f"{name}: got shape {list(t.shape)}, want [*B, tokens, width]")
    if k.shape[-1] != q.shape[-1] or k.shape[-2] < 1:
        raise ValueError(
            f"k: got shape {list(k.shape)}, want [*B, M, {q.shape[-1]}] as q, M at least 1"
        )
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(f"v: got shape {list(v.shape)}, want [*B, {k.shape[-2]}, E] as k")
    batch = q.shape[:-2]
    for name, t in (("k", k), ("v", v)):
        try:
            batch = torch.broadcast_shapes(batch, t.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"{name}: got shape {list(t.shape)}, want one that broadcasts to {list(batch)}"
            ) from None
    if not isinstance(causal, bool):
        raise TypeError(f"causal: got {type(causal).__name__}, want a bool")
    return None if mask is None else _check_mask(mask, q, (*batch, q.shape[-2], k.shape[-2]))


def _check_mask(mask: Any, q: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        check_floating("mask", mask)
    check_device("mask", mask, q, "q")
    if mask.requires_grad:
        raise ValueError("mask: requires a gradient; want one that does not")
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask: got shape {list(mask.shape)}, want one that broadcasts to {list(shape)}"
        )
    if mask.dtype == torch.bool:
        return mask.new_zeros(mask.shape, dtype=arithmetic(q)).masked_fill_(~mask, -math.inf)
    return mask.to(arithmetic(q))


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: _Options) -> Any:
    return _attention(q, k, v, mask, *options)


class _Attention(torch.autograd.Function):
    """(out, lse)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q, k, v, mask, options):
        return _forward(q, k, v, mask, options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, grad, _):
        q, k, v, mask, out, lse = ctx.saved_tensors
        # Detached: constants, or the engine would come back here with gradients of zeros.
        grads = _AttentionBackward.apply(
            grad, q, k, v, mask, out.detach(), lse.detach(), ctx.options
        )
        return *grads, None, None


class _AttentionBackward(torch.autograd.Function):
    """Gradients of q, k and v; their derivatives take in those of out and lse, constants here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, q, k, v, mask, out, lse, options):
        return _attention_backward(grad.contiguous(), q, k, v, out, lse, mask, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, v_q, v_k, v_v):
        grad, q, k, v, mask, out, lse = ctx.saved_tensors
        cotangents = v_q.contiguous(), v_k.contiguous(), v_v.contiguous()
        if graph_wanted():
            results = _any_order(*cotangents, grad, q, k, v, mask, ctx.options)
        else:
            results = _attention_double_backward(
                *cotangents, grad.contiguous(), q, k, v, out, lse, mask, *ctx.options
            )
        return *results, *[None] * 4


def _any_order(
    v_q: Tensor,
    v_k: Tensor,
    v_v: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    options: _Options,
) -> tuple[Tensor, ...]:
    """The double backward, differentiable again; formulas in attention.h."""
    scale = options.scale
    logits = scale * (q @ k.mT)
    if mask is not None:
        logits = logits + mask
    if options.causal:
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        logits = logits.masked_fill(~seen, -math.inf)
    none = (logits == -math.inf).all(-1, keepdim=True)
    p = logits.masked_fill(none, 0).softmax(-1).masked_fill(none, 0)

    def mean(t: Tensor) -> Tensor:
        return (p * t).sum(-1, keepdim=True)

    dp, w = grad @ v.mT, grad @ v_v.mT
    slope = scale * (v_q @ k.mT + q @ v_k.mT)
    delta, t = mean(dp), mean(slope)
    ds, u = p * (dp - delta), p * (slope - t)
    h = p * ((dp - delta) * (slope - t) + w - (mean(dp * slope + w) - delta * t))
    return (
        u @ v + p @ v_v,
        scale * (ds @ v_k + h @ k),
        scale * (ds.mT @ v_q + h.mT @ q),
        u.mT @ grad,
    )


@torch.library.register_fake("robustcore::attention")
def _(q, k, v, mask, causal, scale):
    return q.new_empty([*q.shape[:3], v.shape[3]]), q.new_empty(q.shape[:3])


@torch.library.register_fake("robustcore::attention_backward")
def _(grad, q, k, v, out, lse, mask, causal, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@torch.library.register_fake("robustcore::attention_double_backward")
def _(v_q, v_k, v_v, grad, q, k, v, out, lse, mask, causal, scale):
    return tuple(t.new_empty(t.shape) for t in (grad, q, k, v))


def _batches_are_independent(op: Any, tensors: int) -> None:
    """vmap: the mapped dimension joins the batch; the mask comes after so many tensors."""

    def rule(info, in_dims, *arguments):
        size = info.batch_size
        joint = [
            None if a is None else joined(a, d, size).contiguous()
            for a, d in zip(arguments[:tensors], in_dims, strict=False)
        ]
        mask = arguments[tensors]
        mask = None if mask is None else joined(mask, in_dims[tensors], size)
        return separated(op(*joint, mask, *arguments[tensors + 1 :]), size)

    torch.library.register_vmap(op, rule)


_batches_are_independent(_attention, 3)
_batches_are_independent(_attention_backward, 6)
_batches_are_independent(_attention_double_backward, 9)
