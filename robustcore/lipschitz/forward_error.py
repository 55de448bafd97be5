"""How far rounding can move what a model computes: a bound for each call of its graph.

A call's own error is the distance of what it gives from the exact operation on what it was given.
It is bounded for the images at hand and for all within a radius of them; the rules of the bounds
carry it on to the logits, as they carry the jump of a softplus. The proof stands in BOUNDS.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcore.common import graph as traced
from robustcore.lipschitz.leaves import is_leaf, leaf_path
from robustcore.lipschitz.rounding import raised
from robustcore.lipschitz.rules.call import Call, Rule, Value, refusal
from robustcore.lipschitz.rules.linear import batch_norm, conv, conv_transpose, linear, matmul
from robustcore.lipschitz.rules.pointwise import (
    activation,
    add,
    cast,
    divide,
    dropout,
    extreme_of_two,
    mix,
    multiply,
    prelu,
    select_by_mask,
    sign,
    softplus,
)
from robustcore.lipschitz.rules.shapes import (
    concat,
    constant_like,
    expand,
    extreme,
    get_item,
    index,
    isometry,
    rearrange,
    repeat,
    sort,
    split,
    take,
)
from robustcore.lipschitz.rules.table import find
from robustcore.lipschitz.rules.windows import adaptive_max_pool, max_pool, pad, unfold

# Only move numbers, choose among them or change their sign.
_EXACT = {
    rearrange, take, split, get_item, concat, expand, repeat, index, constant_like, sort, extreme,
    extreme_of_two, select_by_mask, sign, dropout, max_pool, adaptive_max_pool, pad, unfold,
}  # fmt: skip
_EXACT_FUNCTIONS = {
    "relu", "relu6", "hardtanh", "abs", "neg", "alias", "clone", "contiguous", "detach",
    "lift_fresh_copy", "positive", "threshold", "clamp", "clamp_min", "clamp_max", "clip", "maxmin",
}  # fmt: skip
_PRODUCTS = {linear, matmul, conv, conv_transpose}
_ALONE = {activation, softplus, prelu, add, multiply, divide, mix, cast, isometry, batch_norm}
# Roundings of one number: torch's functions err by a few units of the last place.
_STEPS = 32


class ForwardErrors:
    """The errors of the calls of one graph, for images ``[N, *D]`` and all within ``radius``."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module, x: Tensor, radius: Tensor) -> None:
        self.model, self.radius, self.images = model, radius, len(x)
        self._run = _Run(graph, model, len(x))
        self.local: dict[fx.Node, Tensor] = {}

    def measure(self, x: Tensor, norm: Any) -> None:
        """Runs the model on the images, for the sizes of all results."""
        self._run.norm = norm
        self._run.run(x)

    def added(self, node: fx.Node, value: Value, walk: Any) -> Value:
        """A call's value with its own error: at an image, and at another one within the radius."""
        given = [n for n in node.all_input_nodes if walk.values.get(n) is not None]
        if is_leaf(node):
            error = self._leaf(node, given[0], walk)
        else:
            call, rule = Call(node, walk), find(node)
            if value.power != 1 or rule in _EXACT or call.op in _EXACT_FUNCTIONS:
                return value
            error = self._own(call, rule, value, given)
        self.local[node] = error = 2 * error
        return _with_slack(value, raised(error + value.slack))

    def _size(self, node: fx.Node, value: Value) -> Tensor:
        """The largest norm of a result, within the radius."""
        return raised((self._run.sizes[node] + value.slack + value.bound * self.radius) * _UP)

    def _own(self, call: Call, rule: Rule, value: Value, given: list[fx.Node]) -> Tensor:
        node, walk = call.node, call.walk
        result: Any = node.meta["val"]
        unit, count = _unit(result.dtype), math.prod(traced.sizes(node)[1:])
        known = [(n, walk.values[n]) for n in given]
        if any(isinstance(v, tuple) for _, v in known):
            raise refusal(node, "its rounding is not known")
        powers = any(v.power != 1 for _, v in known)
        gain = 1.0 if powers else rule(Call(node, _Absolute(walk))).bound
        size = sum((self._size(n, v) for n, v in known if v.power == 1), 0 * self.radius) * gain
        tiny = torch.finfo(result.dtype).tiny
        if rule in _PRODUCTS:
            if result.is_cuda and result.dtype == torch.float32 and "conv" in call.op:
                raise refusal(node, "cuDNN may choose a transform, whose rounding is not known")
            terms = _terms(call)
            constant = _constant_size(call, count)
        else:
            terms = _STEPS
            if rule not in _ALONE:  # a sum along dimensions, at most of all
                terms += max(math.prod(traced.sizes(n)[1:]) for n in given)
            constant = _constant_size(call, count) if call.op == "batch_norm" else 0.0
            if rule in (activation, softplus) or rule not in _ALONE:
                constant += call.norm.copies(count)  # such as the 1 of a logarithm
            size = size + self._size(node, value)
        if terms * unit > 0.01:
            raise refusal(node, f"sums {terms} numbers in {result.dtype}")
        factor = terms * unit / (1 - terms * unit) * 1.02
        return raised(factor * (size + constant) + terms * tiny * call.norm.copies(count))

    def _leaf(self, node: fx.Node, source: fx.Node, walk: Any) -> Tensor:
        """Of a layer that states its bound: of the operations of its export."""
        layer: Any = self.model.get_submodule(leaf_path(node))
        if not getattr(layer, "runs_as_exported", False):
            kind = type(layer).__name__
            raise refusal(node, f"the rounding of {kind} as it runs is not known; want float64, or "
                          "the model's export()")  # fmt: skip
        value = walk.values[source]
        around = raised((value.bound * self.radius + value.slack) * _UP)
        if getattr(layer, "rounds_once", False):
            unit = _unit(self._run.inputs[node].dtype)
            return raised(_STEPS * unit * self._size(source, value))
        plain = layer if not hasattr(layer, "export") else layer.export()
        inner = walk.inside(plain, self._run.inputs[node], around)
        # Two errors, at both images, are in that slack.
        return torch.as_tensor(inner.slack / 2 + 0 * self.radius)


