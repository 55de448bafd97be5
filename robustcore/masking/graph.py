"""The planned graph: a traced network in which masks are computed, filled in and multiplied by."""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from torch import fx

from robustcore.common import graph as traced
from robustcore.masking import calls
from robustcore.masking.masks import Mask
from robustcore.masking.moves import Index
from robustcore.masking.plan import Plan, Step
from robustcore.masking.rows import reads_size, row_wise
from robustcore.masking.rules.call import RESULT, Then
from robustcore.ops.masking.fill import consume_fill, neighbor_fill
from robustcore.ops.masking.pools import mask_pool

# Their results are new tensors that only their users know.
FRESH = {
    "conv2d", "batch_norm", "add", "mul", "cat", "linear", "max_pool2d", "avg_pool2d", "matmul",
    "relu", "silu", "gelu", "hardswish", "sigmoid", "hardtanh", "layer_norm", "conv_transpose2d",
    "upsample_nearest2d", "upsample_bilinear2d",
}  # fmt: skip


def masked_graph(module: fx.GraphModule, plan: Plan, soft: bool = False) -> fx.GraphModule:
    """``module`` as a function of (x, mask), after its plan; it reads the same attributes.

    ``soft``: for masks that hold more than zeros and ones.
    """
    return Builder(module, plan, soft).build()


