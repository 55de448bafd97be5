"""Top-k certificates of random smoothing, from the counts of one run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcore.common.checks import require_int
from robustcore.smoothing.theory.ablations import PixelAblation
from robustcore.smoothing.theory.bounds import clopper_pearson_lower
from robustcore.smoothing.theory.distributions import Distribution
from robustcore.smoothing.theory.grids import DOWN, less_variation


def radius(
    noise: Distribution,
    counts: Tensor,
    labels: Tensor,
    k: int,
    n: int,
    alpha: float,
    shape: tuple[int, ...],
) -> Tensor:
    """Radii float64 ``[B]`` within which the labels stay among the k most likely classes.

    ``counts`` int64 ``[B, K]`` of n samples, ``labels`` int64 ``[B]``; 0 where nothing is
    certified. To push the label out, k rivals need its probability each, so the t weakest of the k
    strongest need t times that in all: one t for which they cannot have it suffices. Source: Jia et
    al., 2020, theorem 1.
    """
    classes = counts.shape[1]
    k = require_int("k", k, 1, classes)
    if type(noise).shift is Distribution.shift:
        raise TypeError(f"noise: {noise!r} has no top-k certificate")
    level = alpha / classes  # a union bound over the classes
    variation = noise.total_variation(shape)
    lower = less_variation(clopper_pearson_lower(counts, n, level), variation)
    upper = 1 - less_variation(clopper_pearson_lower(n - counts, n, level), variation)
    own = lower.gather(1, labels[:, None]).squeeze(1)
    rivals = upper.scatter(1, labels[:, None], -1.0).sort(1, descending=True).values[:, :k]
    # sums[:, t - 1]: of the t smallest of the k largest, at most what the label leaves.
    sums = torch.minimum(rivals.flip(1).cumsum(1), (1 - own)[:, None])
    turns = torch.arange(1, k + 1)

    def holds(r: Tensor) -> Tensor:
        """Whether the label stays at radius r, for each row."""
        label = 1 - noise.shift(1 - own, r, shape)
        reached = noise.shift(sums, r[:, None].expand_as(sums), shape) / turns
        return (label[:, None] > reached).any(1)

    discrete = isinstance(noise, PixelAblation)
    low = torch.zeros(len(counts), dtype=torch.float64)
    stays = holds(low)
    # A radius at which nothing holds: doubled until there is one, then the gap is halved.
    high = torch.ones_like(low)
    most = float(math.prod(shape[1:])) if discrete else 2.0**40
    while bool((holds(high) & (high < most)).any()):
        high = torch.where(holds(high), (2 * high).clamp(max=most), high)
    low = torch.where(holds(high), high, low)
    for _ in range(200):
        middle = (low + high) / 2
        if discrete:
            middle = middle.floor()
        if bool(((middle <= low) | (middle >= high)).all()):
            break
        inside = holds(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    # Whole numbers of pixels are exact; the others are rounded down.
    return torch.where(stays, low if discrete else low * DOWN, 0.0)
