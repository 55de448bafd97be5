"""What an attack raises, with its derivative, and by how much an image is misclassified."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.common.checks import require_choice, require_flag
from robustcore.ops.attacks.norms import row_indices
from robustcore.ops.autograd import arithmetic, raw, register_loop
from robustcore.ops.checks import check_floating

LOSSES = ("ce", "margin", "dlr")  # in the order of csrc/attacks/loss.h
# Units of rounding of the largest logit that two of them have to differ by.
ROUNDING = 16.0

_loss = raw.attack_loss.default


def attack_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    *,
    loss: str = "ce",
    lowered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each image, its derivative by the logits, and whether the image is misclassified.

    ``"ce"`` is ``-log softmax(z)_y``; ``"margin"`` ``r - z_y`` with r the largest logit but that of
    y, or that of the target; ``"dlr"`` the margin over ``z_p1 - z_p3 + 1e-12``, with targets over
    ``z_p1 - (z_p3 + z_p4) / 2 + 1e-12``, p in descending order. Where there are no so many classes,
    dlr is the margin; where y ranks third, its derivative is that of the margin in the numerator
    alone.

    Args:
        logits: ``[B, K]``, floating, any strides, K at least 2.
        labels: int64 ``[B]``; what is no class gives NaN, here and in targets.
        targets: int64 ``[B]``, classes other than the labels; without effect on "ce".
        loss: "ce", "margin" or "dlr".
        lowered: the negative, for an attack whose labels are classes to reach.

    Returns:
        The loss ``[B]``; its derivative ``[B, K]`` in the dtype of the logits; and ``[B]``, above 0
        where the image is misclassified (lowered: classified as the label) by more than rounding,
        16 units of the largest logit. Loss and margin are float64 if the logits are, else float32;
        NaN where a logit is.

    Raises TypeError or ValueError naming the argument. Not differentiable: no gradient passes.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness", 2020 (dlr).

    >>> attack_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([0]), loss="margin")[0]
    tensor([2.])
    """
    check_floating("logits", logits)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [B, K], K at least 2")
    labels = row_indices("labels", labels, logits)
    targets = None if targets is None else row_indices("targets", targets, logits)
    number = LOSSES.index(require_choice("loss", loss, LOSSES))
    rounding = ROUNDING * torch.finfo(logits.dtype).eps
    made: tuple[Tensor, Tensor, Tensor] = _loss(
        logits.detach(), labels, targets, number, require_flag("lowered", lowered), rounding
    )
    return made


@torch.library.register_fake("robustcore::attack_loss")
def _(logits, labels, targets, loss, lowered, rounding):
    rows = logits.new_empty(logits.shape[:1], dtype=arithmetic(logits))
    return rows, logits.new_empty(logits.shape), torch.empty_like(rows)


register_loop(_loss)
