"""The mask plan of a network: which masks there are and where they are applied; pure, printable.

The rules say what an operation does to a mask; the plan then goes backwards and drops what cannot
matter. Of every value it keeps what is *needed*: the masks whose visible pixels some later
operation reads. A pixel that an intersection hides later is in none of them, so nothing before it
has to be filled for its sake; a pixel-by-pixel operation passes the need on; a multiplication by
the mask is made only where an operation reads hidden pixels as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from robustcore.common.checks import require_choice, require_module
from robustcore.masking.masks import Mask, Masks, Window, dilate
from robustcore.masking.rules.call import (
    CONSTANT,
    Call,
    Row,
    UnsupportedOperation,
    Value,
    describe,
)
from robustcore.masking.rules.table import find
from robustcore.ops.masking.fill import FILLS


@dataclass
class Step:
    """What is done at one node: to each input before it, and to its result after it."""

    row: Row
    fills: dict[fx.Node, int]  # iterations of the neighbour fill
    clean: list[fx.Node]  # inputs multiplied by their masks
    alive: bool = False  # a sample that shows nothing enters as 0

    @property
    def touches(self) -> bool:
        return bool(self.fills or self.clean or self.alive or self.row.then)


class Plan:
    """The steps of a graph in order, and the masks that they use. ``str(plan)`` is a table.

    :func:`make_plan` makes it. ``steps`` and ``values`` are what is done at each node and what is
    known of its result, ``fill`` how hidden pixels are filled.
    """

    def __init__(self, steps: Mapping[fx.Node, Step], values: Mapping[fx.Node, Value], fill: str):
        self.steps, self.values, self.fill = dict(steps), dict(values), fill
        self.masks = _used_masks(self)
        for index, mask in enumerate(self.masks):
            mask.name = f"m{index}"

    def mask_of(self, node: fx.Node) -> Mask:
        """Where the node's result is visible."""
        mask = self.values[node].mask
        assert mask is not None
        return mask

    def __str__(self) -> str:
        lines = [("node", "operation", "mask", "before", "after")]
        for node, step in self.steps.items():
            if step.row.value.kind not in ("map", "vector") and not step.touches:
                continue
            before = [f"fill {n} in {self.mask_of(x)}" for x, n in step.fills.items()]
            before += [f"times {self.mask_of(x)}" for x in step.clean]
            before += ["0 if nothing is visible"] * step.alive
            after = {
                None: "",
                "mean": "divided by the visible share",
                "partial": "divided by each window's visible share",
                "norm": "over visible pixels",
            }[step.row.then]
            mask = self.values[node].mask
            shown = str(mask) if mask in self.masks else "-"
            lines.append((describe(node), step.row.op, shown, ", ".join(before), after))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        table = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        fills = sum(len(s.fills) for s in self.steps.values())
        cleans = sum(len(s.clean) for s in self.steps.values())
        head = [
            f"fill: {self.fill}; {len(self.masks)} masks, {fills} fills, {cleans} multiplications"
        ]
        head += [f"  {mask}: {mask.describe()}" for mask in self.masks]
        return "\n".join([*head, "", *table])

    __repr__ = __str__


def make_plan(graph: fx.Graph, modules: Mapping[str, nn.Module], fill: str = "neighbor") -> Plan:
    """The plan of a traced graph.

    Args:
        graph: of torch.fx, with one placeholder, the images.
        modules: the modules that it calls, by name.
        fill: as in :class:`~robustcore.masking.MaskedModel`.

    Raises :class:`UnsupportedOperation` at the first node without a rule.
    """
    if not isinstance(graph, fx.Graph):
        raise TypeError(f"graph: got a {type(graph).__name__}, want a torch.fx.Graph")
    if not isinstance(modules, Mapping):
        raise TypeError(f"modules: got a {type(modules).__name__}, want modules by name")
    for node in graph.nodes:
        if node.op == "call_module":
            require_module(f"modules[{node.target!r}]", modules.get(str(node.target)))
    require_choice("fill", fill, FILLS)
    masks = Masks()
    values: dict[fx.Node, Value] = {}
    rows: dict[fx.Node, Row] = {}
    for node in graph.nodes:
        row = _row(node, modules, values, masks)
        rows[node], values[node] = row, row.value
    needs = _needs(rows, values, masks)
    last = _last_dense(rows)
    steps = {
        node: _step(row, values, needs, masks, fill, node in last) for node, row in rows.items()
    }
    return Plan(steps, values, fill)


