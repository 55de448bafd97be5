"""Rules of activations and of what acts on each number alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from robustcore.common import graph as traced
from robustcore.lipschitz.rounding import product, quotient
from robustcore.lipschitz.rounding import total as summed
from robustcore.lipschitz.rules.call import Call, Value

# Largest slopes, rounded up; each is where the second derivative vanishes.
GELU, GELU_TANH, SILU, MISH = 1.128904146, 1.128993069, 1.0998393202, 1.0884981613
# torch multiplies by a sixth in float32 in every precision.
SIXTH = 0.1666666717
SELU = 1.7580994  # scale * alpha, at 0 from the left


def _rrelu(call: Call) -> float:
    if call.args["training"]:
        raise call.refuse("draws its slope in training mode")
    return max(1.0, abs(call.number("lower") + call.number("upper")) / 2)


def _elu(call: Call) -> float:
    alpha, scale, inner = (call.number(n) for n in ("alpha", "scale", "input_scale"))
    if inner < 0:
        raise call.refuse("its slope has no bound with an input_scale below 0")
    return max(abs(scale), abs(alpha * scale * inner) * (1 + 1e-15))


def _celu(call: Call) -> float:
    if call.number("alpha") < 0:
        raise call.refuse("its slope has no bound with an alpha below 0")
    return 1.0


def _clamp(call: Call) -> float:
    for name in ("min", "max"):
        limit = call.args.get(name)
        if isinstance(limit, fx.Node) and call.value(limit) is not None:
            raise call.refuse("its limits depend on the input")
    return 1.0


def _threshold(call: Call) -> float:
    at, value = call.number("threshold"), call.number("value")
    if at != value:
        raise call.refuse(f"jumps by {abs(at - value):g} at its threshold; want value = threshold")
    return 1.0


def _hardshrink(call: Call) -> float:
    if call.number("lambd") > 0:
        raise call.refuse("jumps by lambd; softshrink does not")
    return 1.0


_ONE = (
    "relu", "relu6", "tanh", "hardtanh", "softshrink", "log_sigmoid", "abs", "neg", "sin", "cos",
    "atan", "asinh", "alias", "clone", "contiguous", "detach", "lift_fresh_copy", "positive",
)  # fmt: skip
SLOPES: dict[str, float | Callable[[Call], float]] = {
    **dict.fromkeys(_ONE, 1.0),
    "sigmoid": 0.25, "hardsigmoid": SIXTH, "hardswish": 9 * SIXTH, "selu": SELU, "silu": SILU,
    "mish": MISH, "erf": 2 / math.sqrt(math.pi) + 1e-15,
    "gelu": lambda call: GELU if call.args["approximate"] == "none" else GELU_TANH,
    "leaky_relu": lambda call: max(1.0, abs(call.number("negative_slope"))),
    "elu": _elu, "celu": _celu, "rrelu": _rrelu, "hardshrink": _hardshrink,
    "threshold": _threshold, "clamp": _clamp, "clamp_min": _clamp, "clamp_max": _clamp,
    "clip": _clamp,
}  # fmt: skip


def activation(call: Call) -> Value:
    """The largest slope, for every parameter | CELU of alpha < 0; jumps: Threshold, Hardshrink"""
    slope = SLOPES[call.op]
    factor = slope(call) if callable(slope) else slope
    value = call.value(call.source)
    assert value is not None
    if call.op in ("relu", "abs"):
        mark = value.mark if value.mark and value.mark[0] == "magnitude" else None
        if call.op == "abs":
            mark = ("magnitude", call.source)
        if value.power != 1 or mark:
            return replace(value if value.power != 1 else value.scaled(1.0), mark=mark)
    return call.x.scaled(factor)


def sign(call: Call) -> Value:
    """Counts only as a factor of the magnitude that it was taken of"""
    return Value(math.inf, mark=("sign", call.source))


def softplus(call: Call) -> Value:
    """1, and its jump of log1p(exp(-threshold)) / beta as an absolute error | threshold < 20"""
    beta, threshold = call.number("beta"), call.number("threshold")
    if threshold < 20:
        raise call.refuse(f"jumps at its threshold {threshold:g}; want at least 20")
    if beta <= 0:
        raise call.refuse(f"beta is {beta:g}, want a number above 0")
    jump = quotient(math.log1p(math.exp(-threshold)) * (1 + 1e-15), beta)
    x = call.x.scaled(1.0)
    slack = product(jump, math.sqrt(call.elements()) * (1 + 1e-15) if call.norm.l2 else 1.0)
    return replace(x, slack=summed((x.slack, slack)))


def prelu(call: Call) -> Value:
    """max(1, abs(weight))"""
    weight = call.constant(call.args["weight"])
    if not bool(weight.isfinite().all()):
        raise call.refuse("its weight is not finite")
    return call.x.scaled(max(1.0, float(weight.abs().max()) if weight.numel() else 1.0))


def dropout(call: Call) -> Value:
    """1 | training mode"""
    if call.args["train"] and call.args["p"] != 0:
        raise call.refuse("draws at random in training mode; call eval()")
    return call.x.scaled(1.0)


def cast(call: Call) -> Value:
    """1 | to float16, bfloat16, integers"""
    wanted = call.node.meta["val"].dtype
    given = call.source.meta["val"].dtype
    if wanted != given and (not wanted.is_floating_point or wanted.itemsize < 4):
        raise call.refuse(f"rounds to {wanted}")
    return call.x.scaled(1.0)


# ---- two arguments -------------------------------------------------------------------------------


def _pair(call: Call) -> tuple[Any, Any]:
    first, second = list(call.args.values())[:2]
    return first, second


def _spread(call: Call, node: fx.Node) -> float:
    """Of broadcasting an argument to the result."""
    return call.norm.copies(call.copies_to(node, call.node))


def _same_size(call: Call, nodes: tuple[Any, ...]) -> bool:
    return all(call.copies_to(n, call.node) == 1 for n in nodes)


def add(call: Call) -> Value:
    """The sum of both, of disjoint pieces of one result the root of the sum of squares; a constant
    adds nothing"""
    first, second = _pair(call)
    alpha = abs(float(call.args.get("alpha", 1)))
    if call.op == "rsub":
        first, second = second, first
    if call.value(first) is None or call.value(second) is None:
        node = call.source
        value = call.value(node)
        assert value is not None
        if value.power != 1:
            return _add_to_power(call, value)
        return value.scaled(product(_spread(call, node), alpha if node is second else 1.0))
    if call.op == "sub" and alpha == 1 and _is(second, "tanh", first):  # Tanhshrink
        return call.plain(first).scaled(1.0)
    if alpha == 1 and _same_size(call, (first, second)):
        return call.sum([first, second])
    a = call.plain(first).scaled(_spread(call, first))
    b = call.plain(second).scaled(product(_spread(call, second), alpha))
    return Value(summed((a.bound, b.bound)), summed((a.slack, b.slack)))


def _add_to_power(call: Call, value: Value) -> Value:
    """A constant >= 0 below a root is one more coordinate, that does not move."""
    other = next(a for a in _pair(call) if a is not call.source)
    constant = call.constant(other)
    lowest = float(constant.min()) if isinstance(constant, Tensor) else float(constant)
    if call.op != "add" or lowest < 0 or float(call.args.get("alpha", 1)) < 0:
        raise call.refuse("takes something from a power")
    if call.copies_to(call.source, call.node) != 1:
        raise call.refuse("broadcasts a power")
    return replace(value, mark=None)


def _is(node: Any, op: str, of: Any) -> bool:
    """Whether a node is that operation of another one."""
    return (
        isinstance(node, fx.Node)
        and node.op == "call_function"
        and traced.name_of(node).rstrip("_") == op
        and bool(node.args)
        and node.args[0] is of
    )


def _largest(call: Call, argument: Any) -> float:
    value = call.constant(argument)
    if not isinstance(value, Tensor):
        return abs(float(value))
    return float(value.double().abs().max()) if value.numel() else 0.0


def multiply(call: Call) -> Value:
    """The largest factor, of a constant; x * sigmoid(x) and x * tanh(softplus(x)) as SiLU and Mish
    | other products of two results"""
    first, second = _pair(call)
    a, b = call.value(first), call.value(second)
    if a is not None and b is not None:
        return _product(call, (first, a), (second, b))
    node, other = (first, second) if b is None else (second, first)
    value = call.value(node)
    assert value is not None
    largest = _largest(call, other)
    if value.power != 1:
        factor = call.constant(other)
        if (float(factor.min()) if isinstance(factor, Tensor) else factor) < 0:
            raise call.refuse("turns a power negative")
        if call.copies_to(node, call.node) != 1:
            raise call.refuse("broadcasts a power")
        return value.scaled(_power_root(largest, value.power))
    return value.scaled(product(_spread(call, node), largest))


def _power_root(factor: float, power: int) -> float:
    return math.nextafter(factor ** (1 / power) * (1 + 1e-15), math.inf)


def _product(call: Call, first: tuple[Any, Value], second: tuple[Any, Value]) -> Value:
    for (node, a), (other, b) in ((first, second), (second, first)):
        marks = (a.mark or ("", None), b.mark or ("", None))
        if (marks[0][0], marks[1][0]) == ("sign", "magnitude") and marks[0][1] is marks[1][1]:
            signed = call.value(marks[0][1])
            assert signed is not None
            return replace(signed, mark=None)
        if _is(other, "sigmoid", node):
            return call.plain(node).scaled(SILU)
        if isinstance(other, fx.Node) and other.args and _is(other.args[0], "softplus", node):
            soft = traced.arguments(other.args[0])  # type: ignore[arg-type]
            if _is(other, "tanh", other.args[0]) and soft["beta"] == 1 and soft["threshold"] >= 20:
                return call.plain(node).scaled(MISH)
    raise call.refuse("multiplies two results that both depend on the input")


def divide(call: Call) -> Value:
    """1 / the smallest divisor, of a constant; x / (c + abs(x)) as Softsign | other divisors that
    depend on the input, or hold a 0"""
    first, second = _pair(call)
    if call.args.get("rounding_mode") is not None:
        raise call.refuse("jumps where it rounds")
    if call.value(second) is None:
        divisor = call.constant(second)
        low = float(divisor.double().abs().min()) if isinstance(divisor, Tensor) else abs(divisor)
        if not low > 0:
            raise call.refuse("divides by 0")
        value = call.value(first)
        assert value is not None
        if value.power != 1:
            raise call.refuse("divides a power")
        return value.scaled(product(_spread(call, first), quotient(1.0, low)))
    if isinstance(second, fx.Node) and traced.name_of(second).rstrip("_") == "add":
        inner, shift = list(traced.arguments(second).values())[:2]
        inner, shift = (shift, inner) if isinstance(shift, fx.Node) else (inner, shift)
        if _is(inner, "abs", first) and isinstance(shift, (int, float)) and shift > 0:
            return call.plain(first).scaled(quotient(1.0, shift))
    raise call.refuse("divides by what depends on the input")


def mix(call: Call) -> Value:
    """Both, times abs(1 - weight) and abs(weight) | weights that depend on the input"""
    first, second, weight = call.args["self"], call.args["end"], call.args["weight"]
    if isinstance(weight, fx.Node) and call.value(weight) is not None:
        raise call.refuse("its weight depends on the input")
    share = torch.as_tensor(call.constant(weight), dtype=torch.float64)
    factors = ((first, 1 - share), (second, share))
    found = [
        call.plain(n).scaled(product(_spread(call, n), float(f.abs().max()) * (1 + 1e-15)))
        for n, f in factors if call.value(n) is not None
    ]  # fmt: skip
    return Value(summed(v.bound for v in found), summed(v.slack for v in found))


def power(call: Call) -> Value:
    """x^p, p even, until the root of the same order: of sums and pools in between (LPPool) |
    other powers, roots of anything else"""
    exponent = 0.5 if call.op == "sqrt" else 2.0 if call.op == "square" else call.number("exponent")
    value = call.value(call.source)
    assert value is not None
    if value.power != 1:
        if abs(exponent * value.power - 1) > 1e-15:
            raise call.refuse(f"want the root of order {value.power}")
        return replace(value, power=1, part=None, mark=None)
    if exponent == 1:
        return value.scaled(1.0)
    if exponent < 2 or exponent != int(exponent) or exponent % 2:
        raise call.refuse(f"x^{exponent:g} has no bound; want an even power, and its root after it")
    return call.x.as_power(int(exponent))


def extreme_of_two(call: Call) -> Value:
    """The two together: the larger and the smaller of a pair are the pair in another order"""
    first, second = _pair(call)
    if call.value(first) is None or call.value(second) is None:
        return call.x.scaled(_spread(call, call.source))
    if not _same_size(call, (first, second)):
        bounds = [call.plain(n).scaled(_spread(call, n)) for n in (first, second)]
        norm = call.norm.joint
        return Value(norm(v.bound for v in bounds), norm(v.slack for v in bounds))
    joint = call.joint([first, second])
    # minimum, maximum, min.other, max.other of the same pair are disjoint pieces.
    place = 0 if call.op in ("minimum", "min") else 1
    return call.piece(("pair", frozenset((first, second))), joint, None, range(place, place + 1))


def select_by_mask(call: Call) -> Value:
    """The two together, of a constant mask | a mask that depends on the input"""
    condition = call.args.get("condition", call.args.get("mask"))
    if call.value(condition) is not None or _reads_input(call, condition):
        raise call.refuse("chooses by a condition on the input")
    nodes = [a for n, a in call.args.items() if n not in ("condition", "mask") and call.value(a)]
    scaled = [call.plain(n).scaled(_spread(call, n)) for n in nodes]
    norm = call.norm.joint
    return Value(norm(v.bound for v in scaled), norm(v.slack for v in scaled))


def _reads_input(call: Call, node: Any) -> bool:
    return isinstance(node, fx.Node) and call.value(node) is not None
