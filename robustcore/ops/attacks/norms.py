"""What the ops of attacks take beside images: norms by name, values of one an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, fake_dense, is_channels_last
from robustcore.ops.checks import check_device, check_floating, check_number, check_tensor

NORMS = ("linf", "l2", "l1", "l0")  # in the order of csrc/attacks/ball.h


def norm_number(norm: Any, names: tuple[str, ...] = NORMS) -> int:
    """The number of a norm, by its name in any case."""
    if not isinstance(norm, str):
        raise TypeError(f"norm: got {type(norm).__name__}, want one of {', '.join(names)}")
    if norm.lower() not in names:
        raise ValueError(f"norm: got {norm!r}, want one of {', '.join(names)}")
    return NORMS.index(norm.lower())


def per_row(name: str, value: Any, x: Tensor, stand_in: float = 1.0) -> tuple[float, Tensor | None]:
    """A number, or one an image, as the raw ops take it: the tensor's values are not checked."""
    if not isinstance(value, Tensor):
        return check_number(name, value), None
    check_floating(name, value)
    check_device(name, value, x)
    if value.dim() != 1 or value.shape[0] != x.shape[0]:
        raise ValueError(f"{name}: got shape {list(value.shape)}, want [{x.shape[0]}]")
    return stand_in, value.detach().to(arithmetic(x))


def row_indices(name: str, t: Any, x: Tensor) -> Tensor:
    """int64 ``[B]`` beside x, contiguous."""
    check_tensor(name, t)
    check_device(name, t, x)
    if t.dtype != torch.int64 or t.dim() != 1 or t.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name}: got {t.dtype} of shape {list(t.shape)}, want int64 [{x.shape[0]}]"
        )
    return t.contiguous()


def check_image_like(name: str, t: Any, x: Tensor) -> None:
    """A tensor of x's shape, dtype and device."""
    check_tensor(name, t)
    if t.dtype != x.dtype:
        raise TypeError(f"{name}: got {t.dtype}, want {x.dtype} as x")
    check_device(name, t, x)
    if t.shape != x.shape:
        raise ValueError(f"{name}: got shape {list(t.shape)}, want {list(x.shape)} as x")


def fake_image(x: Tensor) -> Tensor:
    """An empty tensor like x: channels last where x is, else contiguous."""
    return fake_dense(x, x.shape, is_channels_last(x))
