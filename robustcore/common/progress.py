"""What is shown while samples are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from tqdm.auto import tqdm


class Told:
    """In place of a bar of samples: a function is told how many are done, and of how many."""

    def __init__(self, total: int, tell: Callable[[int, int], Any]) -> None:
        self.n, self.total = 0, total
        self._tell = tell

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, samples: int) -> None:
        self.n += samples
        self._tell(self.n, self.total)


Bar: TypeAlias = "tqdm[Any] | Told"


def sample_bar(total: int, what: str, progress: bool | Callable[[int, int], Any]) -> Bar:
    """A bar that counts samples, shown or not, or one that tells a function."""
    if callable(progress):
        return Told(total, progress)
    return tqdm(total=total, desc=what, unit="sample", disable=not progress)