class Builder:
    """Copies a traced graph node by node, and what its plan says around each."""

    name = "Masked"

    def __init__(self, module: fx.GraphModule, plan: Plan, soft: bool = False) -> None:
        self.module, self.plan, self.soft = module, plan, soft
        self.row_wise = row_wise(plan)
        self.few: dict[fx.Node, fx.Node] = {}  # results that lack what is hidden
        self.like: dict[fx.Node, fx.Node] = {}  # of each, a whole one with as many rows
        self.rows: dict[Any, fx.Node] = {}
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.masks: dict[Mask, fx.Node] = {}
        self.clean: dict[fx.Node, fx.Node] = {}
        self.indices: dict[Index, fx.Node] = {}

    def build(self) -> fx.GraphModule:
        for node, step in self.plan.steps.items():
            if node.op == "placeholder":
                self.nodes[node], self.masks[self.plan.known.given] = self.enter(node)
            else:
                self.add(node, step)
        return traced.with_graph(self.module, self.graph, self.name + type(self.module).__name__)

    def add(self, node: fx.Node, step: Step) -> None:
        if node in self.row_wise:
            self.few[node] = self.on_rows(node)
            return
        if reads_size(node) and node.args[0] in self.like:
            self.nodes[node] = self.plain(node, self.like)
            return
        for source in (*node.all_input_nodes, *step.row.inputs):
            if source not in self.nodes:
                self.nodes[source] = self.put_back(source)
        self.nodes[node] = self.copy(node, step)

    def on_rows(self, node: fx.Node) -> fx.Node:
        """The node's operation on visible rows."""

        def given(source: fx.Node) -> fx.Node:
            if source in self.few or self.plan.values[source].kind != "map":
                return self.few.get(source) or self.nodes[source]
            self.like[source] = self.nodes[source]
            return self.call(calls.take_rows, (self.nodes[source], self.rows_of(source)))

        new = self.graph.node_copy(node, given)
        maps = [n for n in node.all_input_nodes if self.plan.values[n].kind == "map"]
        self.like[node] = self.like[maps[0]]
        return new

    def rows_of(self, node: fx.Node) -> fx.Node:
        """Which rows of a node's result are visible."""
        key = self.plan.mask_of(node), traced.sizes(node)[:-1]
        if key not in self.rows:
            arguments = self.mask(key[0]), self.like[node]
            self.rows[key] = self.call(calls.visible_rows, arguments)
        return self.rows[key]

    def put_back(self, source: fx.Node) -> fx.Node:
        """A node's result with rows of zeros where it lacks them."""
        arguments = self.few[source], self.rows_of(source), self.like[source]
        return self.call(calls.put_rows, arguments)

    def enter(self, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        x, mask = self.graph.placeholder("x"), self.graph.placeholder("mask")
        x.meta = dict(node.meta)
        counts = any(traced.name_of(n) in ("sym_size", "size") for n in self.plan.steps
                     if n.op == "call_function")  # fmt: skip
        if counts or any(m.times > 1 or m.axis for m in self.plan.masks):
            # The graph knows how many images there are: one image is as many as it has masks.
            both = self.call(calls.paired, (x, mask))
            x, mask = (self.call(operator.getitem, (both, i)) for i in (0, 1))
        return x, mask

    def call(self, function: Any, arguments: tuple[Any, ...]) -> fx.Node:
        return self.graph.call_function(function, arguments)

    def copy(self, node: fx.Node, step: Step) -> fx.Node:
        replaced = ChainMap({}, self.nodes)
        for source, iters in step.fills.items():
            mask = self.mask(self.plan.mask_of(source))
            exact = consume_fill if self.is_own(source) else neighbor_fill
            function = calls.soft_fill if self.soft else exact
            replaced[source] = self.call(function, (self.nodes[source], mask, iters))
        for source in step.clean:
            replaced[source] = self.cleaned(source)
        via = step.row.via
        if via is not None and (step.fills or step.clean):
            replaced[via] = self.graph.node_copy(via, lambda n: replaced[n])
        if step.alive:
            (source,) = step.row.inputs
            mask = self.mask(self.plan.mask_of(source))
            replaced[source] = self.call(calls.alive_only, (self.nodes[source], mask))
        if step.then is not None and step.then.instead:
            return self.then(step.then, replaced, None)
        result = self.plain(node, replaced)
        return result if step.then is None else self.then(step.then, replaced, result)

    def plain(self, node: fx.Node, replaced: Mapping[fx.Node, fx.Node]) -> fx.Node:
        name = traced.name_of(node)
        if name == "sym_size":  # ATen's own cannot be mapped by vmap
            source, dim = traced.arguments(node).values()
            return self.call(calls.size, (replaced[source], dim))
        if node.op == "call_function" and name == "add_" and isinstance(node.args[1], fx.Node):
            alpha = node.kwargs.get("alpha", 1)
            return self.call(calls.add_in_place, (*(replaced[n] for n in node.args), alpha))  # type: ignore[index]
        return self.graph.node_copy(node, lambda n: replaced[n])

    def then(self, then: Then, replaced: Mapping[fx.Node, fx.Node], result: Any) -> fx.Node:
        def given(argument: Any) -> Any:
            if argument is RESULT:
                return result
            if isinstance(argument, Mask):
                return self.mask(argument)
            return replaced[argument] if isinstance(argument, fx.Node) else argument

        return self.call(then.function, tuple(given(a) for a in then.arguments))

    def cleaned(self, source: fx.Node) -> fx.Node:
        """source times its mask; once, unless an operation in place may come between two uses."""
        if source not in self.clean or any(traced.is_in_place(user) for user in source.users):
            mask = self.mask(self.plan.mask_of(source))
            function = calls.consume_times if self.is_own(source) else calls.times
            self.clean[source] = self.call(function, (self.nodes[source], mask))
        return self.clean[source]

    def is_own(self, node: fx.Node) -> bool:
        """Whether a node's result is memory of its own that one operation reads, and only that."""
        if len(node.users) > 1 or node.op != "call_function":
            return False
        if self.plan.values[node].kind != "map":
            return False
        if traced.is_in_place(node) or traced.name_of(node) == "dropout":
            return isinstance(node.args[0], fx.Node) and self.is_own(node.args[0])
        return traced.name_of(node) in FRESH

    def mask(self, mask: Mask) -> fx.Node:
        if mask not in self.masks:
            parents = [self.mask(parent) for parent in mask.parents]
            function, arguments = self.function_of(mask, parents)
            self.masks[mask] = self.call(function, arguments)
        return self.masks[mask]

    def function_of(self, mask: Mask, parents: list[fx.Node]) -> tuple[Any, tuple[Any, ...]]:
        if mask.kind in ("pool", "seen"):
            w = mask.params
            window = (w.kernel, w.stride, w.pads, w.dilation, w.ceil_mode)
            return (mask_pool if mask.kind == "pool" else calls.seen), (*parents, *window)
        if mask.kind == "both":
            return operator.mul, tuple(parents)
        if mask.kind in ("either", "majority"):
            return (calls.either if mask.kind == "either" else calls.majority), (parents,)
        if mask.kind == "move":
            (base,) = mask.parents
            return calls.rearranged, (*parents, self.index(mask.params), base.place, mask.place)
        if mask.kind == "beside":
            return calls.beside, (parents, [m.place for m in mask.parents])
        if mask.kind == "transposed":
            window, padding, output_padding = mask.params
            shape = (window.kernel, window.stride, padding, output_padding, window.dilation)
            return calls.transposed, (*parents, *shape)
        function: Any = {
            "any": calls.largest, "adaptive": calls.adaptive, "resize": calls.resized,
            "repeat": calls.repeated, "spread": calls.spread,
        }[mask.kind]  # fmt: skip
        several = mask.kind in ("resize", "spread")
        return function, (*parents, *(mask.params if several else (mask.params,)))

    def index(self, index: Index) -> fx.Node:
        """The numbers of a moved mask, a constant of the graph on the image's device."""
        if index not in self.indices:
            image = next(n for n in self.plan.steps if n.op == "placeholder")
            name = f"index_{self.name}_{len(self.indices)}" + "_soft" * self.soft
            constants: Any = self.module.get_submodule("constants")
            constants.register_buffer(name, index.tensor().to(image.meta["val"].device))
            self.indices[index] = self.graph.get_attr(f"constants.{name}")
        return self.indices[index]
