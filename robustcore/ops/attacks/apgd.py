"""The bookkeeping of Auto-PGD."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import check_image_like
from robustcore.ops.autograd import arithmetic, fake_nothing, raw
from robustcore.ops.checks import (
    check_device,
    check_floating,
    check_number,
    check_out,
    check_tensor,
)

_update = raw.apgd_update.default


def apgd_update(
    x: Tensor,
    grad: Tensor,
    loss: Tensor,
    best: Tensor,
    best_grad: Tensor,
    best_loss: Tensor,
    last_loss: Tensor,
    step_size: Tensor,
    rises: Tensor,
    checked: Tensor,
    cut: Tensor,
    width: Tensor,
    *,
    rho: float = 0.75,
) -> None:
    """What APGD keeps of a step, each image by itself, in place and without a host's glance.

    ``best``, ``best_grad`` and ``best_loss`` take in x where the loss is higher. At a checkpoint
    the step is halved, and x and grad go back to the best point, where at most ``rho width`` steps
    since the last one raised the loss, or where neither the step nor the best loss changed since.

    Args:
        x: points ``[B, *D]``, floating, contiguous or channels last.
        grad: of the loss at x; like x, and laid out like it, as the next two.
        loss: at x, ``[B]``, float64 if x is, else float32; so are the following of one an image.
        best, best_grad: the points of highest loss and their gradients.
        best_loss: the highest loss; -inf at first.
        last_loss: the loss a step before; inf at first.
        step_size: the length of the next step.
        rises: how many steps since the last checkpoint raised the loss; 0 at first.
        checked: the best loss at the last checkpoint.
        cut: bool, whether that one halved; True keeps the first from judging by it.
        width: int64, steps since the last checkpoint where this is one, else 0.
        rho: in [0, 1].

    All but loss and width are written. A NaN is no higher loss. Raises TypeError or ValueError
    naming the argument. Not differentiable: no gradient passes.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness", 2020.
    """
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a 0-d tensor, want [B, *D]")
    images = {"grad": grad, "best": best, "best_grad": best_grad}
    for name, t in images.items():
        check_image_like(name, t, x)
    values = dict(loss=loss, best_loss=best_loss, last_loss=last_loss, step_size=step_size,
                  rises=rises, checked=checked)  # fmt: skip
    for name, t in {**values, "cut": cut, "width": width}.items():
        check_tensor(name, t)
        check_device(name, t, x)
        want = arithmetic(x) if name in values else torch.bool if name == "cut" else torch.int64
        if t.dtype != want or t.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: got {t.dtype} of shape {list(t.shape)}, want {want} {list(x.shape[:1])}"
            )
    for name, t in {"x": x, **images, **values, "cut": cut}.items():
        if name == "loss":
            continue
        check_out(name, t, x)
        if t.requires_grad:
            raise ValueError(f"{name}: requires a gradient; what is written there has none")
    _update(x, grad, loss, best, best_grad, best_loss, last_loss, step_size, rises, checked, cut,
            width, check_number("rho", rho))  # fmt: skip


torch.library.register_fake("robustcore::apgd_update", fake_nothing)
