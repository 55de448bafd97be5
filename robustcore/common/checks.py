"""Argument checks: the message names the argument, what was got and what is wanted."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def require_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as a Python int in ``[low, high)``; TypeError unless an integer (a bool is not)."""
    wanted = f"an integer of at least {low}" if high is None else f"an integer in [{low}, {high})"
    if isinstance(value, (bool, np.bool_)):
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


def check_single_image(image: Tensor) -> Tensor:
    """``[C, H, W]`` or ``[1, C, H, W]`` as the latter."""
    if not isinstance(image, Tensor):
        raise TypeError(f"image: got {type(image).__name__}, want a floating tensor")
    if not image.is_floating_point():
        got = image.dtype
        raise TypeError(f"image: got {got}, want a floating tensor")
    x = image.unsqueeze(0) if image.dim() == 3 else image
    if x.dim() != 4 or len(x) != 1:
        raise ValueError(f"image: got shape {list(image.shape)}, want [C, H, W] or [1, C, H, W]")
    return x


def check_segments(segments: Any, image: Tensor) -> tuple[Tensor, int]:
    """A map ``[H, W]`` of segments 0 .. S - 1 as int64, and S."""
    if not isinstance(segments, Tensor):
        segments = torch.as_tensor(segments)
    if segments.shape != image.shape[2:]:
        raise ValueError(
            f"segments: got shape {list(segments.shape)}, want {list(image.shape[2:])} like image"
        )
    if segments.is_floating_point() or segments.dtype == torch.bool:
        raise TypeError(f"segments: got {segments.dtype}, want an integer dtype")
    segments = segments.to(image.device, torch.int64)
    if int(segments.min()) < 0:
        raise ValueError(f"segments: got {int(segments.min())}, want 0 and above")
    return segments, int(segments.max()) + 1


def check_images(images: Any, labels: Any) -> None:
    """images ``[B, C, H, W]`` and int64 labels ``[B]``."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() != 4:
        got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: got {got}, want floating [B, C, H, W]")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels: got {kind}, want an int64 tensor [B]")
    if len(labels) != len(images) or len(images) == 0:
        raise ValueError(f"labels: got {len(labels)} labels for {len(images)} images")
