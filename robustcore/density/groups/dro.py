"""Training for the worst of the groups that a spurious feature makes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_classes,
    require_floating,
    require_int,
    require_not_negative,
)
from robustcore.common.ranks import Ranks
from robustcore.density.gradients import widen
from robustcore.density.groups.accuracy import require_counts


class GroupDRO(nn.Module):
    """The loss of the worst group, by weights that follow the groups' losses.

    Each call multiplies the weight of a group by ``exp(eta * its mean loss)``, makes the weights
    sum to 1 again and returns ``sum_g weight_g * mean loss of group g``. A group that has no sample
    in the batch keeps its share.

    Args:
        num_groups: G, at least 1.
        eta: how fast weights follow losses, at least 0; 0 weighs all groups the same.
        adjustment: C of ``C / sqrt(n_g)``, which is added to the loss of a group of n_g training
            samples, so that training goes on with small groups where large ones have generalised.
        group_counts: n_g, G of them at least 1; wanted where ``adjustment`` is not 0.

    The weights, float32 ``[G]``, are a buffer: they go along in the ``state_dict``. In evaluation
    mode they stay as they are. Once torch.distributed is initialised, the groups' losses are those
    of all ranks' batches, in training mode, so every rank calls it; the mean over ranks of what it
    returns (as DistributedDataParallel takes of gradients) is the loss.

    >>> dro = GroupDRO(2, eta=0.1)
    >>> loss = dro(torch.tensor([0.2, 0.4, 3.0]), torch.tensor([0, 0, 1]))
    >>> dro.weights
    tensor([0.4329, 0.5671])

    Raises TypeError or ValueError naming the argument. Source: Sagawa, Koh, Hashimoto, Liang,
    "Distributionally robust neural networks for group shifts", 2020.
    """

    margins: Tensor
    log_weights: Tensor

    def __init__(
        self, num_groups: int, eta: float = 0.01, *, adjustment: float = 0.0,
        group_counts: Sequence[int] | Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_groups = require_int("num_groups", num_groups, 1, 1 << 31)
        self.eta = require_not_negative("eta", eta)
        adjustment = require_not_negative("adjustment", adjustment)
        margins = torch.zeros(self.num_groups)
        if group_counts is not None:
            counts = require_counts("group_counts", group_counts, self.num_groups, 1)
            margins = (adjustment / counts.double().sqrt()).float()
        elif adjustment:
            raise ValueError(f"adjustment: got {adjustment} without group_counts")
        self.register_buffer("margins", margins, persistent=False)
        uniform = torch.full((self.num_groups,), -math.log(self.num_groups))
        self.register_buffer("log_weights", uniform)

    @property
    def weights(self) -> Tensor:
        """The weight of each group ``[G]``; their sum is 1."""
        return self.log_weights.exp()

    def forward(self, losses: Tensor, groups: Tensor) -> Tensor:
        """The weighted loss, a scalar, float32 at least; differentiable in ``losses``.

        Args:
            losses: ``[N]``, floating and finite, such as a cross entropy with
                ``reduction="none"``.
            groups: int64 ``[N]`` in [0, num_groups), on the same device.

        Raises TypeError or ValueError naming the argument.
        """
        if require_floating("losses", losses).dim() != 1:
            raise ValueError(f"losses: got shape {list(losses.shape)}, want [N]")
        if not bool(torch.isfinite(losses).all()):  # the weights would never recover from it
            raise ValueError("losses: got NaN or infinity, want finite numbers")
        require_classes("groups", groups, len(losses), self.num_groups)
        for name, t in (("groups", groups), ("losses", losses)):
            if t.device != self.log_weights.device:
                raise ValueError(f"{name}: is on {t.device}, GroupDRO on {self.log_weights.device}")
        member = torch.arange(self.num_groups, device=losses.device)[:, None] == groups
        sums = torch.where(member, widen(losses), 0.0).sum(1)
        counts, ranks = member.sum(1), Ranks()
        total, size = sums.detach(), 1
        if self.training:
            counts, total, size = ranks.add(counts), ranks.add(total.clone()), ranks.size
        present, counts = counts > 0, counts.clamp(min=1)
        margins = torch.where(present, self.margins, 0.0)
        if self.training:
            grown = self.log_weights + self.eta * (total / counts + margins)
            self.log_weights.copy_(grown.log_softmax(0))
        loss: Tensor = (self.weights * (sums * (size / counts) + margins)).sum()
        return loss
