"""Rules of pools, padding and resizing."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from robustcore.lipschitz.norms import nonnegative_sums
from robustcore.lipschitz.rounding import product, quotient, root
from robustcore.lipschitz.rules.call import Call, Value
from robustcore.lipschitz.rules.linear import per_channel

_PAD_MODES = ("constant", "reflect", "replicate", "circular")


def _spatial(call: Call, count: int) -> tuple[int, ...]:
    """Sizes of one channel of one image."""
    rank = call.rank()
    return (1, 1, *call.sizes(range(rank - count, rank)))


def _dimensions(op: str) -> int:
    return int(op.partition("d_with")[0].rstrip("d")[-1])


def _overlap(kernel: int, stride: int, dilation: int = 1) -> int:
    """How many windows a pixel is in, at most."""
    return max(Counter(i * dilation % stride for i in range(kernel)).values())


def _window(call: Call, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kernel = per_channel(call.args["kernel_size"], count)
    stride = call.args["stride"]
    return kernel, kernel if stride is None or stride == [] else per_channel(stride, count)


def max_pool(call: Call) -> Any:
    """The root of how many windows a pixel is in"""
    count = _dimensions(call.op)
    kernel, stride = _window(call, count)
    dilation = per_channel(call.args["dilation"], count)
    axes = zip(kernel, stride, dilation, strict=True)
    value = call.x.scaled(call.norm.copies(math.prod(_overlap(*axis) for axis in axes)))
    return (value, None) if call.op.endswith("with_indices") else value


def avg_pool(call: Call) -> Value:
    """Norm of the pool's matrix for images of this size, whatever divides; of the pool of powers
    (LPPool): largest weight and overlap"""
    count = _dimensions(call.op)
    kernel, stride = _window(call, count)
    value = call.value(call.source)
    assert value is not None
    overlap = math.prod(_overlap(*axis) for axis in zip(kernel, stride, strict=True))
    padded = any(per_channel(call.args["padding"], count))
    alike = not call.args["ceil_mode"] and (call.args["count_include_pad"] or not padded)
    if call.args.get("divisor_override") is None and alike and not call.sizes_are_known:
        rows, columns, largest = 1.0, overlap / math.prod(kernel), 1 / math.prod(kernel)
        plain = root(product(rows, columns)) if call.norm.l2 else rows
    else:
        sizes, operation = _spatial(call, count), call.operation(**_positive_divisor(call))
        rows, columns = nonnegative_sums(operation, sizes)
        largest = 0.0 if value.power == 1 else _largest_weight(call, operation, sizes, count)
        plain = call.norm.nonnegative(operation, sizes) if value.power == 1 else 0.0
    if value.power == 1:
        return call.x.scaled(plain)
    if not call.norm.l2:
        return value.scaled(_root_of_order(rows, value.power))
    if value.power == 2:
        return value.scaled(root(columns))
    return value.scaled(product(_root_of_order(largest, value.power), root(overlap)))


def _positive_divisor(call: Call) -> dict[str, int]:
    divisor = call.args.get("divisor_override")
    return {} if divisor is None else {"divisor_override": abs(divisor)}


def _largest_weight(call: Call, operation: Any, sizes: tuple[int, ...], count: int) -> float:
    """1 / the smallest divisor."""
    if call.args.get("divisor_override") is not None:
        return quotient(1.0, abs(float(call.args["divisor_override"])))
    windows = call.operation(divisor_override=1) if count > 1 else None
    ones = torch.ones(sizes, dtype=torch.float64)
    if windows is None:  # a row of an image
        kernel, stride = _window(call, 1)
        pads = per_channel(call.args["padding"], 1)
        counts = torch.nn.functional.avg_pool2d(
            ones[:, :, None], (1, *kernel), (1, *stride), (0, *pads),
            bool(call.args["ceil_mode"]), True, 1,
        )[:, :, 0]  # fmt: skip
    else:
        counts = windows(ones)
    return float((operation(ones) / counts).max()) * (1 + 1e-12)


def _root_of_order(value: float, order: int) -> float:
    return math.nextafter(value ** (1 / order) * (1 + 1e-15), math.inf)


def adaptive_avg_pool(call: Call) -> Value:
    """Norm of the pool's matrix for images of this size"""
    sizes = _spatial(call, _dimensions(call.op))
    return call.x.scaled(call.norm.nonnegative(call.operation(), sizes))


def adaptive_max_pool(call: Call) -> Any:
    """The root of how many windows a pixel is in"""
    count = _dimensions(call.op)
    inner = _spatial(call, count)[2:]
    outer = per_channel(call.args["output_size"], count)
    overlap = 1
    for size, windows in zip(inner, outer, strict=True):
        pixels: Counter[int] = Counter()
        for i in range(windows):
            pixels.update(range(i * size // windows, -(-(i + 1) * size // windows)))
        overlap *= max(pixels.values())
    return call.x.scaled(call.norm.copies(overlap)), None


def resize(call: Call) -> Value:
    """Norm of the matrix, nearest and linear: no weight is negative | bicubic"""
    return call.x.scaled(call.norm.nonnegative(call.operation(), _resized(call)))


def _resized(call: Call) -> tuple[int, ...]:
    return _spatial(call, call.rank() - 2)


def pad(call: Call) -> Value:
    """1 for constants; reflected, repeated and circular: the root of how often a pixel comes"""
    mode = call.args.get("mode", "constant" if call.op == "constant_pad_nd" else None)
    if mode is None:
        mode = next(m for m in ("reflect", "replicate", "circular") if m[:7] in call.op)
    if mode not in _PAD_MODES:
        raise call.refuse(f"pads by {mode}")
    if mode == "constant":
        return call.x.scaled(1.0)
    pads = call.args["pad" if "pad" in call.args else "padding"]
    count = len(pads) // 2
    if not call.sizes_are_known:  # for images of any size
        most = [1 + (max(p, 0) if mode == "replicate" else int(p > 0)) for p in pads]
        sides = zip(most[::2], most[1::2], strict=True)
        return call.x.scaled(call.norm.copies(math.prod(a + b - 1 for a, b in sides)))
    return call.x.scaled(call.norm.nonnegative(call.operation(), _spatial(call, count)))


def unfold(call: Call) -> Value:
    """The root of how many windows a pixel is in"""
    if call.op == "unfold":
        overlap = _overlap(int(call.args["size"]), int(call.args["step"]))
    else:
        kernel, stride, dilation = (
            per_channel(call.args[n], 2) for n in ("kernel_size", "stride", "dilation")
        )
        overlap = math.prod(_overlap(*a) for a in zip(kernel, stride, dilation, strict=True))
    return call.x.scaled(call.norm.copies(overlap))


def fold(call: Call) -> Value:
    """The same: the transpose"""
    kernel, stride, dilation = (
        per_channel(call.args[n], 2) for n in ("kernel_size", "stride", "dilation")
    )
    overlap = math.prod(_overlap(*a) for a in zip(kernel, stride, dilation, strict=True))
    return call.x.scaled(root(overlap) if call.norm.l2 else float(overlap))
