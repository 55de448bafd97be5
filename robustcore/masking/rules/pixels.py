"""Rules of what treats every pixel alike, and of vectors."""

from __future__ import annotations

from robustcore.common import graph as traced
from robustcore.masking.masks import Mask
from robustcore.masking.rules.call import CONSTANT, OTHER, Call, Row, Value

# Operations that leave zeros where they find them.
KEEPS_ZERO = {
    "dropout", "feature_dropout", "alpha_dropout", "relu", "relu6", "silu", "gelu", "hardswish",
    "tanh", "leaky_relu", "elu", "flatten", "squeeze", "view", "reshape", "contiguous", "clone",
    "to", "adaptive_avg_pool2d", "detach", "alias",
}  # fmt: skip


def pointwise(call: Call) -> Row:
    """Intersection of the inputs'; unchanged beside a vector (squeeze-excite) | nothing"""
    maps = call.maps
    if not maps:
        return vector(call)
    masks = [aligned(call, n) for n in maps]
    if not all(m.beside(masks[0]) for m in masks):
        raise call.refuse("the batches of its inputs lie in different dimensions; keep them in one")
    mask = call.masks.all_of(masks)
    zero = len(call.tensors) == 1 and call.op.rstrip("_") in KEEPS_ZERO and call.x.zero
    return call.row(Value("map", mask, zero=zero), "pointwise", inputs=maps)


def aligned(call: Call, node: object) -> Mask:
    """An input's mask with as many dimensions as the result."""
    mask = call.value(node).mask
    assert mask is not None
    assert hasattr(node, "meta")
    sizes = traced.sizes(node)  # type: ignore[arg-type]
    value = call.node.meta["val"]
    rank = (value[0] if isinstance(value, (list, tuple)) else value).dim()
    if len(sizes) == rank:
        return mask
    if len(sizes) > rank:
        raise call.refuse("drops dimensions of what is partly hidden")
    found = call.reshaped(mask, sizes, (*[1] * (rank - len(sizes)), *sizes))
    assert found is not None
    return found


def vector(call: Call) -> Row:
    """A vector | the last dense layer: a sample that shows nothing enters as 0"""
    if call.maps:
        raise call.refuse(
            "no rule for it where a part is hidden; write it in operations that have one (the "
            "family's README has the table), or hide by values: robustcore.masking.replaced"
        )
    if not call.tensors:
        return call.row(CONSTANT)
    masks = [m for m in (call.value(n).mask for n in call.tensors) if m is not None]
    alike = all(m.shape == masks[0].shape and m.beside(masks[0]) for m in masks)
    mask = call.masks.all_of(masks) if masks and alike else None
    zero = call.op.rstrip("_") in KEEPS_ZERO and all(call.value(n).zero for n in call.tensors)
    value = Value("vector", mask, zero)
    if isinstance(call.node.meta.get("val"), (list, tuple)):
        value = Value("vector", mask, zero, (value,) * len(call.node.meta["val"]))
    return call.row(value)


def size(call: Call) -> Row:
    """None | nothing"""
    return call.row(OTHER)


def fresh(call: Call) -> Row:
    """None: constants of an input's sizes | nothing"""
    return call.row(CONSTANT, inputs=[])


def batch_norm(call: Call) -> Row:
    """Unchanged | nothing; statistics of the batch are refused"""
    mixing = call.args.get("training", call.args.get("use_input_stats"))
    if mixing and call.x.kind == "map":
        raise call.refuse(
            "takes its statistics from the batch, which would mix what is hidden with what is not; "
            "call eval(), and track_running_stats"
        )
    return pointwise(call)


def dense(call: Call) -> Row:
    if len(call.tensors) != 1:
        raise call.refuse("wants one input that depends on the image")
    return call.row(Value("vector", call.x.mask), "dense")


def get_item(call: Call) -> Row:
    """The part's | nothing"""
    source, index = call.node.args
    value = call.value(source)
    if value.parts is None:
        return call.row(OTHER) if value.kind == "other" else vector(call)
    part = value.parts[index]  # type: ignore[index]
    same = part.mask is value.mask and part.kind == value.kind == "map"
    return call.row(part, "pointwise" if same else "move" if value.kind == "map" else "none")
