"""Proposals of the Square attack."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import (
    NORMS,
    check_image_like,
    fake_image,
    norm_number,
    per_row,
    row_indices,
)
from robustcore.ops.attacks.step import project
from robustcore.ops.autograd import raw, register_loop
from robustcore.ops.checks import check_floating, check_number, check_tensor
from robustcore.ops.stream import signed_seed

_propose = raw.square_propose.default


def square_start(
    x0: Tensor,
    index: Tensor,
    variant: Tensor,
    *,
    norm: str = "linf",
    eps: float | Tensor,
    seed: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Where Square begins.

    In linf columns of each channel moved by eps or by -eps; in l2 and l1 tiles, five by five where
    they fit, of two peaks each and random sign.

    Args:
        x0: images ``[B, C, H, W]``, floating, any strides, in the box.
        index: int64 ``[B]``, the image's number in the stream, in [0, 2**48); not checked.
        variant: int64 ``[B]``, which run on the image it is, in [0, 2**16); not checked.
        norm: "linf", "l2" or "l1", in any case.
        eps: the radius: a number, or a tensor ``[B]``, whose values are not checked.
        seed: in [0, 2**64).
        low, high: the box.

    Returns:
        Like x0, channels last where x0 is, else contiguous; in ball and box, of linf to the bit,
        else as :func:`project`. An image's points are the same whatever the batch and the device;
        see ``csrc/attacks/square.h``.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Andriushchenko et al., "Square Attack", 2020; Croce and Hein, "Mind the box", 2021 (l1).
    """
    return _square(None, x0, index, variant, None, None, norm, eps, seed, low, high)


def square_propose(
    best: Tensor,
    x0: Tensor,
    index: Tensor,
    variant: Tensor,
    age: Tensor,
    share: Tensor,
    *,
    norm: str = "linf",
    eps: float | Tensor,
    seed: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """The next point of Square: a random window of each image changed.

    In linf it is x0 plus or minus eps a channel. In l2 and l1 two peaks of opposite sign are added
    to what the window has of the difference to x0, which then takes what the ball has left, and
    what it and a second window had; there x0 is back.

    Args:
        best: the points of highest loss so far, like x0.
        x0: images ``[B, C, H, W]``, floating, any strides, in the box.
        age: int64 ``[B]``, the query's number, in [0, 2**24 - 1); not checked.
        share: floating ``[B]``, of the pixels that the window covers; not checked. In l2 and l1 a
            window has an odd side of 3 pixels at least.
        index, variant, norm, eps, seed, low, high: as in :func:`square_start`.

    Returns:
        As :func:`square_start`.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Andriushchenko et al., "Square Attack", 2020; Croce and Hein, "Mind the box", 2021 (l1).
    """
    check_tensor("best", best)
    return _square(best, x0, index, variant, age, share, norm, eps, seed, low, high)


def _square(best, x0, index, variant, age, share, norm, eps, seed, low, high):
    check_floating("x0", x0)
    if x0.dim() != 4:
        raise ValueError(f"x0: got shape {list(x0.shape)}, want [B, C, H, W]")
    rows = row_indices("index", index, x0), row_indices("variant", variant, x0)
    query: tuple[Tensor | None, Tensor | None] = None, None
    if best is not None:
        check_image_like("best", best, x0)
        check_floating("share", share)
        query = row_indices("age", age, x0), per_row("share", share, x0)[1]
        best = best.detach()
    number = norm_number(norm, NORMS[:3])
    radius, radii = per_row("eps", eps, x0)
    numbers = signed_seed(seed), check_number("low", low), check_number("high", high)
    rings = None if number == 0 else _rings(min(x0.shape[2:]) + 2, x0.device)
    made = _propose(best, x0.detach(), *rows, *query, rings, number, radius, radii, *numbers)
    if number == 0:
        return made
    return project(made, x0, norm, radius if radii is None else radii, low, high)


@functools.cache
def _rings(sides: int, device: torch.device) -> Tensor:
    """``sum_{j <= i} 1 / j**2`` at i, of which the peaks of windows are made."""
    terms = torch.arange(1, sides, dtype=torch.float64).square().reciprocal()
    return torch.cat([terms.new_zeros(1), terms.cumsum(0)]).to(device)


@torch.library.register_fake("robustcore::square_propose")
def _(best, x0, *arguments):
    return fake_image(x0)


register_loop(_propose)
