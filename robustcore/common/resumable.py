"""A table that grows row by row and can be resumed."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from robustcore.common.errors import UsageError
from robustcore.common.table import Form, Indexed, settings_path, write_with_settings

R = TypeVar("R", bound=Indexed)


class ResultFile(Generic[R]):
    """A table of one row an image, with its settings beside it in ``<name>.json``.

    Nothing is written before the first row is there, so a run that fails earlier leaves no trace
    and an old table as it was. Whatever ends the run, the table then holds whole rows of the run's
    first images, and perhaps a part of one more, which ``resume`` takes off. Every complaint about
    the user's input is a UsageError; a disk that is full, an OSError.
    """

    def __init__(
        self,
        path: Path,
        *,
        form: Form[R],
        overwrite: bool,
        resume: bool,
        sync_seconds: float = 10.0,
    ) -> None:
        if path.is_dir():
            raise UsageError(f"--out {path}: is a folder")
        if not path.parent.is_dir():
            raise UsageError(f"--out {path}: there is no folder {path.parent}")
        self.path = path
        self.settings_path = settings_path(path)
        if path.exists() and not (overwrite or resume):
            raise UsageError(f"--out {path}: exists; give another name, --overwrite or --resume")
        self.rows: list[R] = []
        """Those of the run that is resumed."""
        self._resuming = resume and path.exists()
        self._settings: dict[str, Any] = {}
        self._old = self._read_settings() if self._resuming else {}
        self._form, self._header = form, form.header()
        self._descriptor: int | None = None
        self._sync_seconds = sync_seconds
        self._synced = time.monotonic()

    def setting(self, name: str, default: Callable[[], Any]) -> Any:
        """Of the run to resume, None where that did not name it; for a new run what is made."""
        return self._old.get(name) if self._resuming else default()

    def seed(self, default: int) -> int:
        """The seed of the run to resume, or the default."""
        return int(self._old.get("seed", default))

    def remaining(
        self, indices: Sequence[int], settings: dict[str, Any], *, details: bool = False
    ) -> Sequence[int]:
        """The images that have no row yet, once the settings are found to be those of the table."""
        self._settings = settings
        self._header = self._form.header(details)
        if not self._resuming:
            return indices
        for name in {**settings, **self._old}:
            if name not in self._old or self._old[name] != settings.get(name):
                raise UsageError(
                    f"--resume: {self.path} was made with {name} = {self._old.get(name)}, "
                    f"this run has {settings.get(name)}"
                )
        self._open()
        self.rows = self._read_rows()
        done = [row.idx for row in self.rows]
        if done != list(indices[: len(done)]):
            raise UsageError(f"--resume: the rows of {self.path} are not the first of this run")
        return indices[len(done) :]

    def append(self, row: str) -> None:
        """Adds one row: all of it is in the file when this returns, none of it if it raises."""
        if self._descriptor is None:
            self._start()
        descriptor = self._descriptor
        assert descriptor is not None
        end = os.fstat(descriptor).st_size
        data = row.encode()
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            os.ftruncate(descriptor, end)
            raise
        if time.monotonic() - self._synced >= self._sync_seconds:
            self._sync()

    def close(self) -> None:
        """Has the table on the disk; nothing can be appended after it."""
        if self._descriptor is not None:
            try:
                self._sync()
            finally:
                os.close(self._descriptor)
                self._descriptor = None

    def _sync(self) -> None:
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def _start(self) -> None:
        # A run that ends in between left no table, and starts anew when it is resumed.
        write_with_settings(self.path, self._header, self._settings, overwrite=True)
        self._open()

    def _open(self) -> None:
        """Opens the table, for this run alone."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--out {self.path}: another run is writing it") from None
        except OSError:
            pass  # a file system without locks

    def _read_settings(self) -> dict[str, Any]:
        try:
            settings = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--resume: cannot read the settings of {self.path}: {error}"
            ) from error
        if not isinstance(settings, dict):
            raise UsageError(f"--resume: {self.settings_path} holds no settings")
        return settings

    def _read_rows(self) -> list[R]:
        """The complete rows; one that was cut off by the end of the last run is taken off."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            text = whole.decode(errors="replace")  # such a line is then named
            lines = list(enumerate(text.split("\n")[:-1], 1)) or [(1, "")]
            rows = list(self._form.rows(self.path, lines, exact=True))
            if lines[0][1] + "\n" != self._header:
                raise ValueError(f"{self.path}, line 1: has other columns than this run")
        except ValueError as error:
            raise UsageError(f"--resume: {error}") from error
        if whole != data:
            assert self._descriptor is not None
            os.ftruncate(self._descriptor, len(whole))
        return rows
