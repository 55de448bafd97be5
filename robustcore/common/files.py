"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcore.common.checks import require_flag


def refuse_existing(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The path; FileExistsError if something is there already, unless told to overwrite."""
    try:
        target = Path(path)
    except TypeError:
        raise TypeError(f"path: got {path!r}, want the name of a file") from None
    if not target.name or "\0" in target.name:
        raise ValueError(f"path: got {path!r}, want the name of a file")
    require_flag("overwrite", overwrite)
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
        # Its content before its name, or a loss of power may leave an empty file.
        _sync(temporary)
        os.replace(temporary, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
