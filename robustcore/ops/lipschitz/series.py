"""Polynomials in a skew operator that stand for its exponential, with rigorous errors."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import scipy  # scipy.special is loaded where it is first used

from robustcore.common.checks import require_choice, require_flag
from robustcore.ops.autograd import constant_when_compiled
from robustcore.ops.checks import check_integer, check_number

_MAX_DEGREE = 500
# Beyond it no such degree is near the exponential, and Taylor's terms overflow.
_MAX_RADIUS = 700


class Series(NamedTuple):
    """A polynomial p(L) as the recurrence that evaluates it, one application of L a degree.

    ``u[k] = coefficients[k] x + (step L) u[k + 1] + carry u[k + 2]``, with ``first`` in place of
    ``step`` at k = 0; ``u[degree + 1] = u[degree + 2] = 0`` and ``p(L) x = u[0]``.
    """

    coefficients: tuple[float, ...]
    first: float
    step: float
    carry: float
    error: float
    """``norm(p(L) - exp(L))`` is at most this for every skew L of norm at most the radius."""
    lipschitz: float
    """``norm(p(L))`` is at most this for the same L: 1 + error, or 1 if scaled."""
    fused: bool | None = None
    """Whether a GPU evaluates it in one kernel: see :func:`conv_exp`."""

    @property
    def degree(self) -> int:
        """Applications of L."""
        return len(self.coefficients) - 1


def exp_series(
    radius: float,
    tol: float | None = None,
    degree: int | None = None,
    *,
    method: str = "chebyshev",
    contractive: bool = False,
) -> Series:
    """The series of the smallest degree with ``error <= tol``, or of the given degree.

    On the imaginary segment of half-length r the Chebyshev (Jacobi-Anger) expansion
    ``J0(r) + 2 sum Jk(r) Tk~`` has an error of at most ``2 sum over k > degree of |Jk(r)|``, the
    Taylor series one of at most ``sum over k > degree of r^k / k!``.

    Args:
        radius: bound of the operator's norm, in [0, 700].
        tol, degree: exactly one of them.
        method: ``chebyshev`` or ``taylor``.
        contractive: divide by 1 + the error above, so that ``norm(p(L)) <= 1`` in exact arithmetic;
            the distance to the exponential is then at most twice as large, which ``error`` (and the
            degree chosen) takes into account.

    Returns:
        A :class:`Series`: its coefficients, ``degree``, ``error`` and ``lipschitz`` bound.

    Raises ValueError or TypeError naming the argument. Not differentiable.
    Source: Abramowitz and Stegun 9.1.44; Tal-Ezer and Kosloff, 1984.

    >>> exp_series(1.3, tol=1e-6).degree, exp_series(1.3, tol=1e-6, method="taylor").degree
    (8, 10)
    """
    radius = check_number("radius", radius)
    if not 0 <= radius <= _MAX_RADIUS:
        raise ValueError(f"radius: got {radius}, want a number in [0, {_MAX_RADIUS}]")
    if (tol is None) == (degree is None):
        raise ValueError(f"tol, degree: got {tol} and {degree}, want exactly one of them")
    if tol is not None:
        tol = check_number("tol", tol)
        if not 1e-15 <= tol < math.inf:
            raise ValueError(f"tol: got {tol}, want a number of at least 1e-15")
    if degree is not None and check_integer("degree", degree) > _MAX_DEGREE:
        raise ValueError(f"degree: got {degree}, want an int in [0, {_MAX_DEGREE}]")
    require_choice("method", method, ("chebyshev", "taylor"))
    contractive = require_flag("contractive", contractive)
    series: Series = _cached(radius, tol, degree, method, contractive)
    return series


@constant_when_compiled
def _series(
    radius: float, tol: float | None, degree: int | None, method: str, contractive: bool
) -> Series:
    chebyshev = method == "chebyshev"
    # Enough terms that the rest is far below double precision: |Jk(r)| <= (r/2)^k / k!, and the
    # terms of both fall faster than a factor of 2 a degree once k > 2 r.
    base = radius / 2 if chebyshev else radius
    count = 16 + (degree or 0)
    while count <= 2 * radius or count * math.log(base or 1e-300) - math.lgamma(count + 1) > -90:
        count += 8
    if chebyshev:
        terms = [abs(float(scipy.special.jv(k, radius))) * (2 if k else 1) for k in range(count)]
    else:
        terms = [math.exp(k * math.log(radius) - math.lgamma(k + 1)) if radius else float(k == 0)
                 for k in range(count)]  # fmt: skip
    tails = [0.0] * count  # tails[d]: what the degrees above d amount to
    for k in range(count - 1, 0, -1):
        tails[k - 1] = tails[k] + terms[k]

    def errors(d: int) -> tuple[float, float]:
        # The coefficients themselves carry a rounding of a few units each.
        tail = tails[d] + 1e-16 * (d + 1)
        return tail, 2 * tail if contractive else tail

    if degree is None:
        assert tol is not None
        found = (d for d in range(min(count, _MAX_DEGREE + 1)) if errors(d)[1] <= tol)
        degree = next(found, None)
        if degree is None:
            raise ValueError(
                f"tol: no degree up to {_MAX_DEGREE} reaches {tol} at radius {radius:g}"
            )
    tail, error = errors(degree)
    scale = 1 / (1 + tail) if contractive else 1.0
    lipschitz = 1.0 if contractive else 1 + tail
    if radius == 0 and chebyshev:
        return Series((scale,) + (0.0,) * degree, 1.0, 1.0, 0.0, error, lipschitz)
    if chebyshev:
        values = [
            scale * (2 if k else 1) * float(scipy.special.jv(k, radius)) for k in range(degree + 1)
        ]
        return Series(tuple(values), 1 / radius, 2 / radius, 1.0, error, lipschitz)
    values = [scale / math.factorial(k) for k in range(degree + 1)]
    return Series(tuple(values), 1.0, 1.0, 0.0, error, lipschitz)


_cached = lru_cache(maxsize=4096)(_series)
