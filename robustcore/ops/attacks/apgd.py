"""A step of Auto-PGD."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import check_image_like, norm_number
from robustcore.ops.attacks.watch import check_watched
from robustcore.ops.autograd import arithmetic, fake_nothing, raw
from robustcore.ops.checks import (
    check_device,
    check_floating,
    check_number,
    check_out,
    check_tensor,
)

_step = raw.apgd_step.default


def apgd_step(
    x: Tensor,
    shown: Tensor | None,
    grad: Tensor,
    x0: Tensor,
    previous: Tensor,
    loss: Tensor,
    ahead: Tensor,
    counts: Tensor | None,
    best: Tensor,
    best_grad: Tensor,
    best_loss: Tensor,
    found: Tensor,
    fooled: Tensor,
    zero: Tensor,
    nan_grad: Tensor,
    nan_logits: Tensor,
    age: Tensor,
    last_loss: Tensor,
    step_size: Tensor,
    rises: Tensor,
    checked: Tensor,
    cut: Tensor,
    widths: Tensor,
    *,
    norm: str,
    eps: float,
    rho: float = 0.75,
    momentum: float = 0.75,
) -> None:
    """All of APGD between two evaluations, each image by itself, in place, in one pass.

    First what :func:`attack_watch` does. Then, where ``widths[age]`` is not 0, a checkpoint: the
    step is halved, and x goes back to the best point, where at most ``rho widths[age]`` steps since
    the last one raised the loss, or where neither the step nor the best loss changed since. At last
    :func:`attack_step` with momentum, from 1 in an image's first step on, in the box [0, 1]: the
    next points are written over ``previous``, and x is the ``previous`` of the next call.

    Args:
        x: where the images are ``[B, *D]``, floating, contiguous or channels last.
        shown: what was evaluated in its place, of a grid say; None: x.
        grad: of the loss there; like x, and laid out like it, as all images here.
        x0: the centres of the balls, in the box.
        previous: the x of the step before.
        loss, ahead, counts, best, best_grad, best_loss, found, fooled, zero, nan_grad, nan_logits,
            age: as in :func:`attack_watch`.
        last_loss: the loss a step before, ``[B]``, float64 if x is, else float32; inf at first.
        step_size: the length of the step; like last_loss, as rises and checked.
        rises: how many steps since the last checkpoint raised the loss; 0 at first.
        checked: the best loss at the last checkpoint.
        cut: bool ``[B]``, whether that one halved; True keeps the first from judging by it.
        widths: int64 ``[ages]``: steps since the last checkpoint where one is due at that age,
            this evaluation included, else 0; from ``ages`` on there is none.
        norm: "linf" or "l2", in any case.
        eps: the radius, in the units of x.
        rho, momentum: in [0, 1].

    A NaN is no higher loss. Raises TypeError or ValueError naming the argument. Not differentiable:
    no gradient passes.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness", 2020.
    """
    number = norm_number(norm, ("linf", "l2"))
    check_floating("x", x)
    images = dict(shown=x if shown is None else shown, grad=grad, x0=x0, previous=previous,
                  best=best, best_grad=best_grad)  # fmt: skip
    for name, t in images.items():
        check_image_like(name, t, x)
    check_watched(x, grad, loss, ahead, counts, best, best_grad, best_loss, found, fooled, zero,
                  nan_grad, nan_logits, age)  # fmt: skip
    values = dict(last_loss=last_loss, step_size=step_size, rises=rises, checked=checked)
    for name, t in {**values, "cut": cut, "widths": widths}.items():
        check_tensor(name, t)
        check_device(name, t, x)
        want = arithmetic(x) if name in values else torch.bool if name == "cut" else torch.int64
        shape = widths.shape[:1] if name == "widths" else x.shape[:1]
        if t.dtype != want or t.shape != shape:
            raise ValueError(
                f"{name}: got {t.dtype} of shape {list(t.shape)}, want {want} {list(shape)}"
            )
    for name, t in {"x": x, "previous": previous, **values, "cut": cut}.items():
        check_out(name, t, x)
        if t.requires_grad:
            raise ValueError(f"{name}: requires a gradient; what is written there has none")
    _step(
        x, shown, grad, x0, previous, loss, ahead, counts, best, best_grad, best_loss, found,
        fooled, zero, nan_grad, nan_logits, age, last_loss, step_size, rises, checked, cut, widths,
        number, check_number("eps", eps), check_number("rho", rho),
        check_number("momentum", momentum),
    )  # fmt: skip


torch.library.register_fake("robustcore::apgd_step", fake_nothing)
