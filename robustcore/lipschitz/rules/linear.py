"""Rules of matrix products, convolutions and normalisation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from robustcore.common import graph as traced
from robustcore.lipschitz.rounding import product, root
from robustcore.lipschitz.rules.call import Call, Value


def _weight(call: Call, name: str) -> Tensor:
    argument = call.args[name]
    if call.value(argument) is not None:
        raise call.refuse(f"its {name} depends on the input")
    weight: Tensor = call.constant(argument)
    return weight


def _bounded(call: Call, node: Any, factor: float) -> Value:
    if not math.isfinite(factor):
        raise call.refuse("its weight is not finite")
    if call.source is not node and call.source.args[:1] != (node,):
        raise call.refuse("its other arguments depend on the input")
    return call.plain(node).scaled(factor)


def _scaled(weight: Tensor, slope: Tensor | None) -> Tensor:
    """A weight with what its outputs are multiplied by afterwards: along its first dimensions."""
    if slope is None:
        return weight
    # The margin is for the rounding of the products.
    each = slope.reshape(*slope.shape, *[1] * (weight.dim() - slope.dim()))
    return weight.double() * each * (1 + 1e-12)


def linear(call: Call, slope: Tensor | None = None) -> Value:
    """The largest singular value of the weight | weights that depend on the input"""
    weight = _scaled(_weight(call, "weight"), slope)
    return _bounded(call, call.args["input"], call.norm.matrix(weight))


def matmul(call: Call) -> Value:
    """The same, of a constant matrix on either side | products of two results: attention"""
    names = ("mat1", "mat2") if call.op == "addmm" else tuple(call.args)[:2]
    if call.op == "addmm" and call.value(call.args["self"]) is not None:
        raise call.refuse("adds what depends on the input")
    scale = abs(float(call.args.get("alpha", 1)))
    x = call.source
    if x is call.args[names[0]]:
        matrix = _weight(call, names[1])
        matrix = matrix[:, None] if matrix.dim() == 1 else matrix
        matrix = matrix.mT
    else:
        matrix = _weight(call, names[0])
        matrix = matrix[None] if matrix.dim() == 1 else matrix
    if matrix.dim() > 2 and call.rank() != matrix.dim():
        raise call.refuse("broadcasts matrices over its input")
    copies = 1.0
    for d in range(matrix.dim() - 2):
        if matrix.shape[d] > 1 and call.size(d) == 1:
            copies = product(copies, call.norm.copies(matrix.shape[d]))
    return _bounded(call, x, product(product(call.norm.matrix(matrix), scale), copies))


def per_channel(value: Any, count: int) -> tuple[int, ...]:
    """An argument of one number or of one a dimension."""
    given = [value] if isinstance(value, int) else list(value)
    return tuple(given * count if len(given) == 1 else given)


def conv(call: Call, slope: Tensor | None = None) -> Value:
    """Largest norm of the filter's symbol over all frequencies, the stride in it; circular padding:
    times the root of how often an output repeats | weights that depend on the input"""
    weight = _scaled(_weight(call, "weight"), slope)
    source = call.args["input"]
    count = weight.dim() - 2
    stride, dilation = (per_channel(call.args[n], count) for n in ("stride", "dilation"))
    weight = weight.unflatten(0, (int(call.args["groups"]), -1))
    plain = call.norm.filter(weight, stride, dilation)
    around = _circular(call, source, count)
    if around is None or not call.norm.l2:
        return _bounded(call, source, plain)
    inner, pads = around
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[3:], strict=True)]
    extra = [sum(p) - span for p, span in zip(pads, spans, strict=True)]
    # Outputs as samples of the circular convolution without a stride; how often one comes again.
    repeats, aligned = 1, 0
    if max(extra) > 0 or max(stride) > 1:
        known = max(extra) > 0 or call.sizes_are_known
        if known:
            sides = call.sizes(range(call.rank(inner) - count, call.rank(inner)), inner)
            axes = list(zip(sides, extra, stride, strict=True))
            repeats = math.prod(_repeats(*axis) for axis in axes)
            if all(n % s == 0 for n, _, s in axes):  # with the stride in it
                rings = [(len(range(0, n + e, s)), n // s) for n, e, s in axes]
                aligned = math.prod(math.ceil(places / ring) for places, ring in rings)
    unstrided = call.norm.filter(weight, (1,) * count, dilation)
    factor = product(unstrided, root(repeats))
    if aligned:
        factor = min(factor, product(plain, root(aligned)))
    return _bounded(call, inner, factor)


def _repeats(size: int, extra: int, stride: int) -> int:
    """How often the same place of a ring of ``size`` is among ``size + extra``, with a stride."""
    places = range(0, size + extra, stride)
    return max(Counter(place % size for place in places).values(), default=1)


def _circular(call: Call, node: Any, count: int) -> tuple[fx.Node, list[tuple[int, int]]] | None:
    """What was padded before a convolution, and by how much along each dimension."""
    if node.op != "call_function" or traced.name_of(node) not in ("pad", "_pad_circular"):
        return None
    given = traced.arguments(node)
    if given.get("mode", "circular") != "circular" or not _no_padding(call):
        return None
    flat = [*given["pad"], *[0] * (2 * count - len(given["pad"]))]
    if len(flat) != 2 * count or min(flat) < 0:
        return None
    pads = [(flat[2 * i], flat[2 * i + 1]) for i in reversed(range(count))]
    inner = next(iter(given.values()))
    return inner, pads


def _no_padding(call: Call) -> bool:
    padding = call.args["padding"]
    return padding == "valid" or padding == 0 or (not isinstance(padding, str) and not any(padding))


def conv_transpose(call: Call, slope: Tensor | None = None) -> Value:
    """The norm of the convolution that it is the transpose of | as `conv`"""
    weight = _weight(call, "weight")
    count = weight.dim() - 2
    stride, dilation = (per_channel(call.args[n], count) for n in ("stride", "dilation"))
    groups = int(call.args["groups"])
    weight = weight.unflatten(0, (groups, -1))
    if slope is not None:
        weight = _scaled(weight, slope.view(groups, 1, -1))
    factor = call.norm.filter(weight, stride, dilation, True)
    return _bounded(call, call.args["input"], factor)


def batch_norm(call: Call) -> Value:
    """The largest abs(weight) / sqrt(variance + eps) of a channel; right after a convolution or
    linear layer, as part of its weight | training mode"""
    training = call.args.get("training", call.args.get("use_input_stats"))
    if training or call.args["running_var"] is None:
        raise call.refuse("divides by the statistics of its input; call eval()")
    slope = (_weight(call, "running_var").double() + call.args["eps"]).rsqrt()
    if call.args["weight"] is not None:
        slope = slope * _weight(call, "weight").double().abs()
    factor = float(slope.max()) * (1 + 1e-15) if slope.numel() else 0.0
    source = call.args["input"]
    apart = _bounded(call, source, factor)
    name = traced.name_of(source)
    if source.op != "call_function" or name not in _AFFINE or traced.sizes(source)[1:2] == (0,):
        return apart
    if name == "linear" and call.rank() != 2:  # its channels are no outputs of the weight
        return apart
    together = _AFFINE[name](call.before(source), slope)
    # The rounding of the layer before it is in its own result's slack alone.
    return replace(apart, bound=min(apart.bound, together.bound))


_AFFINE = {
    "linear": linear,
    **{f"conv{n}d": conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": conv_transpose for n in (1, 2, 3)},
}


def normalise(call: Call) -> Value:
    """| its slope is 1 / sqrt(eps) where its input is flat: no bound of use"""
    slope = float(call.args.get("eps") or 1e-5) ** -0.5
    raise call.refuse(
        "divides by the spread of its input, so its slope is as large as 1 / sqrt(eps) = "
        f"{slope:.3g} where that is flat; want BatchNorm in eval mode, or an isometry"
    )


def product_of_results(call: Call) -> Value:
    """| multiplies two results, whose slope grows with them: no bound on the whole space"""
    raise call.refuse("multiplies two results that both depend on the input")
