"""TRAK: which training images a classifier's prediction goes back to."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_classes,
    require_flag,
    require_floating,
    require_int,
    require_module,
    require_not_negative,
)
from robustcore.common.progress import Bar, Show, sample_bar
from robustcore.common.ranks import Ranks
from robustcore.common.user_code import model_sha256
from robustcore.influence.projector import Projector
from robustcore.influence.store import FeatureStore

BLOCK = 4096  # training rows that are multiplied at a time
SYNC_SECONDS = 10.0

Checkpoint = Mapping[str, Any] | str | os.PathLike[str]


class Top(NamedTuple):
    """For each of T test images n training images, the largest score first."""

    scores: Tensor
    """``[T, n]`` float32."""
    indices: Tensor
    """``[T, n]`` int64, in the order of the loader."""


class TRAK:
    """Scores of training images on predictions of a classifier.

    With phi(x) the projected gradient of ``log(p / (1 - p))``, p the probability of x's label, and
    Phi the rows phi(x_i) of the training images, the score of training image i on test image x is
    ``mean(phi(x)^T (Phi^T Phi + lambda)^-1 phi(x_i)) * mean(1 - p_i)``, means over checkpoints.
    Positive: with image i in the training set the prediction is surer.

    Args:
        model: gives logits ``[B, num_classes]``. It is copied, in evaluation mode.
        num_classes: at least 2.
        k: numbers an image. More follow the gradients more closely; from the number of training
            images on, Phi^T Phi has no inverse without lambda.
        seed: of the projection, in [0, 2**64).
        ridge: lambda, as a multiple of Phi^T Phi's mean eigenvalue, trace / k; at least 0.
        kind: of the projection, "rademacher" or "normal".

    Raises TypeError or ValueError naming the argument. Source: Park, Georgiev, Ilyas, Leclerc,
    Madry: "TRAK: Attributing model behavior at scale", 2023.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, k: int = 2048, seed: int = 0,
        ridge: float = 0.1, *, kind: str = "rademacher",
    ) -> None:  # fmt: skip
        require_module("model", model)
        self.num_classes = require_int("num_classes", num_classes, 2)
        self.ridge = require_not_negative("ridge", ridge)
        self._model = copy.deepcopy(model).eval()
        self._projector = Projector(self._model, k, seed, kind=kind)
        self._checkpoints: list[Checkpoint] = []
        self._loaded: int | None = None
        self._store: FeatureStore | None = None
        self._factors: dict[int, Tensor] = {}

    # ---- features of the training images ---------------------------------------------------------

    def fit(
        self, loader: Any, checkpoints: Sequence[Checkpoint] | None = None, *,
        folder: str | os.PathLike[str] | None = None, progress: Show = False,
    ) -> TRAK:  # fmt: skip
        """Computes the features of the training images; a run that ended early goes on.

        Args:
            loader: batches ``(images, labels)`` in the same order each time it is gone through,
                such as a DataLoader that does not shuffle, or a list. Labels are int64 ``[B]``.
            checkpoints: state dicts of the model, or files of them (read with ``weights_only``),
                best of independent trainings. None: the model as it is.
            folder: where features are kept, ``4 k`` bytes an image and checkpoint, with the
                settings they were made with; there a second call goes on where the first ended,
                or uses what is there. None: a temporary folder.
            progress: show a bar, or a function that is told the number done and that of all.

        Under torchrun, once ``torch.distributed`` is initialised, the ranks share the batches, and
        ``folder`` is one for all of them.

        Returns:
            itself. Raises TypeError or ValueError naming the argument, among others where the
            folder is of other settings, or its labels are others than the loader's.
        """
        _require_loader(loader)
        chosen = self._require_checkpoints(checkpoints)
        rows, ranks = _count(loader), Ranks()
        path = self._folder(folder, ranks)
        settings = {
            "version": 1,
            "k": self._projector.k,
            "seed": self._projector.seed,
            "kind": self._projector.kind,
            "num_classes": self.num_classes,
            "parameters": self._projector.rows,
            "rows": rows,
            "checkpoints": [self._load_new(c) for c in chosen],
        }
        with sample_bar(rows * len(chosen), "TRAK", progress if ranks.first else False) as bar:
            self._checkpoints, self._loaded, self._factors = chosen, None, {}
            ranks.all_or_none(lambda: FeatureStore.make(path, settings) if ranks.first else None)
            store = FeatureStore(path, len(chosen))
            try:
                ranks.all_or_none(lambda: self._fill(store, loader, rows, ranks, bar))
            finally:
                store.close()
        self._store = store
        return self

    def _fill(self, store: FeatureStore, loader: Any, rows: int, ranks: Ranks, bar: Bar) -> None:
        for m in range(len(self._checkpoints)):
            waiting: list[tuple[int, int]] = []
            synced, first = time.monotonic(), 0
            for number, (x, y) in enumerate(self._batches(loader)):
                if first + len(x) > rows:
                    raise ValueError(f"loader: gave more than the {rows} samples it had before")
                if store.is_done(m, first, len(x)):
                    store.check_labels(m, first, y)
                elif number % ranks.size == ranks.rank:
                    features, weights = self._features(m, x, y)
                    if not bool(torch.isfinite(features).all()):
                        raise ValueError(
                            f"loader: samples {first} to {first + len(x) - 1} have gradients with "
                            "NaN or infinity"
                        )
                    store.write(m, first, y, features, weights)
                    waiting.append((first, len(x)))
                    if time.monotonic() - synced > SYNC_SECONDS:
                        store.finish(m, waiting)
                        waiting, synced = [], time.monotonic()
                first += len(x)
                bar.update(len(x))
            if first != rows:
                raise ValueError(f"loader: gave {first} samples, had {rows} before")
            store.finish(m, waiting)

    def _batches(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self._model.parameters()).device
        for batch in loader:
            try:
                x, y = batch
            except (TypeError, ValueError):
                got = type(batch).__name__
                raise TypeError(f"loader: gave a {got}, want pairs (images, labels)") from None
            require_floating("loader", x)
            if x.dim() < 1:
                raise ValueError("loader: gave a 0-d tensor, want images [B, ...]")
            yield x.to(device), require_classes("loader", y, len(x), self.num_classes).to(device)

    def _features(self, checkpoint: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """phi ``[B, k]`` and 1 - p ``[B]`` at a checkpoint."""
        self._load(checkpoint)
        features, margins = self._projector.project(x, self._margin, y)
        return features, (-margins).sigmoid()

    def _margin(self, logits: Any, labels: Tensor) -> Tensor:
        """log(p / (1 - p)) of the labels."""
        if not isinstance(logits, Tensor) or logits.shape != (len(labels), self.num_classes):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: gave {got}, want logits [{len(labels)}, {self.num_classes}]")
        classes = torch.arange(self.num_classes, device=logits.device)
        label = classes == labels[:, None]
        others = logits.masked_fill(label, -torch.inf).logsumexp(1)
        return logits.masked_fill(~label, 0).sum(1) - others

    # ---- scores ----------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The score of every training image on each test image.

        Args:
            x: test images ``[T, ...]``.
            y: the labels int64 ``[T]`` that the scores are about. None: the predicted ones, by the
                mean probability over checkpoints.

        Returns:
            ``[T, N]`` float32 on the CPU, N training images in the order of the loader. Sums are
            in float64. Raises TypeError or ValueError naming the argument, and RuntimeError before
            :meth:`fit`.
        """
        store = self._fitted()
        x, y = self._require_test(x, y)
        total = torch.zeros(len(x), len(store.labels.map), dtype=torch.float64)
        for m in range(len(self._checkpoints)):
            phi = self._features(m, x, y)[0].cpu().double()
            solved = torch.cholesky_solve(phi.mT, self._factor(m))
            for first, block in _blocks(store, m):
                total[:, first : first + len(block)] += (block @ solved).mT
        return (total / len(self._checkpoints) * self._weights()).float()

    @torch.no_grad()
    def self_influence(self) -> Tensor:
        """The score ``[N]`` float32 of each training image on itself: large where it is odd.

        Mislabelled images are among the largest. RuntimeError before :meth:`fit`.
        """
        store = self._fitted()
        total = torch.zeros(len(store.labels.map), dtype=torch.float64)
        for m in range(len(self._checkpoints)):
            for first, block in _blocks(store, m):
                # phi^T A^-1 phi = |L^-1 phi|^2
                half = torch.linalg.solve_triangular(self._factor(m), block.mT, upper=False)
                total[first : first + len(block)] += half.square().sum(0)
        return (total / len(self._checkpoints) * self._weights()).float()

    def top(self, x: Tensor, n: int, y: Tensor | None = None, *, largest: bool = True) -> Top:
        """The n training images that help each prediction most, or hurt it most.

        Args:
            x, y: as in :meth:`score`.
            n: in [1, N].
            largest: False: those of the least scores, the least first.

        Raises as :meth:`score`.
        """
        store = self._fitted()
        n = require_int("n", n, 1, len(store.labels.map) + 1)
        return Top(*self.score(x, y).topk(n, largest=require_flag("largest", largest)))

    def _fitted(self) -> FeatureStore:
        if self._store is None:
            raise RuntimeError("TRAK: there are no features; call fit first")
        return self._store

    def _require_test(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        if require_floating("x", x).dim() < 1:
            raise ValueError("x: got a 0-d tensor, want [T, ...]")
        device = next(self._model.parameters()).device
        if y is not None:
            return x.to(device), require_classes("y", y, len(x), self.num_classes).to(device)
        p = torch.zeros(len(x), self.num_classes, device=device)
        for m in range(len(self._checkpoints) if len(x) else 0):
            self._load(m)
            p += self._model(x.to(device)).softmax(1)
        return x.to(device), p.argmax(1)

    def _weights(self) -> Tensor:
        """1 - p ``[N]``, the mean over checkpoints."""
        store = self._fitted()
        weights = [torch.from_numpy(rows.map.copy()).double() for rows in store.weights]
        return torch.stack(weights).mean(0)

    def _factor(self, checkpoint: int) -> Tensor:
        """The Cholesky factor of Phi^T Phi + lambda, float64."""
        if checkpoint not in self._factors:
            k = self._projector.k
            gram = torch.zeros(k, k, dtype=torch.float64)
            for _, block in _blocks(self._fitted(), checkpoint):
                gram.addmm_(block.mT, block)
            gram.diagonal().add_(self.ridge * float(gram.trace()) / k)
            factor, failed = torch.linalg.cholesky_ex(gram)
            if int(failed):
                raise ValueError(
                    f"ridge: got {self.ridge}, with which Phi^T Phi + lambda has no inverse; want "
                    "more, or k below the number of training images"
                )
            self._factors[checkpoint] = factor
        return self._factors[checkpoint]

    # ---- checkpoints and folder ------------------------------------------------------------------

    def _require_checkpoints(self, checkpoints: Any) -> list[Checkpoint]:
        if checkpoints is None:
            return [copy.deepcopy(self._model.state_dict())]
        wanted = "state dicts or files of them, at least one"
        if not isinstance(checkpoints, Sequence) or isinstance(checkpoints, (str, bytes)):
            raise TypeError(f"checkpoints: got a {type(checkpoints).__name__}, want {wanted}")
        if not checkpoints:
            raise ValueError(f"checkpoints: got none, want {wanted}")
        for each in checkpoints:
            if not isinstance(each, (Mapping, str, os.PathLike)):
                raise TypeError(f"checkpoints: got a {type(each).__name__}, want {wanted}")
        return list(checkpoints)

    def _load_new(self, checkpoint: Checkpoint) -> str:
        """Loads a checkpoint and returns what it is told apart by."""
        state = checkpoint
        if not isinstance(checkpoint, Mapping):
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        try:
            self._model.load_state_dict(state)  # type: ignore[arg-type]
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"checkpoints: {' '.join(str(error).split())}") from error
        return model_sha256(self._model)

    def _load(self, checkpoint: int) -> None:
        if self._loaded != checkpoint:
            self._load_new(self._checkpoints[checkpoint])
            self._loaded = checkpoint

    def _folder(self, folder: Any, ranks: Ranks) -> Path:
        if folder is None:
            name = ""
            if ranks.first:
                name = tempfile.mkdtemp(prefix="robustcore-")
                weakref.finalize(self, shutil.rmtree, name, ignore_errors=True)
            return Path(ranks.from_first(name))
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"folder: got {folder!r:.60}, want the name of a folder")
        path = Path(folder)
        if "\0" in str(path) or not str(folder) or (path.exists() and not path.is_dir()):
            raise ValueError(f"folder: got {str(folder)!r:.60}, want the name of a folder")
        return path


def _require_loader(loader: Any) -> None:
    batches = hasattr(loader, "__iter__") and hasattr(loader, "__len__")
    if not batches or isinstance(loader, Tensor):
        got = type(loader).__name__
        raise TypeError(f"loader: got a {got}, want batches with a length, such as a DataLoader")
    sampler = getattr(loader, "sampler", None)
    if isinstance(
        sampler, (torch.utils.data.RandomSampler, torch.utils.data.WeightedRandomSampler)
    ):
        raise ValueError("loader: shuffles; want the samples in the same order each time")


def _count(loader: Any) -> int:
    """How many samples a loader gives."""
    dataset = getattr(loader, "dataset", None)
    if (
        dataset is not None
        and hasattr(dataset, "__len__")
        and not getattr(loader, "drop_last", False)
    ):
        rows = len(dataset)
    else:
        rows = 0
        for batch in loader:
            if (
                not isinstance(batch, (tuple, list))
                or not batch
                or not hasattr(batch[0], "__len__")
            ):
                got = type(batch).__name__
                raise TypeError(f"loader: gave a {got}, want pairs (images, labels)")
            rows += len(batch[0])
    if rows == 0:
        raise ValueError("loader: got no samples, want at least one")
    return rows


def _blocks(store: FeatureStore, checkpoint: int) -> Iterator[tuple[int, Tensor]]:
    """Features float64 ``[at most BLOCK, k]``, with the first row's index."""
    features = store.features[checkpoint].map
    for first in range(0, len(features), BLOCK):
        yield first, torch.from_numpy(features[first : first + BLOCK].copy()).double()
