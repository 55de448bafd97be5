"""Attacks within a perceptual distance, that of the features of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore import ops
from robustcore.attacks.attack import GradientMethod, StepAttack
from robustcore.attacks.engine import Rows, column
from robustcore.common.checks import (
    require_callable,
    require_flag,
    require_floating,
    require_int,
    require_positive,
    require_sequence,
)
from robustcore.ops.attacks.perceptual import unit_features

Features = Callable[[Tensor], Sequence[Tensor]]
# Of the published algorithms: the first multiplier and its growth, the decay of the steps, the
# length over which a distance is measured, noise at the start, halvings of a projection.
MULTIPLIER, GROWTH, DECAY, PROBE, START, HALVINGS = 0.01, 10.0, 0.1, 0.1, 0.01, 10


class PerceptualAttack(StepAttack):
    """What attacks within a perceptual distance share: the network of features and the ball."""

    def __init__(
        self,
        model: Any,
        features: Features,
        eps: float,
        steps: int,
        weights: Sequence[Tensor] | None,
        **options: Any,
    ) -> None:
        super().__init__(model, eps, norm="perceptual", norms=("perceptual",), **options)
        require_callable("features", features)
        self.features, self.weights = features, _checked(weights)
        self.steps = require_int("steps", steps, 1, 1 << 31)

    def _distances(self, images: Tensor, x0: Tensor) -> Tensor:
        parts = zip(images.split(self.batch_size), x0.split(self.batch_size), strict=True)
        return torch.cat([self._distance(self._features_of(a), b) for a, b in parts]).double()

    def _features_of(self, x: Tensor) -> list[Tensor]:
        """What the network gives, checked."""
        made = self.features(x)
        if isinstance(made, Tensor) or not isinstance(made, Sequence):
            raise TypeError(f"features: gave {type(made).__name__}, want a list of tensors")
        return list(made)

    def _distance(self, features: Sequence[Tensor], reference: Tensor | Sequence[Tensor]) -> Tensor:
        """``[B]`` from images, or their features."""
        if isinstance(reference, Tensor):
            reference = self._features_of(reference)
        # The root has no derivative where images are equal; there it is 0.
        square = ops.perceptual_distance(features, reference, self.weights)
        return torch.where(square > 0, square.clamp_min(1e-20).sqrt(), square)


class PerceptualLPA(PerceptualAttack):
    """The Lagrangian perceptual attack: raises the loss less a multiple of the excess distance.

    Args:
        model: what is attacked, see :class:`Attack`.
        features: a function of images ``[N, C, H, W]`` in [0, 1] to a list of feature maps
            ``[N, C_l, H_l, W_l]``, in eval mode; that of another network or of the model itself.
        eps: largest distance, the root of :func:`robustcore.ops.perceptual_distance`.
        steps: for each multiplier, at least 1.
        weights: of the distance, ``[C_l]`` a layer; None: ones, as published.
        searches: multipliers tried, each 10 times the one before while an image is too far away.
        fast: one search with a multiplier that rises at every step and no projection, as in
            perceptual adversarial training.
        loss, targeted, eot, seed, mean, std, batch_size, predict: see :class:`Attack`.

    The distances of the result are perceptual ones, and none of a success is above eps.
    Source: Laidlaw, Singla and Feizi, 2021.
    """

    def __init__(
        self,
        model: Any,
        features: Features,
        eps: float = 0.5,
        steps: int = 10,
        *,
        weights: Sequence[Tensor] | None = None,
        searches: int = 5,
        fast: bool = False,
        loss: str = "margin",
        targeted: bool = False,
        eot: int = 1,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        predict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model, features, eps, steps, weights, loss=loss, targeted=targeted, eot=eot, seed=seed,
            mean=mean, std=std, batch_size=batch_size, predict=predict,
        )  # fmt: skip
        self.searches = require_int("searches", searches, 1, 1 << 20)
        self.fast = require_flag("fast", fast)

    def method(self, seed: int) -> Lagrangian:
        """The attack as steps on rows."""
        return Lagrangian(self, seed)


class PerceptualPGD(PerceptualAttack):
    """Perceptual PGD: the steepest step as the distance measures it, then back into the ball.

    Args:
        model, features, eps, weights: as of :class:`PerceptualLPA`.
        steps: at least 1.
        alpha: length of a step as the features see it, by default ``2 * eps / steps``.
        iterations: of the conjugate gradients that find a step.
        loss, targeted, eot, seed, mean, std, batch_size, predict: see :class:`Attack`.

    A step is ``(J^T J)^-1 grad`` with J the derivative of the unit features; the feature network
    needs two derivatives. Source: Laidlaw, Singla and Feizi, 2021.
    """

    def __init__(
        self,
        model: Any,
        features: Features,
        eps: float = 0.5,
        steps: int = 10,
        *,
        weights: Sequence[Tensor] | None = None,
        alpha: float | None = None,
        iterations: int = 5,
        loss: str = "margin",
        targeted: bool = False,
        eot: int = 1,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        predict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model, features, eps, steps, weights, loss=loss, targeted=targeted, eot=eot, seed=seed,
            mean=mean, std=std, batch_size=batch_size, predict=predict,
        )  # fmt: skip
        self.alpha = None if alpha is None else require_positive("alpha", alpha)
        self.iterations = require_int("iterations", iterations, 1, 1 << 20)

    def method(self, seed: int) -> Steepest:
        """The attack as steps on rows."""
        return Steepest(self, seed)


class Perceptual(GradientMethod):
    """Perceptual attacks on rows. The state keeps the features of the images."""

    keeps_best = False  # what is too far away is none of its points

    def __init__(self, attack: PerceptualAttack, seed: int) -> None:
        super().__init__(attack, seed)
        self._attack = attack
        self._layers = 0
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def begin(self, rows: Rows) -> None:
        x0, state = rows["x0"], rows.state
        reference = self._attack._features_of(x0)
        self._layers = len(reference)
        state |= {f"features{layer}": f for layer, f in enumerate(reference)}
        spread = START * x0[0].numel() ** 0.5
        where: dict[str, Any] = {"norm": "l2", "eps": spread, "seed": self.seed}
        state["x"] = ops.random_start(x0, rows["index"], rows["variant"], **where)
        self.begin_best(rows)
        state["best"] = x0.clone()

    def counts(self, rows: Rows, x: Tensor) -> Tensor:
        return self._distance(rows, x)[0] <= self.eps

    def _keep(self, rows: Rows, x: Tensor, loss: Tensor) -> None:
        outside = self._distance(rows, x)[0] > self.eps
        self.keep_best(rows, x, loss.masked_fill(outside, -torch.inf))

    def _reference(self, rows: Rows, chosen: Tensor | slice = slice(None)) -> list[Tensor]:
        return [rows[f"features{layer}"][chosen] for layer in range(self._layers)]

    def _distance(self, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[R]`` from the images, and its gradient at x, found once a point."""
        if self._seen is None or self._seen[0] is not x:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                distance = self._attack._distance(
                    self._attack._features_of(leaf), self._reference(rows)
                )
                (grad,) = torch.autograd.grad(distance.sum(), leaf)
            self._seen = x, distance.detach(), grad
        return self._seen[1], self._seen[2]

    def _project(self, rows: Rows, x: Tensor, chosen: Tensor) -> Tensor:
        """Of the chosen rows the farthest point towards x that is within the distance."""
        index = chosen.nonzero().flatten()
        x0, away, reference = rows["x0"][index], x[index], self._reference(rows, index)

        def inside(share: Tensor) -> Tensor:
            points = x0 + column(share, x0) * (away - x0)
            return self._attack._distance(self._attack._features_of(points), reference) <= self.eps

        low, high = away.new_zeros(len(index)), away.new_ones(len(index))
        low = torch.where(inside(high), high, low)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fits = inside(middle)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return x.index_copy(0, index, x0 + column(low, x0) * (away - x0))


