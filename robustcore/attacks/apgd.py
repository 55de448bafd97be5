"""Auto-PGD: projected gradient descent that chooses its steps itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore import ops
from robustcore.attacks.attack import GradientMethod, Session, StepAttack
from robustcore.attacks.engine import FLAGS, Rows, column
from robustcore.common.checks import require_flag, require_int
from robustcore.ops.attacks import loops
from robustcore.ops.attacks.norms import NORMS as NUMBERS
from robustcore.ops.autograd import dense

# Of the published algorithms, "rho" and those of l1.
RISES, MOMENTUM = 0.75, 0.75
SPARSE, SPARSER, FEWER, REDUCED, LEAST = 0.2, 0.95, 1.5, 1.5, 10.0
NORMS = ("linf", "l2", "l1")


class APGD(StepAttack):
    """Auto-PGD: halves its steps, and goes back to its best point, where the loss stops rising.

    Args:
        model: what is attacked, see :class:`Attack`.
        eps: radius of the ball, in pixel units.
        steps: at least 1.
        norm: "Linf", "L2" or "L1".
        restarts: runs from random points for each image that is not fooled yet.
        loss: "ce", "margin" or "dlr".
        larger_radii: begin in balls of three and two times the radius, as AutoAttack does; in L1.
        targeted, eot, seed, mean, std, batch_size, grid, predict: see :class:`Attack`.

    Source: Croce and Hein, 2020; for l1 "Mind the box", 2021.
    """

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        steps: int = 100,
        *,
        norm: str = "Linf",
        restarts: int = 1,
        loss: str = "ce",
        larger_radii: bool = False,
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
            norms=NORMS,
        )  # fmt: skip
        self.steps = require_int("steps", steps, 1, 1 << 31)
        self.restarts = require_int("restarts", restarts, 1, 1 << 31)
        self.larger_radii = require_flag("larger_radii", larger_radii)
        if self.larger_radii and self.norm != "l1":
            raise ValueError(f"larger_radii: goes with norm L1, got {norm}")

    def method(self, seed: int) -> AutoSteps:
        """The attack as steps on rows."""
        return AutoSteps(self, seed)


class APGDT(APGD):
    """Auto-PGD towards the likeliest wrong classes in turn, with the targeted DLR loss.

    Args:
        model: what is attacked, see :class:`Attack`.
        eps: radius of the ball, in pixel units.
        steps: for each target, at least 1.
        norm: "Linf", "L2" or "L1".
        targets: how many classes, at most; a model of K classes has K - 1.
        restarts: runs from random points towards each target.
        larger_radii, eot, seed, mean, std, batch_size, grid, predict: as in
            :class:`APGD`.

    Below four classes, where that loss has no fourth logit, the margin takes its place.
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
        larger_radii: bool = False,
        eot: int = 1,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        grid: int | None = None,
        predict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model, eps, steps, norm=norm, restarts=restarts, loss="dlr", eot=eot, seed=seed,
            larger_radii=larger_radii, mean=mean, std=std, batch_size=batch_size, grid=grid,
            predict=predict,
        )  # fmt: skip
        self.targets = require_int("targets", targets, 1, 1 << 31)

    def method(self, seed: int) -> AutoSteps:
        """The attack as steps on rows."""
        return TowardsTargets(self, seed)


class Stage(NamedTuple):
    """A run of APGD in one ball: from point ``first`` on, ``steps`` of them."""

    first: int
    steps: int
    eps: float


