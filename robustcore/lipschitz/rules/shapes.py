"""Rules of what moves numbers about, and of what takes several together."""

from __future__ import annotations

import math
from typing import Any

import torch

from robustcore.lipschitz.rounding import quotient, root
from robustcore.lipschitz.rules.call import Call, Value
from robustcore.lipschitz.rules.pointwise import extreme_of_two


def rearrange(call: Call) -> Value:
    """1: the same numbers in other places, or some of them"""
    if "dtype" in call.node.target._overloadname:  # type: ignore[union-attr]
        raise call.refuse("reads the bits of numbers as others")
    value = call.value(call.source)
    assert value is not None
    if isinstance(value, tuple):
        raise call.refuse("takes a list of results")
    return value.scaled(1.0)


def take(call: Call) -> Value:
    """1; pieces that do not overlap count together as what they were taken of"""
    dim = call.dims(call.args["dim"])[0]
    size = call.known_size(dim)
    value = call.value(call.source)
    if size is None or value is None or value.power != 1 or value.mark:
        return rearrange(call)
    indices: range | None
    if call.op == "select":
        index = call.args["index"]
        indices = range(index % size, index % size + 1) if isinstance(index, int) else None
    elif call.op == "narrow":
        start, length = call.args["start"], call.args["length"]
        plain = isinstance(start, int) and isinstance(length, int)
        indices = range(size)[start : (start % size) + length] if plain else None
    else:
        bounds = [call.args[n] for n in ("start", "end", "step")]
        plain = all(b is None or isinstance(b, int) for b in bounds)
        indices = range(size)[slice(*bounds)] if plain else None
    if indices is None:
        return rearrange(call)
    return call.piece(("slices", call.source), call.x, dim, indices)


def split(call: Call) -> tuple[Value, ...]:
    """1; all pieces together count as the whole"""
    parts = len(call.node.meta["val"])
    return tuple(call.piece(call.node, call.x, 0, range(i, i + 1)) for i in range(parts))


def get_item(call: Call) -> Value | None:
    """The part's"""
    values: Any = call.value(call.node.args[0])
    found: Value | None = values[call.node.args[1]]
    if found is None:
        raise call.refuse("reads indices, which jump")
    return found


def concat(call: Call) -> Value:
    """The root of the sum of squares; pieces of one result, and the larger and smaller of a pair,
    as the whole"""
    nodes = next(iter(call.args.values()))
    return call.joint(nodes)


def expand(call: Call) -> Value:
    """The root of the number of copies | copies over the batch"""
    value = call.x
    return value.scaled(call.norm.copies(call.copies_to(call.source, call.node)))


def repeat(call: Call) -> Value:
    """The root of the number of copies"""
    counts = call.args.get("repeats", call.args.get("dims"))
    counts = [counts] if isinstance(counts, int) else counts
    if not isinstance(counts, (list, tuple)) or not all(isinstance(c, int) for c in counts):
        raise call.refuse("repeats by a number that depends on the batch")
    return call.x.scaled(call.norm.copies(math.prod(counts)))


def index(call: Call) -> Value:
    """The root of how often a constant index comes | indices of several dimensions"""
    given: Any = call.args.get("indices", call.args.get("index"))
    tensors = [i for i in (given if isinstance(given, (list, tuple)) else [given]) if i is not None]
    if len(tensors) != 1 or call.value(tensors[0]) is not None or call.op == "gather":
        raise call.refuse("wants one constant index")
    chosen = call.constant(tensors[0])
    if chosen.dtype == torch.bool:
        return call.x.scaled(1.0)
    if not chosen.numel():
        return call.x.scaled(0.0)
    chosen = chosen.flatten()
    if bool((chosen < 0).any()):  # the same place by two names
        dim = call.dims(call.args["dim"])[0] if "dim" in call.args else given.index(tensors[0])
        chosen = chosen % call.size(dim)
    _, counts = chosen.unique(return_counts=True)
    return call.x.scaled(call.norm.copies(int(counts.max())))


def constant_like(call: Call) -> Value:
    """0: only the sizes are read"""
    return Value(0.0)


# ---- along dimensions ----------------------------------------------------------------------------


def _count(call: Call) -> int:
    return math.prod(call.sizes(call.dims(call.args.get("dim"))))


def mean(call: Call) -> Value:
    """1 / the root of the count"""
    count = _count(call)
    value = call.value(call.source)
    assert value is not None
    if value.power != 1:
        weight = quotient(1.0, count) if call.norm.l2 else 1.0
        return value.scaled(math.nextafter(weight ** (1 / value.power), math.inf))
    return call.x.scaled(quotient(1.0, math.sqrt(count) * (1 - 1e-15)) if call.norm.l2 else 1.0)


def total(call: Call) -> Value:
    """The root of the count"""
    value = call.value(call.source)
    assert value is not None
    if value.power != 1 and call.norm.l2:
        return value.scaled(1.0)
    count = _count(call)
    if value.power != 1:
        return value.scaled(math.nextafter(count ** (1 / value.power) * (1 + 1e-15), math.inf))
    return call.x.scaled(root(count) if call.norm.l2 else float(count))


def extreme(call: Call) -> Any:
    """1; the largest and the smallest of the same numbers together, too"""
    if "other" in call.args:
        return extreme_of_two(call)
    value = call.x.scaled(1.0)
    if "dim" not in call.args:
        return value
    dims = call.dims(call.args["dim"])
    size = math.prod(call.known_size(d) or 1 for d in dims)
    if size > 1:
        place = 0 if "min" in call.op else 1
        of = ("extremes", call.source, tuple(dims))
        value = call.piece(of, call.x, None, range(place, place + 1))
    return value if call.op in ("amax", "amin") else (value, None)


def sort(call: Call) -> Any:
    """1: the same numbers in another order"""
    return call.x.scaled(1.0), None


def vector_norm(call: Call) -> Value:
    """1 for the l2 norm | other orders"""
    order = call.args.get("ord", call.args.get("p"))
    if order not in (2, 2.0, None) or not call.norm.l2:
        raise call.refuse(f"is a norm of order {order}, want 2")
    return call.x.scaled(1.0)


def log_sum_exp(call: Call) -> Value:
    """1"""
    return call.x.scaled(1.0)


def softmax(call: Call) -> Value:
    """1/2"""
    return call.x.scaled(0.5)


def log_softmax(call: Call) -> Value:
    """The root of the number of classes"""
    count = call.size(call.dims(call.args["dim"])[0])
    return call.x.scaled(root(count) if call.norm.l2 else 2.0)


def isometry(call: Call) -> Any:
    """1: MaxMin, Householder and projection pooling | angles that depend on the input"""
    node = call.args[next(iter(call.args))]
    if call.source is not node:
        raise call.refuse("its angles depend on the input")
    if not call.norm.l2 and call.op != "maxmin":
        raise call.refuse("rotates, which l2 alone keeps")
    value = call.x.scaled(1.0)
    return (value, None) if call.op == "maxmin" else value