class Lagrangian(Perceptual):
    """LPA on rows."""

    _attack: PerceptualLPA

    def __init__(self, attack: PerceptualLPA, seed: int) -> None:
        super().__init__(attack, seed)
        self._steps, self._fast = attack.steps, attack.fast
        self.points = attack.steps * (1 if attack.fast else attack.searches) + 1

    def begin(self, rows: Rows) -> None:
        super().begin(rows)
        rows.state["multiplier"] = torch.full_like(rows["best_loss"], MULTIPLIER)

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        self._keep(rows, x, loss)
        distance, away = self._distance(rows, x)
        outside, state = distance > self.eps, rows.state
        share = torch.from_numpy(rows.age % self._steps / self._steps).to(x)
        if self._fast:
            multiplier = GROWTH**share
        else:
            again = torch.from_numpy((rows.age % self._steps == 0) & (rows.age > 0)).to(x.device)
            grown = GROWTH * state["multiplier"]
            multiplier = torch.where(again & outside, grown, state["multiplier"])
            state["multiplier"] = multiplier
        direction = _unit(grad - column(multiplier * outside, x) * away)
        probe = self._attack._features_of(x + PROBE * direction)
        slope = self._attack._distance(probe, x) / PROBE
        size = self.eps * DECAY**share / slope.clamp_min(torch.finfo(x.dtype).tiny)
        size = size.masked_fill(slope == 0, 0.0)
        following = (x + column(size, x) * direction).clamp(0, 1)
        last = torch.from_numpy(rows.age == self.points - 2).to(x.device)
        if self._fast or not bool((rows.age == self.points - 2).any()):
            return following
        return self._project(rows, following, last)


