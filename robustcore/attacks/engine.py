"""Runs an attack on many images so that the model always works on full batches.

A *job* is one run at one image: one of its restarts, targets or poses, all called variants. Jobs
wait in line, the first variant of every image before the second of any. A batch takes as many as it
holds; jobs that are done, or whose image is fooled, soon make room for the next ones, so images,
restarts and targets share batches, each at its own step. When none waits, the batch shrinks.

Which jobs run side by side depends on the batch size; what is found does not: of an image's
variants the first one that succeeds counts, and those before it are run to their end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustcore.attacks.classifier import Classifier
from robustcore.attacks.losses import Loss, RowLoss
from robustcore.ops.attacks import loops

Ints = npt.NDArray[np.int64]
# Steps between two looks at which images are fooled, where a look waits for the device.
LOOK = 8
# Rows of a batch to one that may be done and stay for a while: to move all others costs a good part
# of what the model takes on them.
PATIENCE = 16
# What ops.attack_watch notes of rows, in its order.
FLAGS = "found", "fooled", "zero", "nan_grad", "nan_logits"


def column(values: Tensor, like: Tensor) -> Tensor:
    """``[R]`` beside ``[R, ...]``."""
    return values.view(-1, *[1] * (like.dim() - 1))


class Rows:
    """The jobs of a batch. ``state`` has tensors ``[R, ...]``, which leave and arrive together."""

    def __init__(self, job: Ints, image: Ints, variant: Ints, state: dict[str, Tensor]) -> None:
        self.job, self.image, self.variant, self.state = job, image, variant, state
        self.clock = 0
        """Points that have been evaluated since the batch began."""
        self._birth = np.zeros(len(job), dtype=np.int64)
        self._span = 0, 0  # the first birth and the last
        self.indices: Tensor | None = None
        """Of the images in the stream, on the CPU; None until they are asked for."""

    @property
    def age(self) -> Ints:
        """Points that each has evaluated; ``state["age"]`` is the same on the device."""
        return self.clock - self._birth

    @property
    def oldest(self) -> int:
        """The largest age."""
        return self.clock - self._span[0]

    @property
    def youngest(self) -> int:
        """The smallest age."""
        return self.clock - self._span[1]

    def __len__(self) -> int:
        return len(self.job)

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name]

    def keep(self, chosen: Ints) -> None:
        """Only these rows."""
        index = torch.from_numpy(chosen).to(self["x"].device)
        self.state = {name: value.index_select(0, index) for name, value in self.state.items()}
        self.job, self.image, self.variant = (
            a[chosen] for a in (self.job, self.image, self.variant)
        )
        self._born(self._birth[chosen])

    def put(self, places: Ints, other: Rows) -> None:
        """Other rows in some places."""
        index = torch.from_numpy(places).to(self["x"].device)
        for name, value in other.state.items():
            self.state[name].index_copy_(0, index, value)
        self.job[places], self.image[places] = other.job, other.image
        self.variant[places] = other.variant
        self._birth[places] = self.clock
        self._born(self._birth)

    def _born(self, birth: Ints) -> None:
        self._birth, self.indices = birth, None
        if len(birth):
            self._span = int(birth.min()), int(birth.max())


class Method(ABC):
    """One attack as steps on rows, each by itself."""

    loss: Loss
    points = 1
    """Points that a job evaluates at most."""
    variants = 1
    targeted = False
    """Whether labels are the classes to reach."""
    gradients = True
    keeps_best = True
    """Whether any point can be the best one, which the engine then keeps in ``state``."""
    targets = 0
    """Variant v heads for the likely class number ``v % targets``, ``state["target"]``; 0: none."""

    @abstractmethod
    def begin(self, rows: Rows) -> None:
        """Sets ``x``, the first points, and what else the state has, of rows with ``x0``."""

    def step(
        self,
        rows: Rows,
        x: Tensor,
        loss: Tensor,
        grad: Tensor | None,
        ahead: Tensor,
        counts: Tensor | None,
    ) -> Tensor:
        """Notes what the evaluation at x tells, see ops.attack_watch, and gives the next points."""
        state = rows.state
        loops.watch(
            x, grad, loss, ahead, counts,
            state["best"] if self.keeps_best else None,
            None if grad is None else state.get("best_grad"),
            state["best_loss"], *(state[name] for name in FLAGS), state["age"],
        )  # fmt: skip
        return self.advance(rows, x, loss, x if grad is None else grad)

    def blind_step(
        self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor, ahead: Tensor
    ) -> Tensor:
        """The next points where no image is ever found."""
        rows.state["age"] += 1
        return self.advance(rows, x, loss, grad)

    @abstractmethod
    def advance(self, rows: Rows, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        """The next points, of the loss ``[R]`` and its gradient at x; updates the state.

        ``age`` of the state counts x already. ``best`` and ``best_loss`` are those of the highest
        loss so far, with ``best_grad`` if there is one; a method that keeps them itself does so
        here. The loss is infinite where the row is found: that point stays. May write to the
        gradient, and to x where that is the state's.
        """

    def counts(self, rows: Rows, x: Tensor) -> Tensor | None:
        """Bool ``[R]``: whether an adversarial x is one within the ball; None: all are."""
        return None

    def check(self, session: Any) -> None:  # noqa: B027  (most take any)
        """Raises ValueError for images that it cannot attack."""

    def shown(self, rows: Rows) -> Tensor:
        """What the model is given of the points ``x``."""
        return rows["x"]


@dataclass
class Found:
    """What became of each image: tensors of all N, on their device, and arrays."""

    images: Tensor
    winner: Ints
    """The first variant that succeeded, else the number of variants."""
    steps: Ints
    loss: npt.NDArray[np.float64]
    zero_gradients: npt.NDArray[np.bool_]
    nan_gradients: npt.NDArray[np.bool_]
    nan_logits: npt.NDArray[np.bool_]

    def queries(self, method: Method) -> Ints:
        """Forward passes of each image, attacked alone."""
        done = np.minimum(self.winner, method.variants)
        part = np.where(self.winner < method.variants, self.steps + 1, 0)
        return np.asarray(done * method.points + part)


class Engine:
    """One run of a method.

    Args:
        classifier: what is attacked.
        images, labels: ``[N, C, H, W]``, ``[N]``.
        ranking: classes ``[N, K]`` of the clean images, the likeliest first.
        indices: of the images in the stream of random numbers ``[N]``, on the CPU.
        batch: most rows in one call of the model.
    """

    def __init__(
        self,
        method: Method,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        ranking: Tensor,
        indices: Tensor,
        batch: int,
    ) -> None:
        self._method, self._classifier, self._batch = method, classifier, batch
        self._images, self._labels, self._indices = images, labels, indices
        self._others = _without(ranking, labels)
        n = len(images)
        self._found = Found(
            images.clone(),
            np.full(n, method.variants),
            np.full(n, method.points - 1),
            np.full(n, -np.inf),
            *(np.zeros(n, dtype=bool) for _ in range(3)),
        )
        self._rank = np.full(n, method.variants)  # variant of the point of highest loss
        self._next = 0
        self._active: Ints = np.arange(0)

    def run(self, active: Ints) -> Found:
        """Attacks the images with these numbers."""
        self._active = active
        look = 1 if self._images.device.type == "cpu" else LOOK
        rows = self._fresh(self._batch)
        while len(rows):
            for _ in range(min(look, self._method.points - rows.oldest)):
                self._step(rows)
            self._settle(rows)
        return self._found

    def _fresh(self, most: int) -> Rows:
        """Up to so many of the jobs that wait, at their first point."""
        jobs: list[int] = []
        total = len(self._active) * self._method.variants
        while len(jobs) < most and self._next < total:
            line = np.arange(self._next, min(total, self._next + most - len(jobs)))
            self._next += len(line)
            variant, image = line // len(self._active), self._active[line % len(self._active)]
            jobs += line[variant < self._found.winner[image]].tolist()
        job = np.array(jobs, dtype=np.int64)
        count = max(1, len(self._active))
        image, variant = self._active[job % count], job // count
        index = torch.from_numpy(image).to(self._images.device)
        rows = _at_rest(self._images[index], self._labels[index], job, image, variant)
        rows.state["index"] = self._indices.to(index.device)[index]
        if self._method.targets:
            target = rows["variant"] % self._method.targets
            rows.state["target"] = self._others[index, target]
        if len(job):
            self._method.begin(rows)
        return rows

    def _step(self, rows: Rows) -> None:
        """Every row one point further."""
        method, state = self._method, rows.state
        if rows.indices is None:
            rows.indices = self._indices[torch.from_numpy(rows.image)]
        x, indices = method.shown(rows), rows.indices
        loss = RowLoss(method.loss, state["label"], state.get("target"))
        value, grad, ahead = (
            self._classifier.evaluate(x, indices, loss)
            if method.gradients and rows.youngest < method.points - 1
            else self._classifier.forward(x, indices, loss)
        )
        dtype = state["best_loss"].dtype
        value, ahead = value.to(dtype), ahead.to(dtype)
        state["x"] = method.step(rows, x, value, grad, ahead, method.counts(rows, x))
        rows.clock += 1

    def _settle(self, rows: Rows) -> None:
        """Takes out what is done, and brings in what waits."""
        found, method = self._found, self._method
        success, over = rows["found"].cpu().numpy(), rows.age >= method.points
        if "ended" in rows.state:
            over |= rows["ended"].cpu().numpy()
        done = np.count_nonzero(success | over)
        if rows.oldest < method.points and done * PATIENCE <= len(rows):
            return
        chosen = {}
        for i in np.flatnonzero(success):
            image, variant = rows.image[i], rows.variant[i]
            if variant < found.winner[image]:
                found.winner[image], chosen[image] = variant, i
                found.steps[image] = int(rows["age"][i])
        self._take(rows, chosen)
        beaten = rows.variant >= found.winner[rows.image]
        leaving = success | over | beaten
        free = np.flatnonzero(leaving)
        if not len(free):
            return
        self._note(rows, leaving)
        self._keep_best(rows, np.flatnonzero(leaving & ~beaten))
        fresh = self._fresh(len(free))
        rows.put(free[: len(fresh)], fresh)
        if len(fresh) < len(free):
            left = np.ones(len(rows), dtype=bool)
            left[free[len(fresh) :]] = False
            rows.keep(np.flatnonzero(left))

    def _keep_best(self, rows: Rows, done: Ints) -> None:
        """Of an image that is not fooled the point of highest loss, of the first such variant."""
        if not len(done):
            return
        found = self._found
        loss = rows["best_loss"].double().cpu().numpy()
        chosen = {}
        for i in done:
            image, key = rows.image[i], (loss[i], -rows.variant[i])
            if found.winner[image] < self._method.variants:
                continue  # a later variant has succeeded
            if key > (found.loss[image], -self._rank[image]):
                found.loss[image], self._rank[image] = loss[i], rows.variant[i]
                chosen[image] = i
        self._take(rows, chosen)

    def _take(self, rows: Rows, chosen: dict[Any, Any]) -> None:
        """The best points of some rows as those of their images."""
        if chosen:
            device = self._images.device
            image = torch.tensor([int(i) for i in chosen], device=device)
            row = torch.tensor([int(i) for i in chosen.values()], device=device)
            self._found.images.index_copy_(0, image, rows["best"].index_select(0, row))

    def _note(self, rows: Rows, leaving: npt.NDArray[np.bool_]) -> None:
        """Signs of a gradient that does not tell the way, and of logits that are no numbers."""
        image = rows.image[leaving]
        first = rows.variant[leaving] == 0
        found, zero = self._found, rows["zero"].cpu().numpy()[leaving]
        found.zero_gradients[image[zero & first]] = True
        found.nan_gradients[image[rows["nan_grad"].cpu().numpy()[leaving]]] = True
        found.nan_logits[image[rows["nan_logits"].cpu().numpy()[leaving]]] = True


def _at_rest(x0: Tensor, labels: Tensor, job: Ints, image: Ints, variant: Ints) -> Rows:
    """Rows before their first point."""
    state = {"x0": x0, "label": labels, "age": torch.zeros_like(labels)}
    state["variant"] = torch.from_numpy(variant).to(x0.device)
    for flag in FLAGS:
        state[flag] = torch.zeros_like(labels, dtype=torch.bool)
    return Rows(job, image, variant, state)


def end_points(
    method: Method, classifier: Classifier, images: Tensor, labels: Tensor, loss: Loss
) -> Tensor:
    """Where the steps on a batch end up, for training: all are made, and no image leaves."""
    numbers = np.arange(len(images))
    indices = torch.from_numpy(numbers)
    rows = _at_rest(images, labels, numbers, numbers.copy(), np.zeros_like(numbers))
    rows.state["index"] = indices.to(images.device)
    method.begin(rows)
    for _ in range(method.points - 1):
        x = method.shown(rows)
        value, grad, ahead = classifier.evaluate(x, indices, RowLoss(loss, labels))
        dtype = rows["best_loss"].dtype
        rows.state["x"] = method.blind_step(rows, x, value.to(dtype), grad, ahead.to(dtype))
        rows.clock += 1
    return method.shown(rows)


def _without(ranking: Tensor, labels: Tensor) -> Tensor:
    """The classes ``[N, K - 1]`` that are not the label."""
    others = ranking[ranking != labels.unsqueeze(1)]
    return others.view(len(ranking), ranking.shape[1] - 1)
