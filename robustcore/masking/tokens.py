"""Where a graph may run on visible tokens alone: what samples hide alike need not be computed.

A *line* is what a mask says of the tokens along one dimension, a mask ``[1, T]``. A tensor lacks
the hidden tokens of its lines; every operation that does the same to the visible ones whether the
others are there or not has a rule here, which says of which lines its inputs are to lack the hidden
tokens. Others have their inputs whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import fx

from robustcore.common import graph as traced
from robustcore.masking.masks import Mask, Masks
from robustcore.masking.moves import VISIBLE, groups, moved, numbered, samples_apart
from robustcore.masking.plan import Plan
from robustcore.masking.rules.call import Call
from robustcore.masking.rules.mixing import (
    attention,
    einsum,
    letters_of,
    linear,
    matmul,
    softmax,
)
from robustcore.masking.rules.pixels import batch_norm, get_item, pointwise, size
from robustcore.masking.rules.shapes import (
    concat,
    expand,
    index,
    permute,
    rearrange,
    reshape,
    stack,
)
from robustcore.masking.rules.statistics import (
    along,
    extreme,
    group_norm,
    layer_norm,
    position,
    reduction,
    spread,
)
from robustcore.masking.rules.table import find
from robustcore.masking.rules.windows import adaptive_pool, conv

Lines: TypeAlias = dict[int, Mask]
"""Of a tensor's dimensions those that lack hidden tokens, and the line of each."""
Wants: TypeAlias = dict[fx.Node, Lines]
"""What a node wants its inputs to lack."""
# Where the time of a transformer goes.
_WORK = {"linear", "matmul", "bmm", "scaled_dot_product_attention", "einsum"}


class Tokens:
    """Which nodes of a plan run on visible tokens alone.

    ``wants``: these nodes, with what they want of their inputs. ``lines``: of those whose results
    lack tokens, which.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.masks = plan, plan.known
        self.wants: dict[fx.Node, Wants] = {}
        self.lines: dict[fx.Node, Lines] = {}
        self._enters: set[fx.Node] = set()
        self._lines: dict[Mask, Lines | None] = {}
        for node, step in plan.steps.items():
            if node.op == "call_function":
                self._look(Call(node, plan.values, plan.known), step.row.op)

    @property
    def worthwhile(self) -> bool:
        """Whether it saves more than it costs to take tokens out and put them back."""
        work = sum(traced.name_of(node) in _WORK for node in self.wants)
        back = sum(any(user not in self.wants for user in node.users) for node in self.lines)
        return work > 2 * back

    def _look(self, call: Call, op: str) -> None:
        node, rule = call.node, _RULES.get(find(op))
        result = self.of(call.node)
        if any(n in self.lines or n in self._enters for n in node.all_input_nodes):
            wants = rule(self, call) if rule and result is not None else None
            if wants is not None and all(self._agrees(n, wants.get(n)) for n in call.maps):
                self.wants[node] = wants
                if result:
                    self.lines[node] = result
                return
        # Where an image becomes tokens.
        if result and find(op) in (reshape, linear):
            self._enters.add(node)

    def of(self, node: Any) -> Lines | None:
        """The lines of a node's result (of a tuple, of its parts); None if it has not only such."""
        value = self.plan.values.get(node)
        if value is None or value.kind != "map":
            return {}
        parts = value.parts or (value,)
        found = [self._of_mask(part.mask) for part in parts]
        return found[0] if all(f == found[0] for f in found) else None

    def _of_mask(self, mask: Mask | None) -> Lines | None:
        if mask is None:
            return {}
        if mask not in self._lines:
            self._lines[mask] = _lines(mask, self.masks)
        return self._lines[mask]

    def _agrees(self, node: fx.Node, wanted: Lines | None) -> bool:
        """Whether a node's result can lack what is wanted, and then hides nothing."""
        own = self.of(node)
        known = own is not None and wanted is not None
        return known and all(wanted.get(d) is line for d, line in own.items())  # type: ignore[union-attr]


def _lines(mask: Mask, masks: Masks) -> Lines | None:
    varying = [d for d in range(len(mask.shape)) if mask.varies(d)]
    if len(varying) == 1:
        base, numbers = numbered(mask)
        samples = samples_apart(numbers, mask.axis, mask.inner).flatten(2)
        if not bool((samples == samples[:, :1]).all()):
            return None
        line = moved(masks, base, samples[:, 0])
        return None if line is None or line.axis else {varying[0]: line}
    if mask.kind != "both":
        return None
    found: Lines = {}
    for part in mask.parents:
        own = _lines(part, masks)
        if not own or own.keys() & found.keys():
            return None
        found |= own
    return found


