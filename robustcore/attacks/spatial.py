"""Spatial attacks: images turned and moved until they are misclassified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore import ops
from robustcore.attacks.attack import GradientMethod, MethodAttack
from robustcore.attacks.engine import Rows
from robustcore.common.checks import require_choice, require_int, require_not_negative

SEARCHES = ("grid", "random")


class Spatial(MethodAttack):
    """Rotations and translations: the worst pose of a grid, or of k random ones, for each image.

    Args:
        model: what is attacked, see :class:`Attack`.
        max_angle: degrees to either side.
        max_shift: pixels in each direction; zeros come in from outside.
        search: "grid": all poses; "random": ``tries`` random ones, 1 is a random transformation
            and 10 the published "worst-of-10".
        angles, shifts: of the grid, how many angles, and shifts each way; a single one is 0.
        tries: poses of a random search.
        loss: "ce", "margin" or "dlr", by which the worst pose is found where none fools the model.
        targeted, eot, seed, mean, std, batch_size, predict: see :class:`Attack`.

    A pose that fools the model ends the search for its image. The ball is that of all images,
    ``eps = 1`` in linf, and so are distances.
    Source: Engstrom et al., "Exploring the landscape of spatial robustness", 2019.
    """

    def __init__(
        self,
        model: Any,
        max_angle: float = 30.0,
        max_shift: float = 3.0,
        *,
        search: str = "grid",
        angles: int = 31,
        shifts: int = 5,
        tries: int = 10,
        loss: str = "ce",
        targeted: bool = False,
        eot: int = 1,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        predict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model, 1.0, norm="linf", loss=loss, targeted=targeted, eot=eot, seed=seed, mean=mean,
            std=std, batch_size=batch_size, predict=predict,
        )  # fmt: skip
        self.max_angle = require_not_negative("max_angle", max_angle)
        self.max_shift = require_not_negative("max_shift", max_shift)
        self.search = require_choice("search", search, SEARCHES)
        self.angles = require_int("angles", angles, 1, 1 << 16)
        self.shifts = require_int("shifts", shifts, 1, 1 << 16)
        self.tries = require_int("tries", tries, 1, 1 << 31)

    def method(self, seed: int) -> Poses:
        """The attack as steps on rows."""
        return Poses(self, seed)

    def poses(self) -> Tensor:
        """The poses of the grid ``[P, 3]``: degrees, pixels down and to the right."""
        turns = _steps(self.max_angle, self.angles)
        moves = _steps(self.max_shift, self.shifts)
        return torch.cartesian_prod(turns, moves, moves)


class Poses(GradientMethod):
    """One pose a row, one look each."""

    gradients = False

    def __init__(self, attack: Spatial, seed: int) -> None:
        super().__init__(attack, seed)
        self._poses = attack.poses() if attack.search == "grid" else None
        self._most = torch.tensor([attack.max_angle, attack.max_shift, attack.max_shift])
        self.variants = attack.tries if self._poses is None else len(self._poses)

    def begin(self, rows: Rows) -> None:
        x0 = rows["x0"]
        poses = self._drawn(rows).to(x0.device)
        turned = ops.spatial_warp(x0, poses[:, :1], poses[:, None, 1:])
        rows.state["x"] = turned.squeeze(1).clamp_(0, 1)
        self.begin_best(rows)

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        return x

    def _drawn(self, rows: Rows) -> Tensor:
        if self._poses is not None:
            return self._poses[torch.from_numpy(rows.variant)]
        # A random start of three elements in linf: uniform, and of the image and the try alone.
        centres = torch.full((len(rows), 3), 0.5)
        index, tries = rows["index"].cpu(), torch.from_numpy(rows.variant)
        points = ops.random_start(centres, index, tries, norm="linf", eps=0.5, seed=self.seed)
        return (2 * points - 1) * self._most


def _steps(most: float, count: int) -> Tensor:
    return torch.zeros(1) if count == 1 else torch.linspace(-most, most, count)
