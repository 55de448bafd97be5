"""Checks of arguments: a TypeError or ValueError that begins with the argument's name.

What a tensor's shape or layout decides is checked by the compiled ops, in the same words. Here is
what they cannot see: types and devices. Unlike robustcore.common.checks, which are for what is read
on the host, these let through what torch.compile traces: symbolic numbers and meta tensors.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor


def check_tensor(name: str, t: Any) -> None:
    """A strided tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: got {type(t).__name__}, want a tensor (see robustcore.as_tensor)")
    if t.layout is not torch.strided or t.is_nested or t.is_quantized:
        raise TypeError(f"{name}: got a tensor of {t.layout}, {t.dtype}, want a dense one")


def check_floating(name: str, t: Any) -> None:
    """A strided tensor of a floating dtype that can be computed with: one of 8 bits is not."""
    check_tensor(name, t)
    if not t.is_floating_point() or t.dtype.itemsize < 2:
        raise TypeError(f"{name}: got {t.dtype}, want a floating dtype")


def check_device(name: str, t: Tensor, x: Tensor, x_name: str = "x") -> None:
    """t is where x is. An op would take a meta tensor beside real ones, and return a meta one."""
    if t.device != x.device:
        raise ValueError(f"{name}: is on {t.device}, {x_name} on {x.device}")


def check_out(name: str, out: Tensor, x: Tensor, x_name: str = "x") -> None:
    """Where an op can write beside x: a negative view takes no values."""
    check_device(name, out, x, x_name)
    if not torch.compiler.is_compiling() and out.is_neg():  # dynamo cannot trace it
        raise ValueError(f"{name}: is the view of a negative, want out.resolve_neg()")


def check_like(name: str, t: Any, x: Tensor, x_name: str = "x") -> None:
    """A strided tensor of x's dtype and device."""
    check_tensor(name, t)
    if t.dtype != x.dtype:
        raise TypeError(f"{name}: got {t.dtype}, want {x.dtype} as {x_name}")
    check_device(name, t, x, x_name)


def check_dtype(dtype: Any, x: Tensor) -> torch.dtype:
    """A floating dtype, or that of x."""
    if dtype is None:
        return x.dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise TypeError(f"dtype: got {_shown(dtype)}, want a floating torch.dtype")
    return dtype


def check_filter(name: str, t: Any) -> None:
    """The weights of convolutions, ``[..., O, I, kh, kw]``."""
    check_floating(name, t)
    if t.dim() < 4:
        raise ValueError(f"{name}: got shape {list(t.shape)}, want [..., O, I, kh, kw]")


def check_integer(name: str, value: Any, low: int = 0, below: int = 1 << 62) -> int:
    """An int in [low, below)."""
    if type(value) is int and low <= value < below:  # the short way
        return value
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise TypeError(f"{name}: got {_shown(value)}, want an int")
    number: int = value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore
    if not low <= number < below:
        limit = f"in [{low}, 2**{below.bit_length() - 1})" if below < 1 << 62 else f"at least {low}"
        raise ValueError(f"{name}: got {number}, want an int {limit}")
    return number


def check_number(name: str, value: Any) -> float:
    """A number as a float."""
    if type(value) is float:
        return value
    # numbers.Real: NumPy's scalars register themselves there.
    if isinstance(value, bool) or not isinstance(value, (float, int, torch.SymFloat, numbers.Real)):
        raise TypeError(f"{name}: got {_shown(value)}, want a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: got {_shown(value)}, want a number that fits a float") from None


def check_p(p: Any) -> float:
    """The p of a norm, in [1, inf], as a float."""
    p = check_number("p", p)
    if not p >= 1:
        raise ValueError(f"p: got {p}, want at least 1 (inf included)")
    return p


def check_images(x: Any, dtype: Any, memory_format: Any, out: Any) -> tuple[torch.dtype, bool]:
    """x ``[B, *D]``, and what its samples are wanted in; their dtype, and if channels last."""
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a 0-d tensor, want [B, *D]")
    if memory_format is not torch.contiguous_format and memory_format is not torch.channels_last:
        raise ValueError(
            f"memory_format: got {_shown(memory_format)}, want torch.contiguous_format or "
            "torch.channels_last"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: got {_shown(dtype)}, want a floating torch.dtype")
    if out is not None:
        check_floating("out", out)
        check_out("out", out, x)
        if dtype is not None and out.dtype != dtype:
            raise ValueError(f"out: got {out.dtype}, want dtype {dtype}")
        if out.requires_grad:
            raise ValueError("out: requires a gradient; what is written there has none")
        dtype = out.dtype
    return dtype or x.dtype, memory_format is torch.channels_last


def pair(name: str, value: Any, low: int = 1) -> tuple[int, int]:
    """An int or two, of rows and of columns, in [low, 2**31)."""
    two = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(two) not in (1, 2):
        raise ValueError(f"{name}: got {_shown(value)}, want an int or two")
    first, *_, last = (check_integer(name, one, low, 1 << 31) for one in (two[0], two[-1]))
    return first, last


def per_channel(name: str, value: Any, x: Tensor) -> Tensor | None:
    """A number, one a channel or a tensor of them, as a tensor ``[1, C or 1, 1, ...]`` beside x."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        check_floating(name, value)
        check_device(name, value, x)
    else:
        value = _numbers(name, value, x)
    channels = x.shape[1] if x.dim() > 1 else 1
    if value.dim() > 1 or (value.numel() != 1 and value.numel() != channels):
        raise ValueError(
            f"{name}: got shape {list(value.shape)}, want one value or {channels}, one a channel"
        )
    return value.reshape(1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else value.reshape(1)


def _numbers(name: str, value: Any, x: Tensor) -> Tensor:
    """Numbers as a tensor. On a GPU by kernels that write them: a copy from the host would wait."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy's
    many = isinstance(value, (list, tuple))
    values = [check_number(name, v) for v in (value if many else [value])]
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"{name}: got {_shown(value)}, want finite numbers")
    if name == "std" and not all(v > 0 for v in values):
        raise ValueError(f"std: got {_shown(value)}, want numbers above 0")
    if x.device.type != "cuda" or not values:
        return torch.tensor(values if many else values[0], dtype=dtype, device=x.device)
    filled = [torch.full((), v, dtype=dtype, device=x.device) for v in values]
    return torch.stack(filled) if many else filled[0]


def _shown(value: Any) -> str:
    """A value of the wrong kind, in a few words."""
    text = type(value).__name__ if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
