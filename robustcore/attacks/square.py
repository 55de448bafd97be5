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

# Signs where windows are, made of the windows of linf.
SIGNS: dict[str, Any] = {"eps": 1.0, "low": -1.0, "high": 1.0}
ORDERS = {"l2": 2.0, "l1": 1.0}
TINY = 1e-12
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

    Every image has windows of its own. In l2 and l1 a window takes what the ball has left, and what
    a second one had. Source: Andriushchenko et al., 2020.
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
        step = np.arange(attack.queries) / attack.queries * 10_000
        share = attack.p_init / 2.0 ** np.searchsorted(np.array(HALVED), step, side="left")
        self._share = torch.from_numpy(share)

    def begin(self, rows: Rows) -> None:
        x0, state = rows["x0"], rows.state
        image = rows["index"], rows["variant"]
        if self.norm == "linf":
            state["x"] = ops.square_start(x0, *image, eps=self.eps, seed=self.seed)
        else:
            stripes = ops.square_start(torch.zeros_like(x0), *image, seed=self.seed, **SIGNS)
            order, elements = ORDERS[self.norm], x0[0].numel()
            start = x0 + stripes * (self.eps / elements ** (1 / order))
            state["x"] = ops.project(start, x0, self.norm, self.eps)
        self.begin_best(rows)

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        self.keep_best(rows, x, loss)
        age = torch.from_numpy(np.minimum(rows.age, self.points - 1))
        share, age = self._share[age].to(x.device, loss.dtype), age.to(x.device)
        best, x0, image = rows["best"], rows["x0"], (rows["index"], rows["variant"])
        if self.norm == "linf":
            return ops.square_propose(best, x0, *image, age, share, eps=self.eps, seed=self.seed)
        zeros = torch.zeros_like(x0)
        first, second = (
            ops.square_propose(zeros, zeros, *image, query, share, seed=self.seed, **SIGNS)
            for query in (2 * age, 2 * age + 1)
        )
        moved = x0 + _moved(best - x0, first, second, ORDERS[self.norm], self.eps)
        return ops.project(moved, x0, self.norm, self.eps)


def _moved(d: Tensor, first: Tensor, second: Tensor, order: float, eps: float) -> Tensor:
    """d with what it has in a second window, and what the ball has left, in a first one.

    The windows hold a sign a channel, and 0 outside.
    """

    def size(v: Tensor) -> Tensor:
        return v.abs().pow(order).sum((2, 3), keepdim=True)

    inside, both = first != 0, (first != 0) | (second != 0)
    own = torch.where(inside, d, 0.0)
    left = (eps**order - size(d).sum(1, keepdim=True)).clamp_min(0) / d.shape[1]
    available = left + size(torch.where(both, d, 0.0))
    new = first * _pattern(inside, second) + own / (size(own).pow(1 / order) + TINY)
    new = new / (size(new).pow(1 / order) + TINY) * available.pow(1 / order)
    return torch.where(inside, new, torch.where(both, 0.0, d))


def _pattern(inside: Tensor, second: Tensor) -> Tensor:
    """The published colours of a window: two peaks of opposite sign, side by side or stacked."""
    inside = inside[:, :1]
    across = second.flatten(1).sum(1).view(-1, 1, 1, 1) > 0  # a random bit
    y, x = inside.any(3, keepdim=True).cumsum(2) - 1, inside.any(2, keepdim=True).cumsum(3) - 1
    y, x = torch.where(across, x, y), torch.where(across, y, x)
    side = inside.any(3, keepdim=True).sum(2, keepdim=True)
    half = side // 2
    upper = y < half
    height = torch.where(upper, half, side - half)
    away = torch.maximum((torch.where(upper, y, y - half) - height // 2).abs(), (x - half).abs())
    rings = torch.maximum(height, side) // 2 + 1
    terms = 1 / torch.arange(1, int(inside.shape[2]) + 2, device=inside.device).double().square()
    sums = torch.cat([terms.new_zeros(1), terms.cumsum(0)])
    value = sums[rings] - sums[away.clamp(min=0).minimum(rings)]
    return torch.where(inside, torch.where(upper, value, -value), 0.0).to(second.dtype)
