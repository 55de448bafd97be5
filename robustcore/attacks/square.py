"""Square: random squares of shrinking size, kept where they raise the loss; no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcore import ops
from robustcore.attacks.attack import GradientMethod, StepAttack
from robustcore.attacks.engine import Rows
from robustcore.common.checks import require_int, require_probability

# The published schedule of the share of pixels, for 10 000 queries: halved after each of these.
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(StepAttack):
    """Square attack: asks the model for scores alone, so it sees through masked gradients.

    Args:
        model: what is attacked, see :class:`Attack`.
        eps: radius of the ball, in pixel units.
        queries: forward passes for each image, at least 1.
        norm: "Linf", "L2" or "L1".
        p_init: share of the pixels that the first squares cover, in (0, 1).
        restarts, loss, targeted, eot, seed, mean, std, batch_size, grid, predict: see
            :class:`Attack`.

    Every image has windows of its own, see :func:`robustcore.ops.square_propose`.
    Source: Andriushchenko et al., 2020; Croce and Hein, 2021, for l1.
    """

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        queries: int = 5000,
        *,
        norm: str = "Linf",
        p_init: float = 0.8,
        restarts: int = 1,
        loss: str = "margin",
        targeted: bool = False,
        eot: int = 1,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        grid: int | None = None,
        predict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model, eps, norm=norm, loss=loss, targeted=targeted, eot=eot, seed=seed, mean=mean,
            std=std, batch_size=batch_size, grid=grid, predict=predict,
            norms=("linf", "l2", "l1"),
        )  # fmt: skip
        self.queries = require_int("queries", queries, 1, 1 << 31)
        self.p_init = require_probability("p_init", p_init)
        self.restarts = require_int("restarts", restarts, 1, 1 << 31)

    def method(self, seed: int) -> Squares:
        """The attack as steps on rows."""
        return Squares(self, seed)


class Squares(GradientMethod):
    """Square on rows: ``best`` is the point that proposals start from."""

    gradients = False

    def __init__(self, attack: Square, seed: int) -> None:
        super().__init__(attack, seed)
        self.points, self.variants = attack.queries, attack.restarts
        step = np.arange(attack.queries + 1) / attack.queries * 10_000
        share = attack.p_init / 2.0 ** np.searchsorted(np.array(HALVED), step, side="left")
        self._share = torch.from_numpy(share)  # after so many points

    def begin(self, rows: Rows) -> None:
        x0, state = rows["x0"], rows.state
        self._ball: dict[str, Any] = dict(norm=self.norm, eps=self.eps, seed=self.seed)
        state["x"] = ops.square_start(x0, rows["index"], rows["variant"], **self._ball)
        self.begin_best(rows)
        self._share = self._share.to(x0.device, state["best_loss"].dtype)

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        best, x0, age = rows["best"], rows["x0"], rows["age"]
        share, image = self._share.index_select(0, age), (rows["index"], rows["variant"])
        return ops.square_propose(best, x0, *image, age, share, **self._ball)
