"""How a failure probability is spent over the looks at a growing sample.

A sample that is looked at several times cannot use the bound of a fixed size at each look: the
chances to err add up. Two ways of sharing alpha between the looks are here, both exact in the
discrete model, neither asymptotic: the distribution of all looks together
(:func:`crossing_counts`), and a level for each (:func:`separate_counts`), where draws may differ in
their probabilities. Sizes and counts are integers, levels float64.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# A look costs a share of alpha and a wait for the device; too few let an image run on for long
# after it was decided. Between 1.3 and 2 the mean cost hardly depends on it.
GROWTH = 1.5
# Relative slack for rounding. The probabilities below are sums and products of positive terms,
# whose relative error is that of the logarithms of factorials: below 1e-6 in all up to MAX_SIZE.
SLACK = 1e-6
MAX_SIZE = 10**8


class Looks(NamedTuple):
    """Sizes of the sample at each look, and what may have been spent by then."""

    sizes: tuple[int, ...]
    spent: tuple[float, ...]
    """Cumulative; the last is alpha at most."""

    def levels(self) -> tuple[float, ...]:
        """What each look may spend by itself; they sum to alpha at most."""
        before = (0.0, *self.spent[:-1])
        # Rounded down, so that no sum of them exceeds alpha in real arithmetic.
        return tuple((s - b) * (1 - 1e-15) for s, b in zip(self.spent, before, strict=True))


def plan_looks(most: int, alpha: float, first: int, whole: int = 1) -> Looks:
    """Looks at sizes that grow by half, from about ``first`` to ``most``.

    All but the last are multiples of ``whole``.

    Half of alpha is kept for the last look, so that a sample that is never stopped ends with nearly
    the bound of a fixed size; the others share the other half equally. A single look has it all.
    """
    sizes = [most]
    while sizes[0] / GROWTH >= max(first, whole):
        sizes.insert(0, int(sizes[0] / GROWTH) // whole * whole)
    early = len(sizes) - 1
    spent = [alpha / 2 * (j + 1) / early for j in range(early)]
    return Looks(tuple(sizes), (*spent, alpha))


@lru_cache(maxsize=256)
def crossing_counts(p0: float, looks: Looks) -> tuple[int, ...]:
    """Counts that show, look by look, that a probability is above ``p0``.

    With success probability ``p0`` or less, the number of successes reaches the count of any look
    with a probability of at most alpha: the counts are the smallest that keep the probability of a
    first crossing within what may be spent, computed by carrying the distribution of the count of
    all samples that have not crossed from look to look. What an integer count leaves unspent is
    there for the next look. That the probability grows with the success probability follows from
    coupling the draws, so ``p0`` is the worst case. A count above the size means: not yet.

    Source: Lan and DeMets, "Discrete sequential boundaries for clinical trials", 1983, for the
    binomial distribution itself instead of its normal approximation.
    """
    alpha = looks.spent[-1]
    negligible = alpha * 1e-9 / len(looks.sizes)
    low, mass = 0, np.ones(1)  # P(count = low + i, no crossing yet)
    used, size, counts = 0.0, 0, []
    for next_size, allowed in zip(looks.sizes, looks.spent, strict=True):
        start, step = _binomial(next_size - size, p0, negligible)
        size = next_size
        low, mass = low + start, np.convolve(mass, step)
        # What the windows leave out counts as crossed.
        used += 2 * negligible
        tails = np.cumsum(mass[::-1])[::-1] * (1 + SLACK)
        first = int(np.searchsorted(-tails, -(allowed - used)))
        if first < len(tails):
            used += float(tails[first])
        # A crossing count inside the window, or the first that is above it and thus has the
        # negligible rest.
        counts.append(low + first)
        mass = mass[:first]
        below = min(int(np.searchsorted(np.cumsum(mass), negligible)), len(mass) - 1)
        low, mass = low + below, mass[below:]
    return tuple(counts)


def separate_counts(p0: float, looks: Looks) -> tuple[int, ...]:
    """Counts that show, look by look, that the mean of independent draws is above ``p0``.

    As :func:`crossing_counts`, but each look spends a level of its own, and draws may have
    different probabilities, of a mean of ``p0`` at most: then a count of k or more, k at least
    ``n p0 + 1``, is no likelier than of n draws of probability ``p0``.

    Source: Hoeffding, "On the distribution of the number of successes in independent trials", 1956.
    """
    from scipy import special

    counts = []
    for size, level in zip(looks.sizes, looks.levels(), strict=True):
        low, high = math.floor(size * p0 * (1 + 1e-15)) + 2, size + 1
        while low < high:
            k = (low + high) // 2
            if special.betainc(k, size - k + 1, p0) * (1 + SLACK) <= level:
                high = k
            else:
                low = k + 1
        counts.append(low)
    return tuple(counts)


def _binomial(n: int, p: float, negligible: float) -> tuple[int, FloatArray]:
    """First value and probabilities of a window that holds all but ``negligible`` of Bin(n, p)."""
    from scipy import special

    # Bernstein's inequality, both tails.
    tail = math.log(2 / negligible)
    width = tail / 3 + math.sqrt(tail * tail / 9 + 2 * n * p * (1 - p) * tail)
    low, high = max(0, math.floor(n * p - width)), min(n, math.ceil(n * p + width))
    k = np.arange(low, high + 1, dtype=np.float64)
    log_choices = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return low, np.exp(log_choices + special.xlogy(k, p) + special.xlog1py(n - k, -p))
