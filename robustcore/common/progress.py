"""What is shown while samples are drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm
    from typing_extensions import Self

T = TypeVar("T")


def on_terminal() -> bool:
    """Whether somebody sees bars: stderr is a terminal, not a pipe or a file."""
    return sys.stderr.isatty()


def steps(these: Iterable[T], what: str, unit: str, *, shown: bool) -> Iterable[T]:
    """The same things, one by one, with a bar that counts them where it is shown."""
    from tqdm.auto import tqdm

    return tqdm(these, desc=what, unit=unit, disable=not shown)


class ImageBar:
    """A bar of images with the time left; ``done`` of ``total`` are of an earlier run.

    It is shown on a terminal, unless it is ``hidden``, and closed at the end of its block.
    """

    def __init__(self, what: str, total: int, done: int, *, hidden: bool) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=total, initial=done, desc=what, unit="image", disable=hidden or not on_terminal()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


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
Show: TypeAlias = bool | Callable[[int, int], Any]
"""Whether to show a bar; or a function that is told the number done and that of all."""


def sample_bar(total: int, what: str, progress: Show) -> Bar:
    """A bar that counts samples, shown or not, or one that tells a function."""
    if not callable(progress) and not isinstance(progress, bool):
        got = type(progress).__name__
        raise TypeError(f"progress: got a {got}, want True, False or a function of two numbers")
    from tqdm.auto import tqdm

    if callable(progress):
        return Told(total, progress)
    return tqdm(total=total, desc=what, unit="sample", disable=not progress)
