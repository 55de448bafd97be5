"""The table of an attack: one row an image of a user's data set."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.attacks.attack import Attack, require_images
from robustcore.common.errors import UsageError
from robustcore.common.image_run import stack
from robustcore.common.progress import ImageBar
from robustcore.common.table import Form, integer, line
from robustcore.common.user_code import as_usage_error, load_item

COLUMNS = ("idx", "label", "predict", "success", "distance", "steps", "queries", "time")


class AttackedRow(NamedTuple):
    """One image: ``predict`` is the class of the returned image, ``distance`` how far it is."""

    idx: int
    label: int
    prediction: int
    success: bool
    distance: float
    steps: int
    queries: int


def _parse(fields: Sequence[str]) -> AttackedRow:
    idx, label, prediction, success, distance, steps, queries, seconds = fields
    row = AttackedRow(
        integer("idx", idx),
        integer("label", label),
        integer("predict", prediction),
        bool(integer("success", success)),
        float(distance),
        integer("steps", steps),
        integer("queries", queries),
    )
    if success not in ("0", "1") or row.success != (prediction != label and row.prediction >= 0):
        raise ValueError(f"success: got {success} for label {label} and prediction {prediction}")
    if not (math.isfinite(row.distance) and row.distance >= 0):
        raise ValueError(f"distance: got {distance}, want a number of at least 0")
    if not seconds:
        raise ValueError("time: got nothing")
    return row


ATTACKED = Form(COLUMNS, (), _parse)


def rows(
    attack: Attack, data: Any, indices: Sequence[int], stride: int, device: str
) -> list[str | UsageError]:
    """The rows of images that follow each other in the run, or why there are none."""
    if not indices:
        return []
    started = time.perf_counter()
    items, broken = _items(attack, data, indices)
    indices = indices[: len(items)]
    if not items:
        return broken
    shown = f"image {indices[0]}" if len(indices) == 1 else f"images {indices[0]} and following"
    try:
        with as_usage_error(f"{shown}: "):
            images = stack([image.to(device) for image, _ in items], "images")
            labels = torch.tensor([label for _, label in items], device=device)
            made = attack.run(images, labels, indices[0], image_stride=stride)
    except UsageError as error:
        return [error]
    seconds = timedelta(seconds=(time.perf_counter() - started) / len(indices))
    columns = made.prediction, made.success.long(), made.distance, made.steps, made.queries
    done: list[str | UsageError] = [
        # Rounded up: a point of the table is never nearer than the adversarial image.
        line((idx, label, p, s, f"{math.ceil(d * 1e7) / 1e7:.7f}", steps, queries, seconds))
        for idx, (_, label), (p, s, d, steps, queries) in zip(
            indices, items, zip(*(c.tolist() for c in columns), strict=True), strict=True
        )
    ]
    return done + broken


def _items(
    attack: Attack, data: Any, indices: Sequence[int]
) -> tuple[list[tuple[Tensor, int]], list[str | UsageError]]:
    """The images before the first one that cannot be attacked, and what is wrong with that one."""
    items: list[tuple[Tensor, int]] = []
    for idx in indices:
        try:
            image, label = load_item(data, idx)
            with as_usage_error(f"image {idx}: "):
                names = "image", "label"
                require_images(image.unsqueeze(0), torch.tensor([label]), attack.grid, names)
        except UsageError as error:
            return items, [error]
        items.append((image, label))
    return items, []


class Fooled(ImageBar):
    """A bar with the rate, the time left, and how many images are fooled so far.

    Args:
        total: images of the whole run.
        done: rows of the part that an earlier run has done.
        hidden: show nothing, only count.
    """

    def __init__(self, total: int, done: Sequence[AttackedRow], *, hidden: bool) -> None:
        super().__init__("attack", total, len(done), hidden=hidden)
        self._images = self._fooled = self._of_run = 0
        for row in done:
            self._count(row)

    def add(self, row: AttackedRow) -> None:
        """One more image."""
        self._count(row)
        self._of_run += row.success
        self._bar.set_postfix_str(f"robust {1 - self._fooled / self._images:.1%}", refresh=False)
        self._bar.update()

    def within(self, done: int, total: int) -> None:
        """Nothing is shown within an image."""

    def summary(self) -> str:
        """What is said at the end."""
        return f"{self._of_run} fooled"

    def _count(self, row: AttackedRow) -> None:
        self._images += 1
        self._fooled += row.success
