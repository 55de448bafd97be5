"""Tables as tab-separated text: the one writer, and the published table of certificates."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_FLOOR, Context
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from robustcore.common.files import refuse_existing, replacing

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
    settings: dict[str, Any] | None = None,
) -> None:
    """Writes a table, whole or not at all, and beside it the settings that it was made with.

    FileExistsError unless it may overwrite.
    """
    text = "".join(map(line, (columns, *rows)))
    if settings is not None:
        write_with_settings(path, text, settings, overwrite)
        return
    with replacing(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def settings_path(path: Path) -> Path:
    """Where a table's settings lie."""
    return path.with_name(path.name + ".json")


def write_with_settings(
    path: str | os.PathLike[str], text: str, settings: dict[str, Any], overwrite: bool
) -> None:
    """Writes a table, whole or not at all, and beside it what it was made with.

    The old table goes before the new settings come: at no moment are there rows beside the settings
    of others, or a table without settings.
    """
    target = refuse_existing(path, overwrite)
    with replacing(target, overwrite) as table:
        table.write_text(text, encoding="utf-8")
        old = table.with_name("old")
        try:
            with replacing(settings_path(target), overwrite=True) as beside:
                beside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
                if target.exists():
                    target.rename(old)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise


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
    optional: tuple[str, ...] = ()
    """Columns that others' tables may lack; their cells are then ``nan``."""

    def header(self, details: bool = False) -> str:
        """The first line of such a table."""
        return line((*self.columns, *(self.details if details else ())))

    def row(self, text: str) -> R_co:
        """The row that is in one line."""
        return self.parse(text.rstrip("\n").split("\t"))

    def rows(
        self, path: str | os.PathLike[str], lines: Sequence[tuple[int, str]], *, exact: bool = False
    ) -> Iterator[R_co]:
        """The rows of numbered lines, of which the first holds the names of the columns.

        Unless they are to be exact, the columns may be in any order, and others are ignored.
        """
        number, first = lines[0]
        names = [name.strip() for name in first.split("\t")]
        wrong = bool(set(self.columns) - set(names) - set(self.optional))
        if exact:
            wrong = first + "\n" not in (self.header(), self.header(details=True))
        if wrong or len(set(names)) < len(names):
            raise ValueError(
                f"{path}, line {number}: does not start with the header of such a table, "
                f"the columns {', '.join(self.columns)}"
            )
        details = self.details if set(self.details) <= set(names) else ()
        places = [names.index(c) if c in names else None for c in (*self.columns, *details)]
        for number, text in lines[1:]:
            fields = text.split("\t")
            try:
                if len(fields) != len(names):
                    raise ValueError(f"{len(fields)} fields, want {len(names)}")
                yield self.parse(["nan" if p is None else fields[p].strip() for p in places])
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error} (got {text[:80]!r})") from None

    def read(self, path: str | os.PathLike[str]) -> list[R_co]:
        """The rows of a file, whatever ends its lines; those that start with # are skipped.

        Raises ValueError, naming file and line, for a line that is not of the table.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")  # some editors put a mark first
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is no table of text: {error}") from None
        numbered = enumerate(re.split(r"\r\n|\r|\n", text), 1)
        lines = [(i, row) for i, row in numbered if not row.startswith("#")]
        while lines and not lines[-1][1].strip():
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
    """One row of a table of certificates; ``label`` and ``correct`` are ``nan`` if not known.

    The radius has 3 significant digits, as published, rounded down.
    """
    shown, correct = ("nan", "nan") if label is None else (label, int(prediction == label))
    time = timedelta(seconds=seconds)
    return (idx, shown, prediction, f"{_down(radius):.3}", correct, time, *details)


def _down(radius: float) -> float:
    """The radius at 3 significant digits, not above it: nearest is not certified."""
    return float(Context(prec=3, rounding=ROUND_FLOOR).create_decimal(radius))


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
        _FLAGS.get(correct),
        *(integer("details", value) for value in details),
    )
    if row.label is not None and row.label < 0:  # an image that abstains would be right
        raise ValueError(f"label: got {label}, want at least 0")
    if not (math.isfinite(row.radius) and row.radius >= 0):
        raise ValueError(f"radius: got {radius}, want a number of at least 0")
    right = row.label == row.prediction if known else None
    if correct not in _FLAGS or row.correct != right:
        raise ValueError(f"correct: got {correct} for label {label} and prediction {prediction}")
    if not time:
        raise ValueError("time: got nothing")
    return row


_FLAGS = {
    "1": True,
    "0": False,
    "1.0": True,
    "0.0": False,
    "True": True,
    "False": False,
    "nan": None,
}


def integer(name: str, text: str) -> int:
    """The integer in a cell; some tables have passed through floats."""
    try:
        return int(text.removesuffix(".0"))
    except ValueError:
        raise ValueError(f"{name}: got {text!r}, want an integer") from None


CERTIFIED = Form(COLUMNS, DETAILS, _parse, optional=("time",))
