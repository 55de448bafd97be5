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

from torch import fx

from robustcore.common import graph as traced
from robustcore.common.checks import require_choice
from robustcore.masking.masks import Mask, Masks
from robustcore.masking.rules.call import (
    CONSTANT,
    OTHER,
    Call,
    Row,
    Then,
    Value,
)
from robustcore.masking.rules.pixels import vector
from robustcore.masking.rules.table import find
from robustcore.masking.windows import Window, dilate
from robustcore.ops.masking.fill import FILLS


@dataclass
class Step:
    """What is done at one node: to each input before it, and to its result after it."""

    row: Row
    fills: dict[fx.Node, int]  # iterations of the neighbour fill
    clean: list[fx.Node]  # inputs multiplied by their masks
    then: Then | None = None
    alive: bool = False  # a sample that shows nothing enters as 0

    @property
    def touches(self) -> bool:
        return bool(self.fills or self.clean or self.alive or self.then)


class Plan:
    """The steps of a graph in order, and the masks that they use. ``str(plan)`` is a table.

    :func:`make_plan` makes it. ``steps`` and ``values`` are what is done at each node and what is
    known of its result, ``fill`` how hidden pixels are filled, ``known`` all masks there are.
    """

    def __init__(
        self,
        steps: Mapping[fx.Node, Step],
        values: Mapping[fx.Node, Value],
        fill: str,
        known: Masks,
    ) -> None:
        self.steps, self.values, self.fill = dict(steps), dict(values), fill
        self.known = known
        self.masks = _used_masks(self)
        for index, mask in enumerate(self.masks):
            mask.name = f"m{index}"

    def mask_of(self, node: fx.Node) -> Mask:
        """Where the node's result is visible."""
        mask = self.values[node].mask
        assert mask is not None
        return mask

    def __str__(self) -> str:
        lines = [("module", "operation", "mask", "before", "after")]
        for node, step in self.steps.items():
            if step.row.value.kind not in ("map", "vector") and not step.touches:
                continue
            before = [f"fill {n} in {self.mask_of(x)}" for x, n in step.fills.items()]
            before += [f"times {self.mask_of(x)}" for x in step.clean]
            before += ["0 if nothing is visible"] * step.alive
            after = step.then.words if step.then else ""
            mask = self.values[node].mask
            shown = str(mask) if mask in self.masks else "-"
            lines.append((traced.path(node), step.row.op, shown, ", ".join(before), after))
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


def make_plan(graph: fx.Graph, fill: str = "neighbor") -> Plan:
    """The plan of a traced graph.

    Args:
        graph: of ``robustcore.common.graph.trace``, with one placeholder, the images.
        fill: as in :class:`~robustcore.masking.MaskedModel`.

    Raises :class:`UnsupportedOperation` at the first node without a rule.
    """
    if not isinstance(graph, fx.Graph):
        raise TypeError(f"graph: got a {type(graph).__name__}, want a torch.fx.Graph")
    require_choice("fill", fill, FILLS)
    images = [node for node in graph.nodes if node.op == "placeholder"]
    if len(images) != 1 or not traced.is_tensor(images[0]) or len(traced.sizes(images[0])) != 4:
        raise ValueError("graph: want one with one input, images [N, C, H, W], traced with sizes")
    masks = Masks(*traced.sizes(images[0])[2:])
    values: dict[fx.Node, Value] = {}
    rows: dict[fx.Node, Row] = {}
    for node in graph.nodes:
        row = _row(node, values, masks)
        rows[node], values[node] = row, row.value
    needs = _needs(rows, values, masks)
    last = _last_dense(rows)
    steps = {
        node: _step(row, values, needs, masks, fill, node in last) for node, row in rows.items()
    }
    return Plan(steps, values, fill, masks)


def _row(node: fx.Node, values: dict[fx.Node, Value], masks: Masks) -> Row:
    if node.op == "placeholder":
        return Row(node, "input", Value("map", masks.given))
    if node.op == "get_attr":
        return Row(node, "parameter", CONSTANT)
    if node.op == "output":
        maps = [n for n in node.all_input_nodes if values[n].kind == "map"]
        return Row(node, "output", OTHER, "clean" if maps else "none", maps)
    call = Call(node, values, masks)
    rule = find(call.op)
    if not call.tensors:
        # Of sizes and parameters alone.
        return Row(node, call.op, CONSTANT if traced.is_tensor(node) else OTHER)
    if node.meta.get(traced.WRITES_PART):
        raise call.refuse(
            "writes into a part of a tensor that is read again later; write into a new tensor"
        )
    return (rule or vector)(call)


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
            needs[source] |= _needs_of(row, value.mask, needs[node], masks)
    return needs


def _needs_of(row: Row, shown: Mask, needs: set[Mask], masks: Masks) -> set[Mask]:
    """What a row reads of an input, given what is read of its result."""
    if row.kind == "pointwise":
        return {need if need.shape == shown.shape else shown for need in needs}
    if row.kind == "move":
        back = [row.back(need) if row.back else None for need in needs]
        return {shown if m is None or m.shape != shown.shape else m for m in back}
    if row.window is not None and row.kind == "window" and row.window.keeps_size:
        # If all that is read is visible, the need is what is read; else whatever may be the source
        # of a fill.
        found = set()
        for need in needs:
            filled = fill_iters(masks, shown, need, row.window) > 0
            found.add(shown if filled else masks.pool(need, row.window.reflected))
        return found
    if row.kind == "concat" and row.value.mask is not None:
        # Where the whole is hidden nothing is read; elsewhere a hidden part is 0.
        whole = row.value.mask
        return {n if masks.inside(n, shown) else shown for n in needs if n.shape == whole.shape}
    return {shown}


def _step(
    row: Row,
    values: dict[fx.Node, Value],
    needs: dict[fx.Node, set[Mask]],
    masks: Masks,
    fill: str,
    is_last_dense: bool,
) -> Step:
    step = Step(row, {}, list(row.cleans), row.then)
    if row.kind == "window":
        (source,) = row.inputs
        iters = _reach(row, values[source].mask, needs[row.node], masks)
        if iters and fill == "neighbor":
            step.fills[source] = iters
        elif iters:
            step.clean.append(source)
        if fill != "partial" or iters == 0:
            step.then = None
    elif row.kind == "clean":
        step.clean = list(row.inputs)
    elif row.kind == "concat":
        step.clean = _hidden_parts(row, values, needs[row.node], masks)
    elif row.kind == "dense" and is_last_dense:
        value = values[row.inputs[0]]
        step.alive = not value.zero and value.mask is not None
    if row.kind != "none":
        # What is hidden of the image itself goes no further: not even a NaN in a gradient.
        images = [n for n in row.inputs if n.op == "placeholder"]
        step.clean += [n for n in images if n not in step.fills and n not in step.clean]
    return step


def _hidden_parts(
    row: Row, values: dict[fx.Node, Value], needs: set[Mask], masks: Masks
) -> list[fx.Node]:
    """Of a concatenation, the parts of which something is hidden that is read."""
    shown = {source: values[source].mask for source in row.inputs}
    return [s for s, m in shown.items() if m and not all(masks.inside(n, m) for n in needs)]


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
        for argument in step.then.arguments if step.then else ():
            if isinstance(argument, Mask):
                add(argument)
    return list(used)
