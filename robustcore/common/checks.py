"""Argument checks: the message names the argument, what was got and what is wanted."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def require_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as a Python int in ``[low, high)``; TypeError unless an integer (a bool is not)."""
    wanted = f"an integer of at least {low}" if high is None else f"an integer in [{low}, {high})"
    if isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError(f"{name}: got {value!r}, want {wanted}")
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):  # the latter for a tensor without values
        raise TypeError(
            f"{name}: got {value!r} of type {type(value).__name__}, want {wanted}"
        ) from None
    if number < low or (high is not None and number >= high):
        raise ValueError(f"{name}: got {number}, want {wanted}")
    return number


def require_real(name: str, value: Any, wanted: str) -> float:
    """``value`` as a finite float; TypeError unless a real number, ValueError unless finite."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, want {wanted}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: got {number}, want {wanted}")
    return number


def require_positive(name: str, value: Any) -> float:
    """``value`` as a float above 0."""
    wanted = "a finite number above 0"
    number = require_real(name, value, wanted)
    if number <= 0:
        raise ValueError(f"{name}: got {number}, want {wanted}")
    return number


def require_not_negative(name: str, value: Any, wanted: str = "a number of at least 0") -> float:
    """``value`` as a finite float of at least 0."""
    number = require_real(name, value, wanted)
    if number < 0:
        raise ValueError(f"{name}: got {number}, want {wanted}")
    return number


def require_probability(name: str, value: Any) -> float:
    """``value`` as a float strictly between 0 and 1."""
    wanted = "a number strictly between 0 and 1"
    number = require_real(name, value, wanted)
    if not 0 < number < 1:
        raise ValueError(f"{name}: got {number}, want {wanted}")
    return number


def require_fraction(name: str, value: Any) -> float:
    """``value`` as a float in [0, 1]."""
    wanted = "numbers in [0, 1]"
    number = require_real(name, value, wanted)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: got {number}, want {wanted}")
    return number


def require_radii(radii: Any) -> Tensor:
    """Radii of any shape as float64 on the CPU: numbers of at least 0, infinity included."""
    wanted = "numbers of at least 0"
    try:
        values = np.asarray(radii.detach().cpu() if isinstance(radii, Tensor) else radii)
        if values.dtype.kind not in "iuf":
            raise TypeError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"radii: got {radii!r}, want {wanted}") from None
    if not np.all(values >= 0):
        raise ValueError(f"radii: got {radii}, want {wanted}")
    return torch.from_numpy(values.astype(np.float64))


def require_sequence(name: str, value: Any, wanted: str) -> list[Any]:
    """The things of a sequence, an array or a tensor of one dimension; a text is none."""
    if isinstance(value, Tensor) and require_values(name, value).dim() == 1:
        return list(value.tolist())
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value.tolist())
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, want {wanted}")
    return list(value)


def require_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words."""
    wanted = f"one of {', '.join(choices)}"
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, want {wanted}")
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, want {wanted}")
    return value


def require_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, want True or False")
    return bool(value)


def require_seed(value: Any) -> int:
    """An integer that is a seed."""
    return require_int("seed", value, 0, 2**64)


def require_callable(name: str, value: Any) -> None:
    """A module or a function."""
    if not callable(value):
        raise TypeError(f"{name}: got {type(value).__name__}, want a module or a function")


def require_module(name: str, value: Any) -> None:
    """A torch.nn.Module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: got {type(value).__name__}, want a torch.nn.Module")


def require_parameter_form(device: Any, dtype: Any) -> None:
    """Where a layer's parameters are made, and of which floating dtype; None: torch's default."""
    try:
        torch.empty(0, device=device)  # what is missing shows only when it is used
    except (TypeError, RuntimeError, ValueError, OverflowError, AssertionError) as error:
        if isinstance(device, (str, int)):
            raise ValueError(f"device: got {device!r}: {error}") from None
        raise TypeError(f"device: got a {type(device).__name__}, want a torch.device") from None
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: got {dtype!r}, want a torch.dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype: got {dtype}, want a floating dtype")


def require_values(name: str, value: Any) -> Tensor:
    """A tensor whose values are there: strided, and on no meta device."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: got {type(value).__name__}, want a tensor (see robustcore.as_tensor)"
        )
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        got = f"a tensor of {value.layout}, {value.dtype}"
        raise TypeError(f"{name}: got {got}, want a dense one")
    if value.is_meta:
        raise ValueError(f"{name}: got a tensor on the meta device, want one with values")
    return value


def require_floating(name: str, value: Any) -> Tensor:
    """A tensor of a floating dtype that can be computed with: one of 8 bits is not."""
    if not require_values(name, value).is_floating_point() or value.dtype.itemsize < 2:
        raise TypeError(f"{name}: got {value.dtype}, want a floating dtype")
    return value  # type: ignore[no-any-return]


def require_integers(name: str, value: Any) -> Tensor:
    """A tensor of an integer dtype; bool is none."""
    dtype = require_values(name, value).dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"{name}: got {dtype}, want an integer dtype")
    return value  # type: ignore[no-any-return]


def require_broadcast(name: str, value: Tensor, like: Tensor, like_name: str = "x") -> Tensor:
    """The tensor broadcast to the shape of another."""
    try:
        return value.broadcast_to(like.shape)
    except RuntimeError:
        got, want = list(value.shape), list(like.shape)
        raise ValueError(
            f"{name}: got shape {got}, want one that broadcasts to that of {like_name}, {want}"
        ) from None


def require_classes(name: str, value: Any, rows: int, classes: int | None = None) -> Tensor:
    """Classes int64 ``[rows]``, in [0, classes) where that is known."""
    labels = require_values(name, value)
    if labels.dtype != torch.int64:
        raise TypeError(f"{name}: got {labels.dtype}, want an int64 tensor [{rows}]")
    if labels.shape != (rows,):
        raise ValueError(f"{name}: got shape {list(labels.shape)}, want [{rows}]")
    if classes is not None and rows:
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < 0 or high >= classes:
            raise ValueError(f"{name}: got {low} to {high}, want [0, {classes})")
    return labels


def require_logits(name: str, logits: Any, rows: int) -> Tensor:
    """What the model or function of that name gave for so many images: floating ``[rows, K]``."""
    want = f"want floating logits [{rows}, K]"
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{name}: gave {got}, {want}")
    if logits.dim() != 2 or logits.shape[0] != rows or logits.shape[1] == 0:
        raise ValueError(f"{name}: gave shape {list(logits.shape)}, {want}")
    return logits


def require_single_image(image: Any) -> Tensor:
    """``[C, H, W]`` or ``[1, C, H, W]`` as the latter."""
    x = require_floating("image", image)
    x = x.unsqueeze(0) if x.dim() == 3 else x
    if x.dim() != 4 or len(x) != 1 or x.numel() == 0:
        raise ValueError(f"image: got shape {list(image.shape)}, want [C, H, W] or [1, C, H, W]")
    return x


def require_labelled(images: Any, labels: Any) -> None:
    """images ``[B, C, H, W]`` and int64 labels ``[B]``, at least one."""
    if require_floating("images", images).dim() != 4 or images.numel() == 0:
        raise ValueError(f"images: got shape {list(images.shape)}, want [B, C, H, W], not empty")
    require_classes("labels", labels, len(images))
