"""Rules of what joins, cuts and turns images of features."""

from __future__ import annotations

from typing import Any

from torch import fx

from robustcore.masking.rules.call import OTHER, Call, Row, Value
from robustcore.masking.rules.pixels import vector


def concat(call: Call) -> Row:
    parts = call.argument(0, "tensors")
    dim = call.argument(1, "dim", 0)
    if not isinstance(parts, (list, tuple)) or not call.maps:
        return vector(call)
    values = [call.value(p) for p in parts]
    if any(v.kind != "map" or v.parts for v in values) or len({v.last for v in values}) > 1:
        raise call.refuse("wants images of features only, their channels in one dimension")
    channel = 3 if values[0].last else 1
    if dim % 4 != channel:
        raise call.refuse(f"dim {dim} is not the channels'")
    masks = [v.mask for v in values if v.mask is not None]
    nested = any(a is not b and _depends(b, a) for a in parts for b in parts)
    mask = call.masks.majority(masks) if nested else call.masks.either(masks)
    return call.row(Value("map", mask, values[0].last), "concat")


def _depends(node: fx.Node, on: fx.Node) -> bool:
    seen, stack = {node}, [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source is on:
                return True
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return False


def split(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    dim = call.argument(2, "dim", 0)
    if dim % 4 != (3 if call.x.last else 1):
        raise call.refuse(f"dim {dim} is not the channels'")
    return call.row(Value("map", call.mask, call.x.last, parts=True), "pointwise")


def get_item(call: Call) -> Row:
    if call.x.kind == "map":
        if not call.x.parts:
            raise call.refuse("indexing an image of features")
        return call.row(Value("map", call.mask, call.x.last), "pointwise")
    return call.row(OTHER) if call.x.kind == "other" else vector(call)


def flatten(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    call.want_map()
    start = call.option("start_dim", 1, 0)
    if start != 1:
        raise call.refuse(f"start_dim {start}, want 1: samples stay apart")
    return _flattened(call)


def _flattened(call: Call) -> Row:
    return call.row(Value("vector", call.masks.derived("alive", call.mask), zero=True), "clean")


def reshape(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    call.want_map()
    shape = call.node.args[1:]
    if len(shape) == 1 and isinstance(shape[0], (list, tuple)):
        shape = tuple(shape[0])
    if len(shape) != 2 or isinstance(shape[0], int):
        raise call.refuse("wants (batch, -1) with the batch size taken from the tensor")
    return _flattened(call)


def permute(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    dims: Any = call.option("dims", 1) if call.module else call.node.args[1:]
    if len(dims) == 1:
        (dims,) = dims
    order = tuple(d % 4 for d in dims)
    if order == ((0, 3, 1, 2) if call.x.last else (0, 2, 3, 1)):
        return call.row(Value("map", call.mask, not call.x.last), "pointwise")
    raise call.refuse(f"order {order}, want NCHW to NHWC or back")


def size(call: Call) -> Row:
    return call.row(OTHER)


def attribute(call: Call) -> Row:
    if call.node.args[1] not in ("shape", "dtype", "device"):
        raise call.refuse(f"attribute {call.node.args[1]!r}")
    return call.row(OTHER)
