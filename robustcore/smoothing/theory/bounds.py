"""Confidence bounds and radii: float64 throughout, counts as integers, one-sided levels.

Everything takes Python scalars, NumPy arrays (or nested lists) or tensors, broadcasts them, and
answers in kind: a float, an array, or a tensor on the device of the first tensor given.
"""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from robustcore.common.checks import require_probability

FloatArray = npt.NDArray[np.float64]
LEAST_LEVEL = 1e-100


@overload
def clopper_pearson_lower(k: int, n: int, alpha: float) -> float: ...
@overload
def clopper_pearson_lower(k: torch.Tensor, n: Any, alpha: Any) -> torch.Tensor: ...
@overload
def clopper_pearson_lower(k: npt.ArrayLike, n: Any, alpha: Any) -> FloatArray: ...
def clopper_pearson_lower(k: Any, n: Any, alpha: Any) -> Any:
    """Lower confidence bound of a probability, from ``k`` successes in ``n`` independent draws.

    The true probability is at least the bound with probability ``1 - alpha`` or more, rounding
    included. The level is one-sided. ``k = 0`` gives 0, ``k = n`` gives ``alpha ** (1 / n)``.

    Args:
        k: successes, integers in [0, n] (a float array may hold integers, nothing else).
        n: draws, integers of at least 1.
        alpha: failure probability, in [1e-100, 1): below, the quantile's routine fails without a
            word for some counts.

    Returns:
        float64, of the broadcast shape of the arguments.

    Raises:
        TypeError: a count that is no number.
        ValueError: a count that is no integer or out of range, or alpha outside [1e-100, 1).

    Not differentiable. Source: Clopper and Pearson, 1934; used by Cohen et al., 2019.

    >>> round(float(clopper_pearson_lower(99_000, 100_000, 0.001)), 6)
    0.988989
    """
    from scipy import special

    successes, draws = _integers("k", k), _integers("n", n)
    level = _reals("alpha", alpha)
    _check_shapes(k=successes, n=draws, alpha=level)
    _require("alpha", level, (level >= LEAST_LEVEL) & (level < 1), "numbers in [1e-100, 1)")
    _require("n", draws, draws >= 1, "at least 1")
    wrong = ~((successes >= 0) & (successes <= draws))
    if np.any(wrong):
        counts, sizes, _ = np.broadcast_arrays(successes, draws, wrong)
        got = f"{counts[wrong][0]:g} for n = {sizes[wrong][0]:g}"
        raise ValueError(f"k: got {got}, want integers in [0, n]")
    # The quantile is not defined at k = 0; at k = n it is the power.
    inside = np.maximum(successes, 1)
    bound = special.betaincinv(inside, draws - inside + 1, level)
    bound = np.where(inside == draws, level ** (1 / draws), bound)
    bound = _lowered(bound, inside, draws, level)
    return _in_kind(np.where(successes == 0, 0.0, bound), k, n, alpha)


def _lowered(bound: FloatArray, k: FloatArray, n: FloatArray, level: FloatArray) -> FloatArray:
    """Quantiles that exceed no level: ``betaincinv`` alone errs by up to 3e-6 of it.

    The tail itself is right to 7e-13 at n = 10**6, 2e-11 at 10**10, against 140 binary digits.
    """
    from scipy import special

    slack = 1 + 2e-12 + 1e-15 * np.sqrt(n)
    step = 2.0**-52
    while True:
        tail = np.where(k == n, bound**n, special.betainc(k, n - k + 1, bound) * slack)
        above = tail > level
        if not above.any():
            return bound
        bound = np.where(above, bound * (1 - step), bound)
        step *= 2


@overload
def gaussian_radius(p_lower: float, sigma: float) -> float: ...
@overload
def gaussian_radius(p_lower: torch.Tensor, sigma: Any) -> torch.Tensor: ...
@overload
def gaussian_radius(p_lower: npt.ArrayLike, sigma: Any) -> FloatArray: ...
def gaussian_radius(p_lower: Any, sigma: Any) -> Any:
    """l2 radius certified by Gaussian smoothing: ``sigma * Phi^-1(p_lower)``.

    Args:
        p_lower: lower bound of the top class's probability, in [0, 1]. Below 1/2 the formula is
            negative and certifies nothing (a certificate abstains there); 1 gives infinity.
        sigma: standard deviation of the noise, above 0, in the units of the image.

    Returns:
        float64, in the units of ``sigma``, of the broadcast shape of the arguments. Relative error
        of a few 1e-16 for the ``p_lower`` given. Near 1, ``p_lower`` itself is rounded to a
        multiple of 2**-53: for all of n = 1e9 votes at alpha = 0.001 that moves the radius by
        about 3e-10 of itself.

    Raises:
        TypeError: an argument that is no number, or an array or tensor of less than float64: a
            bound stored in float32 may have been rounded up, and the radius would not be certified.
        ValueError: p_lower outside [0, 1] or NaN, or sigma not above 0.

    Not differentiable. Source: Cohen et al., 2019, theorem 1.

    >>> round(float(gaussian_radius(0.99, sigma=0.25)), 4)
    0.5816
    """
    from scipy import special

    probability, scale = _reals("p_lower", p_lower), _reals("sigma", sigma, any_width=True)
    _check_shapes(p_lower=probability, sigma=scale)
    inside = (probability >= 0) & (probability <= 1)
    _require("p_lower", probability, inside, "numbers in [0, 1]")
    _require("sigma", scale, np.isfinite(scale) & (scale > 0), "a finite number above 0")
    return _in_kind(scale * special.ndtri(probability), p_lower, sigma)


