"""The classifier that is attacked: any callable to logits, or a smoothed classifier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustcore.attacks.graph_gradient import Evaluated, GradientGraph
from robustcore.attacks.losses import LOSSES, RowLoss
from robustcore.common.checks import require_logits
from robustcore.common.cuda_graph import Graphs, NotCapturable
from robustcore.common.normalize import Normalization

# What depends on the mode.
MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@runtime_checkable
class SmoothedClassifier(Protocol):
    """What is attacked of a smoothed classifier, that of the smoothing family say."""

    base_classifier: Any
    noise: Any

    def predict(self, x: Tensor, **run: Any) -> Any: ...


class Classifier:
    """Logits and gradients of a model, which is found and left in the same state.

    Args:
        model: a callable from ``[N, C, H, W]`` to logits ``[N, K]``, or a smoothed classifier.
        mean, std: per-channel normalisation between the image and the model.
        eot: forward passes that one gradient averages; of a smoothed classifier the noisy copies
            over which its probabilities are averaged.
        noise_seed: of the noisy copies, the same at every step.
        predict: what ``predict`` of a smoothed classifier is called with.
        graphs: where gradients are kept as CUDA graphs; None: without.
    """

    def __init__(
        self,
        model: Any,
        mean: float | Sequence[float] | Tensor | None,
        std: float | Sequence[float] | Tensor | None,
        eot: int,
        noise_seed: int = 0,
        predict: dict[str, Any] | None = None,
        graphs: Graphs[GradientGraph] | None = None,
    ) -> None:
        self.smoothed: Any = model if isinstance(model, SmoothedClassifier) else None
        self.model: Any = model if self.smoothed is None else self.smoothed.base_classifier
        self.eot = eot
        self._normalization = Normalization(mean, std)
        self._noise_seed, self._predict = noise_seed, predict or {}
        # The noise of a smoothed classifier is that of images, whose numbers are on the host.
        self._graphs = graphs if self.smoothed is None else None
        self._full: torch.Size | None = None
        self._graph: tuple[Any, GradientGraph | None] | None = None

    def logits(self, x: Tensor, indices: Tensor) -> Tensor:
        """Those of images that have these ``indices [N]`` in the run, on the CPU; one pass."""
        if self.smoothed is not None:
            return self._smoothed_logits(x, indices)
        return require_logits("model", self.model(self._normalized(x)), len(x))

    def evaluate(self, x: Tensor, indices: Tensor, loss: RowLoss) -> Evaluated:
        """Loss ``[N]``, its gradient by x, and what is above 0 where x is misclassified ``[N]``.

        Batches like the first one, which is full, are replays where the model can be captured.
        """
        if self._full is None:
            self._full = x.shape
        graph = self._graph_for(x, indices, loss) if x.shape == self._full else None
        if graph is not None:
            try:
                return graph.run(x, loss)
            except NotCapturable as error:
                assert self._graphs is not None
                self._graphs.refuse(0, error.__cause__)
                self._graphs = None
        return self._evaluate(x, indices, loss)

    def _graph_for(self, x: Tensor, indices: Tensor, loss: RowLoss) -> GradientGraph | None:
        if self._graphs is None:
            return None
        depends = x.shape, x.dtype, loss.loss, self.eot, loss.targets is None
        if self._graph is None or self._graph[0] != depends:

            def passes(x: Tensor, loss: RowLoss) -> Evaluated:
                return self._evaluate(x, indices, loss)

            def make() -> GradientGraph:
                return GradientGraph(passes, x, loss)

            # Once a run, during which the model stays what it is: to look at all of it takes long.
            found = self._graphs.loop(0, self.model, x.device, depends, make)
            self._graph = depends, found
        return self._graph[1]

    def _evaluate(self, x: Tensor, indices: Tensor, loss: RowLoss) -> Evaluated:
        passes = 1 if self.smoothed is not None else self.eot
        total: list[Tensor] = []
        for _ in range(passes):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                logits = self.logits(leaf, indices)
                value, slope, ahead = loss(logits.detach())
                if logits.requires_grad:
                    (grad,) = torch.autograd.grad(logits, leaf, slope, allow_unused=True)
                else:
                    grad = None
            if grad is None:
                grad = torch.zeros_like(x)
            elif grad.stride() != x.stride():  # x is dense, and so is what may be written to
                grad = torch.empty_like(x).copy_(grad)
            if passes == 1:
                return value, grad, ahead
            part = [value, grad, logits.detach()]
            total = part if not total else [a.add_(b) for a, b in zip(total, part, strict=True)]
        value, grad, logits = (t.div_(passes) for t in total)
        return value, grad, loss(logits)[2]

    def forward(self, x: Tensor, indices: Tensor, loss: RowLoss) -> tuple[Tensor, None, Tensor]:
        """As :meth:`evaluate`, without the gradient."""
        with torch.no_grad():
            value, _, ahead = loss(self.logits(x, indices))
        return value, None, ahead

    def classes(self, x: Tensor, indices: Tensor, labels: Tensor, batch: int) -> Tensor:
        """What the classifier answers in earnest: of a smoothed one by ``predict``."""
        if self.smoothed is None:
            return verdict(self.batched(x, indices, batch), labels)
        answers = []
        for image, index in zip(x, indices.tolist(), strict=True):
            found = self.smoothed.predict(image, image_offset=index, **self._predict)
            answers.append(int(getattr(found, "prediction", found)))
        return torch.tensor(answers, dtype=torch.int64, device=x.device)

    def batched(self, x: Tensor, indices: Tensor, batch: int) -> Tensor:
        """Logits of any number of images."""
        with torch.no_grad():
            parts = [
                self.logits(a, b) for a, b in zip(x.split(batch), indices.split(batch), strict=True)
            ]
        return torch.cat(parts)

    @contextmanager
    def at_work(self, quiet: bool = False) -> Iterator[None]:
        """Eval mode, and gradients allowed; all modes are as they were at the end.

        Warns of a model in training mode unless quiet; ValueError if it changes its mode itself.
        """
        modules = list(_modules(self.model))
        before = [m.training for m in modules]
        if not quiet and any(m.training and isinstance(m, MODAL) for m in modules):
            warnings.warn(
                "model: in training mode, where BatchNorm and dropout make an image's class depend "
                "on others and on chance; it is attacked in eval mode, and left in its own",
                UserWarning,
                stacklevel=4,
            )
        try:
            for m in modules:
                m.training = False
            with torch.inference_mode(False):
                yield
            changed = any(m.training for m in modules)
        finally:
            for m, mode in zip(modules, before, strict=True):
                m.training = mode
        if changed:
            raise ValueError("model: goes into training mode when it is called; want eval mode")

    def random(self, x: Tensor, indices: Tensor) -> bool:
        """Whether two forward passes of some images differ."""
        with torch.no_grad():
            first, second = (self.logits(x, indices) for _ in range(2))
        return not torch.equal(first.nan_to_num(), second.nan_to_num())

    def _normalized(self, x: Tensor) -> Tensor:
        mean, std = self._normalization.on(x)
        if mean is None and std is None:
            return x
        shape = (1, -1, *[1] * (x.dim() - 2))
        x = x if mean is None else x - mean.view(shape).to(x.dtype)
        return x if std is None else x / std.view(shape).to(x.dtype)

    def _smoothed_logits(self, x: Tensor, indices: Tensor) -> Tensor:
        """``log mean_m softmax`` over noisy copies, whose noise is that of the image alone.

        Source: Salman et al., 2019, SmoothAdv.
        """
        smooth = self.smoothed
        mean, std = smooth.normalization.on(x)
        copies = [
            smooth.noise.sample(
                image, self.eot, seed=self._noise_seed, image_offset=index, mean=mean, std=std
            )
            for image, index in zip(x.split(1), indices.tolist(), strict=True)
        ]
        batch = torch.cat(copies).flatten(0, 1)
        logits = require_logits("base_classifier", self.model(batch), len(batch))
        log = logits.log_softmax(1).unflatten(0, (len(x), self.eot))
        return torch.logsumexp(log, 1) - math.log(self.eot)


def wrong(logits: Tensor, labels: Tensor, targeted: bool = False) -> Tensor:
    """Bool ``[N]``: misclassified, or as the target, by more than rounding.

    Logits that are no numbers are neither. A point on the boundary itself may be right in another
    batch, where the same sums are rounded differently.
    """
    ahead: Tensor = LOSSES["margin"](logits, labels, lowered=targeted)[2]
    return ahead > 0


def verdict(logits: Tensor, labels: Tensor) -> Tensor:
    """The classes; where the logits are no numbers, the label."""
    return torch.where(logits.isnan().any(1), labels, logits.argmax(1))


def _modules(model: Any) -> Iterator[nn.Module]:
    parts = model if isinstance(model, (tuple, list)) else [model]
    for part in parts:
        owner = getattr(part, "__self__", part)  # a bound method's
        if isinstance(owner, nn.Module):
            yield from owner.modules()