def _shown(line: Mask, begin: int, end: int) -> bool:
    """Whether these tokens are visible whatever is hidden."""
    numbers = line.params.tensor().flatten() if line.kind == "move" else None
    return numbers is not None and bool((numbers[begin:end] == VISIBLE).all())


# ---- Rules ---------------------------------------------------------------------------------------
# Each gives what a call wants of its inputs, or None if it has to see all tokens.

Rule: TypeAlias = Callable[[Tokens, Call], "Wants | None"]


def _same(tokens: Tokens, call: Call) -> Wants | None:
    """The tokens of the first input stay where they are, or none of them is told apart."""
    own = tokens.of(call.source)
    return None if own is None else {call.source: own}


def _pointwise(tokens: Tokens, call: Call) -> Wants | None:
    return {n: _broadcast(tokens, call, n) for n in call.node.all_input_nodes}


def _broadcast(tokens: Tokens, call: Call, node: fx.Node) -> Lines:
    """The result's lines in an operand that is broadcast to it."""
    if not traced.is_tensor(node):
        return {}
    sizes, result = traced.sizes(node), tokens.of(call.node) or {}
    first = len(traced.sizes(call.node)) - len(sizes)
    return {d - first: m for d, m in result.items() if d >= first and sizes[d - first] > 1}


def _last_whole(tokens: Tokens, call: Call) -> Wants | None:
    """Layers over the last dimensions."""
    wants, last = _same(tokens, call), len(call.args.get("normalized_shape") or (1,))
    inside = wants is not None and all(d < len(call.sizes) - last for d in wants[call.source])
    return wants if inside else None


def _batch_norm(tokens: Tokens, call: Call) -> Wants | None:
    wants = _same(tokens, call)
    return None if wants is None or 1 in wants[call.source] else wants


def _join(tokens: Tokens, call: Call) -> Wants | None:
    """A join of tokens: each part's own; of channels, the result's."""
    dim = int(call.args["dim"]) % len(traced.sizes(call.node))
    result = tokens.of(call.node) or {}
    wants: Wants = {}
    for part in call.args["tensors"]:
        own = tokens.of(part)
        if own is None:
            return None
        wants[part] = {d: m for d, m in result.items() if d != dim and traced.sizes(part)[d] > 1}
        wants[part] |= {d: m for d, m in own.items() if d == dim}
    return wants


def _reshape(tokens: Tokens, call: Call) -> Wants | None:
    own, result = tokens.of(call.source), tokens.of(call.node)
    if own is None or result is None:
        return None
    to = traced.sizes(call.node)
    for before, after in groups(call.sizes, to):
        lines = [own[d] for d in before if d in own]
        wide = [d for d in before if call.sizes[d] > 1], [d for d in after if to[d] > 1]
        alone = len(wide[0]) == len(wide[1]) == 1 and lines == [result.get(wide[1][0])]
        if lines and not (alone and call.op != "unflatten"):
            return None
    return _as_other(call, {call.source: own}, result)


def _as_other(call: Call, wants: Wants, result: Lines) -> Wants:
    """For an operation to the sizes of another tensor, that one with the result's lines."""
    return wants | ({call.args["other"]: result} if call.op.endswith("_as") else {})


def _expand(tokens: Tokens, call: Call) -> Wants | None:
    own, result = tokens.of(call.source), tokens.of(call.node)
    return None if own is None or result is None else _as_other(call, {call.source: own}, result)


def _pick(tokens: Tokens, call: Call) -> Wants | None:
    """Pieces along other dimensions; of tokens, those before the first that could be hidden, or
    from it on."""
    wants = _same(tokens, call)
    if wants is None or "dim" not in call.args:
        return None
    dim = int(call.args["dim"]) % len(call.sizes)
    line, size = wants[call.source].get(dim), call.sizes[dim]
    if call.op == "slice" and line:
        start, end, step = (call.args[n] for n in ("start", "end", "step"))
        start, end = start or 0, sys.maxsize if end is None else end
        ok = step == 1 and start >= 0 and end >= 0 and _shown(line, 0, start)
        return wants if ok and (end >= size or _shown(line, start, end)) else None
    if call.op == "select" and line:
        index = int(call.args["index"])
        return wants if index >= 0 and _shown(line, 0, index + 1) else None
    known = ("slice", "select", "unbind", "chunk", "split", "split_with_sizes", "narrow")
    return wants if call.op in known and line is None else None