class Steepest(Perceptual):
    """PPGD on rows."""

    _attack: PerceptualPGD

    def __init__(self, attack: PerceptualPGD, seed: int) -> None:
        super().__init__(attack, seed)
        self.points = attack.steps + 1
        self._step_size = 2 * attack.eps / attack.steps if attack.alpha is None else attack.alpha

    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        self._keep(rows, x, loss)
        following = (x + self._step(x, grad)).clamp(0, 1)
        return self._project(rows, following, torch.ones(len(x), dtype=torch.bool, device=x.device))

    def _step(self, x: Tensor, grad: Tensor) -> Tensor:
        """``(J^T J)^-1 grad`` by conjugate gradients, of a length that the features see."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            seen = self._flat(self._attack._features_of(leaf))
            dual = torch.zeros_like(seen, requires_grad=True)
            (back,) = torch.autograd.grad(seen, leaf, dual, create_graph=True)

        def forth(v: Tensor) -> Tensor:  # J v
            (made,) = torch.autograd.grad(back, dual, v, retain_graph=True)
            return made

        def curved(v: Tensor) -> Tensor:  # J^T J v
            (made,) = torch.autograd.grad(seen, leaf, forth(v), retain_graph=True)
            return made

        solution, rest = torch.zeros_like(x), _unit(grad)
        way, square = rest, _dot(rest, rest)
        for _ in range(self._attack.iterations):
            bent = curved(way)
            size = column(_ratio(square, _dot(way, bent)), x)
            solution, rest = solution + size * way, rest - size * bent
            before, square = square, _dot(rest, rest)
            way = rest + column(_ratio(square, before), x) * way
        length = torch.linalg.vector_norm(forth(solution), dim=1)
        return column(_ratio(torch.full_like(length, self._step_size), length), x) * solution

    def _flat(self, features: Sequence[Tensor]) -> Tensor:
        """Unit features ``[R, F]`` whose squared distance is the perceptual one."""
        parts = []
        for layer, f in enumerate(features):
            unit = unit_features(f) / (f.shape[2] * f.shape[3]) ** 0.5
            if self._attack.weights is not None:
                unit = unit * self._attack.weights[layer].to(unit).sqrt().view(1, -1, 1, 1)
            parts.append(unit.flatten(1))
        return torch.cat(parts, 1)


def _checked(weights: Any) -> list[Tensor] | None:
    if weights is None:
        return None
    wanted = "tensors of at least 0, [C] for each layer"
    made = [require_floating("weights", w) for w in require_sequence("weights", weights, wanted)]
    if not made or not all(w.dim() == 1 and bool((w.isfinite() & (w >= 0)).all()) for w in made):
        raise ValueError(f"weights: got {[list(w.shape) for w in made]}, want {wanted}")
    return made


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, 0 where b is."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0.0)


def _unit(grad: Tensor) -> Tensor:
    """Of length 1 in l2; 0 stays 0, and what is tiny does not vanish."""
    largest = column(torch.linalg.vector_norm(grad.flatten(1), torch.inf, dim=1), grad)
    scaled = grad / largest.masked_fill(largest == 0, 1)
    length = column(torch.linalg.vector_norm(scaled.flatten(1), dim=1), grad)
    return scaled / length.masked_fill(length == 0, 1)
