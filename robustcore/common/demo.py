"""The frame of every demo: shared options, the files it writes, and its training loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustcore.common.errors import UsageError
from robustcore.common.plots import require_matplotlib
from robustcore.common.progress import on_terminal, steps

T = TypeVar("T")
BATCH = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all demos have."""
    add = parser.add_argument
    add("--fast", action="store_true", help="less of everything: a few seconds")
    add(
        "--out",
        type=Path,
        default=Path("robustcore-demo"),
        help="folder of tables and picture (%(default)s)",
    )
    add("--seed", type=int, default=0, help="of training and evaluation (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, ... (%(default)s)")
    add("--overwrite", action="store_true", help="replace the files of an earlier run")


def start(
    args: argparse.Namespace, names: Sequence[str], load: Callable[[], T]
) -> tuple[T, list[Path]]:
    """The data, and the files to write in a folder that is there.

    UsageError where a file would be replaced without ``--overwrite``, a package or the device is
    missing.
    """
    paths = [args.out / name for name in names]
    for path in paths:
        if path.exists() and not args.overwrite:
            raise UsageError(f"--out: {path} exists; add --overwrite")
    try:
        if any(path.suffix == ".png" for path in paths):
            require_matplotlib()
        data = load()
    except ImportError as error:
        raise UsageError(str(error)) from error
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device}: {error}") from error
    args.out.mkdir(parents=True, exist_ok=True)
    return data, paths


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random state, for the time of a block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread for the time of a block."""
    # Steps this small gain nothing from a second thread, and wait for it where it is not free.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_cycle(model: nn.Module, images: int, epochs: int, max_lr: float) -> tuple[Any, Any]:
    """AdamW and its schedule: the rate rises and falls once, for :func:`fit`."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=max_lr, epochs=epochs, steps_per_epoch=-(-images // BATCH)
    )
    return optimizer, schedule


def fit(
    loss: Callable[[Tensor], Tensor],
    images: int,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    schedule: Any = None,
    *,
    batch: int = BATCH,
    what: str = "train",
) -> None:
    """Takes a step a batch: ``loss`` of the indices of its images, in a random order an epoch."""
    for _ in steps(range(epochs), what, "epoch", shown=on_terminal()):
        for chosen in torch.randperm(images).split(batch):
            value = loss(chosen)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()


def line(name: str, values: Sequence[object], width: int = 8) -> str:
    """One line of a printed table."""
    return f"  {name:<36}" + "".join(f"{value:>{width}}" for value in values)


def percent(values: Tensor) -> list[str]:
    """Each of the values ``[N]`` as a percentage."""
    return [f"{value:.1%}" for value in values.tolist()]
