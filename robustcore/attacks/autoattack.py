"""AutoAttack: a fixed ensemble of attacks without parameters, the yardstick of robust accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcore.attacks.apgd import APGD, APGDT, NORMS
from robustcore.attacks.attack import Attack, Session, StepAttack, require_images
from robustcore.attacks.fab import FAB
from robustcore.attacks.result import Attacked, distances
from robustcore.attacks.square import Square
from robustcore.common.checks import require_choice, require_int

VERSIONS = ("standard", "plus", "rand")


@dataclass(frozen=True)
class Line:
    """One attack of an evaluation."""

    attack: str
    fooled: int
    """Images that it fooled, of those left by the ones before it."""
    robust_accuracy: float
    """After it."""
    queries: int
    """Forward passes, of all images."""
    zero_gradients: int


@dataclass(frozen=True)
class Evaluation:
    """The outcome of AutoAttack."""

    attacked: Attacked
    clean_accuracy: float
    lines: tuple[Line, ...]

    @property
    def robust_accuracy(self) -> float:
        """After all attacks."""
        return self.attacked.robust_accuracy

    def __str__(self) -> str:
        rows = [f"{'':<12}{'fooled':>8}{'accuracy':>10}{'queries':>12}"]
        rows.append(f"{'clean':<12}{'':>8}{self.clean_accuracy:>10.1%}{len(self.attacked):>12,}")
        rows += [
            f"{line.attack:<12}{line.fooled:>8}{line.robust_accuracy:>10.1%}{line.queries:>12,}"
            for line in self.lines
        ]
        return "\n".join(rows)


class AutoAttack(Attack):
    """AutoAttack: APGD, APGD on targets, FAB and Square, each on the images left by those before.

    Args:
        model: what is attacked, see :class:`Attack`; any number of classes from 2 on.
        norm: "Linf", "L2" or "L1".
        eps: radius of the ball, in pixel units.
        version: "standard"; "plus", with restarts, the untargeted DLR loss and the untargeted FAB
            as well; "rand" for a random model, with gradients averaged over 20 passes.
        seed, mean, std, batch_size, grid, predict: see :class:`Attack`.

    Budgets are the published ones: 100 steps of APGD and of FAB, 9 targets (5 of APGD in l1), 5000
    queries of Square; in l1 APGD begins with larger radii and 5 restarts.
    Source: Croce and Hein, 2020.
    """

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 8 / 255,
        version: str = "standard",
        seed: int | None = None,
        *,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        grid: int | None = None,
        predict: dict[str, Any] | None = None,
    ) -> None:
        self.version = require_choice("version", version, VERSIONS)
        super().__init__(
            model, eps, norm=norm, eot=20 if version == "rand" else 1, seed=seed, mean=mean,
            std=std, batch_size=batch_size, grid=grid, predict=predict,
            norms=NORMS,
        )  # fmt: skip
        self.attacks = self._attacks()

    def run_standard_evaluation(self, x: Tensor, y: Tensor, bs: int = 250) -> Tensor:
        """The adversarial images ``[B, C, H, W]`` of x with labels y, ``bs`` in a call."""
        return self.evaluate(x, y, bs).attacked.images

    def evaluate(self, x: Tensor, y: Tensor, bs: int = 250) -> Evaluation:
        """Attacks x ``[B, C, H, W]`` with labels y ``[B]``, and tells what each attack did.

        ``bs`` images, with their targets, are in one call of the model. Raises and warns as
        :meth:`Attack.run`.
        """
        images, labels = require_images(x, y, self.grid, ("x", "y"))
        batch = min(require_int("bs", bs, 1), max(1, 9 * len(images)))
        return self._work(images, labels, torch.arange(len(images)), batch, self._evaluated, "y")

    def _attacked(self, session: Session, seed: int) -> Attacked:
        return self._evaluated(session, seed).attacked

    def _evaluated(self, session: Session, seed: int) -> Evaluation:
        return _Evaluating(self, session, seed).run()

    def _attacks(self) -> dict[str, StepAttack]:
        shared: dict[str, Any] = {
            "norm": self.norm, "eot": self.eot, "mean": self.mean, "std": self.std,
            "grid": self.grid, "predict": self.predict,
        }  # fmt: skip
        model, eps, sparse = self.model, self.eps, self.norm == "l1"
        if self.version == "rand":
            return {f"APGD-{k}": APGD(model, eps, loss=k, **shared) for k in ("ce", "dlr")}
        plus = self.version == "plus"
        apgd = {"restarts": 5 if plus or sparse else 1, "larger_radii": sparse, **shared}
        fab = {"steps": 100, "restarts": 5 if plus else 1, **shared}
        targets = 5 if sparse and not plus else 9
        towards: dict[str, StepAttack] = {
            "APGD-t": APGDT(model, eps, targets=targets, **{**apgd, "restarts": 1}),
            "FAB-t": FAB(model, eps, **fab),
        }
        made: dict[str, StepAttack] = {"APGD-ce": APGD(model, eps, loss="ce", **apgd)}
        square: dict[str, StepAttack] = {"Square": Square(model, eps, queries=5000, **shared)}
        if not plus:
            return made | towards | square
        made["APGD-dlr"] = APGD(model, eps, loss="dlr", **apgd)
        made["FAB"] = FAB(model, eps, targets=0, **fab)
        return made | square | towards


class _Evaluating:
    """One evaluation on its way."""

    def __init__(self, attack: AutoAttack, session: Session, seed: int) -> None:
        self._attack, self._session, self._seed = attack, session, seed
        self._images = session.images.clone()
        self._right = ~session.fooled
        clean = session.fooled.mean() if len(session.fooled) else float("nan")
        self.clean_accuracy = 1 - float(clean)
        self._steps, self._queries, self._flipped = (
            np.zeros(len(self._right), int) for _ in range(3)
        )
        self._notes = {"zero_gradients": 0, "nan_logits": 0, "nan_gradients": 0}

    def run(self) -> Evaluation:
        lines = []
        for number, (name, attack) in enumerate(self._attack.attacks.items()):
            if not self._right.any():
                break
            lines.append(self._one(name, attack, (self._seed + number) % (1 << 64)))
        return Evaluation(self._result(), self.clean_accuracy, tuple(lines))

    def _one(self, name: str, attack: StepAttack, seed: int) -> Line:
        """An attack on the images that are still right."""
        session, active = self._session, np.flatnonzero(self._right)
        method = attack.method(seed)
        method.check(session)
        found = session.search(method, active)
        index = torch.from_numpy(active).to(session.images.device)
        prediction = session.answers(found.images[index], active)
        success = session.succeeded(prediction, session.labels[index]).cpu().numpy()
        self._flipped[active] += success != (found.winner[active] < method.variants)
        self._images[index] = found.images[index]
        self._right[active] = ~success
        self._queries[active] += found.queries(method)[active] * attack.eot + 1
        self._steps[active] = found.steps[active]
        for note in self._notes:
            self._notes[note] += int(getattr(found, note)[active].sum())
        return Line(
            name,
            int(success.sum()),
            float(self._right.mean()),
            int(found.queries(method)[active].sum()) * attack.eot,
            int(found.zero_gradients[active].sum()),
        )

    def _result(self) -> Attacked:
        session, attack = self._session, self._attack
        images, labels = self._images, session.labels
        prediction, loss = labels.clone(), images.new_zeros(len(images))
        if len(images):
            prediction, loss = session.judged(images, attack.loss)
        return Attacked(
            images=images,
            success=session.succeeded(prediction, labels),
            prediction=prediction,
            loss=loss,
            distance=distances(images, session.images, attack.norm),
            steps=torch.from_numpy(self._steps),
            queries=torch.from_numpy(self._queries + 1),
            norm=attack.norm,
            eps=attack.eps,
            seed=self._seed,
            clean_accuracy=self.clean_accuracy,
            flipped=int((self._flipped > 0).sum()),
            **self._notes,
        )
