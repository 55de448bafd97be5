"""A command that answers a question about each image of a data set: one row an image, resumable.

Under torchrun the images are shared between the ranks, and where a question allows it the work on
an image when there are fewer images than ranks; rank 0 writes.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from robustcore._build import __version__
from robustcore.common.errors import UsageError
from robustcore.common.memory import keep_freed_memory
from robustcore.common.ranks import Ranks, connect, local_device
from robustcore.common.resumable import ResultFile
from robustcore.common.table import Form, Indexed
from robustcore.common.user_code import file_sha256, load_dataset, load_model, model_sha256

R = TypeVar("R", bound=Indexed)
R_contra = TypeVar("R_contra", bound=Indexed, contravariant=True)


class Setup(NamedTuple):
    """What every rank has at hand before the first image."""

    table: ResultFile[Any] | None
    """Of the rank that writes; only it looks at the table."""
    data: Any
    indices: range
    model: nn.Module


class Count(AbstractContextManager[Any], Protocol[R_contra]):
    """What is shown while the images are worked on."""

    def add(self, row: R_contra) -> None: ...
    def within(self, done: int, total: int) -> None: ...
    def summary(self) -> str: ...


class Question(ABC, Generic[R]):
    """What a command asks about every image; made of its options."""

    form: Form[R]
    asked: str
    """What is done to an image, in a word."""
    details = False
    """Whether rows have the columns of details."""
    in_flight = 1
    """Images that a process works on together."""

    def settle(self, setup: Setup, ranks: Ranks) -> None:
        """Settles, on every rank alike, what the options leave to the images or to the table."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a row depends on beside model, data and seed."""

    @abstractmethod
    def prepare(self, setup: Setup, device: str, first: int, seed: int) -> None:
        """Before the first image, that of index ``first``; UsageError for bad input."""

    @abstractmethod
    def rows(
        self, indices: Sequence[int], shared: bool, tell: Callable[[int, int], Any]
    ) -> list[str | UsageError]:
        """The rows of some images, or why there are none; ``shared``: every rank is asked."""

    @abstractmethod
    def count(self, total: int, done: Sequence[R], *, hidden: bool) -> Count[R]:
        """What is shown of so many images, some of which an earlier run has done."""

    shares = False
    """Whether the ranks can work together at one image."""


def add_model(group: argparse._ArgumentGroup, what: str) -> None:
    """The options of a model."""
    add = group.add_argument
    add(
        "--model",
        required=True,
        metavar="PKG.MODULE:FACTORY",
        help=f"function that returns the {what}",
    )
    add("--checkpoint", type=Path, metavar="FILE", help="weights for it, as torch.save wrote them")
    add(
        "--checkpoint-key",
        metavar="KEY",
        help="where the weights are in it (itself, state_dict, model_state_dict, model or net)",
    )
    add(
        "--strip-prefix",
        metavar="TEXT",
        help="what to take off the weights' names (those of DataParallel and torch.compile go by "
        "themselves); other weights are left out",
    )
    add("--device", default=None, help="cpu, cuda, ... (cuda if there is one)")


def add_images(group: argparse._ArgumentGroup) -> None:
    """The options of a data set, and which of its images are asked about."""
    add = group.add_argument
    add(
        "--data",
        required=True,
        metavar="PKG.MODULE:FACTORY",
        help="function that returns a map-style dataset of (image [C, H, W] in [0, 1], label)",
    )
    add("--start", type=int, default=0, help="index of the first image (%(default)s)")
    add("--skip", type=int, default=1, help="take every SKIP-th image (%(default)s)")
    add("--max", type=int, default=-1, help="stop before image MAX (all)")


def add_run(group: argparse._ArgumentGroup) -> None:
    """The options of the table and of the processes."""
    add = group.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="table to write (.tsv)")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing table")
    existing.add_argument("--resume", action="store_true", help="complete an existing table")
    add("--no-progress", action="store_true", help="show no progress bar")
    add(
        "--sync-seconds",
        type=float,
        default=10.0,
        help="what a loss of power may cost; a killed run loses no row (%(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="how long a rank of torchrun waits for another (%(default)s)",
    )


def check_images(args: argparse.Namespace) -> None:
    """UsageError where the options of :func:`add_images` make no sense."""
    if args.start < 0 or args.skip < 1:
        raise UsageError(f"--start {args.start} --skip {args.skip}: want at least 0 and at least 1")


