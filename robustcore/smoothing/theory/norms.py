"""Radii from probabilities, in float64: the formulas of each distribution and norm.

``p`` is a lower bound of the top class's probability, in [1/2, 1], as a float64 tensor; d is the
number of elements of an image. Results have p's shape, in the units of the noise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ORDER = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def convert(radius: Tensor, d: int, have: str, want: str) -> Tensor:
    """A certified radius in one norm as one in another, rounded down.

    The ball that is wanted has to lie in the one that is had: the radius stays from a larger order
    to a smaller one, and shrinks by ``d ** (1 / want - 1 / have)`` from a smaller to a larger.
    """
    exponent = 1 / ORDER[want] - 1 / ORDER[have]
    if exponent >= 0:
        return radius
    factor: float = float(d) ** exponent * (1 - 2.0**-50)
    return radius * factor


def enclosing(radius: Tensor, d: int, have: str, want: str) -> Tensor:
    """The radius in norm ``have`` of a ball that holds the ball of ``radius`` in norm ``want``."""
    return radius / convert(torch.ones(()).double(), d, have, want)


def total_variation_l1(p: Tensor, scale: float) -> Tensor:
    """Uniform and splitting noise: ``2 * scale * (p - 1/2)`` in l1.

    Source: Lee et al., 2019; Levine and Feizi, 2021.
    """
    return 2 * scale * (p - 0.5)


def total_variation_shift(p: Tensor, l1: Tensor, scale: float) -> Tensor:
    """The largest probability under such noise, shifted by ``l1``, of an event of p."""
    return (p + l1 / (2 * scale)).clamp(max=1)


def uniform_linf(p: Tensor, scale: float, d: int) -> Tensor:
    """Uniform noise in linf: ``2 * scale * (1 - (3/2 - p) ** (1/d))``.

    Source: Yang et al., 2020.
    """
    # expm1 and log1p: the difference from 1 is tiny where d is large.
    return -2 * scale * torch.expm1(torch.log1p(0.5 - p) / d)


def laplace_l1(p: Tensor, scale: float) -> Tensor:
    """Laplace noise in l1: ``-scale * ln(2 * (1 - p))``. Source: Teng et al., 2019."""
    return -scale * torch.log1p(1 - 2 * p)


@lru_cache(maxsize=64)
def _ablation_thresholds(d: int, k: int) -> np.ndarray:
    """For r = 1, 2, ...: the largest integer P such that r pixels are not certified at P / 2^53."""
    thresholds = []
    kept = drawn = 1  # C(d - r, k) / C(d, k) = kept / drawn
    for r in range(d):
        kept, drawn = kept * (d - r - k), drawn * (d - r)
        if 2 * kept <= drawn:
            break
        thresholds.append((3 * 2**52 * drawn - 2**53 * kept) // drawn)
    return np.array(thresholds, dtype=np.int64)


def ablation_l0(p: Tensor, d: int, k: int) -> Tensor:
    """Pixels that ablation withstands: the largest r with ``3/2 - p < C(d - r, k) / C(d, k)``.

    Exact for the p given, which is a multiple of 2**-53: integers throughout. k = 0 certifies all.
    Source: Levine and Feizi, 2020.
    """
    if k == 0:
        return torch.where(p > 0.5, float(d), 0.0).double()
    levels = (p.clamp(0, 1).double() * 2.0**53).to(torch.int64).cpu().numpy()
    radius = np.searchsorted(_ablation_thresholds(d, k), levels, side="left")
    return torch.from_numpy(np.asarray(radius, dtype=np.float64)).reshape(p.shape)


def laplace_shift(p: Tensor, r: Tensor) -> Tensor:
    """The largest probability under Laplace noise of scale 1, shifted by r, of an event of p."""
    # Both tails by their own logarithm, so that none is rounded away.
    z = torch.where(p < 0.5, torch.log(2 * p), -torch.log(2 * (1 - p))) + r
    return torch.where(z < 0, torch.exp(z) / 2, 1 - torch.exp(-z) / 2)