class AutoSteps(GradientMethod):
    """APGD on rows. Where its checkpoints are depends on a row's age alone."""

    def __init__(self, attack: APGD, seed: int) -> None:
        super().__init__(attack, seed)
        self.variants = attack.restarts
        self.stages = _stages(attack.steps, attack.eps, attack.larger_radii)
        self.points = sum(stage.steps + 1 for stage in self.stages)
        self._sparse = self.norm == "l1"
        # Of what ends at the last one of so many points, else 0.
        self._widths = torch.zeros(self.points + 1, dtype=torch.int64)
        for stage in self.stages:
            for end, width in _checkpoints(stage.steps, self._sparse):
                self._widths[stage.first + end + 1] = width
        self._due = self._widths[1:].numpy() > 0

    def begin(self, rows: Rows) -> None:
        state = rows.state
        x0 = state["x0"] = dense(rows["x0"])
        eps = self.stages[0].eps
        where: dict[str, Any] = {"norm": self.norm, "eps": eps, "seed": self.seed}
        state["x"] = ops.random_start(x0, rows["index"], rows["variant"], **where)
        self.begin_best(rows)
        zeros = torch.zeros_like(state["best_loss"])
        state["best_grad"] = torch.zeros_like(state["x"])
        state["rate"] = zeros + eps * (1 if self._sparse else 2)
        self._widths = self._widths.to(x0.device)
        if self._sparse:
            state["eps"], state["topk"] = zeros + eps, zeros + SPARSE
            state["sparsity"] = zeros + x0[0].numel()
        else:
            state["previous"], state["rises"] = state["x"].clone(), zeros.clone()
            state["last"], state["checked"] = zeros + torch.inf, zeros - torch.inf
            state["cut"] = torch.ones_like(state["found"])

    def counts(self, rows: Rows, x: Tensor) -> Tensor | None:
        """A point of a larger ball is none of this one."""
        return None if len(self.stages) == 1 else rows["age"] >= self.stages[-1].first

    def step(
        self,
        rows: Rows,
        x: Tensor,
        loss: Tensor,
        grad: Tensor | None,
        ahead: Tensor,
        counts: Tensor | None,
    ) -> Tensor:
        if self._sparse or grad is None:
            return super().step(rows, x, loss, grad, ahead, counts)
        state = rows.state
        # Where the step before began is overwritten by where this one ends.
        here, following = state["x"], state["previous"]
        loops.apgd_step(
            here, None if x is here else x, grad, state["x0"], following, loss, ahead, counts,
            state["best"], state["best_grad"], state["best_loss"],
            *(state[name] for name in FLAGS), state["age"], state["last"], state["rate"],
            state["rises"], state["checked"], state["cut"], self._widths,
            NUMBERS.index(self.norm), self.eps, RISES, MOMENTUM,
        )  # fmt: skip
        state["previous"] = here
        return following

    def blind_step(
        self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor, ahead: Tensor
    ) -> Tensor:
        return self.step(rows, x, loss, grad, ahead, torch.zeros_like(rows["found"]))

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        """Of l1."""
        state, here = rows.state, rows["x"]
        if not self._sparse:
            return here  # the last point of all
        if self._due[rows.age].any():
            back = self._check(rows, self._widths.index_select(0, state["age"]))
            here = torch.where(column(back, here), state["best"], here)
            grad = torch.where(column(back, grad), state["best_grad"], grad)
        following = ops.attack_step(
            here, grad, state["x0"], norm="l1", eps=state["eps"], step_size=state["rate"],
            topk=state["topk"],
        )  # fmt: skip
        return following if len(self.stages) == 1 else self._next_stage(rows, following)

    def _check(self, rows: Rows, width: Tensor) -> Tensor:
        """Which rows go back to their best point; the steps of those of a checkpoint, in l1."""
        state, due = rows.state, width > 0
        pixels = (state["best"] != state["x0"]).flatten(1).sum(1)
        back = due & (pixels < SPARSER * state["sparsity"])
        share = pixels.to(state["topk"].dtype) / (FEWER * state["x0"][0].numel())
        state["topk"] = torch.where(due, share, state["topk"])
        rate = torch.where(back, state["eps"], state["rate"] / REDUCED)
        rate = torch.minimum(torch.maximum(rate, state["eps"] / LEAST), state["eps"])
        state["rate"] = torch.where(due, rate, state["rate"])
        state["sparsity"] = torch.where(due, pixels.to(share.dtype), state["sparsity"])
        return back

    def _next_stage(self, rows: Rows, following: Tensor) -> Tensor:
        """Rows at the end of a larger ball begin anew in the next one, from their best point."""
        for stage in self.stages[1:]:
            ends = rows.age == stage.first - 1
            if not ends.any():
                continue
            state, new = rows.state, torch.from_numpy(ends).to(following.device)
            inside = ops.project(state["best"], state["x0"], self.norm, stage.eps)
            following = torch.where(column(new, following), inside, following)
            changed = (inside != state["x0"]).flatten(1).sum(1).to(state["eps"].dtype)
            values = {"eps": stage.eps, "rate": stage.eps, "best_loss": -torch.inf}
            for name, value in values.items():
                state[name] = state[name].masked_fill(new, value)
            share = changed / (FEWER * state["x0"][0].numel())
            state["topk"] = torch.where(new, share, state["topk"])
            state["sparsity"] = torch.where(new, changed, state["sparsity"])
        return following


class TowardsTargets(AutoSteps):
    """APGD on rows, each towards a class of its own."""

    def __init__(self, attack: APGDT, seed: int) -> None:
        super().__init__(attack, seed)
        self._wanted, self._restarts = attack.targets, attack.restarts  # the loss is dlr

    def check(self, session: Session) -> None:
        self.targets = min(self._wanted, session.logits.shape[1] - 1)
        self.variants = self.targets * self._restarts


def _stages(steps: int, eps: float, larger_radii: bool) -> list[Stage]:
    if not larger_radii or steps < 4:
        return [Stage(0, steps, eps)]
    early = math.ceil(0.3 * steps)
    made, first = [], 0
    for part, radius in ((early, 3 * eps), (early, 2 * eps), (steps - 2 * early, eps)):
        made.append(Stage(first, part, radius))
        first += part + 1
    return made


def _checkpoints(steps: int, sparse: bool) -> list[tuple[int, int]]:
    """(step, steps since the last one) of each: first .22 of all, then ever fewer down to .06."""
    made, at = [], 0
    width = max(int((0.04 if sparse else 0.22) * steps), 1)
    while (at := at + width) <= steps:
        made.append((at, width))
        if not sparse:
            width = max(width - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return made
