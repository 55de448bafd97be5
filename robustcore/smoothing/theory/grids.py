"""Images on a grid: what makes a certificate true in floating point, checks and bounds.

On the lattice of step 1/(q m) an image is an integer X m and a sample of it another, X m + N, with
N a rounded real of exact distribution (:func:`robustcore.ops.lattice_noise`). The argument stands
in the family's README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.smoothing.lattice import lattice_grid, lattice_table

Grid = int | tuple[int, int] | None

# Of 8 and of 16 bits. Never a coarser one: a black image is on every grid.
COMMON = (255, 65535)
# What the float64 arithmetic of a radius may err by, many times over.
DOWN = 1 - 2.0**-40
# Votes of different probabilities are no more spread than equal ones where bounds of this level
# look (Hoeffding, 1956).
MAX_ALPHA = 0.25

_TOLERANCE = 1e-3  # of a step, beside the rounding of an image's dtype
_HOLDS = 0.25  # steps that rounding may take a level away: half of what would reach another


class OffGrid(ValueError):
    """Images that are not on the grid."""


def require_grid(kind: str, level: float, grid: Any) -> Grid:
    """The grid as an int or two; ValueError or TypeError, naming it, unless noise can be drawn."""
    if grid is None:
        return None
    q, m = lattice_grid(grid)
    try:
        lattice_table(kind, level, (q, m))
    except ValueError as error:
        raise ValueError(f"grid: got {grid!r}: {error}") from None
    return q if m == 1 else (q, m)


def check_on_grid(images: Tensor, grid: Grid, steps: int) -> None:
    """OffGrid, a ValueError, unless images ``[B, *D]`` are multiples of 1/q.

    ``steps``: how far the noise goes, in steps of the noise.
    """
    if images.numel() == 0:
        return
    q, m = lattice_grid(grid)
    largest = float(images.abs().max()) * q
    eps = max(torch.finfo(images.dtype).eps, 2.0**-22)  # the noise may be drawn in float32
    if largest * eps >= _HOLDS:
        raise OffGrid(
            f"x: got {images.dtype} of up to {largest / q:.4g}, which does not hold multiples of "
            f"1/{q}"
        )
    if largest * m + steps >= 2**24:
        raise OffGrid(
            f"x: got values up to {largest / q:.4g}, which on the grid {grid} with noise of up to "
            f"{steps} steps are no integers below 2**24"
        )
    off = _off_grid(images, q)
    if not bool(off.any()):
        return
    place = [int(i) for i in off.nonzero()[0]]
    value = float(images[tuple(place)])
    other = next((g for g in COMMON if g != q and fits(images, g)), None)
    advice = "round the images" if other is None else f"take grid={other}, where all are"
    raise OffGrid(
        f"x: got {value:.9g} at {place}, no multiple of 1/{q} (the nearest is "
        f"{round(value * q)}/{q}); {advice}, or grid=None (--grid none), whose certificates are "
        "for real numbers"
    )


def fits(images: Tensor, q: int) -> bool:
    """Whether images are multiples of 1/q, as far as their dtype holds those."""
    eps = max(torch.finfo(images.dtype).eps, 2.0**-22)
    largest = float(images.abs().max()) * q if images.numel() else 0.0
    return largest * eps < _HOLDS and not bool(_off_grid(images, q).any())


def grid_of(images: Sequence[Tensor]) -> int | None:
    """The first of the common grids that all images are on."""
    floating = all(image.is_floating_point() for image in images)
    return next((q for q in COMMON if floating and all(fits(x, q) for x in images)), None)


def _off_grid(images: Tensor, q: int) -> Tensor:
    steps = images.double() * q
    levels = steps.round()
    near = _TOLERANCE + levels.abs() * torch.finfo(images.dtype).eps
    return ~((steps - levels).abs() <= near)  # a NaN is on none


def less_variation(p: Tensor, total_variation: float) -> Tensor:
    """A lower bound under the ideal noise from one, float64, under the noise that is drawn."""
    if total_variation == 0:
        return p
    return torch.nextafter(p - total_variation, torch.zeros_like(p)).clamp(min=0)


def steps_of(kind: str, level: float, grid: Grid) -> int:
    """How far the noise goes, in steps of the noise."""
    return len(lattice_table(kind, level, lattice_grid(grid)).thresholds)


def total_variation(kind: str, level: float, grid: Grid, elements: int) -> float:
    """At most, between the noise that is drawn and the ideal one, of all elements of an image."""
    bound = elements * lattice_table(kind, level, lattice_grid(grid)).total_variation
    return math.nextafter(bound, math.inf)
