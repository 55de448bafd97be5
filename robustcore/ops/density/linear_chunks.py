"""What linear_logsumexp runs: the logits chunk by chunk, in one buffer.

The matrix products go to BLAS or cuBLAS, one for each chunk of rows and classes; what happens to a
chunk in between is one kernel of ours, in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore import _C
from robustcore.ops.autograd import arithmetic, raw, register_loop
from robustcore.ops.density import linear_fused

_chunk_lse = raw.logsumexp_chunk_.default
_chunk_weights = raw.logsumexp_chunk_weights_.default
_chunk_dot = raw.logsumexp_chunk_dot_.default
_product = raw.product_.default
_chunk_curvature = raw.logsumexp_chunk_curvature_.default

# Rows and classes of a chunk: large enough for a matrix product at full speed, small enough that
# the chunk is still in a cache when the next one reads it. A GPU gets four times the rows, to fill
# it.
CHUNK_ROWS, CHUNK_CLASSES = 1024, 1024

# Multiplications of a matrix product from which on ours pays: below, packing costs as much.
MANY_PRODUCTS = 2**22


class _Chunks:
    """The logits of one chunk after another, in one buffer."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.type = arithmetic(features)
        self.features, self.weight = features, weight
        self.narrow = _multiplies_exactly(features, weight)
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
        """Rows of a matrix, as products take them."""
        as_it_is = self.narrow and t.dtype == self.features.dtype
        return t[part] if as_it_is else t[part].to(self.type)

    def product(self, buffer: Tensor, features: Tensor, weight: Tensor) -> Tensor:
        """features @ weight.T in a buffer."""
        shape = features.shape[0], weight.shape[0]
        out = buffer[: shape[0] * shape[1]].view(shape)
        _add_product(out, features, weight.t(), first=True)
        return out

    def inside(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Which targets are classes, and all of them with 0 for those that are not."""
        inside = (targets >= 0) & (targets < self.classes)
        return inside, torch.where(inside, targets, 0)

    def empty(self, like: Tensor, wanted: bool) -> Tensor:
        return like.new_empty(like.shape if wanted else [0], dtype=self.type)


class _ClassGradients:
    """Gradients of weight and bias: sums over rows, for one chunk of classes after another."""

    def __init__(self, chunks: _Chunks, need_weight: bool, need_bias: bool) -> None:
        weight = chunks.weight
        self.type, self.need_weight, self.need_bias = chunks.type, need_weight, need_bias
        self.weight = weight.new_empty(weight.shape if need_weight else [0])
        self.bias = weight.new_empty(weight.shape[:1] if need_bias else [0])
        self.total: Any = 0

    def begin(self, c: slice) -> None:
        if self.need_weight:
            part = self.weight[c]
            same = part.dtype == self.type
            self.part = part if same else part.new_empty(part.shape, dtype=self.type)
        self.total = 0

    def add(self, g: Tensor, features: Tensor, first: bool) -> None:
        """g is the gradient of the logits ``features @ weight.T + bias`` of some rows."""
        if self.need_weight:
            _add_product(self.part, g.t(), features, first)
        if self.need_bias:
            self.total = self.total + g.sum(0)

    def end(self, c: slice) -> None:
        if self.need_weight and self.weight.dtype != self.type:
            self.weight[c] = self.part
        if self.need_bias:
            self.bias[c] = self.total


def _slice(t: Tensor | None, part: slice) -> Tensor | None:
    return None if t is None else t[part]


def _hits(targets: Tensor | None, grad_target: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if targets is None or grad_target is None else (targets.contiguous(), grad_target)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _multiplies_exactly(features: Tensor, weight: Tensor) -> bool:
    """Whether narrow matrices need no wider copies: products exact, sums in float32."""
    dtypes = {features.dtype, weight.dtype}
    on_gpu = features.is_cuda and hasattr(torch.ops.aten.mm, "dtype_out")
    return on_gpu and (dtypes == {torch.bfloat16} or dtypes == {torch.float16})


def _add_exact_product(out: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    if first:
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)
    else:
        out.add_(torch.ops.aten.mm.dtype(a, b, out.dtype))


def _add_product(out: Tensor, a: Tensor, b: Tensor, first: bool = False) -> None:
    """out = a @ b, or out += a @ b."""
    if a.dtype == b.dtype != out.dtype:
        _add_exact_product(out, a, b, first)
        return
    a, b = a.to(out.dtype), b.to(out.dtype)
    ours = out.device.type == "cpu" and out.dtype == torch.float32
    if ours and _C.build_info()["simd"] == "avx512" and out.numel() * a.shape[1] >= MANY_PRODUCTS:
        _product(out, a, b, not first)
    elif first:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)


@torch.library.custom_op("robustcore::linear_logsumexp", mutates_args=())
def forward_op(
    features: Tensor,  # [N, D]
    weight: Tensor,  # [K, D]
    bias: Tensor | None,  # [K]
    targets: Tensor | None,  # [N]
    with_mean: bool,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(lse ``[N]``, the targets' logits ``[N]``, mean ``[N, D]``); what is not wanted is empty."""
    if fused:
        return linear_fused.forward(features, weight, bias, targets, with_mean)
    # mean = p W, the gradient in the features up to a factor, by online softmax: p of the classes
    # so far, rescaled as more come. It costs the product that the backward pass would, but not the
    # logits once more.
    chunks = _Chunks(features, weight, bias)
    maximum, total, lse = features.new_empty((3, chunks.rows), dtype=chunks.type).unbind()
    shape = [0 if targets is None else chunks.rows]
    target_logits = features.new_full(shape, float("nan"), dtype=chunks.type)
    mean = chunks.empty(features, with_mean)
    one = torch.ones_like(lse)
    buffer, targets = chunks.buffer(), _contiguous(targets)
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
            _add_product(mean[r], z, w, first=c.start == 0)
    return lse.clone(), target_logits, mean


@torch.library.custom_op("robustcore::linear_logsumexp_backward", mutates_args=())
def backward_op(
    grad: Tensor,  # [N]
    grad_target: Tensor | None,  # [N]
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    lse: Tensor,
    mean: Tensor,
    need_features: bool,
    need_weight: bool,
    need_bias: bool,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias; what is not needed is empty."""
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
    if fused and (need_weight or need_bias):
        return d_features, *linear_fused.class_gradients(
            grad, _hits(targets, grad_target), features, weight, bias, lse, need_weight, need_bias
        )
    sums = _ClassGradients(chunks, need_weight, need_bias)
    if not (need_weight or need_bias):
        return d_features, sums.weight, sums.bias
    buffer, targets = chunks.buffer(), _contiguous(targets)
    for c in chunks.over_classes():
        w = chunks.part(weight, c)
        sums.begin(c)
        for r in chunks.over_rows():
            e = chunks.part(features, r)
            g = chunks.product(buffer, e, w)
            _chunk_weights(
                g, _slice(chunks.bias, c), grad[r], lse[r], _slice(targets, r),
                _slice(grad_target, r), c.start,
            )  # fmt: skip
            sums.add(g, e, first=r.start == 0)
        sums.end(c)
    return d_features, sums.weight, sums.bias


class _Tile(NamedTuple):
    """What the double backward reads of one chunk; z and u are in buffers."""

    e: Tensor  # [rows, D] of features
    w: Tensor  # [classes, D] of weight
    v_e: Tensor | None  # their cotangents
    v_w: Tensor | None
    z: Tensor  # [rows, classes] e w^T
    u: Tensor  # v_e w^T + e v_w^T


class _Cotangents:
    """u = v_features W^T + E v_weight^T + v_bias, the logits' derivative, chunk by chunk."""

    def __init__(
        self, chunks: _Chunks, features: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        self.chunks, self.features, self.weight = chunks, features, weight
        self.bias = None if bias is None else bias.to(chunks.type).contiguous()
        self.buffers: list[Tensor] = []

    def tile(self, r: slice, c: slice) -> _Tile:
        chunks = self.chunks
        e, w = chunks.part(chunks.features, r), chunks.part(chunks.weight, c)
        v_e = None if self.features is None else chunks.part(self.features, r)
        v_w = None if self.weight is None else chunks.part(self.weight, c)
        if not self.buffers:
            self.buffers = [chunks.buffer(), chunks.buffer()]
        z_buffer, u_buffer = self.buffers
        z = chunks.product(z_buffer, e, w)
        if v_e is not None:
            u = chunks.product(u_buffer, v_e, w)
            if v_w is not None:
                _add_product(u, e, v_w.t())
        elif v_w is not None:
            u = chunks.product(u_buffer, e, v_w)
        else:
            u = u_buffer[: z.numel()].view(z.shape).zero_()
        return _Tile(e, w, v_e, v_w, z, u)

    def mean(self, lse: Tensor, mean: Tensor) -> Tensor:
        """<p, u> of each row."""
        if self.features is not None and self.weight is None and self.bias is None:
            # Without a pass of its own: u = v_features W^T, and mean = p W.
            return (self.features * mean).sum(1)
        chunks = self.chunks
        dot = lse.new_zeros(chunks.rows)
        for c in chunks.over_classes():
            for r in chunks.over_rows():
                tile = self.tile(r, c)
                _chunk_dot(
                    dot[r], tile.z, tile.u, _slice(chunks.bias, c), _slice(self.bias, c), lse[r]
                )
        return dot

    def at(self, targets: Tensor) -> Tensor:
        """u at the targets, 0 where a target is no class."""
        chunks = self.chunks
        pairs = [(self.features, chunks.weight), (chunks.features, self.weight)]
        return linear_fused.at_targets(targets, chunks.classes, pairs, self.bias, 0.0)


@torch.library.custom_op("robustcore::linear_logsumexp_double_backward", mutates_args=())
def double_backward_op(
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
    need_features: bool,
    need_weight: bool,
    need_bias: bool,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of the gradients, along v, in grad, grad_target, features, weight and bias."""
    # With u = v_features W^T + E v_weight^T + v_bias, the first derivatives meet their cotangents
    # in L = sum_n grad[n] <p[n], u[n]> + grad_target[n] u[n, target[n]]. So with dot = <p, u>,
    # R = grad p (u - dot) and G = grad p + one-hot grad_target:
    #   grad: dot, features: R W + G v_weight, weight: R^T E + G^T v_features, bias: sum_n R.
    chunks = _Chunks(features, weight, bias)
    v = _Cotangents(chunks, v_features, v_weight, v_bias)
    targets = _contiguous(targets)
    u_target = grad.new_empty(0) if targets is None else v.at(targets)
    if fused:
        dot, by_features, by_weight, by_bias = linear_fused.double_backward(
            (v_features, v_weight, v_bias), grad, _hits(targets, grad_target), features, weight,
            bias, lse, mean, (need_features, need_weight, need_bias),
        )  # fmt: skip
        return dot, u_target, by_features, by_weight, by_bias
    dot = v.mean(lse, mean)
    d_features = chunks.empty(features, need_features)
    sums = _ClassGradients(chunks, need_weight, need_bias)
    for c in chunks.over_classes() if need_features or need_weight or need_bias else ():
        sums.begin(c)
        for r in chunks.over_rows():
            e, w, v_e, v_w, z, u = v.tile(r, c)
            _chunk_curvature(
                z, u, _slice(chunks.bias, c), _slice(v.bias, c), grad[r], lse[r], dot[r],
                _slice(targets, r), _slice(grad_target, r), c.start,
            )  # fmt: skip
            if need_features:
                _add_product(d_features[r], u, w, first=c.start == 0)
                if v_w is not None:
                    _add_product(d_features[r], z, v_w)
            sums.add(u, e, first=r.start == 0)
            if need_weight and v_e is not None:
                _add_product(sums.part, z.t(), v_e)
        sums.end(c)
    return dot, u_target, d_features.to(features.dtype), sums.weight, sums.bias


@forward_op.register_fake
def _(features, weight, bias, targets, with_mean, fused=False):
    lse = features.new_empty(features.shape[0], dtype=arithmetic(features))
    target = torch.empty_like(lse) if targets is not None else lse.new_empty(0)
    return lse, target, lse.new_empty(features.shape if with_mean else [0])


def _fake_gradients(features, weight, needs):
    return (
        features.new_empty(features.shape if needs[0] else [0]),
        weight.new_empty(weight.shape if needs[1] else [0]),
        weight.new_empty(weight.shape[:1] if needs[2] else [0]),
    )


@backward_op.register_fake
def _(grad, grad_target, features, weight, bias, targets, lse, mean, *needs):
    return _fake_gradients(features, weight, needs)


@double_backward_op.register_fake
def _(v_features, v_weight, v_bias, grad, grad_target, features, weight, bias, targets, lse,
      mean, *needs):  # fmt: skip
    rows = grad.new_empty(grad.shape)
    target = grad.new_empty(grad.shape if targets is not None else [0])
    return rows, target, *_fake_gradients(features, weight, needs)


for _op in (forward_op, backward_op, double_backward_op):
    register_loop(_op)
