"""What an attack raises: the loss of each image, and its derivative by the logits.

The derivative is written out, so an attack's backward pass begins at the logits and not at a graph
of small operations. Losses are per image, never averaged: a batch does not scale gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.ops.attacks import loops

# Loss [B], derivative [B, K], and what is above 0 where the image is misclassified [B].
Raised = tuple[Tensor, Tensor, Tensor]
# Of logits [B, K], labels [B] and, of a targeted loss, targets [B].
Loss = Callable[[Tensor, Tensor, Tensor | None], Raised]


class RowLoss(NamedTuple):
    """The loss of the images at hand, of their logits."""

    loss: Loss
    labels: Tensor
    targets: Tensor | None = None

    def __call__(self, logits: Tensor) -> Raised:
        return self.loss(logits, self.labels, self.targets)


LOSSES: dict[str, Any] = {
    name: functools.partial(loops.attack_loss, loss=name) for name in ("ce", "margin", "dlr")
}


@functools.cache  # one object a loss, by which graphs are found again
def lowered(loss: Any) -> Loss:
    """The negative of one of them: of the target class a targeted attack lowers the loss."""
    return functools.partial(loss, lowered=True)


def divergence(reference: Tensor) -> Loss:
    """``KL(p || softmax(z))`` for probabilities ``p = reference [B, K]``, of the whole batch."""

    def loss(logits: Tensor, labels: Tensor, _: Tensor | None = None) -> Raised:
        log = logits.log_softmax(1)
        value = (torch.special.xlogy(reference, reference) - reference * log).sum(1)
        return value, log.exp() - reference, LOSSES["margin"](logits, labels)[2]

    return loss
