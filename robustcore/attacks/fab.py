"""FAB: the nearest point of another class, by steps onto the linearised boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore import ops
from robustcore.attacks.apgd import NORMS
from robustcore.attacks.attack import GradientMethod, Session, StepAttack
from robustcore.attacks.engine import Rows, column
from robustcore.attacks.losses import LOSSES
from robustcore.attacks.result import distances
from robustcore.common.checks import require_int, require_positive, require_probability

# The norm in which a gradient measures distances of the other.
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


class FAB(StepAttack):
    """FAB: goes to the boundary of a class as linearised, biased towards the image.

    Args:
        model: what is attacked, see :class:`Attack`.
        eps: within which a success counts, in pixel units; an image leaves at the first.
        steps: projections for each target, at least 1.
        norm: "Linf", "L2" or "L1".
        targets: the likeliest wrong classes, at most; a model of K classes has K - 1. 0: none; each
            step is to the nearest boundary of all classes, which takes K backward passes.
        restarts: the first from the image, the others from random points of half the ball.
        alpha_max: most weight of the image's own projection, in (0, 1).
        eta: extrapolation beyond the boundary, at least 1 as published.
        beta: what is kept of the way to an adversarial point, in (0, 1).
        eot, seed, mean, std, batch_size, grid, predict: see :class:`Attack`.

    Source: Croce and Hein, 2020.
    """

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        steps: int = 100,
        *,
        norm: str = "Linf",
        targets: int = 9,
        restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        eot: int = 1,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        grid: int | None = None,
        predict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model, eps, norm=norm, loss="margin", eot=eot, seed=seed, mean=mean, std=std,
            batch_size=batch_size, grid=grid, predict=predict, norms=NORMS,
        )  # fmt: skip
        self.steps = require_int("steps", steps, 1, 1 << 30)
        self.targets = require_int("targets", targets, 0, 1 << 31)
        self.restarts = require_int("restarts", restarts, 1, 1 << 31)
        self.alpha_max = require_probability("alpha_max", alpha_max)
        self.eta = require_positive("eta", eta)
        self.beta = require_probability("beta", beta)

    def method(self, seed: int) -> Boundary:
        """The attack as steps on rows."""
        return Boundary(self, seed) if self.targets else Nearest(self, seed)


class Boundary(GradientMethod):
    """FAB on rows.

    A point is evaluated once: one that is adversarial is pulled back towards the image, any other,
    and what was just pulled back, is projected.
    """

    keeps_best = False  # what lies outside the ball is none of its points

    def __init__(self, attack: FAB, seed: int) -> None:
        super().__init__(attack, seed)
        self.loss = LOSSES["margin"]
        self._attack = attack
        self.points = 2 * attack.steps + 1

    def check(self, session: Session) -> None:
        self.targets = min(self._attack.targets, session.logits.shape[1] - 1)
        self.variants = self.targets * self._attack.restarts

    def begin(self, rows: Rows) -> None:
        x0, state = rows["x0"], rows.state
        state["x"] = x0.clone()
        later = state["variant"] >= max(1, self.targets)
        if bool(later.any()):
            where: dict[str, Any] = {"norm": self.norm, "eps": self.eps / 2, "seed": self.seed}
            start = ops.random_start(x0, state["index"], state["variant"], **where)
            state["x"] = torch.where(column(later, x0), start, x0)
        self.begin_best(rows)
        state["best"] = x0
        state["inside"] = torch.zeros_like(state["found"])
        state["ended"] = torch.zeros_like(state["found"])
        state["pulled"] = torch.zeros_like(state["found"])
        state["projections"] = torch.zeros_like(state["age"])

    def counts(self, rows: Rows, x: Tensor) -> Tensor:
        inside = (distances(x, rows["x0"], self.norm) <= self.eps) & ~rows["ended"]
        rows.state["inside"] = inside
        return inside

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        self.keep_best(rows, x, loss.masked_fill(~rows["inside"], -torch.inf))
        state, x0, attack = rows.state, rows["x0"], self._attack
        pull = state["fooled"] & ~state["pulled"]
        # Where the linearised difference of the logits is 0: <grad, v - x> = -loss.
        offset = (grad * x).flatten(1).sum(1) - loss
        d1 = ops.hyperplane_projection(x, grad, offset, norm=self.norm)
        d2 = ops.hyperplane_projection(x0, grad, offset, norm=self.norm)
        a1, a2 = (_norm(d, self.norm).clamp_min(1e-8) for d in (d1, d2))
        alpha = column((a1 / (a1 + a2)).clamp(max=attack.alpha_max), x)
        there, here = x + attack.eta * d1, x0 + attack.eta * d2
        following = ((1 - alpha) * there + alpha * here).clamp(0, 1)
        following = torch.where(column(pull, x), x0 + attack.beta * (x - x0), following)
        state["pulled"] = pull
        state["projections"] += ~pull
        state["ended"] |= state["projections"] >= attack.steps
        return following


class Nearest(Boundary):
    """FAB on rows, each step to the boundary that is nearest as linearised, whatever its class.

    The gradients of all classes are its own backward passes, of a forward pass beside the engine's.
    """

    gradients = False

    def check(self, session: Session) -> None:
        self._classifier, self._indices = session.classifier, session.indices
        self.variants = self._attack.restarts

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        # The margin, which no difference of two logits is above.
        self.keep_best(rows, x, loss.masked_fill(~rows["inside"], -torch.inf))
        return super().advance(rows, x, *self._nearest(rows, x))

    def _nearest(self, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
        """``z_t - z_y`` and its gradient, for the class t whose linearised boundary is nearest."""
        indices = self._indices[torch.from_numpy(rows.image)]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = self._classifier.logits(leaf, indices)
            own = logits.gather(1, rows["label"].unsqueeze(1))
            differences = (logits - own).to(x.dtype).unbind(1)
        least = torch.full_like(differences[0], torch.inf, requires_grad=False)
        value, slope = torch.zeros_like(least), torch.zeros_like(x)
        for t, difference in enumerate(differences if logits.requires_grad else ()):
            (grad,) = torch.autograd.grad(
                difference, leaf, torch.ones_like(difference), retain_graph=True, allow_unused=True
            )
            if grad is None:
                continue
            size = _norm(grad, DUAL[self.norm])
            away = difference.detach().abs() / size
            # Not its own class, nor one that has no gradient, or none that is a number.
            away = away.masked_fill((rows["label"] == t) | ~(size > 0), torch.inf)
            nearer = away < least
            least = torch.where(nearer, away, least)
            value = torch.where(nearer, difference.detach(), value)
            slope = torch.where(column(nearer, x), grad, slope)
        return value, slope


def _norm(d: Tensor, norm: str) -> Tensor:
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    lengths: Tensor = torch.linalg.vector_norm(d.flatten(1), order, dim=1)
    return lengths
