"""Tables as tab-separated text: the one writer, and the published table of certificates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from robustcore.common.files import replacing

# What the published code predicts where it cannot answer; no label is negative.
ABSTAIN = -1
# The published table of certificates, one row an image.
COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
# Columns that may follow: what was drawn, and how many votes the selected class had.
DETAILS = ("samples", "votes")


def line(cells: Iterable[object]) -> str:
    """One line of a table."""
    return "\t".join(map(str, cells)) + "\n"


def write_table(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    overwrite: bool,
) -> None:
    """Writes a table, whole or not at all; FileExistsError unless it may overwrite."""
    with replacing(path, overwrite) as temporary:
        temporary.write_text("".join(map(line, (columns, *rows))), encoding="utf-8")


class Row(NamedTuple):
    """One image of a table of certificates; what is not known is None."""

    idx: int
    label: int | None
    prediction: int
    radius: float
    correct: bool | None
    samples: int | None = None
    votes: int | None = None


class Indexed(Protocol):
    """A row of a table of images."""

    @property
    def idx(self) -> int: ...


R_co = TypeVar("R_co", bound=Indexed, covariant=True)


@dataclass(frozen=True)
class Form(Generic[R_co]):
    """What a table of images has in its columns, and how a row is read."""

    columns: tuple[str, ...]
    details: tuple[str, ...]
    """Columns that may follow."""
    parse: Callable[[Sequence[str]], R_co]
    """A row of its cells; ValueError for one that is none."""

    def header(self, details: bool = False) -> str:
        """The first line of such a table."""
        return line((*self.columns, *(self.details if details else ())))

    def row(self, text: str) -> R_co:
        """The row that is in one line."""
        return self.parse(text.rstrip("\n").split("\t"))

    def rows(
        self, path: str | os.PathLike[str], lines: Sequence[tuple[int, str]]
    ) -> Iterator[R_co]:
        """The rows of numbered lines, of which the first holds the names of the columns."""
        number, first = lines[0]
        names = tuple(first.split("\t"))
        if names not in (self.columns, self.columns + self.details):
            raise ValueError(
                f"{path}, line {number}: does not start with the header of such a table, "
                f"the columns {', '.join(self.columns)}"
            )
        for number, text in lines[1:]:
            fields = text.split("\t")
            try:
                if len(fields) != len(names):
                    raise ValueError(f"{len(fields)} fields, want {len(names)}")
                yield self.parse(fields)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error} (got {text[:80]!r})") from None

    def read(self, path: str | os.PathLike[str]) -> list[R_co]:
        """The rows of a file; lines that start with # are skipped.

        Raises ValueError, naming file and line, for a line that is not of the table.
        """
        text = Path(path).read_text(encoding="utf-8")
        lines = [(i, row) for i, row in enumerate(text.split("\n"), 1) if not row.startswith("#")]
        if lines and lines[-1][1] == "":
            lines.pop()
        if not lines:
            raise ValueError(f"{path}: is empty, want the columns {', '.join(self.columns)}")
        return list(self.rows(path, lines))


def certificate_cells(
    idx: int,
    label: int | None,
    prediction: int,
    radius: float,
    seconds: float,
    details: Sequence[int] = (),
) -> tuple[object, ...]:
    """One row of a table of certificates; ``label`` and ``correct`` are ``nan`` if not known."""
    shown, correct = ("nan", "nan") if label is None else (label, int(prediction == label))
    time = timedelta(seconds=seconds)
    return (idx, shown, prediction, f"{radius:.3}", correct, time, *details)


def read_certificates(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a table of certificates, one of ours or as published, see :meth:`Form.read`."""
    return CERTIFIED.read(path)


def _parse(fields: Sequence[str]) -> Row:
    idx, label, prediction, radius, correct, time, *details = fields
    known = label != "nan"
    row = Row(
        integer("idx", idx),
        integer("label", label) if known else None,
        integer("predict", prediction),
        float(radius),
        bool(integer("correct", correct)) if known else None,
        *(integer("details", value) for value in details),
    )
    if not (math.isfinite(row.radius) and row.radius >= 0):
        raise ValueError(f"radius: got {radius}, want a number of at least 0")
    if correct not in ("0", "1", "nan") or (known and row.correct != (label == prediction)):
        raise ValueError(f"correct: got {correct} for label {label} and prediction {prediction}")
    if not time:
        raise ValueError("time: got nothing")
    return row


def integer(name: str, text: str) -> int:
    """The integer in a cell."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}: got {text!r}, want an integer") from None


CERTIFIED = Form(COLUMNS, DETAILS, _parse)
