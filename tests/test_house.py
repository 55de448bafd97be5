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


PYTHON = files("robustcore/**/*.py", "tests/**/*.py", "bench/**/*.py", "csrc/packaging/*.py")
CPP = files("csrc/**/*.cpp", "csrc/**/*.h", "csrc/**/*.cu", "tests/**/*.cpp", "tests/**/*.h")
# In C++ as clang-format lays it out, what else begins a block at the depth of functions.
NO_FUNCTION = re.compile(
    r"(inline )?(namespace|struct|class|enum|union|template|if|for|while|switch|do)\b|[#/}]"
)


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


def cpp_functions(text):
    """First line and lines of each function, free or of a class."""
    for indent in ("", "  "):
        first = None
        for n, line in enumerate(text.splitlines()):
            body = line.removeprefix(indent)
            if first is None:
                begins = line.startswith(indent) and body[:1].strip() and "(" in line
                if begins and line.endswith("{") and not NO_FUNCTION.match(body):
                    first = n, body
            elif re.fullmatch(indent + r"\}[;)]*", line):
                yield first[1], n - first[0] + 1
                first = None


def test_files_are_short():
    lengths = {name(path): len(path.read_text().splitlines()) for path in (*PYTHON, *CPP)}
    assert {path: n for path, n in lengths.items() if n > LINES_OF_A_FILE} == {}


def test_functions_are_short():
    long = {
        f"{name(path)}: {function}": lines
        for path in PYTHON
        for function, lines in functions(ast.parse(path.read_text()))
        if lines > LINES_OF_A_FUNCTION
    }
    long |= {
        f"{name(path)}: {function}": lines
        for path in CPP
        for function, lines in cpp_functions(path.read_text())
        if lines > LINES_OF_A_FUNCTION
    }
    assert long == {}


def test_the_measure_of_a_cpp_function():
    text = "struct A {\n  int f(int x) {\n    return x;\n  }\n};\nint g() {\n  return 1;\n}\n"
    assert dict(cpp_functions(text)) == {"int f(int x) {": 3, "int g() {": 3}


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
