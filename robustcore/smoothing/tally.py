"""How the images of a run have fared so far, shown while they are certified."""

from __future__ import annotations

import time
from collections.abc import Sequence

from robustcore.common.progress import ImageBar
from robustcore.common.table import ABSTAIN, Row


class Tally(ImageBar):
    """A bar with the rate, the time left, and how the images have fared so far.

    Args:
        total: images of the whole run.
        done: rows of the part that an earlier run has done.
        hidden: show nothing, only count, as where there is no terminal.
        how: images are certified, said at the end.
    """

    def __init__(self, total: int, done: Sequence[Row], *, hidden: bool, how: str = "") -> None:
        super().__init__("certify", total, len(done), hidden=hidden)
        self._how = how
        self.certified = 0
        """Of the images of this run, without those done before."""
        self._images = self._right = self._abstained = 0
        self._radii = 0.0
        self._sampled, self._refreshed = "", time.monotonic()
        for row in done:
            self._count(row)
        self._show()

    def add(self, row: Row) -> None:
        """One more image."""
        self._count(row)
        self.certified += row.prediction != ABSTAIN
        self._sampled = ""
        self._show()
        self._bar.update()

    def within(self, done: int, total: int) -> None:
        """How far the image at hand is; shown at most twice a second."""
        now = time.monotonic()
        if now - self._refreshed >= 0.5 and done < total:
            self._refreshed = now
            self._sampled = f"sample {done} of {total}"
            self._show()
            self._bar.refresh()

    def summary(self) -> str:
        """What is said at the end."""
        return f"{self.certified} certified{self._how}"

    def _count(self, row: Row) -> None:
        self._images += 1
        self._right += bool(row.correct)
        self._radii += row.radius if row.correct else 0.0
        self._abstained += row.prediction == ABSTAIN

    def _show(self) -> None:
        parts = [self._sampled] if self._sampled else []
        if self._images:
            parts += [
                f"right {self._right / self._images:.1%}",
                f"mean radius {self._radii / self._images:.3f}",
                f"abstained {self._abstained}",
            ]
        if parts:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