def _matmul(tokens: Tokens, call: Call) -> Wants | None:
    operands = [a for a in call.args.values() if isinstance(a, fx.Node)]
    if len(operands) != 2:
        return None
    rank = len(traced.sizes(call.node))
    if any(len(traced.sizes(n)) != rank for n in operands):
        return None
    own = [tokens.of(n) for n in operands]
    result = tokens.of(call.node) or {}
    inner = {o[d] for o, d in zip(own, (rank - 1, rank - 2), strict=True) if o and d in o}
    if len(inner) > 1:
        return None
    summed = dict.fromkeys((rank - 1, rank - 2), *inner) if inner else {}
    wants: Wants = {}
    for node, mixed in zip(operands, (rank - 1, rank - 2), strict=True):
        sizes = traced.sizes(node)
        kept = {d: m for d, m in result.items() if d != mixed and sizes[d] > 1}
        wants[node] = kept | ({mixed: summed[mixed]} if summed else {})
    return wants


def _einsum(tokens: Tokens, call: Call) -> Wants | None:
    given, result = letters_of(call)
    lines = {result[d]: m for d, m in (tokens.of(call.node) or {}).items()}
    operands = list(zip(given, call.args["tensors"], strict=True))
    for letters, node in operands:
        for d, line in (tokens.of(node) or {}).items():
            if lines.setdefault(letters[d], line) is not line:
                return None
    return {
        n: {d: lines[a] for d, a in enumerate(letters) if a in lines} for letters, n in operands
    }


def _attention(tokens: Tokens, call: Call) -> Wants | None:
    query, key, value = (call.args[name] for name in ("query", "key", "value"))
    own = [tokens.of(n) for n in (query, key, value)]
    at = len(traced.sizes(query)) - 2
    if any(o is None or any(d != at for d in o) for o in own):
        return None
    queries, keys = ((o or {}).get(at) for o in own[:2])
    if (own[2] or {}).get(at) is not keys or (call.args["is_causal"] and queries is not keys):
        return None
    wants = {n: {} if o is None else o for n, o in zip((query, key, value), own, strict=True)}
    bias = call.args["attn_mask"]
    if bias is not None:
        rank, sizes = len(traced.sizes(bias)), traced.sizes(bias)
        pairs = ((rank - 2, queries), (rank - 1, keys))
        wants[bias] = {d: m for d, m in pairs if m is not None and sizes[d] > 1}
    return wants


def _part(tokens: Tokens, call: Call) -> Wants | None:
    return {call.source: tokens.of(call.source) or {}} if call.source in tokens.lines else None


def _size(tokens: Tokens, call: Call) -> Wants | None:
    own = tokens.of(call.source) or {}
    return {call.source: own} if "dim" in call.args and call.args["dim"] not in own else None


def _stack(tokens: Tokens, call: Call) -> Wants | None:
    dim = int(call.args["dim"]) % len(traced.sizes(call.node))
    lines = {d - (d > dim): m for d, m in (tokens.of(call.node) or {}).items()}
    return dict.fromkeys(call.args["tensors"], lines)


def _conv1d(tokens: Tokens, call: Call) -> Wants | None:
    return _batch_norm(tokens, call) if call.op == "conv1d" else None


def _spread(tokens: Tokens, call: Call) -> Wants | None:
    """Not of tokens: of one alone there is no variance."""
    wants, dims = _same(tokens, call), call.dims(call.args.get("dim"))
    return None if wants is None or wants[call.source].keys() & set(dims) else wants


def _to_one(tokens: Tokens, call: Call) -> Wants | None:
    return None if tokens.of(call.node) else _same(tokens, call)


_RULES: dict[Any, Rule] = {
    pointwise: _pointwise, softmax: _same, linear: _last_whole, layer_norm: _last_whole,
    batch_norm: _batch_norm, group_norm: _batch_norm, conv: _conv1d, reduction: _same,
    extreme: _same, spread: _spread, position: _same, along: _same, adaptive_pool: _to_one,
    concat: _join, stack: _stack, reshape: _reshape, permute: _same, expand: _expand,
    rearrange: _pick, index: _same, matmul: _matmul, einsum: _einsum, attention: _attention,
    get_item: _part, size: _size,
}  # fmt: skip
