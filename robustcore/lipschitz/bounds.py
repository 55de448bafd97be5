"""Lipschitz bounds of whole models, from the graph of what they really compute."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcore.common import graph as traced
from robustcore.common.checks import require_choice, require_floating, require_module
from robustcore.lipschitz.examples import made_up
from robustcore.lipschitz.forward_error import ForwardErrors
from robustcore.lipschitz.leaves import (
    evaluated_once,
    is_leaf,
    leaf_path,
    own_bound,
    states_bound,
    trace_with_leaves,
)
from robustcore.lipschitz.rules.call import Call, Norm, Value, refusal
from robustcore.lipschitz.rules.table import find

NORMS = ("l2", "linf")
# A bound that reads the batch size is refused where it does.
_SIZES = {"sym_size", "sym_numel", "sym_stride"}
_SILENT = {"is_grad_enabled", "_set_grad_enabled", "_exit_autocast"}


def lipschitz_bound(model: nn.Module, example: Tensor | None = None, *, norm: str = "l2") -> float:
    """Upper bound of a model's Lipschitz constant, composed over the graph of what it computes.

    The model is traced by torch.export and bounded operation by operation, so residual sums,
    concatenations, modules that are used several times, forwards of subclasses, parametrizations
    and hooks count as they run. A module's own method ``lipschitz_bound()`` stands for its forward.
    In float64, every step rounded up. It is a bound of the model in exact arithmetic: rounding
    moves each logit by about ``layers * eps * norm(x)`` more.

    Args:
        model: in eval mode.
        example: an input ``[N, *D]``; the bound is for inputs of these sizes, values are not read.
            Default: made up where the first layer says how many channels or features it takes;
            images then are of any size, and what depends on it is refused.
        norm: ``"l2"``, or ``"linf"`` for both sides (networks of layers that do not rotate).

    Raises TypeError naming module and operation that nothing bounds; ValueError where torch.export
    cannot trace the model or a module with parameters is in training mode. Not differentiable.
    Source: the rules stand in :mod:`robustcore.lipschitz.rules`.
    """
    model = checked_model(model)
    require_choice("norm", norm, NORMS)
    if example is not None and require_floating("example", example).dim() < 2:
        raise ValueError(f"example: got shape {list(example.shape)}, want a batch [N, *D]")
    with evaluated_once(model):
        if example is None:
            return Bounds(model, made_up(model), norm, sizes_are_made_up=True).result.bound
        _try(model, example)
        return Bounds(model, example, norm).result.bound


def _try(model: nn.Module, example: Tensor) -> None:
    try:
        with torch.no_grad():
            model(example.new_zeros((1, *example.shape[1:])))
    except Exception as error:
        got = f"{example.dtype} of shape {list(example.shape)}"
        raise ValueError(
            f"example: got {got}, {type(model).__name__} takes others ({error})"
        ) from error


def checked_model(model: Any, *, strict: bool = False) -> nn.Module:
    """The network itself, in eval mode: all of it, or all that holds values.

    What a mode changes of a module without values is in the graph, and bounded as it runs.
    """
    require_module("model", model)
    model = traced.unwrap(model)
    for name, module in model.named_modules():
        stateful = states_bound(module) and any(True for _ in module.parameters())
        if module.training and (strict or stateful or any(True for _ in module.buffers(False))):
            inside = f"{name!r} is" if name else "is"
            raise ValueError(f"model: {inside} in training mode, want model.eval()")
    return model  # type: ignore[no-any-return]


class Bounds:
    """A model's graph and what is known of each of its results.

    ``batch``: how many images there are, for absolute errors. ``radius`` ``[N]``: around the images
    x, within which the rounding of the model's own arithmetic counts, as an absolute error.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        norm: str = "l2",
        *,
        sizes_are_made_up: bool = False,
        batch: int = 1,
        radius: Tensor | None = None,
        looks_inside: bool = False,
    ) -> None:
        self.model, self.norm, self.batch = model, Norm(norm), batch
        self.sizes_are_made_up = sizes_are_made_up
        self.module = traced.trace(model, x) if looks_inside else trace_with_leaves(model, x)
        self.errors = None if radius is None else ForwardErrors(self.module, model, x, radius)
        if self.errors:
            self.errors.measure(x, self.norm)
        self.constants = Constants(self.module, self)
        self.values: dict[fx.Node, Any] = {}
        needed = _needed(self.module.graph)
        for node in self.module.graph.nodes:
            _refuse_writes(node)
            if node.op == "placeholder":
                self.values[node] = Value(1.0)
            elif node.op == "call_function" and (node in needed or _is_region(node)):
                value = self._call(node)
                if self.errors and isinstance(value, Value):
                    value = self.errors.added(node, value, self)
                if value is not None:
                    self.values[node] = value
        self.outputs = next(n for n in self.module.graph.nodes if n.op == "output").args[0]

    @property
    def result(self) -> Value:
        """Of all outputs together."""
        outputs = [self.values.get(o) for o in self.outputs]
        if any(isinstance(o, tuple) for o in outputs):
            raise TypeError("model: gives a list of results, want tensors")
        values = [o for o in outputs if o is not None]
        if any(v.power != 1 or not math.isfinite(v.bound) for v in values):
            raise TypeError("model: its output is a power, or is not finite: nothing bounds it")
        if not values:
            return Value(0.0)
        joint = self.norm.joint
        return Value(joint(v.bound for v in values), joint(v.slack for v in values))

    def inside(self, module: nn.Module, x: Tensor, radius: Tensor) -> Value:
        """What rounding does in one of the model's layers, for its inputs within a radius."""
        form = {"norm": self.norm.name, "batch": self.batch, "radius": radius}
        return Bounds(module, x, looks_inside=True, **form).result  # type: ignore[arg-type]

    def _call(self, node: fx.Node) -> Any:
        if _is_region(node):
            if traced.name_of(node) == "_enter_autocast" and node.args[2]:
                raise refusal(node, "autocast rounds to a lower precision; certify without it")
            return None
        if not any(self.values.get(n) is not None for n in node.all_input_nodes):
            return None  # a constant, computed where a rule asks for it
        if traced.name_of(node) in _SIZES:
            return None
        if not _is_real(node):
            raise refusal(node, "its result is no real number, and jumps")
        if is_leaf(node):
            value = Call(node, self).x
            if not self.norm.l2:
                raise refusal(node, "its lipschitz_bound() is one of l2")
            return value.scaled(own_bound(self.model, leaf_path(node)))
        try:
            return find(node)(Call(node, self))
        except ValueError as error:
            raise refusal(node, str(error)) from error


