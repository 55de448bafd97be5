"""Checks of arguments: errors that begin with the argument's name."""

from typing import Any

import torch
from torch import Tensor


def check_images(x: Any, seed: Any, memory_format: Any) -> None:
    """What every op that samples wants of its first arguments."""
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a 0-d tensor, want [B, *D]")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed!r}, want an int in [0, 2**64)")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"memory_format: got {memory_format}, want contiguous_format or channels_last"
        )


def check_out_dtype(out: Tensor, dtype: torch.dtype | None) -> None:
    if dtype is not None and out.dtype != dtype:
        raise ValueError(f"out: got {out.dtype}, want dtype {dtype}")


def check_floating(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: got {type(t).__name__}, want a tensor (see robustcore.as_tensor)")
    if not t.is_floating_point():
        raise TypeError(f"{name}: got {t.dtype}, want a floating dtype")


def per_channel(name: str, value: Any, x: Tensor) -> Tensor | None:
    """value as a tensor ``[1, C or 1, 1, ...]`` on x's device."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        value = _on_device(value, dtype, x.device)
    channels = x.shape[1] if x.dim() > 1 else 1
    if value.dim() > 1 or (value.numel() != 1 and value.numel() != channels):
        raise ValueError(
            f"{name}: got shape {list(value.shape)}, want one value or {channels}, one a channel"
        )
    return value.reshape(1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else value.reshape(1)


def _on_device(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor. On a GPU by kernels that write them: a copy from the host would wait."""
    if device.type == "cuda":
        if isinstance(value, (int, float)):
            return torch.full((), value, dtype=dtype, device=device)
        if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
            return torch.stack([torch.full((), v, dtype=dtype, device=device) for v in value])
    return torch.tensor(value, dtype=dtype, device=device)


def check_p(p: Any) -> float:
    """p as a float in [1, inf]."""
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"p: got {p!r}, want a number in [1, inf]")
    if not p >= 1:
        raise ValueError(f"p: got {p}, want at least 1 (inf included)")
    return float(p)


def check_filter(name: str, t: Any) -> None:
    """The weights of convolutions."""
    check_floating(name, t)
    if t.dim() < 4:
        raise ValueError(f"{name}: got shape {list(t.shape)}, want [..., O, I, kh, kw]")
