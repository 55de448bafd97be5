"""Rules of sums, means and norms over what is partly hidden."""

from __future__ import annotations

from typing import Any

from robustcore.masking import calls
from robustcore.masking.masks import Mask
from robustcore.masking.rules.call import RESULT, Call, Row, Then, Value
from robustcore.masking.rules.pixels import batch_norm, vector


def group_norm(call: Call) -> Row:
    """Unchanged | statistics over what is visible"""
    if call.x.kind == "vector":
        return vector(call)
    call.want_apart(call.mask, *range(1, len(call.sizes)))
    if not any(call.mask.varies(d) for d in range(2, len(call.sizes))) or call.mask.varies(1):
        raise call.refuse("want an image of features")
    if call.op == "instance_norm":
        if not call.args["use_input_stats"]:
            return batch_norm(call)
        groups = call.sizes[1]
    else:
        groups = int(call.args["num_groups"])
    return _norm(call, groups, [])


def layer_norm(call: Call) -> Row:
    """Over channels, unchanged; over pixels too, unchanged | over pixels: statistics over what is
    visible"""
    if call.x.kind == "vector":
        return vector(call)
    rank, normalized = len(call.sizes), len(call.args["normalized_shape"])
    dims = list(range(rank - normalized, rank))
    call.want_apart(call.mask, *dims)
    if not any(call.mask.varies(d) for d in dims):
        return call.row(Value("map", call.mask), "pointwise", inputs=call.maps)
    if "rms" in call.op:
        raise call.refuse("statistics over pixels; want nn.LayerNorm")
    return _norm(call, None, dims)


def _norm(call: Call, groups: int | None, dims: list[int]) -> Row:
    affine = (call.args["weight"], call.args["bias"])
    arguments = (RESULT, call.source, call.mask, groups, dims, *affine, call.args["eps"])
    then = Then("over what is visible", calls.visible_norm, arguments)
    return call.row(Value("map", call.mask), "clean", inputs=[call.source], then=then)


def _reduced(call: Call, dims: list[int]) -> Mask | None:
    mask = call.masks.any(call.mask, dims)
    if call.args.get("keepdim", False):
        return mask
    sizes = [1 if d in dims else s for d, s in enumerate(call.sizes)]
    return call.reshaped(mask, sizes, [s for d, s in enumerate(call.sizes) if d not in dims])


def _over(call: Call) -> tuple[list[int], bool]:
    """The dimensions that are reduced, and whether anything is hidden along them."""
    dims = call.dims(call.args.get("dim"))
    call.want_apart(call.mask, *dims)
    return dims, any(call.mask.varies(d) for d in dims)


def reduction(call: Call) -> Row:
    """1 where it sees any | zeros before a sum or norm; a mean is over what is visible"""
    if call.x.kind != "map":
        return vector(call)
    dims, hides = _over(call)
    mask = _reduced(call, dims)
    if not hides:
        return call.row(call.value_of(mask), "pointwise" if mask is call.mask else "move")
    order = call.args.get("ord", call.args.get("p"))
    if order is not None and not 0 < float(order) < float("inf"):
        raise call.refuse(f"ord {order}, want a finite one above 0")
    then = None
    if call.op == "mean":
        keepdim = bool(call.args["keepdim"])
        arguments = (RESULT, call.mask, dims, keepdim)
        then = Then("divided by the visible share", calls.visible_mean, arguments)
    return call.row(call.value_of(mask), "clean", then=then)


def extreme(call: Call) -> Row:
    """1 where it sees any | over what is visible"""
    if call.x.kind != "map":
        return vector(call)
    dims, hides = _over(call)
    mask = _reduced(call, dims)
    value = _of_parts(call, call.value_of(mask))
    if not hides:
        return call.row(value, "pointwise" if mask is call.mask else "move")
    arguments = (call.source, call.mask, dims, bool(call.args["keepdim"]), "min" in call.op)
    function: Any = calls.visible_extreme
    if value.parts is not None:
        if any(user.args[1] != 0 and user.users for user in call.node.users):
            raise call.refuse("positions have no meaning under a mask; want amax or amin")
        function = calls.visible_extreme_alone
    then = Then("of what is visible", function, arguments, instead=True)
    return call.row(value, "mix", then=then)


def along(call: Call) -> Row:
    """Unchanged | refused where pixels are hidden along it"""
    if call.x.kind != "map":
        return vector(call)
    (dim,) = call.dims(call.args["dim"])
    call.want_apart(call.mask, dim)
    if call.mask.varies(dim):
        raise call.refuse(f"dims {[dim]} mix what is hidden with what is not; want one of channels")
    return call.row(_of_parts(call, Value("map", call.mask)), "pointwise")


def spread(call: Call) -> Row:
    """As `reduction` | of what is visible"""
    if call.x.kind != "map":
        return vector(call)
    dims, hides = _over(call)
    mask = _reduced(call, dims)
    value = _of_parts(call, call.value_of(mask))
    if not hides:
        return call.row(value, "pointwise" if mask is call.mask else "move")
    arguments = (call.source, call.mask, dims, bool(call.args.get("keepdim", False)))
    if call.op in ("logsumexp", "prod"):
        function: Any = calls.visible_logsumexp if call.op != "prod" else calls.visible_product
        then = Then("of what is visible", function, arguments, instead=True)
        return call.row(value, "mix", then=then)
    given = call.args.get("correction", int(call.args.get("unbiased", True)))
    options = (1 if given is None else given, "std" in call.op)
    function = calls.visible_variance if value.parts is None else calls.visible_variance_and_mean
    then = Then("of what is visible", function, (RESULT, *arguments, *options))
    return call.row(value, "clean", then=then)


def position(call: Call) -> Row:
    """As `reduction` | refused where pixels are hidden along it"""
    if call.x.kind != "map":
        return vector(call)
    dims, hides = _over(call)
    if hides:
        raise call.refuse("positions have no meaning under a mask; want amax or amin")
    mask = _reduced(call, dims)
    return call.row(call.value_of(mask), "pointwise" if mask is call.mask else "move")


def _of_parts(call: Call, value: Value) -> Value:
    """Where an operation gives several results, each as ``value``."""
    results = call.node.meta["val"]
    if not isinstance(results, (list, tuple)):
        return value
    return Value(value.kind, value.mask, parts=(value,) * len(results))
