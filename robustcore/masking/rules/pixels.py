"""Rules of what treats every pixel alike, and of vectors."""

from __future__ import annotations

from robustcore.masking.rules.call import CONSTANT, Call, Row, Value

# Operations that leave zeros where they find them, by the names their nodes have.
KEEPS_ZERO = {
    "Dropout", "Dropout2d", "Identity", "Flatten", "ReLU", "ReLU6", "SiLU", "GELU", "Hardswish",
    "Tanh", "LeakyReLU", "ELU", "flatten", "dropout", "relu", "squeeze", "view", "reshape",
    "contiguous", "AdaptiveAvgPool2d", "adaptive_avg_pool2d",
}  # fmt: skip


def pointwise(call: Call) -> Row:
    """The same function of every pixel; two maps intersect; vectors stay vectors."""
    maps = call.maps
    if any(call.value(n).parts for n in call.tensors):
        raise call.refuse("got a tuple of images")
    if maps:
        if len({call.value(n).last for n in maps}) > 1:
            raise call.refuse("the images have their channels in different dimensions")
        mask = call.value(maps[0]).mask
        for other in maps[1:]:
            mask = call.masks.both(mask, call.value(other).mask)  # type: ignore[arg-type]
        return call.row(Value("map", mask, call.value(maps[0]).last), "pointwise", inputs=maps)
    return vector(call)


def vector(call: Call) -> Row:
    """Any function of vectors and constants alone."""
    vectors = call.tensors
    if call.maps:
        raise call.refuse("no rule for an image of features")
    if not vectors:
        return call.row(CONSTANT)
    mask = call.value(vectors[0]).mask
    for other in vectors[1:]:
        mask = call.masks.both(mask, call.value(other).mask)  # type: ignore[arg-type]
    zero = call.op in KEEPS_ZERO and all(call.value(n).zero for n in vectors)
    return call.row(Value("vector", mask, zero=zero))


def batch_norm(call: Call) -> Row:
    return pointwise(call)


def softmax(call: Call) -> Row:
    dim = call.option("dim", 1)
    if call.x.kind == "map" and dim != 1:
        raise call.refuse(f"dim {dim} mixes pixels")
    return pointwise(call)


def inner(call: Call) -> Row:
    """Linear and LayerNorm: of the last dimension."""
    if call.x.kind == "map":
        call.want_map(last=True)
        return call.row(Value("map", call.mask, last=True), "pointwise")
    return dense(call) if "linear" in call.op.lower() else vector(call)


def dense(call: Call) -> Row:
    if len(call.tensors) != 1:
        raise call.refuse("wants one input that depends on the image")
    return call.row(Value("vector", call.x.mask), "dense")
