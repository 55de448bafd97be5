"""What is checked of a machine before a build: each lack is one line that says what to do."""

import errno
from pathlib import Path
from unittest.mock import Mock

import pytest

import robustcore_preflight as preflight
from robustcore_preflight import machine_checked
from robustcore_toolchain import BuildError


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine that can build, of which each test takes something away; returns its PATH."""
    path, include = tmp_path / "bin", tmp_path / "include"
    path.mkdir()
    include.mkdir()
    program(path / "g++", "cat > /dev/null")
    (include / "Python.h").touch()
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sysconfig.get_path", {"include": str(include)}.get)
    monkeypatch.setattr(preflight, "free_mb", lambda folder: 9999)
    monkeypatch.setenv("PATH", f"{path}:/bin")
    monkeypatch.setattr(preflight, "COMPILERS", ("rc-no-such-compiler", "g++"))
    for name in ("CXX", "CMAKE_ARGS"):
        monkeypatch.delenv(name, raising=False)
    return path


def refusal():
    with pytest.raises(SystemExit) as error, machine_checked(None):
        pytest.fail("the build started")
    message = str(error.value)
    assert message.startswith("robustcore: ")
    assert "\n" not in message
    return message


def test_nothing_is_missing(capfd):
    with machine_checked(None):
        pass
    assert capfd.readouterr() == ("", "")


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(preflight, "COMPILERS", ("rc-no-such-compiler",))
    assert "no C++ compiler found: install one (apt install g++, dnf" in refusal()


def test_cxx_may_have_a_launcher_and_flags(machine, monkeypatch):
    program(machine / "launcher", 'exec "$@"')
    monkeypatch.setenv("CXX", "launcher g++ -m64")
    preflight.check_machine()


def test_cxx_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "g++-99 -m64")
    assert "CXX is 'g++-99 -m64', which is not a program that can be run" in refusal()


def test_compiler_is_too_old(machine):
    program(machine / "g++", "echo 'error: unrecognized option -std=c++20' >&2; exit 1")
    message = "g++ cannot compile C++20 (error: unrecognized option -std=c++20): install one"
    assert message in refusal()


def test_cmake_is_told_of_a_compiler(machine, monkeypatch):
    program(machine / "g++", "exit 1")
    preflight.check_machine({"cmake.define.CMAKE_CXX_COMPILER": "elsewhere"})
    monkeypatch.setenv("CMAKE_ARGS", "-DCMAKE_CXX_COMPILER=elsewhere")
    preflight.check_machine()


def test_no_python_headers(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", {"include": str(tmp_path)}.get)
    assert f"(no {tmp_path}/Python.h): install them (apt install python3-dev" in refusal()


def test_another_system(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert refusal() == "robustcore: builds on Linux only, not on darwin"


def test_full_disk(monkeypatch):
    monkeypatch.setattr(preflight, "free_mb", lambda folder: 12)
    assert f"the disk is full: 12 MB are free in {Path.cwd()}" in refusal()


@pytest.mark.parametrize(
    ("failure", "left"),
    [(OSError(errno.ENOSPC, "No space left on device"), 9999), (SystemExit(1), 3)],
)
def test_disk_runs_full(monkeypatch, failure, left):
    # The space in both folders before the build, and after.
    monkeypatch.setattr(preflight, "free_mb", Mock(side_effect=[9999, 9999, 9999, left]))
    message = f"^robustcore: the build failed on a full disk: {left} MB are left$"
    with pytest.raises(SystemExit, match=message), machine_checked(None):
        raise failure


def test_what_the_build_refuses_is_one_line_too():
    with pytest.raises(SystemExit, match=r"^robustcore: found torch 2\.9$"), machine_checked(None):
        raise BuildError("found torch 2.9")


def test_other_failures_keep_their_own_words():
    with pytest.raises(SystemExit, match=r"^7$"), machine_checked(None):
        raise SystemExit(7)


def test_space_is_that_of_the_disk(monkeypatch, tmp_path):
    monkeypatch.undo()
    assert preflight.free_mb(tmp_path) > 0
