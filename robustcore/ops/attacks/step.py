"""Steps of attacks and projections on a ball and a box."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import check_image_like, fake_image, norm_number, per_row
from robustcore.ops.autograd import fake_nothing, raw, register_loop
from robustcore.ops.checks import check_floating, check_number, check_out

_step = raw.attack_step.default


_step_out = raw.attack_step_out.default


def attack_step(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    step_size: float | Tensor,
    low: float = 0.0,
    high: float = 1.0,
    topk: float | Tensor = 0.01,
    momentum: float | Tensor | None = None,
    previous: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A step up the gradient, back on the ball around x0 and on the box, in one pass.

    ``z = P(x + step_size d)`` with d the steepest direction: the signs of grad in linf, ``grad /
    |grad|_2`` in l2, the signs of the largest elements over their number in l1, ``grad / |grad|_1``
    in l0. P clips in linf, scales and then clips in l2 (as AutoAttack does), and is the projection
    of :func:`project` in l1 and l0. With momentum the result is ``P(x + momentum (z - x) + (1 -
    momentum) (x - previous))``.

    Args:
        x: images ``[B, *D]``, floating, any strides.
        grad: of the loss at x, like x. An element that is not finite does not move in linf and l1,
            its image does not in l2 and l0.
        x0: the centres of the balls, like x, in the box.
        norm: "linf", "l2", "l1" or "l0", in any case.
        eps: the radius, in the units of x; in l0 a number of pixels, all channels of dimension 1
            together. Here, in step_size, topk and momentum: a number, or a tensor ``[B]``, whose
            values are not checked.
        step_size: the length of the step in its norm (l1 for l0).
        low, high: the box.
        topk: in l1, the share of the elements that move, in (0, 1].
        momentum: in [0, 1], with ``previous``; in linf and l2.
        previous: the x of the step before, like x.
        out: receives the result; like x, contiguous or channels last. May be x or previous itself.

    Returns:
        Like x, channels last where x is, else contiguous. Ball and box of linf hold to the bit;
        float16 and bfloat16 are rounded towards x0. Each image's bits are its own, whatever the
        batch, the device and the threads.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Madry et al., 2018; Croce and Hein, "Reliable evaluation of adversarial robustness",
    2020, "Mind the box", 2021 (l1), "Sparse and imperceivable adversarial attacks", 2019 (l0).
    """
    number = _check_images(x, x0, norm)
    check_image_like("grad", grad, x)
    if (momentum is None) != (previous is None):
        raise ValueError("momentum: goes with previous, got one of them")
    if previous is not None:
        check_image_like("previous", previous, x)
    rows = (
        *per_row("eps", eps, x), *per_row("step_size", step_size, x), *per_row("topk", topk, x),
        *per_row("momentum", 1.0 if momentum is None else momentum, x),
    )  # fmt: skip
    images = (x.detach(), grad.detach(), x0.detach(), None if previous is None else
              previous.detach())  # fmt: skip
    return _run(images, (number, False, *rows), low, high, out)


def project(
    x: Tensor,
    x0: Tensor,
    norm: str,
    eps: float | Tensor,
    low: float = 0.0,
    high: float = 1.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The point nearest to x in the ball of radius eps around x0 and in the box.

    Nearest in l2, exactly, box included: in l2 ``clip(x0 + s (x - x0))`` with s the root of its
    norm, in l1 the soft threshold that meets the radius after clipping; in l0 the eps pixels stay
    that gain most, of equal ones the first. A root or an order statistic an image, no sort.

    Args:
        x: points ``[B, *D]``, floating, any strides.
        x0: the centres of the balls, like x, in the box.
        norm, eps, low, high, out: as in :func:`attack_step`.

    Returns:
        As :func:`attack_step`. l1 and l2 norms are eps to within 1e-6, or less where x lies inside.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Duchi et al., 2008; Croce and Hein, "Mind the box", 2021.

    >>> project(torch.tensor([[0.9, 0.6]]), torch.tensor([[0.5, 0.5]]), "l1", 0.25)
    tensor([[0.7500, 0.5000]])
    """
    number = _check_images(x, x0, norm)
    rows = (*per_row("eps", eps, x), 0.0, None, 1.0, None, 1.0, None)
    images = (x.detach(), None, x0.detach(), None)
    return _run(images, (number, True, *rows), low, high, out)


def _check_images(x: Tensor, x0: Tensor, norm: str) -> int:
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a 0-d tensor, want [B, *D]")
    check_image_like("x0", x0, x)
    return norm_number(norm)


def _run(images, numbers, low, high, out):
    box = check_number("low", low), check_number("high", high)
    if out is None:
        return _step(*images, *numbers, *box)
    check_image_like("out", out, images[0])
    check_out("out", out, images[0])
    if out.requires_grad:
        raise ValueError("out: requires a gradient; what is written there has none")
    _step_out(*images, *numbers, *box, out)
    return out


@torch.library.register_fake("robustcore::attack_step")
def _(x, *arguments):
    return fake_image(x)


torch.library.register_fake("robustcore::attack_step_out", fake_nothing)
register_loop(_step)
