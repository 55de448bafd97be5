"""The log-sum-exp of a linear layer's logits, chunk by chunk, so that no ``[N, K]`` ever exists.

The matrix products go to BLAS or cuBLAS, one for each chunk of rows and classes, into one buffer;
what happens to a chunk in between is one kernel of ours, in place.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, needed, needs_grad, present, raw, register_loop
from robustcore.ops.checks import check_floating

_chunk_lse = raw.logsumexp_chunk_.default
_chunk_weights = raw.logsumexp_chunk_weights_.default
_chunk_dot = raw.logsumexp_chunk_dot_.default
_chunk_curvature = raw.logsumexp_chunk_curvature_.default

# Rows and classes of a chunk: large enough for a matrix product at full speed, small enough that
# the chunk is still in a cache when the next one reads it. A GPU gets four times the rows, to fill
# it.
CHUNK_ROWS, CHUNK_CLASSES = 1024, 1024


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
    _check("features", features, 2, None)
    _check("weight", weight, 2, features)
    if bias is not None:
        _check("bias", bias, 1, features)
    n, d = features.shape
    k = weight.shape[0]
    if weight.shape[1] != d or k < 1:
        raise ValueError(f"weight: got shape {list(weight.shape)}, want [K, {d}] with K >= 1")
    if bias is not None and bias.shape[0] != k:
        raise ValueError(f"bias: got shape {list(bias.shape)}, want [{k}]")
    if targets is not None:
        if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
            raise TypeError("targets: want an int64 tensor")
        if targets.shape != (n,):
            raise ValueError(f"targets: got shape {list(targets.shape)}, want [{n}]")
    if needs_grad(features, weight, bias):
        lse, target, _ = _LinearLogSumExp.apply(
            features, weight, bias, targets, features.requires_grad
        )
    else:
        lse, target, _ = _linear_lse(features, weight, bias, targets, False)
    lse = lse.to(features.dtype)
    return lse if targets is None else (lse, target.to(features.dtype))


def _check(name: str, t: Any, dims: int, like: Tensor | None) -> None:
    check_floating(name, t)
    if t.dim() != dims:
        raise ValueError(f"{name}: got shape {list(t.shape)}, want {dims} dimensions")
    if like is not None and t.dtype != like.dtype:
        raise TypeError(f"{name}: got {t.dtype}, want {like.dtype} as features")
    if like is not None and t.device != like.device:
        raise ValueError(f"{name}: is on {t.device}, features on {like.device}")


class _LinearLogSumExp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(features, weight, bias, targets, with_mean):
        return _linear_lse(features, weight, bias, targets, with_mean)

    @staticmethod
    def setup_context(ctx, inputs, output):
        lse, target, mean = output
        ctx.save_for_backward(*inputs[:4], lse, mean)
        ctx.mark_non_differentiable(*([mean] if inputs[3] is not None else [target, mean]))

    @staticmethod
    def backward(ctx, grad, grad_target, _):
        *inputs, lse, mean = ctx.saved_tensors
        needs = needed(ctx, 3)
        if inputs[3] is None:
            grad_target = None
        # Detached: constants, or the engine would come back here with gradients of zeros.
        grads = _LinearLogSumExpBackward.apply(
            grad, grad_target, *inputs, lse.detach(), mean.detach(), *needs
        )
        return *present(grads, needs), None, None


class _LinearLogSumExpBackward(torch.autograd.Function):
    """Gradients of features, weight and bias; lse and mean count as constants, as in logsumexp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad, grad_target, features, weight, bias, targets, lse, mean, need_features, need_weight,
        need_bias,
    ):  # fmt: skip
        return _linear_lse_backward(
            grad, grad_target, features, weight, bias, targets, lse, mean, need_features,
            need_weight, need_bias,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, features, weight, bias = inputs
        ctx.needs = (features, weight, bias)
        ctx.mark_non_differentiable(*[o for o, n in zip(output, ctx.needs, strict=True) if not n])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        if all(v is None for v in cotangents):
            return (None,) * 11
        need_grad, need_target, *needs = ctx.needs_input_grad[:5]
        results = _LinearLogSumExpDoubleBackward.apply(
            *cotangents, *ctx.saved_tensors, need_grad, need_target, *needs
        )
        return *present(results, (need_grad, need_target, *needs)), *[None] * 6


class _LinearLogSumExpDoubleBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        v_features, v_weight, v_bias, grad, grad_target, features, weight, bias, targets, lse,
        mean, need_grad, need_target, need_features, need_weight, need_bias,
    ):  # fmt: skip
        return _linear_lse_double_backward(
            v_features, v_weight, v_bias, grad, grad_target, features, weight, bias, targets, lse,
            mean, need_grad, need_target, need_features, need_weight, need_bias,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("linear_logsumexp: differentiable twice, and this is the third time")


# ---- the chunks ----------------------------------------------------------------------------------


class _Chunks:
    """The logits of one chunk after another, in one buffer."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.type = arithmetic(features)
        self.features, self.weight = features, weight
        self.bias = None if bias is None else bias.to(self.type).contiguous()
        self.rows, self.classes = features.shape[0], weight.shape[0]
        self.at_once = CHUNK_ROWS if features.device.type == "cpu" else 4 * CHUNK_ROWS

    def buffer(self) -> Tensor:
        size = min(self.rows, self.at_once) * min(self.classes, CHUNK_CLASSES)
        return self.features.new_empty(size, dtype=self.type)

    def over_rows(self) -> Iterator[slice]:
        for r in range(0, max(self.rows, 1), self.at_once):  # an empty batch is one empty chunk
            yield slice(r, min(r + self.at_once, self.rows))

    def over_classes(self) -> Iterator[slice]:
        for c in range(0, self.classes, CHUNK_CLASSES):
            yield slice(c, min(c + CHUNK_CLASSES, self.classes))

    def part(self, t: Tensor, part: slice) -> Tensor:
        """Rows of a matrix, in the type that products are taken in."""
        return t[part].to(self.type)

    def product(self, buffer: Tensor, features: Tensor, weight: Tensor) -> Tensor:
        """features @ weight.T in a buffer."""
        shape = features.shape[0], weight.shape[0]
        out = buffer[: shape[0] * shape[1]].view(shape)
        return torch.mm(features, weight.t(), out=out)

    def inside(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Which targets are classes, and all of them with 0 for those that are not."""
        inside = (targets >= 0) & (targets < self.classes)
        return inside, torch.where(inside, targets, 0)

    def empty(self, like: Tensor, wanted: bool) -> Tensor:
        return like.new_empty(like.shape if wanted else [0], dtype=self.type)


def _slice(t: Tensor | None, part: slice) -> Tensor | None:
    return None if t is None else t[part]


def _add_product(out: Tensor, a: Tensor, b: Tensor, fresh: bool) -> None:
    """out = a @ b, or out += a @ b."""
    if fresh:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)


