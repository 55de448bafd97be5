"""What all attacks have: their arguments, their checks, and how a run goes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from robustcore.attacks.classifier import Classifier, verdict, wrong
from robustcore.attacks.engine import Engine, Found, Method, Rows, column
from robustcore.attacks.graph_gradient import GradientGraph
from robustcore.attacks.losses import LOSSES, lowered
from robustcore.attacks.result import Attacked, distances
from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_classes,
    require_flag,
    require_floating,
    require_int,
    require_positive,
    require_seed,
)
from robustcore.common.cuda_graph import Graphs

_Result = TypeVar("_Result")
NORMS = ("linf", "l2", "l1", "l0")
# Images that two passes are compared of, to notice a model that is random.
COMPARED = 8


class Attack(ABC):
    """An attack on a model: ``attack(images, labels)`` gives the adversarial images, ``run`` more.

    Args:
        model: maps a batch ``[N, C, H, W]`` to logits ``[N, K]``, K at least 2: a module (also
            compiled, also under autocast), a function, or a smoothed classifier such as
            ``robustcore.smoothing.Smooth``, which is fooled only if its ``predict`` says so. A
            module is attacked in eval mode; its modes, gradients and flags are left as found.
        eps: radius of the ball, in the units of the images, pixels in [0, 1].
        norm: of the ball, "Linf", "L2", "L1" or "L0" in any case.
        loss: what is raised, see :mod:`robustcore.attacks.losses`.
        targeted: labels are classes to reach, and success is to reach them.
        eot: forward passes that one gradient averages, for a random model; of a smoothed
            classifier the noisy copies over which its probabilities are averaged, whose noise is
            the same at every step.
        seed: of all that is random, in [0, 2**64). None: one from torch's random state.
        mean, std: per-channel normalisation, done between image and model.
        batch_size: images in one call of the model, of any images, restarts and targets.
        grid: levels of a pixel, 255 say, for a model that is certified on them: returned images
            stay on ``k / grid``, as the given ones have to be.
        predict: arguments of a smoothed classifier's ``predict``, ``dict(n=1000)`` say.

    On a GPU the passes of full batches are replays of a CUDA graph where the model is a module
    that can be captured; with ``attack.graphs.wanted = False`` they are not.
    """

    def __init__(
        self,
        model: Any,
        eps: float,
        *,
        norm: str,
        loss: str = "ce",
        targeted: bool = False,
        eot: int = 1,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        batch_size: int = 250,
        grid: int | None = None,
        predict: dict[str, Any] | None = None,
        norms: Sequence[str] = NORMS,
    ) -> None:
        if not hasattr(model, "predict"):
            require_callable("model", model)
        self.model = model
        self.eps = require_positive("eps", eps)
        self.norm = require_norm(norm, norms)
        self.loss = require_choice("loss", loss, tuple(LOSSES))
        self.targeted = require_flag("targeted", targeted)
        self.eot = require_int("eot", eot, 1, 1 << 31)
        self.seed = None if seed is None else require_seed(seed)
        self.batch_size = min(require_int("batch_size", batch_size, 1), 1 << 31)
        self.grid = None if grid is None else require_int("grid", grid, 1, 1 << 16)
        if predict is not None and not isinstance(predict, dict):
            raise TypeError(f"predict: got {type(predict).__name__}, want a dict of arguments")
        self.predict = predict
        self.mean, self.std = mean, std
        self.graphs: Graphs[GradientGraph] = Graphs(None)
        """CUDA graphs of the model's passes."""
        classifier_of(self)  # complains of mean and std

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The adversarial images ``[B, C, H, W]``, see :meth:`run`."""
        return self.run(images, labels).images

    def run(
        self, images: Tensor, labels: Tensor, image_offset: int = 0, *, image_stride: int = 1
    ) -> Attacked:
        """Attacks a batch of any size.

        Args:
            images: ``[B, C, H, W]``, floating, pixels in [0, 1].
            labels: int64 ``[B]``; with ``targeted`` the classes to reach.
            image_offset, image_stride: ``images[b]`` is number ``image_offset + b * image_stride``
                of the stream of random numbers: the parts of a data set give the results of the
                whole.

        Results of an image depend on it, its label, its number and the seed alone, as far as the
        model's logits do.

        Raises TypeError or ValueError, naming the argument. Warns of a model in training mode, of
        one that is random and of logits or gradients that are no numbers. Not differentiable.
        """
        images, labels = require_images(images, labels, self.grid)
        indices = require_indices(image_offset, image_stride, len(images))
        return self._work(images, labels, indices, self.batch_size, self._attacked)

    def _distances(self, images: Tensor, x0: Tensor) -> Tensor:
        """float64 ``[B]`` between images and what was made of them, in the norm of the attack."""
        return distances(images, x0, self.norm)

    @abstractmethod
    def _attacked(self, session: Session, seed: int) -> Attacked:
        """What becomes of the images of a run."""

    def _work(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        batch: int,
        body: Callable[[Session, int], _Result],
        name: str = "labels",
    ) -> _Result:
        """What ``body`` makes of a session and a seed, with the model in the state of an attack."""
        seed = draw_seed() if self.seed is None else self.seed
        classifier = classifier_of(self, seed)
        with classifier.at_work(), torch.no_grad():
            images, labels = images.clone(), labels.clone()  # inference tensors have no gradient
            session = Session(classifier, images, labels, indices, batch, self.targeted, name)
            return body(session, seed)


class MethodAttack(Attack):
    """An attack by one method."""

    @abstractmethod
    def method(self, seed: int) -> Method:
        """The attack as steps on rows."""

    def _attacked(self, session: Session, seed: int) -> Attacked:
        method = self.method(seed)
        method.check(session)
        found = session.search(method, np.flatnonzero(~session.fooled))
        return session.result(found, method, self, seed)


class StepAttack(MethodAttack):
    """One by steps, whose last point training can take."""


def classifier_of(attack: Attack, seed: int = 0, model: Any = None) -> Classifier:
    """The attack's model, or another one, as it is attacked."""
    own = model is None
    model = attack.model if own else model
    # Training's losses are of a batch, and a graph would be captured for one.
    graphs = attack.graphs if own else None
    return Classifier(model, attack.mean, attack.std, attack.eot, seed, attack.predict, graphs)


