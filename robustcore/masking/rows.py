"""Where a graph may run on visible rows alone: what a layer does to each token or pixel by itself.

A row is a tensor's last dimension. Dense layers, norms and activations of rows make nearly all of
the work in a transformer, windowed or not, and need not be done for what is hidden, whatever masks
the samples of a batch have. Attention and all else that moves or mixes rows has them whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from robustcore.common import graph as traced
from robustcore.masking.plan import Plan, Step
from robustcore.masking.rules.mixing import linear
from robustcore.masking.rules.statistics import layer_norm
from robustcore.masking.rules.table import find

_ELEMENTWISE = {
    "relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardtanh", "elu", "leaky_relu", "mish",
    "softplus", "add", "sub", "mul", "div", "pow", "square", "dropout",
}  # fmt: skip
# A region is worth its copies where it multiplies each number that is copied this often.
_WORK = 32


def row_wise(plan: Plan) -> set[fx.Node]:
    """The nodes of a plan to run on visible rows alone."""
    found = [node for node, step in plan.steps.items() if _is_row_wise(plan, node, step)]
    return {node for region in _regions(found) if _pays(plan, region) for node in region}


def _is_row_wise(plan: Plan, node: fx.Node, step: Step) -> bool:
    value = plan.values[node]
    if node.op != "call_function" or step.touches or traced.is_in_place(node):
        return False
    if value.kind != "map" or value.mask is None or value.parts or not _does(node):
        return False
    sizes, mask = traced.sizes(node), value.mask
    if len(sizes) < 3 or mask.axis == len(sizes) - 1 or mask.varies(len(sizes) - 1):
        return False

    def fits(source: fx.Node) -> bool:
        given = plan.values[source]
        if given.kind == "map":
            return given.mask is mask and traced.sizes(source)[:-1] == sizes[:-1]
        if not traced.is_tensor(source) or find(traced.name_of(node)) is linear:
            return True
        return given.kind == "constant" and len(traced.sizes(source)) <= 1

    return all(map(fits, node.all_input_nodes))


def _does(node: fx.Node) -> bool:
    name, rule = traced.name_of(node), find(traced.name_of(node))
    if rule is layer_norm:
        return len(traced.arguments(node)["normalized_shape"]) == 1
    return rule is linear or name in _ELEMENTWISE


def _regions(nodes: Iterable[fx.Node]) -> list[set[fx.Node]]:
    """Nodes that read one another."""
    regions: list[set[fx.Node]] = []
    for node in nodes:
        near = [r for r in regions if not r.isdisjoint(node.all_input_nodes)]
        regions = [r for r in regions if r not in near] + [{node}.union(*near)]
    return regions


def _pays(plan: Plan, region: set[fx.Node]) -> bool:
    taken = {n for node in region for n in node.all_input_nodes if plan.values[n].kind == "map"}
    back = {n for n in region if any(u not in region and not reads_size(u) for u in n.users)}
    copied = sum(traced.sizes(n)[-1] for n in (taken - region) | back)
    dense = [n for n in region if find(traced.name_of(n)) is linear]
    work = sum(traced.sizes(n)[-1] * traced.sizes(n.all_input_nodes[0])[-1] for n in dense)
    return work >= _WORK * copied


def reads_size(node: fx.Node) -> bool:
    """Whether it asks how many rows there are."""
    if node.op != "call_function" or traced.name_of(node) != "sym_size":
        return False
    (source,) = node.all_input_nodes
    rank = len(traced.sizes(source))
    return int(traced.arguments(node)["dim"]) % rank < rank - 1