def _row(
    node: fx.Node, modules: Mapping[str, nn.Module], values: dict[fx.Node, Value], masks: Masks
) -> Row:
    if node.op == "placeholder":
        if any(v.kind == "map" for v in values.values()):
            if node.args:  # has a default
                return Row(node, "input", CONSTANT)
            raise UnsupportedOperation(f"node {node.name!r} (input): want a model of one tensor")
        return Row(node, "input", Value("map", masks.given))
    if node.op == "get_attr":
        return Row(node, "parameter", CONSTANT)
    if node.op == "output":
        maps = [n for n in node.all_input_nodes if values[n].kind == "map"]
        if any(values[n].parts for n in maps):
            raise UnsupportedOperation(f"node {node.name!r} (output): a tuple of images")
        return Row(node, "output", Value("other"), "clean" if maps else "none", maps)
    module = modules[str(node.target)] if node.op == "call_module" else None
    op, rule = find(node, module)
    call = Call(node, op, module, values, masks)
    if not call.tensors and rule is None:
        # Of sizes and parameters alone.
        return Row(node, op, Value("other") if _of_sizes(node, values) else CONSTANT)
    if rule is None:
        raise call.refuse("no rule for it under a mask (the rules: help(robustcore.masking.rules))")
    return rule(call)


def _of_sizes(node: fx.Node, values: dict[fx.Node, Value]) -> bool:
    return any(values[n].kind == "other" for n in node.all_input_nodes)


def _needs(
    rows: dict[fx.Node, Row], values: dict[fx.Node, Value], masks: Masks
) -> dict[fx.Node, set[Mask]]:
    """Of every map, the masks whose pixels are read later."""
    needs: dict[fx.Node, set[Mask]] = {node: set() for node in rows}
    for node, row in reversed(rows.items()):
        for source in row.inputs:
            value = values[source]
            if value.kind != "map" or value.mask is None:
                continue
            if row.kind == "pointwise":
                needs[source] |= needs[node]
            elif row.window is not None and row.kind == "window" and row.window.keeps_size:
                # If all that is read is visible, the need is what is read; else whatever may be
                # the source of a fill.
                for need in needs[node]:
                    filled = fill_iters(masks, value.mask, need, row.window) > 0
                    reads = masks.pool(need, row.window.reflected)
                    needs[source].add(value.mask if filled else reads)
            elif row.kind == "concat":
                # Where the whole is hidden nothing is read; elsewhere a hidden part is 0.
                needs[source] |= {
                    n if masks.inside(n, value.mask) else value.mask for n in needs[node]
                }
            else:
                needs[source].add(value.mask)
    return needs


def _step(
    row: Row,
    values: dict[fx.Node, Value],
    needs: dict[fx.Node, set[Mask]],
    masks: Masks,
    fill: str,
    is_last_dense: bool,
) -> Step:
    step = Step(row, {}, [])
    if row.kind == "window":
        (source,) = row.inputs
        iters = _reach(row, values[source].mask, needs[row.node], masks)
        if iters and fill == "neighbor":
            step.fills[source] = iters
        elif iters:
            step.clean.append(source)
        if fill != "partial" or iters == 0:
            row.then = None
    elif row.kind == "clean":
        step.clean = list(row.inputs)
    elif row.kind == "concat":
        for source in dict.fromkeys(row.inputs):
            mask = values[source].mask
            if mask and not all(masks.inside(n, mask) for n in needs[row.node]):
                step.clean.append(source)
    elif row.kind == "dense" and is_last_dense:
        step.alive = not values[row.inputs[0]].zero
    return step


def _reach(row: Row, shown: Mask | None, needed: set[Mask], masks: Masks) -> int:
    """How many iterations of filling the row's window wants of its input."""
    assert shown is not None
    if row.window is None:
        return row.reach or 0
    return max((fill_iters(masks, shown, n, row.window) for n in needed), default=0)


def fill_iters(masks: Masks, shown: Mask, needed: Mask, window: Window) -> int:
    """The fewest iterations that fill all that a window reads for the outputs ``needed``.

    Every pixel read lies within the window's span of a visible one, because the output's mask is
    the largest in the window. Fewer do where the output is needed only near what is shown.
    """
    most = max(window.span)
    if masks.inside(needed, masks.pool(shown, Window((1, 1), window.stride))):
        most = min(most, window.reach)  # the window's own pixel is visible
    if window.keeps_size:
        read = masks.pool(needed, window.reflected)
        for iters in range(most):
            if masks.inside(read, masks.pool(shown, dilate(iters))):
                return iters
    return most


def _last_dense(rows: dict[fx.Node, Row]) -> set[fx.Node]:
    """The dense layers from which a path to the output meets no other."""
    reaches: dict[fx.Node, bool] = {}
    for node, row in reversed(rows.items()):
        reaches[node] = row.node.op == "output" or any(
            reaches[user] and rows[user].kind != "dense" for user in node.users
        )
    return {node for node, row in rows.items() if row.kind == "dense" and reaches[node]}


def _used_masks(plan: Plan) -> list[Mask]:
    """The masks that a step applies, and those that they come from, in order."""
    used: dict[Mask, None] = {}

    def add(mask: Mask | None) -> None:
        if mask is None or mask in used:
            return
        for parent in mask.parents:
            add(parent)
        used[mask] = None

    for step in plan.steps.values():
        for node in (*step.fills, *step.clean):
            add(plan.values[node].mask)
        if step.alive:
            add(plan.values[step.row.inputs[0]].mask)
        if step.row.then:
            add(plan.values[step.row.inputs[0]].mask)
    if not used:
        return []
    return list(used)
