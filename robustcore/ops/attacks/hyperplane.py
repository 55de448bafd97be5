"""Projection on a hyperplane and a box."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import NORMS, check_image_like, fake_image, norm_number
from robustcore.ops.autograd import arithmetic, raw, register_rows
from robustcore.ops.checks import check_device, check_floating, check_number

_project = raw.hyperplane_projection.default


def hyperplane_projection(
    x: Tensor, w: Tensor, b: Tensor, *, norm: str, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """The smallest d of each image with ``<w, x + d> = b`` and x + d in the box.

    One number an image, found by Newton's steps (l1: bit by bit), no sort. Where the box holds no
    point of the plane, d leads to the corner nearest to it; where w is 0 or not finite, d is 0.

    Args:
        x: points ``[B, *D]``, floating, any strides, in the box.
        w: the planes' normals, like x.
        b: their offsets ``[B]``, floating.
        norm: of d: "linf", "l2" or "l1", in any case.
        low, high: the box.

    Returns:
        d, like x, channels last where x is, else contiguous.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
    attack", 2020.

    >>> x, w = torch.tensor([[0.5, 0.5]]), torch.tensor([[3.0, 1.0]])
    >>> hyperplane_projection(x, w, torch.tensor([3.0]), norm="l1")
    tensor([[0.3333, 0.0000]])
    """
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a 0-d tensor, want [B, *D]")
    check_image_like("w", w, x)
    check_floating("b", b)
    check_device("b", b, x)
    number = norm_number(norm, NORMS[:3])
    box = check_number("low", low), check_number("high", high)
    return _project(x.detach(), w.detach(), b.detach().to(arithmetic(x)), number, *box)


@torch.library.register_fake("robustcore::hyperplane_projection")
def _(x, w, b, norm, low, high):
    return fake_image(x)


register_rows(_project, 3)
