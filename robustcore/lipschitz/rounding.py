"""Sums, products and roots of bounds in float64 that are never below the true ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import TypeAlias, overload

import torch
from torch import Tensor

Bound: TypeAlias = float | Tensor
"""A number, or a float64 tensor of one an image."""


def raised(value: Tensor) -> Tensor:
    """The next numbers above: no smaller than the exact ones that were rounded to these."""
    return torch.nextafter(value, torch.full_like(value, math.inf))


@overload
def product(a: float, b: float) -> float: ...
@overload
def product(a: Bound, b: float) -> Bound: ...
def product(a: Bound, b: float) -> Bound:
    """``a * b`` of numbers >= 0, rounded up where it is not exact."""
    if isinstance(a, Tensor):
        return raised(a * b)
    return _raised(a * b, lambda: Fraction(a) * Fraction(b))


@overload
def total(values: Iterable[float]) -> float: ...
@overload
def total(values: Iterable[Bound]) -> Bound: ...
def total(values: Iterable[Bound]) -> Bound:
    """The sum of numbers >= 0, rounded up where it is not exact."""
    numbers, tensors = _apart(values)
    exact = sum(map(Fraction, numbers), Fraction(0))
    found = _raised(math.fsum(numbers), lambda: exact)
    if not tensors:
        return found
    return functools.reduce(lambda a, b: raised(a + b), tensors[1:], raised(tensors[0] + found))


@overload
def largest(values: Iterable[float]) -> float: ...
@overload
def largest(values: Iterable[Bound]) -> Bound: ...
def largest(values: Iterable[Bound]) -> Bound:
    """Of at least one."""
    numbers, tensors = _apart(values)
    if not tensors:
        return max(numbers)
    low = max(numbers, default=0.0)
    return functools.reduce(torch.maximum, tensors).clamp(min=low)


def _apart(values: Iterable[Bound]) -> tuple[list[float], list[Tensor]]:
    values = list(values)
    numbers = [v for v in values if not isinstance(v, Tensor)]
    return numbers, [v for v in values if isinstance(v, Tensor)]


def quotient(a: float, b: float) -> float:
    """``a / b`` of a >= 0, b > 0, rounded up where it is not exact."""
    return _raised(a / b, lambda: Fraction(a) / Fraction(b))


@overload
def root(value: float) -> float: ...
@overload
def root(value: Bound) -> Bound: ...
def root(value: Bound) -> Bound:
    """The square root, rounded up where it is not exact."""
    if isinstance(value, Tensor):
        return raised(value.sqrt())
    found = math.sqrt(value)
    if not math.isfinite(found) or Fraction(found) ** 2 >= Fraction(value):
        return found
    return math.nextafter(found, math.inf)


@overload
def root_of_squares(values: Iterable[float]) -> float: ...
@overload
def root_of_squares(values: Iterable[Bound]) -> Bound: ...
def root_of_squares(values: Iterable[Bound]) -> Bound:
    """``sqrt(a^2 + b^2 ...)``, rounded up where it is not exact."""
    values = tuple(values)
    if len(values) == 1:
        return values[0]
    return root(total(raised(v * v) if isinstance(v, Tensor) else product(v, v) for v in values))


def _raised(found: float, exact: object) -> float:
    if not math.isfinite(found) or Fraction(found) >= exact():  # type: ignore[operator]
        return found
    return math.nextafter(found, math.inf)
