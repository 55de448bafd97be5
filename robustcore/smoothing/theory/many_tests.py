"""Many binomial tests at once: which classes of a map, or order statistics, hold all together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

CORRECTIONS = ("holm", "bonferroni")


def fewest_votes(
    votes: npt.NDArray[np.int64], tau: float, alpha: float, correction: str = "holm"
) -> int:
    """The fewest votes with which a class is certified; one more than there are samples if none is.

    ``votes[k]`` tests have k of n votes, ``k = 0 .. n``; each asks whether a probability is above
    ``tau``. All certificates of these tests together hold with probability ``1 - alpha`` or more,
    however they depend on each other. A p-value is a function of the votes, so a table of n + 1 of
    them and the histogram decide what sorting all tests would.

    Source: Fischer, Baader and Vechev, 2021; Holm, 1979.
    """
    from scipy import stats

    n = len(votes) - 1
    p_values = stats.binom.sf(np.arange(n + 1) - 1, n, tau)
    left = np.cumsum(votes)  # tests with no more votes: those that Holm has not rejected before
    share = alpha / np.maximum(left if correction == "holm" else votes.sum(), 1)
    stays = np.flatnonzero((p_values > share) & (votes > 0))
    return int(stays[-1]) + 1 if len(stays) else 0


def smallest_n(tests: int, tau: float, alpha: float) -> int:
    """Fewest samples of which, if they agree, the first of so many tests certifies its class."""
    n = max(1, math.floor(math.log(alpha / tests) / math.log(tau)))
    while tau**n > alpha / tests:  # the logarithms are rounded
        n += 1
    return n


def quantile_ranks(n: int, low: float, high: float, alpha: float) -> tuple[int, int]:
    """Order statistics, counted from 1, that lie beyond two quantiles of a distribution.

    Of n independent draws the first is at most the ``low`` quantile and the second at least the
    ``high`` one, each with probability ``1 - alpha`` or more: 0 and n + 1, the infinities, where no
    order statistic is. The distribution may have atoms.

    Source: Chiang et al., "Detection as regression: certified object detection with median
    smoothing", 2020.
    """
    from scipy import stats

    ranks: Any = np.arange(1, n + 1)
    # The k-th is above the quantile where fewer than k draws are at most it.
    below = np.flatnonzero(stats.binom.cdf(ranks - 1, n, low) <= alpha)
    above = np.flatnonzero(stats.binom.sf(ranks - 1, n, high) <= alpha)
    return (
        int(ranks[below[-1]]) if len(below) else 0,
        int(ranks[above[0]]) if len(above) else n + 1,
    )
