"""The gradient of a batch as replays of a CUDA graph: the model's passes, launched as one thing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustcore.attacks.losses import RowLoss
from robustcore.common.cuda_graph import CapturedStep

Evaluated = tuple[Tensor, Tensor, Tensor]  # loss, gradient, verdict


class GradientGraph:
    """Loss, gradient and verdict of batches of one shape: three times eagerly, then as replays.

    Args:
        evaluate: queues the passes of images and their loss.
        x, loss: as those that will be evaluated.
    """

    def __init__(
        self, evaluate: Callable[[Tensor, RowLoss], Evaluated], x: Tensor, loss: RowLoss
    ) -> None:
        self._evaluate = evaluate
        # A replay reads what lies here.
        self._x = torch.empty_like(x, memory_format=torch.preserve_format)
        targets = None if loss.targets is None else torch.empty_like(loss.targets)
        self._loss = RowLoss(loss.loss, torch.empty_like(loss.labels), targets)
        self._made: Evaluated | None = None
        self._captured = CapturedStep(self._step, x.device)

    def run(self, x: Tensor, loss: RowLoss) -> Evaluated:
        """Of one batch. Raises NotCapturable where the model waits for the device, say."""
        self._x.copy_(x)
        self._loss.labels.copy_(loss.labels)
        if self._loss.targets is not None and loss.targets is not None:
            self._loss.targets.copy_(loss.targets)
        self._captured.run()
        assert self._made is not None
        value, grad, ahead = self._made
        # The next replay writes to the same memory.
        return value.clone(), grad.clone(), ahead.clone()

    def _step(self) -> None:
        self._made = self._evaluate(self._x, self._loss)
