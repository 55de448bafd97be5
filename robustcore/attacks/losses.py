"""What an attack raises: the loss of each image, and its derivative by the logits.

The derivative is written out, so an attack's backward pass begins at the logits and not at a graph
of small operations. Losses are per image, never averaged: a batch does not scale gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Logits [B, K], labels [B] and, of a targeted loss, targets [B] -> loss [B], derivative [B, K].
Loss = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

TINY = 1e-12  # of the published denominators


class RowLoss(NamedTuple):
    """The loss of the images at hand, of their logits."""

    loss: Loss
    labels: Tensor
    targets: Tensor | None = None

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(logits, self.labels, self.targets)


def cross_entropy(logits: Tensor, labels: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``-log softmax(z)_y``."""
    log = logits.log_softmax(1)
    index = labels.unsqueeze(1)
    slope = log.exp()
    slope.scatter_add_(1, index, slope.new_full((1, 1), -1.0).expand(len(slope), 1))
    return -log.gather(1, index).squeeze(1), slope


def margin(logits: Tensor, labels: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``max_{i != y} z_i - z_y``: positive where the image is misclassified."""
    index = labels.unsqueeze(1)
    others = logits.scatter(1, index, -torch.inf)
    best, rival = others.max(1, keepdim=True)
    return (best - logits.gather(1, index)).squeeze(1), _between(logits, index, rival)


def margin_to_target(
    logits: Tensor, labels: Tensor, targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``z_t - z_y``."""
    assert targets is not None
    index, rival = labels.unsqueeze(1), targets.unsqueeze(1)
    value = logits.gather(1, rival) - logits.gather(1, index)
    return value.squeeze(1), _between(logits, index, rival)


def dlr(logits: Tensor, labels: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``-(z_y - max_{i != y} z_i) / (z_p1 - z_p3 + 1e-12)``, p in descending order.

    With two classes, which have no third: the margin. Source: Croce and Hein, 2020.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    value, slope = margin(logits, labels)
    top, order = logits.topk(3, 1)
    width = (top[:, 0] - top[:, 2] + TINY).unsqueeze(1)
    ratio = value.unsqueeze(1) / width
    # Where y ranks third the ratio is 1 whatever the logits are: the margin has a slope there.
    moving = torch.where(order[:, 2:] == labels.unsqueeze(1), 0.0, ratio)
    slope.scatter_add_(1, order[:, :1], -moving).scatter_add_(1, order[:, 2:], moving)
    return ratio.squeeze(1), slope / width


def dlr_to_target(logits: Tensor, labels: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """``-(z_y - z_t) / (z_p1 - (z_p3 + z_p4) / 2 + 1e-12)``; below four classes ``z_t - z_y``.

    Source: Croce and Hein, 2020.
    """
    value, slope = margin_to_target(logits, labels, targets)
    if logits.shape[1] < 4:
        return value, slope
    top, order = logits.topk(4, 1)
    width = (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY).unsqueeze(1)
    ratio = value.unsqueeze(1) / width
    slope.scatter_add_(1, order[:, :1], -ratio)
    slope.scatter_add_(1, order[:, 2:], (ratio / 2).expand(-1, 2))
    return ratio.squeeze(1), slope / width


def divergence(reference: Tensor) -> Loss:
    """``KL(p || softmax(z))`` for probabilities ``p = reference [B, K]``, of the whole batch."""

    def loss(logits: Tensor, labels: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log = logits.log_softmax(1)
        value = (torch.special.xlogy(reference, reference) - reference * log).sum(1)
        return value, log.exp() - reference

    return loss


@functools.cache
def lowered(loss: Loss) -> Loss:
    """The negative: of the target class a targeted attack lowers the loss."""

    def negative(logits: Tensor, labels: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        value, slope = loss(logits, labels, targets)
        return -value, -slope

    return negative


def _between(logits: Tensor, index: Tensor, rival: Tensor) -> Tensor:
    """The derivative of ``z_rival - z_index``."""
    one = logits.new_ones((1, 1)).expand(len(logits), 1)
    return torch.zeros_like(logits).scatter_add_(1, rival, one).scatter_add_(1, index, -one)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
