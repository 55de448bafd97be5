"""A call in a traced graph as the rules see it, and what is known of each result."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from robustcore.common import graph as traced
from robustcore.lipschitz.norms import (
    filter_norm_bound,
    matrix_norm_bound,
    nonnegative_norm,
    nonnegative_sums,
    row_sum_bound,
    without_stride,
)
from robustcore.lipschitz.rounding import Bound, largest, product, root, root_of_squares, total

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operation:
    """An ATen operation with all arguments but the first."""

    target: Any
    arguments: tuple[Any, ...]

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self.target(x, *self.arguments)
        return result


@dataclass(frozen=True)
class Part:
    """Which coordinates of a larger result a value was made of, and how far it stretched them."""

    of: Any
    dim: int | None
    indices: range
    whole: Value
    gain: float = 1.0


@dataclass(frozen=True)
class Value:
    """What is known of a result that depends on the input.

    Two inputs at distance d give results at most ``bound * d + slack`` apart. ``power`` p: of the
    result's p-th root; the result itself is a sum of p-th powers with weights >= 0. ``part``: of
    what it is a piece, so that pieces of one result are not counted as if each were the whole.
    ``mark``: ("sign", v) or ("magnitude", v) of a node v.
    """

    bound: float
    slack: Bound = 0.0
    power: int = 1
    part: Part | None = None
    mark: tuple[str, Any] | None = None

    def scaled(self, factor: float) -> Value:
        """Of a map of this value alone that stretches by ``factor``."""
        part = self.part and replace(self.part, gain=product(self.part.gain, factor))
        bound, slack = product(self.bound, factor), product(self.slack, factor)
        return replace(self, bound=bound, slack=slack, part=part, mark=None)

    def as_power(self, power: int) -> Value:
        return replace(self, power=power, part=None, mark=None)


class Norm:
    """l2 or linf: what the bounds of pieces make of the whole."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.l2 = name == "l2"

    @overload
    def joint(self, values: Iterable[float]) -> float: ...
    @overload
    def joint(self, values: Iterable[Bound]) -> Bound: ...
    def joint(self, values: Iterable[Bound]) -> Bound:
        """Of the tuple of results with those bounds."""
        return root_of_squares(values) if self.l2 else largest(values)

    def copies(self, count: int) -> float:
        """Of a map that repeats each coordinate."""
        return root(count) if self.l2 else 1.0

    def matrix(self, matrix: Tensor) -> float:
        return matrix_norm_bound(matrix) if self.l2 else row_sum_bound(matrix)

    def filter(
        self,
        weight: Tensor,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        transposed: bool = False,
    ) -> float:
        """Of a convolution with ``[groups, O, I, *k]``, or of its transpose."""
        if self.l2:
            return filter_norm_bound(weight, stride, dilation)
        if transposed:
            weight = without_stride(weight, stride, dilation).transpose(1, 2)
        return row_sum_bound(weight.flatten(2))

    def nonnegative(self, operation: Map, sizes: Sequence[int]) -> float:
        """Of a linear map whose matrix has no negative entry."""
        if self.l2:
            return nonnegative_norm(operation, tuple(sizes))
        return nonnegative_sums(operation, tuple(sizes))[0]


