"""Sums, products and roots of bounds in float64 that are never below the true ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction


def product(a: float, b: float) -> float:
    """``a * b`` of numbers >= 0, rounded up where it is not exact."""
    return _raised(a * b, lambda: Fraction(a) * Fraction(b))


def total(values: Iterable[float]) -> float:
    """The sum of numbers >= 0, rounded up where it is not exact."""
    values = tuple(values)
    return _raised(math.fsum(values), lambda: sum(map(Fraction, values), Fraction(0)))


def quotient(a: float, b: float) -> float:
    """``a / b`` of a >= 0, b > 0, rounded up where it is not exact."""
    return _raised(a / b, lambda: Fraction(a) / Fraction(b))


def root(value: float) -> float:
    """The square root, rounded up where it is not exact."""
    found = math.sqrt(value)
    if not math.isfinite(found) or Fraction(found) ** 2 >= Fraction(value):
        return found
    return math.nextafter(found, math.inf)


def root_of_squares(values: Iterable[float]) -> float:
    """``sqrt(a^2 + b^2 ...)``, rounded up where it is not exact."""
    values = tuple(values)
    return values[0] if len(values) == 1 else root(total(product(v, v) for v in values))


def _raised(found: float, exact: object) -> float:
    if not math.isfinite(found) or Fraction(found) >= exact():  # type: ignore[operator]
        return found
    return math.nextafter(found, math.inf)