def _is_real(node: fx.Node) -> bool:
    """Whether a node's result, or the first of several, is a tensor of floating point numbers."""
    result = node.meta.get("val")
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    return isinstance(first, Tensor) and first.is_floating_point()


def _is_region(node: fx.Node) -> bool:
    return traced.name_of(node) in (*_SILENT, "_enter_autocast")


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """The nodes from which the output is computed."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in found:
            found.update(node.all_input_nodes)
    return found


def _refuse_writes(node: fx.Node) -> None:
    """A write that is read under another name, or that changes the model, is not in the graph."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    if not node.target._schema.is_mutable:
        return
    source = node.args[0] if traced.is_in_place(node) else None
    while isinstance(source, fx.Node) and source.op == "call_function" and (
        traced.is_view(source) or traced.is_in_place(source)
    ):  # fmt: skip
        source = source.args[0] if source.args else None
    writes_model = not isinstance(source, fx.Node) or source.op == "get_attr"
    if writes_model or node.meta.get(traced.WRITES_PART):
        raise refusal(node, "writes in place into what is read under another name")


class Constants:
    """What of a graph does not depend on the input, computed as the model computes it."""

    def __init__(self, module: fx.GraphModule, bounds: Bounds) -> None:
        self._module, self._bounds = module, bounds
        self._known: dict[fx.Node, Any] = {}

    def of(self, argument: Any, call: Call) -> Any:
        """The value of a call's argument; TypeError where it depends on the input or its batch."""
        if not isinstance(argument, fx.Node):
            return argument
        for node in self._before(argument, call):
            self._known[node] = self._compute(node, call)
        return self._known[argument]

    def _before(self, node: fx.Node, call: Call) -> list[fx.Node]:
        """The nodes to compute, in order."""
        stack, found = [node], set()
        while stack:
            node = stack.pop()
            if node in found or node in self._known:
                continue
            if node.op == "placeholder" or self._bounds.values.get(node) is not None:
                raise call.refuse("an argument depends on the input")
            found.add(node)
            stack.extend(node.all_input_nodes)
        return [n for n in self._module.graph.nodes if n in found]

    def _compute(self, node: fx.Node, call: Call) -> Any:
        if node.op == "get_attr":
            found: Any = self._module
            for name in str(node.target).split("."):
                found = getattr(found, name)
            return found.detach() if isinstance(found, Tensor) else found
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise refusal(node, "draws at random")
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._known[n])
        with torch.no_grad(), torch.autocast("cuda", enabled=False):
            return target(*args, **kwargs)