def smallest_certifiable_n(alpha: float) -> int:
    """Fewest samples that can certify at ``alpha``: if all agree, the bound reaches 1/2."""
    level = require_probability("alpha", alpha)
    n = max(1, math.ceil(-math.log2(level)))
    # log2 is rounded: settle the last unit with the bound that decides in the end.
    if n > 1 and level ** (1.0 / (n - 1)) >= 0.5:
        return n - 1
    return n if level ** (1.0 / n) >= 0.5 else n + 1


def smallest_predictable_n(alpha: float) -> int:
    """Fewest samples with which ``predict`` can answer at ``alpha``: its test is two-sided."""
    # n unanimous votes have the p-value min(1, 2**(1 - n)).
    return 1 + math.ceil(-math.log2(require_probability("alpha", alpha)))


def accuracy_slack(alpha: float, images: int, rho: float) -> float:
    """How far the part of right certificates may be below the counted one, but for ``rho``.

    Each of ``images`` certificates is wrong with probability ``alpha`` at most, independently; none
    is where alpha is 0. Source: Cohen et al., 2019, appendix (Bernstein's inequality).
    """
    if alpha == 0:
        require_probability("rho", rho)
        return 0.0
    tail = -math.log(require_probability("rho", rho))
    return alpha + math.sqrt(alpha * (1 - alpha) * tail / images) + tail / (3 * images)


def two_sided_p_value(count1: FloatArray, count2: FloatArray) -> FloatArray:
    """p-value of the two-sided binomial test that two classes are equally likely.

    ``count1`` and ``count2``: votes, integers, any one shape; no votes at all gives 1. The larger
    count must be the first. Equals ``scipy.stats.binomtest(count1, count1 + count2).pvalue``, whose
    two tails are equal at 1/2, for whole arrays. Source: Hung and Fithian, 2019.
    """
    from scipy import special

    # P(X >= count1) as an incomplete beta function; it wants a positive count, and no votes give 1.
    tail: FloatArray = special.betainc(np.maximum(count1, 1), count2 + 1, 0.5)
    return np.minimum(1.0, 2.0 * tail)


def _to_numpy(name: str, value: Any) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: got {value!r}, want numbers") from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: got {value!r}, want numbers")
    return array


def _require(name: str, values: FloatArray, right: npt.NDArray[np.bool_], wanted: str) -> None:
    """ValueError, naming the first of the values that is not right."""
    if not np.all(right):
        raise ValueError(f"{name}: got {values[~right][0]:g}, want {wanted}")


def _check_shapes(**arrays: FloatArray) -> None:
    """ValueError, naming the first that does not broadcast to those before it."""
    shape: tuple[int, ...] = ()
    for name, array in arrays.items():
        try:
            shape = np.broadcast_shapes(shape, array.shape)
        except ValueError:
            raise ValueError(
                f"{name}: got shape {list(array.shape)}, which does not broadcast to {list(shape)}"
            ) from None


def _integers(name: str, value: Any) -> FloatArray:
    """The counts as float64, which holds every integer below 2**53."""
    array = _to_numpy(name, value)
    if array.dtype.kind == "f":
        _require(name, array, array == np.floor(array), "integers")
    _require(name, array, array < 2**53, "integers below 2**53")
    return array.astype(np.float64)


def _reals(name: str, value: Any, any_width: bool = False) -> FloatArray:
    array = _to_numpy(name, value)
    if array.dtype.kind == "f" and array.dtype.itemsize < 8 and not any_width:
        raise TypeError(f"{name}: got {array.dtype}, want float64: rounding may have raised it")
    return array.astype(np.float64)


def _in_kind(result: npt.NDArray[Any], *arguments: Any) -> Any:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            return torch.as_tensor(result, dtype=torch.float64, device=argument.device)
    if all(isinstance(a, (int, float, np.number)) for a in arguments):
        return float(result)
    return result
