"""Proposals of the Square attack."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import check_image_like, fake_image, per_row, row_indices
from robustcore.ops.autograd import raw, register_loop
from robustcore.ops.checks import check_floating, check_number, check_tensor
from robustcore.ops.stream import signed_seed

_propose = raw.square_propose.default


def square_start(
    x0: Tensor,
    index: Tensor,
    variant: Tensor,
    *,
    eps: float | Tensor,
    seed: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Where Square begins in linf: columns of each channel moved by eps or by -eps.

    Args:
        x0: images ``[B, C, H, W]``, floating, any strides, in the box.
        index: int64 ``[B]``, the image's number in the stream, in [0, 2**48); not checked.
        variant: int64 ``[B]``, which run on the image it is, in [0, 2**16); not checked.
        eps: the radius: a number, or a tensor ``[B]``, whose values are not checked.
        seed: in [0, 2**64).
        low, high: the box.

    Returns:
        Like x0, channels last where x0 is, else contiguous, in ball and box to the bit. An image's
        points are the same whatever the batch and the device; see ``csrc/attacks/square.h``.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Andriushchenko et al., "Square Attack", 2020.
    """
    return _square(None, x0, index, variant, None, None, eps, seed, low, high)


def square_propose(
    best: Tensor,
    x0: Tensor,
    index: Tensor,
    variant: Tensor,
    age: Tensor,
    share: Tensor,
    *,
    eps: float | Tensor,
    seed: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """The next point of Square in linf: in a random window, x0 plus or minus eps a channel.

    Args:
        best: the points of highest loss so far, like x0.
        x0: images ``[B, C, H, W]``, floating, any strides, in the box.
        age: int64 ``[B]``, the query's number, in [0, 2**24 - 1); not checked.
        share: floating ``[B]``, of the pixels that the window covers; not checked.
        index, variant, eps, seed, low, high: as in :func:`square_start`.

    Returns:
        best with a window of each image's own changed, as :func:`square_start`.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Andriushchenko et al., "Square Attack", 2020.
    """
    check_tensor("best", best)
    return _square(best, x0, index, variant, age, share, eps, seed, low, high)


def _square(best, x0, index, variant, age, share, eps, seed, low, high):
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
    numbers = signed_seed(seed), check_number("low", low), check_number("high", high)
    return _propose(best, x0.detach(), *rows, *query, *per_row("eps", eps, x0), *numbers)


@torch.library.register_fake("robustcore::square_propose")
def _(best, x0, *arguments):
    return fake_image(x0)


register_loop(_propose)
