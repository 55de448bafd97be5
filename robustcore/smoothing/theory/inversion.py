"""From a radius back to the probability that certifies it, for any noise."""

from __future__ import annotations

import math

import torch

from robustcore.smoothing.theory.distributions import Distribution, Shape


def least_probability(noise: Distribution, radius: float, shape: Shape) -> float:
    """The least probability of a class whose certificate reaches ``radius``, rounded up.

    Infinite where no probability does. ``shape`` is that of one input.
    """

    def reaches(p: float) -> bool:
        return float(noise.radius(torch.tensor(p, dtype=torch.float64), shape)) >= radius

    low, high = 0.5, 1.0
    if not reaches(high):
        return math.inf
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if reaches(middle) else (middle, high)
    # Up by more than the error of the radii, which moves p by less than its relative size.
    return math.nextafter(high * (1 + 1e-14), math.inf)
