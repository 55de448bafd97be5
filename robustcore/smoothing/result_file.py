"""A table that grows row by row and can be resumed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcore.smoothing import results


class ResultFile:
    """The table of ``robustcore certify``, with its settings beside it in ``<name>.json``.

    Nothing is written before the first row is there, so a run that fails earlier leaves no trace
    and an old table as it was. Every complaint is an argparse.ArgumentError.
    """

    def __init__(self, path: Path, *, overwrite: bool, resume: bool) -> None:
        if path.is_dir():
            raise _error(f"--out {path}: is a folder")
        if not path.parent.is_dir():
            raise _error(f"--out {path}: there is no folder {path.parent}")
        self.path = path
        self.settings_path = path.with_name(path.name + ".json")
        if path.exists() and not (overwrite or resume):
            raise _error(f"--out {path}: exists; give another name, --overwrite or --resume")
        self._resuming = resume and path.exists()
        self._started = self._resuming
        self._settings: dict[str, Any] = {}
        self._old = self._read_settings() if self._resuming else {}

    def seed(self, default: int) -> int:
        """The seed of the run to resume, or the default."""
        return int(self._old.get("seed", default))

    def remaining(self, indices: Sequence[int], settings: dict[str, Any]) -> Sequence[int]:
        """The images that have no row yet, once the settings are found to be those of the table."""
        self._settings = settings
        if not self._resuming:
            return indices
        for name, value in settings.items():
            if name not in self._old or self._old[name] != value:
                raise _error(
                    f"--resume: {self.path} was made with {name} = {self._old.get(name)}, "
                    f"this run has {value}"
                )
        done = self._done()
        if done != list(indices[: len(done)]):
            raise _error(f"--resume: the rows of {self.path} are not the first of this run")
        return indices[len(done) :]

    def append(self, row: str) -> None:
        """Adds one row; it is in the file when this returns."""
        if not self._started:
            self._start()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(row)

    def _start(self) -> None:
        # The table first: between the two, a new table without settings or with those of the old
        # one is refused or empty at --resume, while old rows under new settings would be believed.
        with results.replacing(self.path, overwrite=True) as temporary:
            temporary.write_text(results.HEADER, encoding="utf-8")
        with results.replacing(self.settings_path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")
        self._started = True

    def _read_settings(self) -> dict[str, Any]:
        try:
            settings = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _error(f"--resume: cannot read the settings of {self.path}: {error}") from error
        if not isinstance(settings, dict):
            raise _error(f"--resume: {self.settings_path} holds no settings")
        return settings

    def _done(self) -> list[int]:
        """Indices of the complete rows; a row cut off by the end of the last run is taken off."""
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines(keepends=True)
        if not lines or lines[0] != results.HEADER:
            raise _error(f"--resume: {self.path} does not start with the header of such a table")
        if whole != text:
            with results.replacing(self.path, overwrite=True) as temporary:
                temporary.write_text(whole, encoding="utf-8")
        try:
            return [int(line.split("\t")[0]) for line in lines[1:]]
        except ValueError as error:
            raise _error(f"--resume: {self.path} has a row without an index: {error}") from error


def _error(message: str) -> argparse.ArgumentError:
    return argparse.ArgumentError(None, message)
