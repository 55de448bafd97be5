"""What an evaluation tells of the images of an attack."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.attacks.norms import check_image_like
from robustcore.ops.autograd import arithmetic, fake_nothing, raw
from robustcore.ops.checks import check_device, check_floating, check_out, check_tensor

_watch = raw.attack_watch.default


def attack_watch(
    x: Tensor,
    grad: Tensor | None,
    loss: Tensor,
    ahead: Tensor,
    counts: Tensor | None,
    best: Tensor | None,
    best_grad: Tensor | None,
    best_loss: Tensor,
    found: Tensor,
    fooled: Tensor,
    zero: Tensor,
    nan_grad: Tensor,
    nan_logits: Tensor,
    age: Tensor,
) -> None:
    """What an attack keeps of an evaluation, each image by itself, in place, without a host's look.

    An image is ``fooled`` where ``ahead`` is above 0, and ``found`` from the first time on that
    this ``counts``: its loss is infinite then. Where the loss is above ``best_loss``, ``best``,
    ``best_grad`` and ``best_loss`` take in x. ``age`` grows until the image is found.

    Args:
        x: points ``[B, *D]``, floating, contiguous or channels last.
        grad: of the loss at x, like x and laid out like it, as best and best_grad; None: not known.
        loss, ahead: as :func:`attack_loss` gives them, ``[B]``, float64 if x is, else float32.
        counts: bool ``[B]``; None: everywhere.
        best, best_grad: None: not kept; best_grad goes with grad and best.
        best_loss: ``[B]``, like loss; -inf at first.
        found, fooled: bool ``[B]``.
        zero, nan_grad, nan_logits: bool ``[B]``; set where at age 0 all of the gradient is 0, where
            one of its elements is not finite, where ``ahead`` is NaN.
        age: int64 ``[B]``, 0 at first.

    All from best on and loss are written. Raises TypeError or ValueError naming the argument. Not
    differentiable: no gradient passes.
    """
    check_watched(x, grad, loss, ahead, counts, best, best_grad, best_loss, found, fooled, zero,
                  nan_grad, nan_logits, age)  # fmt: skip
    _watch(x, grad, loss, ahead, counts, best, best_grad, best_loss, found, fooled, zero, nan_grad,
           nan_logits, age)  # fmt: skip


def check_watched(
    x: Tensor,
    grad: Tensor | None,
    loss: Tensor,
    ahead: Tensor,
    counts: Tensor | None,
    best: Tensor | None,
    best_grad: Tensor | None,
    best_loss: Tensor,
    found: Tensor,
    fooled: Tensor,
    zero: Tensor,
    nan_grad: Tensor,
    nan_logits: Tensor,
    age: Tensor,
) -> None:
    """The arguments of :func:`attack_watch`."""
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a 0-d tensor, want [B, *D]")
    images = {"grad": grad, "best": best, "best_grad": best_grad}
    given = {name: t for name, t in images.items() if t is not None}
    for name, t in given.items():
        check_image_like(name, t, x)
    flags = dict(found=found, fooled=fooled, zero=zero, nan_grad=nan_grad, nan_logits=nan_logits)
    rows = dict(loss=loss, ahead=ahead, best_loss=best_loss, **flags, age=age)
    if counts is not None:
        rows["counts"] = counts
    for name, t in rows.items():
        check_tensor(name, t)
        check_device(name, t, x)
        floating = name in ("loss", "ahead", "best_loss")
        want = arithmetic(x) if floating else torch.int64 if name == "age" else torch.bool
        if t.dtype != want or t.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: got {t.dtype} of shape {list(t.shape)}, want {want} {list(x.shape[:1])}"
            )
    for name, t in {**given, **rows}.items():
        if name in ("grad", "ahead", "counts"):
            continue
        check_out(name, t, x)
        if t.requires_grad:
            raise ValueError(f"{name}: requires a gradient; what is written there has none")


torch.library.register_fake("robustcore::attack_watch", fake_nothing)
