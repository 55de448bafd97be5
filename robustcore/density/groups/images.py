"""Images with a label and a group, from the files that Waterbirds and CelebA come as."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustcore.common.checks import require_choice

Transform = Callable[[Any], Any]
SPLITS = ("train", "val", "test")


class GroupImages(Dataset[tuple[Any, int, int]]):
    """Items ``(image, label, group)``; a group is a label with a value of the spurious attribute.

    Made by :func:`load_waterbirds` and :func:`load_celeba`. An image is what ``transform`` makes of
    a PIL image in RGB; without one, float32 ``[3, H, W]`` in [0, 1]. ``rows`` are the names of
    files in ``folder``, with label and attribute; ``group_names`` says what each group is.
    """

    labels: Tensor
    """int64 ``[N]``."""
    attributes: Tensor
    """int64 ``[N]``: the spurious attribute."""
    groups: Tensor
    """int64 ``[N]``: 2 * label + attribute."""
    group_names: tuple[str, ...]
    """What a group is."""

    def __init__(
        self, folder: Path, rows: Sequence[tuple[str, int, int]], group_names: tuple[str, ...],
        transform: Transform | None,
    ) -> None:  # fmt: skip
        if transform is not None and not callable(transform):
            raise TypeError(f"transform: got {type(transform).__name__}, want a function or None")
        self.folder, self.names = folder, [name for name, _, _ in rows]
        self.labels = torch.tensor([label for _, label, _ in rows], dtype=torch.int64)
        self.attributes = torch.tensor([place for _, _, place in rows], dtype=torch.int64)
        self.groups = 2 * self.labels + self.attributes
        self.group_names = group_names
        self.transform = transform

    @property
    def group_counts(self) -> Tensor:
        """How many images each group has, int64 ``[G]``."""
        return self.groups.bincount(minlength=len(self.group_names))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        image = _read(self.folder / self.names[index])
        made = _as_tensor(image) if self.transform is None else self.transform(image)
        return made, int(self.labels[index]), int(self.groups[index])


def load_waterbirds(
    root: str | os.PathLike[str], split: str = "train", *, transform: Transform | None = None
) -> GroupImages:
    """Waterbirds: landbirds (0) and waterbirds (1), before land (0) or water (1).

    Args:
        root: the folder that holds ``metadata.csv``, with the columns ``img_filename, y, split,
            place``, and the images under those names.
        split: "train", "val" or "test"; in the file 0, 1 and 2.
        transform: of a PIL image; None: a float32 tensor ``[3, H, W]`` in [0, 1].

    Images are read when they are asked for, which needs Pillow. Raises TypeError or ValueError
    naming the argument. Source: Sagawa, Koh, Hashimoto, Liang, "Distributionally robust neural
    networks for group shifts", 2020.
    """
    folder, wanted = _folder(root), _split(split)
    rows = []
    for where, row in _table(folder / "metadata.csv"):
        try:
            name, values = row["img_filename"], [int(row[c]) for c in ("y", "place", "split")]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"root: {where}: want img_filename, y, place and split") from error
        label, place, part = values
        if label not in (0, 1) or place not in (0, 1) or part not in (0, 1, 2):
            raise ValueError(f"root: {where}: got y {label}, place {place}, split {part}")
        if part == wanted:
            rows.append((name, label, place))
    names = ("landbird, land", "landbird, water", "waterbird, land", "waterbird, water")
    return GroupImages(folder, rows, names, transform)


def load_celeba(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    target: str = "Blond_Hair",
    attribute: str = "Male",
    transform: Transform | None = None,
) -> GroupImages:
    """CelebA: faces, labelled by one of their 40 attributes, with another one as the spurious.

    Args:
        root: the folder that holds ``list_attr_celeba.txt``, ``list_eval_partition.txt`` and the
            images in ``img_align_celeba``.
        split: "train", "val" or "test"; in the file 0, 1 and 2.
        target, attribute: names of attributes; label and attribute are 1 where the file has 1, and
            0 where it has -1.
        transform: as in :func:`load_waterbirds`.

    Raises TypeError or ValueError naming the argument. Source: Liu, Luo, Wang, Tang, "Deep learning
    face attributes in the wild", 2015.
    """
    folder, wanted = _folder(root), _split(split)
    lines = _lines(folder / "list_attr_celeba.txt")
    next(lines, None)  # how many there are
    _, columns = next(lines, ("", []))
    chosen = []
    for name, column in (("target", target), ("attribute", attribute)):
        require_choice(name, column, columns)
        chosen.append(1 + columns.index(column))
    part = dict(cells for _, cells in _lines(folder / "list_eval_partition.txt", 2))
    rows = []
    for where, cells in lines:
        name = cells[0]
        signs = [cells[c] for c in chosen] if len(cells) == 1 + len(columns) else []
        if not signs or not {*signs} <= {"1", "-1"}:
            raise ValueError(f"root: {where}: want a name and {len(columns)} times 1 or -1")
        if name not in part:
            raise ValueError(f"root: list_eval_partition.txt has no {name}")
        if part[name] == str(wanted):
            rows.append((name, int(signs[0] == "1"), int(signs[1] == "1")))
    names = [f"{'' if y else 'not '}{target}, {'' if a else 'not '}{attribute}"
             for y in (0, 1) for a in (0, 1)]  # fmt: skip
    return GroupImages(folder / "img_align_celeba", rows, tuple(names), transform)


def _folder(root: object) -> Path:
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root: got {root!r:.60}, want the name of a folder")
    return Path(root)


def _split(split: str) -> int:
    return SPLITS.index(require_choice("split", split, SPLITS))


def _text(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"root: cannot read {path}: {error}") from error


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where a row is, and its cells by column."""
    reader = csv.DictReader(_text(path))
    for row in reader:
        yield f"{path.name}, line {reader.line_num}", row


def _lines(path: Path, cells: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Where a line that is not empty is, and its words, as many as that if given."""
    for number, text in enumerate(_text(path), start=1):
        words = text.split()
        if cells is not None and words and len(words) != cells:
            raise ValueError(f"root: {path.name}, line {number}: want {cells} words")
        if words:
            yield f"{path.name}, line {number}", words


def _read(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images are read by Pillow: pip install pillow") from error
    with Image.open(path) as image:
        return image.convert("RGB")


def _as_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
