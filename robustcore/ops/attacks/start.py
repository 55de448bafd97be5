"""Random points of a ball, where attacks begin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import norm_number, per_row, row_indices
from robustcore.ops.attacks.step import attack_step, project
from robustcore.ops.autograd import raw, register_loop
from robustcore.ops.checks import check_floating, check_number
from robustcore.ops.stream import signed_seed

_noise = raw.attack_noise.default


def random_start(
    x0: Tensor,
    index: Tensor,
    restart: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    seed: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """A random point of each image's ball and box, the same whatever the batch.

    Uniform in the ball of linf, clipped; on the sphere of l2, clipped; the projection of normal
    noise in l1; in l0 eps pixels of uniform colours, those that change most. The numbers come from
    the counter stream, see ``csrc/attacks/start.h``.

    Args:
        x0: the centres ``[B, *D]``, floating, any strides, in the box.
        index: int64 ``[B]``, the image's number in the stream, in [0, 2**48); not checked.
        restart: int64 ``[B]``, in [0, 2**40); not checked.
        norm, eps, low, high: as in :func:`attack_step`.
        seed: in [0, 2**64).

    Returns:
        Like x0, channels last where x0 is, else contiguous; on the ball as :func:`project` is.

    Raises TypeError or ValueError naming the argument. Not differentiable.

    Source: Madry et al., 2018; Croce and Hein, 2020 and 2021.
    """
    check_floating("x0", x0)
    if x0.dim() < 1:
        raise ValueError("x0: got a 0-d tensor, want [B, *D]")
    number, x0 = norm_number(norm), x0.detach()
    radius, radii = per_row("eps", eps, x0)
    rows = row_indices("index", index, x0), row_indices("restart", restart, x0)
    low, high = check_number("low", low), check_number("high", high)
    noise = _noise(x0, *rows, signed_seed(seed), number in (1, 2))
    ball = radius if radii is None else radii
    box: dict[str, Any] = dict(norm=norm, eps=ball, low=low, high=high)
    if number == 1:
        return attack_step(x0, noise, x0, step_size=ball, **box)
    if number == 0:
        noise = x0 + (radius if radii is None else radii.view(-1, *[1] * (x0.dim() - 1))) * noise
    elif number == 2:
        noise = x0 + noise
    else:
        noise = (low + high) / 2 + (high - low) / 2 * noise
    return project(noise.to(x0.dtype), x0, **box)


@torch.library.register_fake("robustcore::attack_noise")
def _(like, images, samples, seed, normal):
    return like.new_empty(like.shape)


register_loop(_noise)