class Session:
    """Images of one run, and what the classifier says of them before the attack."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        batch: int,
        targeted: bool,
        name: str = "labels",
    ) -> None:
        self.classifier, self.images, self.labels = classifier, images, labels
        self.indices, self.batch, self.targeted = indices, batch, targeted
        self.logits = images.new_zeros((0, 2))
        if len(images):
            self.logits = classifier.batched(images, indices, batch)
        classes = self.logits.shape[1]
        if classes < 2:
            raise ValueError(f"model: gave logits of {classes} class, want at least 2")
        require_classes(name, labels, len(images), classes)
        first = slice(0, COMPARED)
        if classifier.eot == 1 and len(images) and classifier.random(images[first], indices[first]):
            warnings.warn(
                "model: two passes of the same images differ. Against a random model a gradient "
                "needs eot > 1, and a single pass says little of success",
                UserWarning,
                stacklevel=4,
            )
        self.fooled = wrong(self.logits, labels, targeted).cpu().numpy()
        """Before any attack."""
        self.clean_nan = self.logits.isnan().any(1).cpu().numpy()

    def search(self, method: Method, active: Any) -> Found:
        """Attacks the images with these numbers."""
        ranking = self.logits.nan_to_num(nan=-torch.inf).argsort(
            dim=1, descending=True, stable=True
        )
        parts = self.classifier, self.images, self.labels, ranking, self.indices, self.batch
        return Engine(method, *parts).run(active)

    def answers(self, images: Tensor, chosen: Any = None) -> Tensor:
        """Classes of images that stand for those with the numbers ``chosen``."""
        index = torch.arange(len(self.images)) if chosen is None else torch.from_numpy(chosen)
        labels = self.labels[index.to(self.labels.device)]
        return self.classifier.classes(images, self.indices[index], labels, self.batch)

    def succeeded(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """What counts as success; a smoothed classifier that abstains has said no other class."""
        return prediction == labels if self.targeted else (prediction != labels) & (prediction >= 0)

    def judged(self, images: Tensor, loss: str) -> tuple[Tensor, Tensor]:
        """Classes and losses ``[N]`` of images that stand for all, of one pass if there can be."""
        logits = self.classifier.batched(images, self.indices, self.batch)
        value: Tensor = LOSSES[loss](logits, self.labels)[0]
        if self.classifier.smoothed is not None:
            return self.answers(images), value.to(images.dtype)
        return verdict(logits, self.labels), value.to(images.dtype)

    def result(self, found: Found, method: Method, attack: Attack, seed: int) -> Attacked:
        """What is returned, once the images are looked at again."""
        images, labels = found.images, self.labels
        prediction = labels.clone()
        loss = images.new_zeros(len(images))
        if len(images):
            prediction, loss = self.judged(images, attack.loss)
        success = self.succeeded(prediction, labels)
        expected = self.fooled | (found.winner < method.variants)
        flipped = int((success.cpu().numpy() != expected).sum())
        queries = np.where(self.fooled, 0, found.queries(method)) * self.classifier.eot + 1
        clean = verdict(self.logits, labels) == labels
        made = Attacked(
            images=images,
            success=success,
            prediction=prediction,
            loss=-loss if self.targeted else loss,
            distance=attack._distances(images, self.images),
            steps=torch.from_numpy(np.where(self.fooled, 0, found.steps)),
            queries=torch.from_numpy(queries),
            norm=attack.norm,
            eps=attack.eps,
            seed=seed,
            clean_accuracy=float(clean.double().mean()) if len(images) else float("nan"),
            zero_gradients=int(found.zero_gradients.sum()),
            nan_logits=int((found.nan_logits | self.clean_nan).sum()),
            nan_gradients=int(found.nan_gradients.sum()),
            flipped=flipped,
        )
        warn_of_nan(made)
        return made


class GradientMethod(Method):
    """What attacks with a gradient and a ball share."""

    def __init__(self, attack: Attack, seed: int) -> None:
        self.norm, self.eps, self.seed, self.grid = attack.norm, attack.eps, seed, attack.grid
        loss = LOSSES[attack.loss]
        self.targeted = attack.targeted
        self.loss = lowered(loss) if attack.targeted else loss

    def begin_best(self, rows: Rows) -> None:
        rows.state["best"] = rows["x"].clone()
        double = rows["x"].dtype == torch.float64
        rows.state["best_loss"] = torch.full(
            (len(rows),), -torch.inf, dtype=torch.float64 if double else torch.float32,
            device=rows["x"].device,
        )  # fmt: skip

    def keep_best(self, rows: Rows, x: Tensor, loss: Tensor) -> Tensor:
        """Which rows are at a higher loss than ever."""
        state = rows.state
        higher = loss > state["best_loss"]
        state["best"] = torch.where(column(higher, x), x, state["best"])
        state["best_loss"] = torch.where(higher, loss, state["best_loss"])
        return higher

    def shown(self, rows: Rows) -> Tensor:
        x: Tensor = rows["x"]
        return x if self.grid is None else on_grid(rows["x"], rows["x0"], self.grid)


def on_grid(x: Tensor, x0: Tensor, grid: int) -> Tensor:
    """x on ``k / grid``, from it towards x0, so that it stays in every ball around x0."""
    level = (x0 * grid).round()
    away = x * grid - level
    # An eps of whole levels reaches them in spite of rounding.
    snapped: Tensor = (level + away.sign() * (away.abs() + 1e-3).floor()) / grid
    return snapped


def require_norm(value: Any, norms: Sequence[str] = NORMS) -> str:
    """The norm's name in lower case."""
    name = value.lower() if isinstance(value, str) else value
    return require_choice("norm", name, tuple(norms))