def run(args: argparse.Namespace, question: Question[R]) -> None:
    """Asks about all images that have no row; UsageError for bad input of the user's."""
    device = local_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    with connect(device, args.timeout) as ranks:
        try:
            _run(args, question, device, ranks)
        except UsageError:
            if ranks.first:
                raise
            raise SystemExit(2) from None  # all ranks have met the same, and one says it
        except RuntimeError as error:
            if ranks.size == 1:
                raise
            raise UsageError(
                f"rank {ranks.rank}: {error} (the rows so far are kept: --resume)"
            ) from error


def _run(args: argparse.Namespace, question: Question[R], device: str, ranks: Ranks) -> None:
    setup = ranks.all_or_none(lambda: _set_up(args, question, device, ranks))
    table = setup.table
    try:
        question.settle(setup, ranks)
        seed = args.seed
        if seed is None:
            seed = ranks.from_first(table.seed(default=secrets.randbits(64)) if table else 0)
        settings = _settings(args, question, seed, setup.model)

        def remaining() -> Sequence[int]:
            if table is None:
                return ()
            return table.remaining(setup.indices, settings, details=question.details)

        todo = ranks.from_first(ranks.all_or_none(remaining))
        if todo:
            ranks.all_or_none(lambda: question.prepare(setup, device, todo[0], seed))
            count = question.count(
                len(setup.indices),
                table.rows if table else (),
                hidden=args.no_progress or not ranks.first,
            )
            with count:
                _ask_all(question, todo, table, ranks, count)
            if ranks.first:
                print(f"{args.out}: {len(todo)} images, {count.summary()}, seed {seed}")
        elif ranks.first:
            print(f"{args.out}: no image left to {question.asked}")
    finally:
        if table:
            table.close()


def _set_up(args: argparse.Namespace, question: Question[R], device: str, ranks: Ranks) -> Setup:
    table = None
    if ranks.first:
        table = ResultFile(
            args.out,
            form=question.form,
            overwrite=args.overwrite,
            resume=args.resume,
            sync_seconds=args.sync_seconds,
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    data = load_dataset(args.data)
    stop = len(data) if args.max < 0 else min(args.max, len(data))
    for option, value in (("--start", args.start), ("--skip", args.skip)):
        if value > len(data) or (value == len(data) > 0 and option == "--start"):
            raise UsageError(f"{option} {value}: the data set has only {len(data)} images")
    indices = range(args.start, stop, args.skip)
    model = load_model(
        args.model, args.checkpoint, device, key=args.checkpoint_key, prefix=args.strip_prefix
    )
    return Setup(table, data, indices, model)


def _settings(
    args: argparse.Namespace, question: Question[R], seed: int, model: nn.Module
) -> dict[str, Any]:
    """What a table is made with: one that is resumed must agree in all of it."""
    return {
        "model": args.model,
        "model_sha256": model_sha256(model),
        "checkpoint_sha256": file_sha256(args.checkpoint),
        "data": args.data,
        **question.settings(),
        "seed": seed,
        "start": args.start,
        "skip": args.skip,
        "details": question.details,
        "versions": {"robustcore": __version__, "torch": torch.__version__},
    }


def _ask_all(
    question: Question[R],
    todo: Sequence[int],
    table: ResultFile[R] | None,
    ranks: Ranks,
    count: Count[R],
) -> None:
    """The rows of all images that are left, on every rank; the first one writes them."""
    position = 0
    while position < len(todo):
        left = len(todo) - position
        if left >= ranks.size or not question.shares:
            # One part for each rank, equally large, so that none waits for long.
            number = max(1, min(question.in_flight, left // ranks.size))
            first = position + ranks.rank * number
            mine = question.rows(todo[first : first + number], False, count.within)
            made = [row for part in ranks.gather(mine) for row in part]
            position += number * ranks.size
        else:
            number = min(question.in_flight, left)
            part = todo[position : position + number]
            made = ranks.from_first(question.rows(part, True, count.within))
            position += number
        for row in made:
            if isinstance(row, UsageError):
                raise row
            if table:
                table.append(row)
            count.add(question.form.row(row))


def stack(images: Sequence[Tensor], name: str = "x") -> Tensor:
    """``[B, C, H, W]`` of images of one shape."""
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"{name}: got shapes {shapes}, want one shape for --in-flight")
    return torch.stack(list(images))
