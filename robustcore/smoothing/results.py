"""Result files: the published table, row by row, and files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
HEADER = "\t".join(COLUMNS) + "\n"


def row(idx: int, label: int | None, prediction: int, radius: float, seconds: float) -> str:
    """One line of the table; ``label`` and ``correct`` are ``nan`` where no label is known."""
    correct = "nan" if label is None else str(int(prediction == label))
    time = timedelta(seconds=seconds)
    shown = "nan" if label is None else label
    return f"{idx}\t{shown}\t{prediction}\t{radius:.3}\t{correct}\t{time}\n"


def refuse_existing(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The path; FileExistsError if something is there already, unless told to overwrite."""
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(f"path: {target} exists; give another one or overwrite=True")
    return target


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A temporary file to write; on success it becomes ``path``, on an error it is removed."""
    target = refuse_existing(path, overwrite)
    # In the same folder, because a file can be moved at once only within one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder) / target.name
        yield temporary
        os.replace(temporary, target)
