"""The processes of one run, on one machine or many, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from robustcore.common.errors import UsageError

T = TypeVar("T")


class Ranks:
    """The processes of a run: those of torch.distributed's default group, or this one alone."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in their order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def all_or_none(self, action: Callable[[], T]) -> T:
        """What ``action`` returns, unless it complained of bad input on some rank.

        Then every rank raises the complaint of the first that had one, and none waits for another.
        """
        value, complaint = None, None
        try:
            value = action()
        except (UsageError, OSError) as error:
            complaint = error
        for other in self.gather(complaint):
            if other is not None:
                raise other
        return value  # type: ignore[return-value]

    def add(self, counts: Tensor) -> Tensor:
        """The sum over ranks, in place, on every rank."""
        if self.size > 1:
            dist.all_reduce(counts)
        return counts

    def share(self, total: int) -> range:
        """This rank's part of ``range(total)``; parts differ by one at most."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)


def local_device(wanted: str | None) -> str:
    """The device of this process: ``cuda`` without a number is the GPU of its local rank."""
    if wanted is None:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return wanted


@contextmanager
def connect(device: str, timeout_minutes: float = 60.0) -> Iterator[Ranks]:
    """The ranks that torchrun started, connected for the length of a ``with``; else one rank.

    Counts go through NCCL on GPUs, everything else through gloo. ``timeout_minutes`` is how long a
    rank waits for another one before it gives up.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=timeout_minutes)
    )
    yield Ranks()
    # Not after an error: it would wait for ranks that may be gone.
    dist.destroy_process_group()
