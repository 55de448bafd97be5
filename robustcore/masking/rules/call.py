"""A call in a traced graph as the rules see it, and what a rule answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from robustcore.common import graph as traced
from robustcore.masking.masks import Mask, Masks
from robustcore.masking.moves import move, regroup
from robustcore.masking.windows import Pair, Window


class UnsupportedOperation(ValueError):
    """A model holds an operation that masks have no rule for; the message names module and op."""


@dataclass(frozen=True)
class Value:
    """What is known of a node's result.

    ``kind``: ``map`` (a tensor with a mask beside it: an image of features, tokens), ``vector``
    (depends on the image, no element is hidden), ``constant`` (parameters) or ``other`` (sizes).
    ``mask``: of a map, where it is visible; of a vector, its samples that show something, or None.
    ``zero``: known to be 0 where nothing is shown; of a map, where its mask hides along what a
    softmax was taken over. ``parts``: of a tuple, its values. ``pads``: of an image with zeros put
    around it, how many, so that windows know them from pixels.
    """

    kind: str
    mask: Mask | None = None
    zero: bool = False
    parts: tuple[Value, ...] | None = None
    pads: tuple[Pair, Pair] | None = None


CONSTANT, OTHER = Value("constant"), Value("other")


@dataclass(frozen=True)
class Then:
    """What is called after a node, or ``instead`` of it.

    ``arguments`` may hold nodes (as they enter the operation), masks, and RESULT, the node's own.
    """

    words: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    instead: bool = False


class _Result:
    """Stands for the node's own result."""


RESULT = _Result()


@dataclass
class Row:
    """One node of the graph and what masks mean for it.

    ``kind`` says what its inputs have to be, given what is needed of its output:
    ``pointwise`` (the same pixels), ``window`` (filled as far as ``window`` reads), ``clean`` (0
    where hidden), ``concat`` (0 where a part is hidden and the whole is not), ``dense`` (a layer
    that mixes features of a vector), ``move`` (rearranged; ``back`` takes a need to the input),
    ``mix`` (only ``cleans`` are 0 where hidden), ``none`` (nothing).
    ``via``: padding between the input and the node.
    """

    node: fx.Node
    op: str
    value: Value
    kind: str = "none"
    inputs: list[fx.Node] = field(default_factory=list)
    window: Window | None = None
    reach: int | None = None
    then: Then | None = None
    cleans: Sequence[fx.Node] = ()
    back: Callable[[Mask], Mask | None] | None = None
    via: fx.Node | None = None


Rule = Callable[["Call"], Row]


class Call:
    """One call in the graph, with its arguments by name and the values of its inputs."""

    def __init__(self, node: fx.Node, values: dict[fx.Node, Value], masks: Masks) -> None:
        self.node, self.masks, self._values = node, masks, values
        self.op = traced.name_of(node)
        self.args = traced.arguments(node)

    def value(self, node: Any) -> Value:
        return self._values[node] if isinstance(node, fx.Node) else CONSTANT

    @property
    def tensors(self) -> list[fx.Node]:
        """The inputs that depend on the image."""
        return [n for n in self.node.all_input_nodes if self.value(n).kind in ("map", "vector")]

    @property
    def maps(self) -> list[fx.Node]:
        return [n for n in self.tensors if self.value(n).kind == "map"]

    @property
    def source(self) -> fx.Node:
        """The first argument that is a tensor."""
        return next(a for a in self.args.values() if isinstance(a, fx.Node))

    @property
    def x(self) -> Value:
        return self.value(self.source)

    @property
    def mask(self) -> Mask:
        mask = self.x.mask
        assert mask is not None
        return mask

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the first argument."""
        return traced.sizes(self.source)

    def dims(self, dims: Any) -> list[int]:
        """Of the first argument, from 0."""
        rank = len(self.sizes)
        given = range(rank) if dims is None or dims == [] else dims
        return [d % rank for d in ([given] if isinstance(given, int) else given)]

    def want_apart(self, mask: Mask | None, *dims: int) -> None:
        """Refuses an operation that mixes what lies along dims of an input, if that are samples."""
        if mask is not None and mask.axis in dims:
            raise self.refuse("mixes the samples of a batch; keep them apart")

    def refuse(self, why: str) -> UnsupportedOperation:
        kind = traced.module_type(self.node)
        inside = f" in {kind}" if kind else ""
        return UnsupportedOperation(f"{traced.path(self.node)!r} ({self.op}{inside}): {why}")

    def moved(
        self,
        mask: Mask,
        sizes: Sequence[int],
        operation: Callable[[Tensor], Any],
        node: fx.Node | None = None,
    ) -> list[Mask | None]:
        """The masks of what an operation makes of a tensor of ``sizes``; ``node``: the operation is
        the node's, on its first argument."""
        try:
            if node is None:
                return move(self.masks, mask, sizes, operation)
            # Blocks repeat: the same operation on the same mask is looked at once.
            rest = [a for a in (*node.args, *node.kwargs.items()) if a is not self.source]
            key = (mask, self.op, str(rest), tuple(sizes))
            if key not in self.masks.moved:
                self.masks.moved[key] = move(self.masks, mask, sizes, operation)
            return self.masks.moved[key]
        except ValueError:
            raise self.refuse("mixes the samples of a batch; keep them apart") from None

    def reshaped(self, mask: Mask, sizes: Sequence[int], to: Sequence[int]) -> Mask | None:
        """The mask of a tensor of ``sizes`` seen as one of other sizes."""
        key = (mask, tuple(sizes), tuple(to))
        if key not in self.masks.moved:
            self.masks.moved[key] = self.moved(mask, sizes, regroup(mask, sizes, to))
        return self.masks.moved[key][0]

    def value_of(self, mask: Mask | None, **more: Any) -> Value:
        """A map with that mask, or a vector if nothing of it can be hidden alone."""
        if mask is None or torch.Size(mask.shape).numel() == 1:
            return Value("vector", mask, **more)
        return Value("map", mask, **more)

    def row(self, value: Value, kind: str = "none", **more: Any) -> Row:
        return Row(self.node, self.op, value, kind, more.pop("inputs", self.tensors), **more)

    def want_image(self) -> Mask:
        """The mask of the first argument, which has to be an image of features."""
        if self.x.kind != "map" or self.x.parts is not None:
            raise self.refuse(f"got a {self.x.kind}, want an image of features")
        mask, sizes = self.mask, self.sizes
        if len(sizes) != 4 or mask.axis:
            raise self.refuse("got pixels in other dimensions, want an image [N, C, H, W]")
        if mask.shape[2:] != sizes[2:]:  # the same for whole rows or columns: written out
            mask = self.masks.make(
                "spread", tuple(sizes[2:]), (mask,), (*mask.shape[:2], *sizes[2:])
            )
        return mask


def pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
