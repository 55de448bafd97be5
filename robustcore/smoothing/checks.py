"""Argument checks: the message names the argument, what was got and what is wanted."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np


def require_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as a Python int in ``[low, high)``; TypeError unless an integer (a bool is not)."""
    wanted = f"an integer of at least {low}" if high is None else f"an integer in [{low}, {high})"
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {value!r}, want {wanted}")
    try:
        number = operator.index(value)
    except TypeError:
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
    number = float(value)
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


def require_probability(name: str, value: Any) -> float:
    """``value`` as a float strictly between 0 and 1."""
    wanted = "a number strictly between 0 and 1"
    number = require_real(name, value, wanted)
    if not 0 < number < 1:
        raise ValueError(f"{name}: got {number}, want {wanted}")
    return number
