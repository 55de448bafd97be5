"""Projected gradient descent, and its single step FGSM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustcore import ops
from robustcore.attacks.attack import GradientMethod, StepAttack
from robustcore.attacks.engine import Rows
from robustcore.common.checks import require_flag, require_int, require_positive

# The share of the elements that a step of l1 moves.
SPARSE = 0.05


class PGD(StepAttack):
    """Projected gradient descent: steps along the gradient, each back into ball and box.

    Args:
        model: what is attacked, see :class:`Attack`.
        eps: radius of the ball, in pixel units.
        alpha: size of a step, by default ``2.5 * eps / steps``.
        steps: at least 1.
        norm: "Linf", "L2", "L1" or "L0", where eps counts pixels.
        random_start: begin at a random point of the ball, another one at each restart; else at the
            image.
        restarts: runs for each image that is not fooled yet.
        loss: "ce", "margin" or "dlr".
        targeted: labels are classes to reach.
        eot, seed, mean, std, batch_size, grid, predict: see :class:`Attack`.

    In l1 a step moves the twentieth of the elements with the largest gradients, of those that the
    box lets move. Source: Madry et al., 2018; Tramer and Boneh, 2019, for l1; Croce and Hein, 2019,
    for l0.
    """

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        alpha: float | None = None,
        steps: int = 10,
        *,
        norm: str = "Linf",
        random_start: bool = True,
        restarts: int = 1,
        loss: str = "ce",
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
        )  # fmt: skip
        self.steps = require_int("steps", steps, 1, 1 << 31)
        self.alpha = None if alpha is None else require_positive("alpha", alpha)
        self.random_start = require_flag("random_start", random_start)
        self.restarts = require_int("restarts", restarts, 1, 1 << 31)

    def method(self, seed: int) -> Steps:
        """The attack as steps on rows."""
        return Steps(self, seed)

    @property
    def step_size(self) -> float:
        """Of a step, in pixel units."""
        return 2.5 * self.eps / self.steps if self.alpha is None else self.alpha


class FGSM(PGD):
    """The fast gradient sign method: one step of length eps from the image itself.

    Args:
        model: what is attacked, see :class:`Attack`.
        eps: length of the step, in pixel units.
        norm: "Linf", "L2", "L1" or "L0"; the step goes along the steepest direction of it.
        loss, targeted, eot, seed, mean, std, batch_size, grid, predict: as in :class:`PGD`.

    Source: Goodfellow, Shlens and Szegedy, 2015.
    """

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        *,
        norm: str = "Linf",
        loss: str = "ce",
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
            model, eps, eps, 1, norm=norm, random_start=False, loss=loss, targeted=targeted,
            eot=eot, seed=seed, mean=mean, std=std, batch_size=batch_size, grid=grid,
            predict=predict,
        )  # fmt: skip


class Steps(GradientMethod):
    """PGD on rows."""

    def __init__(self, attack: PGD, seed: int) -> None:
        super().__init__(attack, seed)
        self.points, self.variants = attack.steps + 1, attack.restarts
        self._random, self._step_size = attack.random_start, attack.step_size

    def begin(self, rows: Rows) -> None:
        x0 = rows["x0"]
        if self._random:
            where: dict[str, Any] = {"norm": self.norm, "eps": self.eps, "seed": self.seed}
            rows.state["x"] = ops.random_start(x0, rows["index"], rows["variant"], **where)
        else:
            rows.state["x"] = x0.clone()
        self.begin_best(rows)

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        here = rows["x"]
        if self.norm == "l1":  # what cannot move would take the place of what can
            blocked = ((here <= 0) & (grad < 0)) | ((here >= 1) & (grad > 0))
            grad = grad.masked_fill_(blocked, 0.0)
        ball: dict[str, Any] = {"norm": self.norm, "eps": self.eps, "topk": SPARSE}
        return ops.attack_step(here, grad, rows["x0"], step_size=self._step_size, **ball)
