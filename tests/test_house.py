"""The shape of the house: files and functions one can read, and a room of every kind a family."""

import ast
import re
from pathlib import Path

import pytest

import robustcore
from robustcore.command import bench, demo

CHECKOUT = Path(__file__).parents[1]
FAMILIES = sorted(
    path.name for path in (CHECKOUT / "robustcore" / "ops").iterdir() if path.is_dir()
)
FAMILIES = [name for name in FAMILIES if not name.startswith("_")]
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 400, 60


def files(*patterns):
    """The checkout's files, without what was built there."""
    return sorted(path for pattern in patterns for path in CHECKOUT.glob(pattern))


PYTHON = files("robustcore/**/*.py", "tests/**/*.py", "bench/**/*.py")


def name(path):
    return str(path.relative_to(CHECKOUT))


def functions(tree):
    """Name and lines of each function, without its docstring, which says what and not how."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, lines


def test_files_are_short():
    lengths = {name(path): len(path.read_text().splitlines()) for path in PYTHON}
    assert {path: n for path, n in lengths.items() if n > LINES_OF_A_FILE} == {}


def test_functions_are_short():
    long = {
        f"{name(path)}: {function}": lines
        for path in PYTHON
        for function, lines in functions(ast.parse(path.read_text()))
        if lines > LINES_OF_A_FUNCTION
    }
    assert long == {}


def test_no_private_name_is_imported():
    """What a file keeps to itself, with an underscore, no other one imports."""
    modules = {"_C", "_build"}
    private = [
        f"{name(path)}: from {node.module} import {alias.name}"
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("robustcore")
        for alias in node.names
        if re.match("_[^_]", alias.name) and alias.name not in modules
    ]
    assert private == []


def test_there_are_families():
    assert {"smoothing", "lipschitz", "masking", "density"} <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_a_room_of_every_kind(family):
    for room in ("csrc", "robustcore", "robustcore/ops", "tests", "bench"):
        assert any((CHECKOUT / room / family).iterdir()), f"{room}/{family}"
    assert (CHECKOUT / "robustcore" / family / "README.md").is_file()
    assert family in robustcore.__all__
    assert family in bench.FAMILIES
    assert family in demo.DEMOS
