"""What results have in common: rows that can be indexed, joined, saved and loaded."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustcore.common.checks import require_sequence
from robustcore.common.files import refuse_existing, replacing
from robustcore.common.table import ABSTAIN
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.theory.distributions import Distribution

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, repr=False)
class Result(ABC):
    """One row an image, on the CPU; the scalars say how it was made.

    ``result[i]`` is what ``Smooth`` gives for one image, as in iteration; a slice, a mask or
    indices give a result of those rows. :meth:`cat` joins results.
    """

    prediction: Tensor
    """int64 ``[B]``: the class, or ABSTAIN."""
    counts: Tensor
    """int64 ``[B, K]``: votes; they sum to n less the samples whose logits held a NaN."""
    n: int
    alpha: float
    """Failure probability of one row."""
    sigma: float
    seed: int | None
    """Of the noise; None: of several, in a result that was joined."""
    image_offset: int
    """Row b is image ``image_offset + b * image_stride`` of the noise stream, unless ``chosen``."""
    seconds: Tensor
    """float64 ``[B]``: wall time; images share batches, so each has an equal part of its call's."""
    image_stride: int = field(default=1, kw_only=True)
    chosen: Tensor | None = field(default=None, kw_only=True)
    """int64 ``[B]``: the images' numbers, of rows that were picked or joined."""

    def __len__(self) -> int:
        return len(self.prediction)

    def __repr__(self) -> str:
        abstained = int((self.prediction == ABSTAIN).sum())
        return (
            f"{type(self).__name__}({len(self)} images, {abstained} abstained, "
            f"{self._source()}, n={self.n}, alpha={self.alpha}, seed={self.seed})"
        )

    def _source(self) -> str:
        noise = getattr(self, "noise", None)
        return f"sigma={self.sigma}" if noise is None else f"noise={noise}"

    @property
    def indices(self) -> Tensor:
        """int64 ``[B]``: each row's image in the noise stream, and in tables."""
        if self.chosen is not None:
            return self.chosen
        return self.image_offset + self.image_stride * torch.arange(len(self))

    @property
    def invalid(self) -> Tensor:
        """int64 ``[B]``: samples whose logits held a NaN, and which voted for nobody.

        Not known, and 0, for noise whose samples may vote for several classes.
        """
        return self.drawn - self.counts.sum(1)

    @property
    def drawn(self) -> Tensor:
        """int64 ``[B]``: samples of each image whose votes were counted."""
        return torch.full((len(self),), self.n)

    @abstractmethod
    def _row(self, b: int) -> Any:
        """What ``Smooth`` gives for one image."""

    def __iter__(self) -> Iterator[Any]:
        return map(self._row, range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        rows = torch.arange(len(self))
        if isinstance(index, (list, tuple, range, np.ndarray)):
            index = torch.as_tensor(np.asarray(index, dtype=None if len(index) else np.int64))
        try:
            rows = rows[index]
        except IndexError:
            raise IndexError(f"index: got {index!r} for {len(self)} images") from None
        if rows.dim() == 0:
            return self._row(int(rows))
        if rows.dim() > 1:
            raise IndexError(f"index: got {index!r}, want one number, a slice, a mask or numbers")
        picked: dict[str, Any] = {name: v[rows] for name, v in self._columns().items()}
        return replace(self, **picked, chosen=self.indices[rows])

    def _columns(self) -> dict[str, Tensor]:
        """The fields of which each row has its own."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "chosen"}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One result of the rows of several, which were made alike but for seeds and images.

        Where two rows have one number (each part began at ``image_offset`` 0, say), ``indices``
        count from 0.

        Raises TypeError or ValueError, naming ``parts``.
        """
        joined: list[Self] = require_sequence("parts", parts, f"a sequence of {cls.__name__}")
        if not joined:
            raise ValueError("parts: got none, want at least one result")
        first = joined[0]
        for part in joined:
            if not isinstance(part, cls) or type(part) is not type(first):
                got = f"{type(first).__name__} and {type(part).__name__}"
                raise TypeError(f"parts: got {got}, want results of one kind, {cls.__name__}")
        columns = {name: [getattr(p, name) for p in joined] for name in first._columns()}
        for f in fields(first):
            if f.name in (*columns, "seed", "image_offset", "image_stride", "chosen"):
                continue
            values = [getattr(part, f.name) for part in joined]
            for value in values:
                if value != values[0] and not (value != value and values[0] != values[0]):  # NaN
                    raise ValueError(f"parts: got {f.name} {values[0]} and {value}, want one")
        widths = {part.counts.shape[1] for part in joined}
        if len(widths) > 1:
            raise ValueError(f"parts: got {sorted(widths)} classes, want one number of them")
        numbers = torch.cat([part.indices for part in joined])
        if len(numbers.unique()) < len(numbers):
            numbers = torch.arange(len(numbers))
        seeds = {part.seed for part in joined}
        whole: dict[str, Any] = {name: torch.cat(values) for name, values in columns.items()}
        return replace(
            first,
            **whole,
            seed=first.seed if len(seeds) == 1 else None,
            chosen=numbers,
        )

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write a file that :meth:`load` reads: tensors, numbers and texts alone.

        The file appears whole or not at all.

        Raises FileExistsError if ``path`` exists, unless told to overwrite; ValueError for noise
        that is not of this package.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Distribution):
                values[name] = repr(value)
                if parse_noise(values[name]) != value:
                    raise ValueError(f"noise: {value!r} cannot be written as a text")
        with replacing(path, overwrite) as temporary:
            torch.save({"robustcore": type(self).__name__, **values}, temporary)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what :meth:`save` wrote, without running code of the file.

        Raises TypeError or ValueError, naming ``path``, unless it holds such a result.
        """
        target = refuse_existing(path, overwrite=True)
        try:
            values = torch.load(target, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise ValueError(f"path: {target} holds no result: {error}") from error
        kinds = {kind.__name__: kind for kind in _with_subclasses(cls)}
        name = values.pop("robustcore", None) if isinstance(values, dict) else None
        if name not in kinds:
            raise ValueError(f"path: {target} holds {name or 'no result'}, want {cls.__name__}")
        if isinstance(values.get("noise"), str):
            values["noise"] = parse_noise(values["noise"])
        try:
            result: Self = kinds[name](**values)
        except TypeError as error:
            raise ValueError(f"path: {target} is of another version: {error}") from error
        return result


def _with_subclasses(kind: type[Result]) -> Iterator[type[Any]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from _with_subclasses(sub)


def equal_shares(seconds: float, images: int) -> Tensor:
    """The wall time of each of the images ``[B]``, which share their batches."""
    return torch.full((images,), seconds / max(1, images), dtype=torch.float64)
