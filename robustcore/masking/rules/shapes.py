"""Rules of what rearranges, cuts and joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from robustcore.common import graph as traced
from robustcore.masking.masks import Mask
from robustcore.masking.moves import VISIBLE, moved, numbered, side_by_side
from robustcore.masking.rules.call import Call, Row, Value
from robustcore.masking.rules.pixels import vector

_JOINS = ("cat", "stack")


def rearrange(call: Call) -> Row:
    """Follows its elements | nothing"""
    if call.x.kind != "map":
        return vector(call)
    source = call.source
    results = call.node.meta["val"]
    parts = isinstance(results, (list, tuple))
    shown = call.moved(call.mask, call.sizes, _on_numbers(call), call.node)
    values = [call.value_of(mask, zero=call.x.zero) for mask in shown]
    if not parts:
        same = values[0].mask is call.mask
        return call.row(values[0], "pointwise" if same else "move", inputs=[source])
    same = all(v.mask is call.mask for v in values)
    whole = Value("map", call.mask, parts=tuple(values))
    return call.row(whole, "pointwise" if same else "move", inputs=[source])


def _on_numbers(call: Call) -> Callable[[Tensor], Any]:
    """The node's operation on another tensor in the place of its input."""
    target: Any = call.node.target
    source = call.source

    def argument(node: fx.Node) -> Any:
        value = node.meta["val"]
        if isinstance(value, Tensor):
            raise call.refuse("its indices are computed; want constants")
        return int(value.node.hint) if isinstance(value, torch.SymInt) else value

    def operation(numbers: Tensor) -> Any:
        def swap(node: fx.Node) -> Any:
            return numbers if node is source else argument(node)

        if call.op == "im2col":  # which has no integers, and pads with 0
            numbers = (numbers + 1).double()
        args, kwargs = fx.node.map_arg((call.node.args, call.node.kwargs), swap)
        result = target(*args, **kwargs)
        return result.long() - 1 if call.op == "im2col" else result

    return operation


def index(call: Call) -> Row:
    """Unchanged: of channels, by constants | nothing"""
    if call.x.kind != "map" or len(call.maps) > 1:
        return vector(call)
    if call.op == "index_select":
        picked = call.dims(call.args["dim"])
    else:
        picked = [d for d, given in enumerate(call.args["indices"]) if given is not None]
    if len(picked) > 1 or call.mask.varies(picked[0]):
        raise call.refuse("picks pixels by computed positions; want slices")
    if len(traced.sizes(call.node)) != len(call.sizes) or picked[0] == call.mask.axis:
        raise call.refuse("wants indices in one dimension, of channels")
    return call.row(Value("map", call.mask), "pointwise", inputs=call.maps)


def permute(call: Call) -> Row:
    """Follows its elements | nothing"""
    if call.x.kind != "map":
        return vector(call)
    rank = len(call.sizes)
    if call.op in ("transpose", "swapaxes"):
        order = list(range(rank))
        a, b = (int(v) % rank for v in list(call.args.values())[1:3])
        order[a], order[b] = order[b], order[a]
    elif call.op in ("t", "mT"):
        order = [*range(rank - 2), rank - 1, rank - 2]
    else:
        order = [d % rank for d in call.args["dims"]]
    inverse = [order.index(d) for d in range(rank)]

    def turned(mask: Mask, by: list[int]) -> Mask | None:
        small = [own_size(mask, d) for d in range(rank)]
        return call.moved(mask, small, lambda numbers: numbers.permute(by))[0]

    mask = turned(call.mask, order)
    value = Value("map", mask, zero=call.x.zero)
    return call.row(value, "move", back=lambda need: turned(need, inverse))


def own_size(mask: Mask, dimension: int) -> int:
    """A mask's own size in a dimension, for an example's batch."""
    size = mask.shape[dimension]
    return size * traced.BATCH if dimension == mask.axis else size


def reshape(call: Call) -> Row:
    """Follows its elements; pixels and channels in one dimension: a vector | nothing; zeros before
    they become a vector"""
    if call.x.kind != "map":
        return vector(call)
    mask, sizes, to = call.mask, call.sizes, traced.sizes(call.node)
    if len(to) == 2 and mask.axis == 0 and mask.times == 1 and to[0] == sizes[0]:
        free = any(s > 1 and not mask.varies(d) for d, s in enumerate(sizes) if d)
        if free and len(sizes) > 2:
            return call.row(Value("vector", call.masks.alive(mask), zero=True), "clean")
    found = call.reshaped(mask, sizes, to)
    value = call.value_of(found, zero=call.x.zero)
    return call.row(value, "pointwise" if found is mask else "move")


