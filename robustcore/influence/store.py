"""Features of training images on disk, which a run that was killed goes on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robustcore.common.files import replacing

SETTINGS = "settings.json"


class Rows:
    """One array of a store: written by rows, by any process, and read through a memory map."""

    def __init__(self, path: Path) -> None:
        self.map: Any = np.load(path, mmap_mode="r")
        self._descriptor = os.open(path, os.O_RDWR)

    def write(self, first: int, rows: Any) -> None:
        """Writes rows from ``first`` on."""
        # By position: two machines that write pages of one map would undo each other's rows.
        data = np.ascontiguousarray(rows, dtype=self.map.dtype).tobytes()
        at = self.map.offset + first * self.map.strides[0]
        while data:
            written = os.pwrite(self._descriptor, data, at)
            data, at = data[written:], at + written

    def sync(self) -> None:
        """Has what was written on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Ends the writing; the map stays."""
        os.close(self._descriptor)


class FeatureStore:
    """Of each checkpoint features ``[N, k]`` and weights ``[N]``, float32; and labels ``[N]``.

    A row counts once ``done`` says so, which is on the disk after the row. The settings come last
    when a store is made: without them it is made anew.
    """

    def __init__(self, folder: Path, checkpoints: int) -> None:
        self.folder = folder
        self.labels = Rows(folder / "labels.npy")
        self.features, self.weights, self.done = (
            [Rows(folder / f"{name}-{m}.npy") for m in range(checkpoints)]
            for name in ("features", "weights", "done")
        )

    @staticmethod
    def make(folder: Path, settings: dict[str, Any]) -> None:
        """Makes the files, or finds those of a run with the same settings; else a ValueError."""
        try:
            text = (folder / SETTINGS).read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        if text:
            _compare(folder, json.loads(text), settings)
            return
        folder.mkdir(parents=True, exist_ok=True)
        rows, k = settings["rows"], settings["k"]
        kinds: dict[str, tuple[Any, ...]] = {"labels": (np.int64, rows)}
        for m in range(len(settings["checkpoints"])):
            kinds[f"features-{m}"] = np.float32, rows, k
            kinds[f"weights-{m}"] = np.float32, rows
            kinds[f"done-{m}"] = np.uint8, rows
        for name, (dtype, *shape) in kinds.items():
            path = folder / f"{name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape)).flush()
        with replacing(folder / SETTINGS, overwrite=True) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def is_done(self, checkpoint: int, first: int, count: int) -> bool:
        """Whether rows are there already."""
        return bool(self.done[checkpoint].map[first : first + count].all())

    def check_labels(self, checkpoint: int, first: int, labels: Tensor) -> None:
        """ValueError where rows that are there are not of these labels."""
        if not np.array_equal(self.labels.map[first : first + len(labels)], labels.cpu().numpy()):
            raise ValueError(
                f"loader: labels {first} to {first + len(labels) - 1} are others than those in "
                f"{self.folder}; want the same samples in the same order"
            )

    def write(
        self, checkpoint: int, first: int, labels: Tensor, features: Tensor, weights: Tensor
    ) -> None:
        """Writes the rows of a batch; they count after :meth:`finish`."""
        self.labels.write(first, labels.cpu().numpy())
        self.features[checkpoint].write(first, features.cpu().numpy())
        self.weights[checkpoint].write(first, weights.cpu().numpy())

    def finish(self, checkpoint: int, batches: list[tuple[int, int]]) -> None:
        """Marks batches, first row and rows of each, as done."""
        for rows in (self.labels, self.features[checkpoint], self.weights[checkpoint]):
            rows.sync()
        for first, count in batches:
            self.done[checkpoint].write(first, np.ones(count))
        self.done[checkpoint].sync()

    def close(self) -> None:
        """Ends the writing; the maps stay."""
        for rows in (self.labels, *self.features, *self.weights, *self.done):
            rows.close()


def _compare(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"folder: {folder} was made with {name} = {old.get(name)!s:.80}, this call has "
                f"{new.get(name)!s:.80}"
            )