def require_images(
    images: Any, labels: Any, grid: int | None, names: tuple[str, str] = ("images", "labels")
) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, H, W]`` in [0, 1], on the grid if there is one, and int64 labels ``[B]``."""
    name, other = names
    x = require_floating(name, images).detach()
    if x.dim() != 4 or (x[0:1].numel() == 0 and len(x)):
        raise ValueError(f"{name}: got shape {list(x.shape)}, want [B, C, H, W]")
    require_classes(other, labels, len(x))
    if labels.device != x.device:
        raise ValueError(f"{other}: is on {labels.device}, {name} on {x.device}")
    if len(x):
        low, high = torch.stack(x.aminmax()).tolist()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name}: got pixels from {low:.4g} to {high:.4g}, want [0, 1]")
        if int(labels.min()) < 0:
            raise ValueError(f"{other}: got {int(labels.min())}, want at least 0")
    if grid is not None and not torch.equal((x * grid).round() / grid, x):
        raise ValueError(f"{name}: got pixels that are not k / {grid}, want them on the grid")
    return x, labels


def require_indices(offset: Any, stride: Any, images: int) -> Tensor:
    """Numbers of the images in the stream, on the CPU."""
    stride = require_int("image_stride", stride, 1, 1 << 48)
    most = (1 << 48) - max(images - 1, 0) * stride
    if most <= 0:
        raise ValueError(
            f"image_stride: got {stride} for {images} images, want indices below 2**48"
        )
    first = require_int("image_offset", offset, 0, most)
    numbers: Tensor = first + torch.arange(images) * stride
    return numbers


def draw_seed() -> int:
    """A seed from torch's random state."""
    return int(torch.randint(0, 1 << 62, ()))


def warn_of_nan(made: Attacked) -> None:
    """Says how many images met values that are no numbers."""
    for count, what in ((made.nan_logits, "logits"), (made.nan_gradients, "gradients")):
        if count:
            warnings.warn(
                f"model: gave {what} that are no numbers for {count} of {len(made)} images; such "
                "logits are no success, such a gradient no direction",
                UserWarning,
                stacklevel=6,
            )
