"""A call in a traced graph as the rules see it, and what a rule answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from robustcore.masking.masks import Mask, Masks, Pair, Window


class UnsupportedOperation(ValueError):
    """A model holds an operation that masks have no rule for; the message names node and op."""


@dataclass(frozen=True)
class Value:
    """What is known of a node's result.

    ``kind``: ``map`` (an image of features), ``vector`` (one a sample, no pixels), ``constant``
    (parameters) or ``other`` (sizes, tuples of sizes). ``mask``: of a map, where it is visible; of
    a vector, its samples that show something. ``last``: a map's channels come last (NHWC).
    ``zero``: a vector known to be 0 for samples that show nothing. ``parts``: a tuple of maps.
    """

    kind: str
    mask: Mask | None = None
    last: bool = False
    zero: bool = False
    parts: bool = False


CONSTANT, OTHER = Value("constant"), Value("other")


@dataclass
class Row:
    """One node of the graph and what masks mean for it.

    ``kind`` says what its inputs have to be, given what is needed of its output:
    ``pointwise`` (the same pixels), ``window`` (filled as far as ``window`` reads), ``clean`` (0
    where hidden), ``concat`` (0 where a part is hidden and the whole is not), ``dense`` (a layer
    that mixes features of a vector), ``none`` (nothing).
    ``then`` is what follows: ``mean``, ``partial``, or ``norm`` in place of the node.
    """

    node: fx.Node
    op: str
    value: Value
    kind: str = "none"
    inputs: list[fx.Node] = field(default_factory=list)
    window: Window | None = None
    reach: int | None = None
    then: str | None = None
    groups: int = 1


Rule = Callable[["Call"], Row]


class Call:
    """One call in the graph, with its module, arguments and the values of its inputs."""

    def __init__(
        self, node: fx.Node, op: str, module: nn.Module | None, values: dict[fx.Node, Value],
        masks: Masks,
    ) -> None:  # fmt: skip
        self.node, self.op, self.module, self.masks = node, op, module, masks
        self._values = values

    def value(self, node: Any) -> Value:
        return self._values[node] if isinstance(node, fx.Node) else CONSTANT

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        if len(self.node.args) > index:
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def option(self, name: str, index: int, default: Any = None) -> Any:
        """A module's attribute, or the function's argument."""
        if self.module is not None:
            return getattr(self.module, name, default)
        return self.argument(index, name, default)

    @property
    def tensors(self) -> list[fx.Node]:
        """The inputs that are maps or vectors."""
        return [n for n in self.node.all_input_nodes if self.value(n).kind in ("map", "vector")]

    @property
    def maps(self) -> list[fx.Node]:
        return [n for n in self.tensors if self.value(n).kind == "map"]

    @property
    def x(self) -> Value:
        return self.value(self.node.args[0] if self.node.args else self.node.kwargs.get("input"))

    @property
    def mask(self) -> Mask:
        assert self.x.mask is not None
        return self.x.mask

    def refuse(self, why: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"node {describe(self.node)!r} ({self.op}): {why}")

    def want_map(self, last: bool = False) -> None:
        """The first input has to be a map with the channels where the rule expects them."""
        if self.x.kind != "map" or self.x.parts:
            raise self.refuse(f"got a {self.x.kind}, want an image of features")
        if self.x.last != last:
            raise self.refuse("the channels are in another dimension than the rule expects")

    def row(self, value: Value, kind: str = "none", **more: Any) -> Row:
        return Row(self.node, self.op, value, kind, more.pop("inputs", self.tensors), **more)


def describe(node: fx.Node) -> str:
    """The name a user knows: the module's path, or the node's own."""
    return str(node.target).removeprefix("model.") if node.op == "call_module" else node.name


def pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