_UP = 1 + 1e-9  # of norms computed in the model's dtype and of their sums


class _Run(fx.Interpreter):
    """Runs a graph and keeps the norm of each result, an image."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module, images: int) -> None:
        super().__init__(graph)
        self.model, self.images = model, images
        self.norm: Any = None
        self.sizes: dict[fx.Node, Tensor] = {}
        self.inputs: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        if is_leaf(node):
            source: Any = node.args[0]
            self.inputs[node] = self.env[source]
            result = self.model.get_submodule(leaf_path(node))(self.env[source])
        else:
            result = super().run_node(node)
        if isinstance(result, Tensor) and result.is_floating_point():
            batched = result.dim() > 0 and not isinstance(node.meta["val"].shape[0], int)
            apart = batched and len(result) == self.images
            self.sizes[node] = self._norms(result.detach().double(), apart)
        return result

    def _norms(self, result: Tensor, apart: bool) -> Tensor:
        order = 2 if self.norm.l2 else math.inf
        rows = result.reshape(self.images, -1) if apart else result.reshape(1, -1)
        if rows.shape[1] == 0:
            return rows.new_zeros(self.images)
        # Where the images do not lie apart, all of them count for each.
        found: Tensor = torch.linalg.vector_norm(rows, ord=order, dim=1)
        return (found * _UP).expand(self.images)


class _Absolute:
    """A walk in which all results are of norm 1 and all weights are absolute values."""

    def __init__(self, walk: Any) -> None:
        self.norm, self.batch, self.sizes_are_made_up = walk.norm, walk.batch, False
        self.values = _Ones(walk.values)
        self.constants = self
        self._walk = walk

    def of(self, argument: Any, call: Call) -> Any:
        value = self._walk.constants.of(argument, Call(call.node, self._walk))
        return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Ones:
    def __init__(self, values: dict[fx.Node, Any]) -> None:
        self._values = values

    def get(self, node: fx.Node) -> Value | None:
        return None if self._values.get(node) is None else Value(1.0)


def _terms(call: Call) -> int:
    """How many numbers are summed to one of a product's, the constant included."""
    if "conv" in call.op:
        weight: Any = call.constant(call.args["weight"])
        inputs = weight.shape[0] // int(call.args["groups"]) if "tr" in call.op else weight.shape[1]
        return int(inputs * math.prod(weight.shape[2:]) + 2)
    weights = [a for n, a in call.args.items() if n not in ("bias", "self") or call.op != "addmm"]
    shapes = [call.constant(w).shape for w in weights
              if isinstance(w, fx.Node) and call.value(w) is None]  # fmt: skip
    return 2 + max((int(size) for shape in shapes for size in shape), default=1)


def _constant_size(call: Call, count: int) -> float:
    """The norm of what does not depend on the input: a bias, a mean that is taken off."""
    if call.op == "batch_norm":
        mean, variance = (call.constant(call.args[f"running_{n}"]) for n in ("mean", "var"))
        slope = (variance.double() + call.args["eps"]).rsqrt()
        weight, bias = (call.constant(call.args[n]) for n in ("weight", "bias"))
        slope = slope if weight is None else slope * weight.double().abs()
        each = mean.double().abs() * slope + (0 if bias is None else bias.double().abs())
    else:
        name = "self" if call.op == "addmm" else "bias"
        bias = call.constant(call.args[name]) if name in call.args else None
        if bias is None:
            return 0.0
        each = bias.double().flatten()
    if not call.norm.l2:
        return float(each.abs().max())
    return float(torch.linalg.vector_norm(each)) * math.sqrt(count / max(1, each.numel())) * _UP


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _with_slack(value: Value, slack: Tensor) -> Value:
    part = None  # a piece with an error of its own is in no whole
    return Value(value.bound, slack, value.power, part, value.mark)