def pad(call: Call) -> Row:
    """Follows its elements; zeros around an image are as a convolution's own padding | nothing"""
    if call.x.kind != "map":
        return vector(call)
    amounts = list(call.args["pad"])
    mode = call.args.get("mode", "constant")
    if not any(amounts):
        return call.row(call.x, "pointwise")
    options = dict(mode=mode, value=float(VISIBLE)) if mode == "constant" else dict(mode=mode)
    pads: Any = torch.nn.functional.pad

    def operation(numbers: Tensor) -> Tensor:
        # Where the mask is the same for all (channels), padding is as they are.
        padded = list(amounts)
        for d in range(numbers.dim()):
            if numbers.stride(d) == 0:
                numbers = numbers.narrow(d, 0, 1)
                last = 2 * (numbers.dim() - 1 - d)
                padded[last : last + 2] = [0] * len(padded[last : last + 2])
        result: Tensor = pads(numbers.double(), padded, **options)
        return result.long()

    (mask,) = call.moved(call.mask, call.sizes, operation, call.node)
    around = None
    if mode == "constant" and call.mask.is_image and len(amounts) == 4 and min(amounts) >= 0:
        around = ((amounts[2], amounts[3]), (amounts[0], amounts[1]))
    return call.row(Value("map", mask, pads=around), "move")


def expand(call: Call) -> Row:
    """Unchanged | nothing"""
    if call.x.kind != "map":
        return call.row(call.x, inputs=[])
    to = traced.sizes(call.node)
    mask = call.moved(call.mask, call.sizes, lambda numbers: numbers.expand(to))[0]
    return call.row(call.value_of(mask), "pointwise" if mask is call.mask else "move")


# ---- Joins ---------------------------------------------------------------------------------------


def concat(call: Call) -> Row:
    """Of channels, parallel branches: union; with an own ancestor (DenseNet, U-Net): more than half
    of the parts. Of tokens: each part's | zeros where a part is hidden and the whole is not"""
    parts, dim = list(call.args["tensors"]), int(call.args["dim"])
    if not call.maps:
        return vector(call)
    dim %= len(traced.sizes(parts[0]))
    values = [call.value(p) for p in parts]
    shown = [(p, v.mask) for p, v in zip(parts, values, strict=True) if v.kind == "map"]
    masks = [m for _, m in shown if m is not None]
    if not all(m.beside(masks[0]) for m in masks):
        raise call.refuse("the batches of its inputs lie in different dimensions; keep them in one")
    if any(m.varies(dim) for m in masks) or (dim == masks[0].axis):
        return _joined(call, parts, dim)
    nested = any(a is not b and _depends(b, a) for a, _ in shown for b, _ in shown)
    mask = call.masks.majority(masks) if nested else call.masks.either(masks)
    return call.row(Value("map", mask), "concat", inputs=call.maps)


def _joined(call: Call, parts: list[fx.Node], dim: int) -> Row:
    """A join of tokens: class tokens and tokens of one image, or pieces of one tensor."""
    masks = [call.value(p).mask if call.value(p).kind == "map" else None for p in parts]
    base, shown = side_by_side(call.masks, [numbered(m) for m in masks if m is not None])
    numbers = iter(shown)
    widest = [max(n.shape[d] for n in shown) for d in range(shown[0].dim())]
    wide = []
    for part, mask in zip(parts, masks, strict=True):
        sizes = [traced.sizes(part)[d] if d == dim else widest[d] for d in range(len(widest))]
        own = torch.tensor(VISIBLE) if mask is None else next(numbers)
        wide.append(own.expand(*sizes))
    try:
        joined = moved(call.masks, base, torch.cat(wide, dim))
    except ValueError:
        raise call.refuse("joins samples; keep them apart") from None
    return call.row(call.value_of(joined), "move", inputs=call.maps)


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


def stack(call: Call) -> Row:
    """Union of the parts' | zeros where a part is hidden and the whole is not"""
    parts = list(call.args["tensors"])
    if not call.maps:
        return vector(call)
    rank = len(traced.sizes(parts[0])) + 1
    dim = int(call.args["dim"]) % rank
    shown = [m for m in (call.value(part).mask for part in call.maps) if m is not None]
    if not all(m.beside(shown[0]) for m in shown):
        raise call.refuse("the batches of its inputs lie in different dimensions; keep them in one")
    union, sizes = call.masks.either(shown), traced.sizes(call.maps[0])
    mask = call.moved(union, sizes, lambda numbers: numbers.unsqueeze(dim))[0]
    if all(m is union for m in shown):
        return call.row(Value("map", mask), "move", inputs=call.maps)
    return call.row(Value("map", mask), "clean", inputs=call.maps)
