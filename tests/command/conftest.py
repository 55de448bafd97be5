"""Fixtures of the tests of commands."""

import sys

import pytest

from command.user import USER_MODULE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory: a user's module `mine` in it, sys.path and modules restored after."""
    (tmp_path / "mine.py").write_text(USER_MODULE)
    (tmp_path / "broken_module.py").write_text("def :")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("mine", None)