class Call:
    """One call in the graph, with its arguments by name and what is known of its inputs."""

    def __init__(self, node: fx.Node, walk: Any) -> None:
        self.node, self.walk = node, walk
        self.norm: Norm = walk.norm
        self.op = traced.name_of(node).rstrip("_")
        self.args = traced.arguments(node)

    def before(self, node: fx.Node) -> Call:
        """The call that gave an argument."""
        return Call(node, self.walk)

    # ---- inputs ----------------------------------------------------------------------------------

    def value(self, node: Any) -> Value | None:
        """What is known of an argument; None of a constant."""
        found: Value | None = self.walk.values.get(node) if isinstance(node, fx.Node) else None
        return found

    @property
    def source(self) -> fx.Node:
        """The one argument that depends on the input."""
        nodes = [n for n in self.node.all_input_nodes if self.value(n) is not None]
        if len(nodes) != 1 or not any(a is nodes[0] for a in self.args.values()):
            raise self.refuse("several of its arguments depend on the input")
        return nodes[0]

    @property
    def x(self) -> Value:
        """Of that argument, which has to be no power."""
        return self.plain(self.source)

    def plain(self, node: Any) -> Value:
        value = self.value(node)
        assert value is not None
        if isinstance(value, tuple):
            raise self.refuse("takes a list of results")
        if value.mark and value.mark[0] == "sign":
            raise self.refuse("reads a sign, which jumps")
        if value.power != 1:
            raise self.refuse(f"reads a power, of which only a root of order {value.power} has "
                              "a bound")  # fmt: skip
        return value

    def constant(self, argument: Any) -> Any:
        """The value of an argument that does not depend on the input."""
        return self.walk.constants.of(argument, self)

    def number(self, name: str) -> float:
        value = self.constant(self.args[name])
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise self.refuse(f"{name} is a tensor, want a number")
            value = value.item()
        return float(value)

    def operation(self, **changed: Any) -> Operation:
        """The node's operation as a function of its first argument."""
        rest = [changed.get(name, value) for name, value in list(self.args.items())[1:]]
        if any(isinstance(v, fx.Node) for v in pytree.tree_leaves(rest)):
            raise self.refuse("its arguments depend on the batch")
        return Operation(
            self.node.target, tuple(tuple(v) if isinstance(v, list) else v for v in rest)
        )

    # ---- sizes -----------------------------------------------------------------------------------

    def rank(self, node: fx.Node | None = None) -> int:
        tensor: Any = (node or self.source).meta["val"]
        return int(tensor.dim())

    def dims(self, dims: Any, node: fx.Node | None = None) -> list[int]:
        """Dimensions from 0."""
        rank = self.rank(node)
        given = range(rank) if dims is None or dims == [] else dims
        return [d % rank for d in ([given] if isinstance(given, int) else given)]

    def size(self, dim: int, node: fx.Node | None = None) -> int:
        """Of the first argument, or of a node, where the bound may depend on it."""
        tensor: Any = (node or self.source).meta["val"]
        size = tensor.shape[dim]
        if self.walk.sizes_are_made_up:
            raise self.refuse("its bound depends on the input's size; give an example")
        if not isinstance(size, int):
            raise self.refuse("mixes the images of a batch")
        return size

    def sizes(self, dims: Iterable[int], node: fx.Node | None = None) -> tuple[int, ...]:
        return tuple(self.size(d, node) for d in dims)

    @property
    def sizes_are_known(self) -> bool:
        return not self.walk.sizes_are_made_up

    def known_size(self, dim: int) -> int | None:
        """The same of the first argument; None where a bound must not depend on it."""
        size = self.source.meta["val"].shape[dim]
        return size if isinstance(size, int) and not self.walk.sizes_are_made_up else None

    def copies_to(self, node: fx.Node, out: fx.Node) -> int:
        """How many elements of ``out`` read one of ``node``, which is broadcast."""
        small: Any = node.meta["val"].shape
        large: Any = out.meta["val"].shape
        missing = len(large) - len(small)
        count = 1
        for d in range(len(large)):
            before = small[d - missing] if d >= missing else 1
            if isinstance(before, int) and before == 1 and large[d] is not before:
                same = isinstance(large[d], int) and large[d] == 1
                count *= 1 if same else self.size(d, out)
        return count

    def elements(self) -> float:
        """Of the result for the whole batch; unbounded where sizes are made up."""
        if self.walk.sizes_are_made_up:
            return math.inf
        images: int = self.walk.batch
        return math.prod(traced.sizes(self.node)) / traced.BATCH * images

    # ---- results ---------------------------------------------------------------------------------

    def refuse(self, why: str) -> TypeError:
        return refusal(self.node, why)

    def joint(self, nodes: Sequence[Any]) -> Value:
        """The tuple of several arguments as one value; constants add nothing."""
        values = [self.plain(n) for n in nodes if self.value(n) is not None]
        groups: dict[Any, list[Value]] = {}
        for i, value in enumerate(values):
            key = (value.part.of, value.part.dim) if value.part else (None, i)
            groups.setdefault(key, []).append(value)
        bounds: list[float] = []
        slacks: list[Bound] = []
        for group in groups.values():
            bound, slack = self._pieces(group)
            bounds.append(bound)
            slacks.append(slack)
        return Value(self.norm.joint(bounds), self.norm.joint(slacks))

    def _pieces(self, group: list[Value]) -> tuple[float, Bound]:
        """Of pieces of one result: where they do not overlap, of the whole."""
        joint = self.norm.joint
        separate = joint(v.bound for v in group), joint(v.slack for v in group)
        parts = [v.part for v in group if v.part]
        if len(parts) < 2 or not _disjoint([p.indices for p in parts]):
            return separate
        gain, whole = max(p.gain for p in parts), parts[0].whole
        # A slack of a piece's own is in no whole.
        if any(_differ(v.slack, p.whole.slack, p.gain) for v, p in zip(group, parts)):  # noqa: B905
            return separate
        together = product(gain, whole.bound), product(whole.slack, gain)
        return min(separate, together, key=operator.itemgetter(0))

    def sum(self, nodes: Sequence[Any]) -> Value:
        """Of the sum of several arguments of equal sizes."""
        values = [self.plain(n) for n in nodes]
        apart = Value(total(v.bound for v in values), total(v.slack for v in values))
        joint = self.joint(nodes)
        count = root(len(values)) if self.norm.l2 else float(len(values))
        together = joint.scaled(count)
        return min(apart, together, key=operator.attrgetter("bound"))

    def piece(self, of: Any, whole: Value, dim: int | None, indices: range) -> Value:
        return Value(whole.bound, whole.slack, part=Part(of, dim, indices, whole))


def _differ(slack: Bound, whole: Bound, gain: float) -> bool:
    return bool(torch.as_tensor(slack != product(whole, gain)).any())


def _disjoint(ranges: list[range]) -> bool:
    seen: set[int] = set()
    for indices in ranges:
        if not seen.isdisjoint(indices):
            return False
        seen.update(indices)
    return True


def where(node: fx.Node) -> str:
    """The path of the module that made a call, as a user would write it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]).partition("@")[0] if stack else ""
    return f"model.{path}" if path else "model"


def refusal(node: fx.Node, why: str) -> TypeError:
    kind = traced.module_type(node)
    inside = f" in {kind}" if kind else ""
    return TypeError(f"{where(node)}: nothing bounds {traced.name_of(node)}{inside}: {why}")


Rule = Callable[[Call], Any]