@torch.library.custom_op("robustcore::linear_logsumexp", mutates_args=())
def _linear_lse(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # mean = p W [N, D], the gradient in the features up to a factor, by online softmax: p of the
    # classes so far, rescaled as more come. It costs the product that the backward pass would, but
    # not the logits once more.
    chunks = _Chunks(features, weight, bias)
    maximum, total, lse = features.new_empty((3, chunks.rows), dtype=chunks.type).unbind()
    shape = [0 if targets is None else chunks.rows]
    target_logits = features.new_full(shape, float("nan"), dtype=chunks.type)
    mean = chunks.empty(features, with_mean)
    one = torch.ones_like(lse)
    buffer = chunks.buffer()
    targets = None if targets is None else targets.contiguous()
    for c in chunks.over_classes():
        w = chunks.part(weight, c)
        for r in chunks.over_rows():
            z = chunks.product(buffer, chunks.part(features, r), w)
            before = lse[r].clone()
            _chunk_lse(
                maximum[r], total[r], lse[r], None if targets is None else target_logits[r],
                z, _slice(chunks.bias, c), _slice(targets, r), c.start,
            )  # fmt: skip
            if not with_mean:
                continue
            _chunk_weights(z, _slice(chunks.bias, c), one[r], lse[r], None, None, c.start)
            if c.start > 0:
                shrink = torch.where(before == -float("inf"), 0, (before - lse[r]).exp())
                mean[r].mul_(shrink.unsqueeze(1))
            _add_product(mean[r], z, w, fresh=c.start == 0)
    return lse.clone(), target_logits, mean


@torch.library.custom_op("robustcore::linear_logsumexp_backward", mutates_args=())
def _linear_lse_backward(
    grad: Tensor,
    grad_target: Tensor | None,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    lse: Tensor,
    mean: Tensor,
    need_features: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = _Chunks(features, weight, bias)
    d_features = features.new_empty(0)
    if need_features:
        d_features = grad.unsqueeze(1) * mean
        if targets is not None and grad_target is not None:
            inside, at = chunks.inside(targets)
            d_features.addcmul_(
                torch.where(inside, grad_target, 0).unsqueeze(1), weight[at].to(chunks.type)
            )
        d_features = d_features.to(features.dtype)
    d_weight = weight.new_empty(weight.shape if need_weight else [0])
    d_bias = weight.new_empty(weight.shape[:1] if need_bias else [0])
    if not (need_weight or need_bias):
        return d_features, d_weight, d_bias
    buffer = chunks.buffer()
    targets = None if targets is None else targets.contiguous()
    for c in chunks.over_classes():
        w = chunks.part(weight, c)
        d_w = d_weight[c] if need_weight and weight.dtype == chunks.type else torch.empty_like(w)
        d_b: Any = 0
        for r in chunks.over_rows():
            e = chunks.part(features, r)
            g = chunks.product(buffer, e, w)
            _chunk_weights(
                g, _slice(chunks.bias, c), grad[r], lse[r], _slice(targets, r),
                _slice(grad_target, r), c.start,
            )  # fmt: skip
            if need_weight:
                _add_product(d_w, g.t(), e, fresh=r.start == 0)
            if need_bias:
                d_b = d_b + g.sum(0)
        if need_weight and weight.dtype != chunks.type:
            d_weight[c] = d_w
        if need_bias:
            d_bias[c] = d_b
    return d_features, d_weight, d_bias


@torch.library.custom_op("robustcore::linear_logsumexp_double_backward", mutates_args=())
def _linear_lse_double_backward(
    v_features: Tensor | None,
    v_weight: Tensor | None,
    v_bias: Tensor | None,
    grad: Tensor,
    grad_target: Tensor | None,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    lse: Tensor,
    mean: Tensor,
    need_grad: bool,
    need_target: bool,
    need_features: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # With u = v_features W^T + E v_weight^T + v_bias, the first derivatives meet their cotangents
    # in L = sum_n grad[n] <p[n], u[n]> + grad_target[n] u[n, target[n]]. So with dot = <p, u>,
    # R = grad p (u - dot) and G = grad p + one-hot grad_target:
    #   grad: dot, features: R W + G v_weight, weight: R^T E + G^T v_features, bias: sum_n R.
    chunks = _Chunks(features, weight, bias)
    z_buffer, u_buffer = chunks.buffer(), chunks.buffer()
    targets = None if targets is None else targets.contiguous()
    v_bias = None if v_bias is None else v_bias.to(chunks.type).contiguous()

    def logits_and_u(r: slice, c: slice) -> tuple[Any, ...]:
        e, w = chunks.part(features, r), chunks.part(weight, c)
        v_e = None if v_features is None else chunks.part(v_features, r)
        v_w = None if v_weight is None else chunks.part(v_weight, c)
        z = chunks.product(z_buffer, e, w)
        if v_e is not None:
            u = chunks.product(u_buffer, v_e, w)
            if v_w is not None:
                u.addmm_(e, v_w.t())
        elif v_w is not None:
            u = chunks.product(u_buffer, e, v_w)
        else:
            u = u_buffer[: z.numel()].view(z.shape).zero_()
        return e, w, v_e, v_w, z, u

    u_target = grad.new_empty(0)
    if targets is not None:
        u_target = _target_of_u(chunks, targets, v_features, v_weight, v_bias)
    if v_features is not None and v_weight is None and v_bias is None:
        # <p, u> without a pass of its own: u = v_features W^T, and mean = p W.
        dot = (v_features * mean).sum(1)
    else:
        dot = grad.new_zeros(chunks.rows)
        for c in chunks.over_classes():
            for r in chunks.over_rows():
                *_, z, u = logits_and_u(r, c)
                _chunk_dot(dot[r], z, u, _slice(chunks.bias, c), _slice(v_bias, c), lse[r])
    d_features = chunks.empty(features, need_features)
    d_weight = weight.new_empty(weight.shape if need_weight else [0])
    d_bias = weight.new_empty(weight.shape[:1] if need_bias else [0])
    if need_features or need_weight or need_bias:
        for c in chunks.over_classes():
            same = need_weight and weight.dtype == chunks.type
            d_w = d_weight[c] if same else d_weight.new_empty(weight[c].shape, dtype=chunks.type)
            d_b: Any = 0
            for r in chunks.over_rows():
                e, w, v_e, v_w, z, u = logits_and_u(r, c)
                _chunk_curvature(
                    z, u, _slice(chunks.bias, c), _slice(v_bias, c), grad[r], lse[r], dot[r],
                    _slice(targets, r), _slice(grad_target, r), c.start,
                )  # fmt: skip
                if need_features:
                    _add_product(d_features[r], u, w, fresh=c.start == 0)
                    if v_w is not None:
                        d_features[r].addmm_(z, v_w)
                if need_weight:
                    _add_product(d_w, u.t(), e, fresh=r.start == 0)
                    if v_e is not None:
                        d_w.addmm_(z.t(), v_e)
                if need_bias:
                    d_b = d_b + u.sum(0)
            if need_weight and not same:
                d_weight[c] = d_w
            if need_bias:
                d_bias[c] = d_b
    return dot, u_target, d_features.to(features.dtype), d_weight, d_bias


def _target_of_u(chunks, targets, v_features, v_weight, v_bias):
    """u at the targets, 0 where a target is no class."""
    inside, at = chunks.inside(targets)
    u = chunks.features.new_zeros(chunks.rows, dtype=chunks.type)
    if v_features is not None:
        u += (v_features.to(chunks.type) * chunks.weight[at]).sum(1)
    if v_weight is not None:
        u += (chunks.features.to(chunks.type) * v_weight[at]).sum(1)
    if v_bias is not None:
        u += v_bias[at]
    return torch.where(inside, u, 0)


@_linear_lse.register_fake
def _(features, weight, bias, targets, with_mean):
    lse = features.new_empty(features.shape[0], dtype=arithmetic(features))
    target = torch.empty_like(lse) if targets is not None else lse.new_empty(0)
    return lse, target, lse.new_empty(features.shape if with_mean else [0])


def _fake_gradients(features, weight, needs):
    return (
        features.new_empty(features.shape if needs[0] else [0]),
        weight.new_empty(weight.shape if needs[1] else [0]),
        weight.new_empty(weight.shape[:1] if needs[2] else [0]),
    )


@_linear_lse_backward.register_fake
def _(grad, grad_target, features, weight, bias, targets, lse, mean, *needs):
    return _fake_gradients(features, weight, needs)


@_linear_lse_double_backward.register_fake
def _(v_features, v_weight, v_bias, grad, grad_target, features, weight, bias, targets, lse,
      mean, need_grad, need_target, *needs):  # fmt: skip
    rows = grad.new_empty(grad.shape)
    target = grad.new_empty(grad.shape if targets is not None else [0])
    return rows, target, *_fake_gradients(features, weight, needs)


for _op in (_linear_lse, _linear_lse_backward, _linear_lse_double_backward):
    register_loop(_op)
