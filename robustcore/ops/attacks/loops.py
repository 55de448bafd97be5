"""The ops of a step as the loops of attacks call them, hundreds of times with tensors of their own.

What Python would look at again at every step, of arguments that no user gives, takes as long as the
kernels on a small batch; the kernels' own checks of devices, dtypes and shapes remain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.attacks.loss import LOSSES, ROUNDING
from robustcore.ops.autograd import raw

watch = raw.attack_watch.default
"""As :func:`robustcore.ops.attack_watch`."""

apgd_step = raw.apgd_step.default
"""As :func:`robustcore.ops.apgd_step`, the norm by its number, without defaults."""

_loss = raw.attack_loss.default
_NUMBERS = {name: number for number, name in enumerate(LOSSES)}
_ROUNDINGS = {
    dtype: ROUNDING * torch.finfo(dtype).eps
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}


def attack_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    *,
    loss: str,
    lowered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`robustcore.ops.attack_loss` of contiguous labels and targets."""
    made: tuple[Tensor, Tensor, Tensor] = _loss(
        logits, labels, targets, _NUMBERS[loss], lowered, _ROUNDINGS[logits.dtype]
    )
    return made
