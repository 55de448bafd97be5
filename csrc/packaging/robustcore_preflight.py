"""What a build needs of the machine, checked before it starts: each lack is one clear line.

Standard library only: the first check runs before pip has installed a build requirement.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robustcore_toolchain import BuildError

COMPILERS = ("c++", "g++", "clang++")  # CMake takes the first of them too
COMPILER_ADVICE = (
    "install one (apt install g++, dnf install gcc-c++) or say where one is with the variable CXX"
)
HEADERS_ADVICE = (
    "install them (apt install python3-dev, dnf install python3-devel) or use another Python"
)
SPACE_MB = 256  # a build with all GPU architectures takes about 150


def check_machine(config_settings: Mapping[str, Any] | None = None) -> None:
    """Raises BuildError if this machine cannot build robustcore."""
    if sys.platform != "linux":
        raise BuildError(f"builds on Linux only, not on {sys.platform}")
    # Someone who tells CMake itself about the compiler knows better.
    if "CMAKE_CXX_COMPILER" not in f"{os.environ.get('CMAKE_ARGS')} {config_settings}":
        check_compiler(os.environ)
    check_headers(Path(sysconfig.get_path("include")))
    for folder in work_folders():
        if (free := free_mb(folder)) < SPACE_MB:
            raise BuildError(
                f"the disk is full: {free} MB are free in {folder}, a build takes {SPACE_MB}"
            )


def check_compiler(environ: Mapping[str, str]) -> None:
    path = environ.get("PATH", os.defpath)
    if chosen := environ.get("CXX"):
        command = shlex.split(chosen)  # it may come with flags, or behind ccache
        if shutil.which(command[0], path=path) is None:
            raise BuildError(f"CXX is {chosen!r}, which is not a program that can be run")
    else:
        found = [name for name in COMPILERS if shutil.which(name, path=path)]
        if not found:
            raise BuildError(f"no C++ compiler found: {COMPILER_ADVICE}")
        command = found[:1]
    test = subprocess.run(
        [*command, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"],
        input="#include <concepts>\n",
        capture_output=True,
        text=True,
        check=False,
        env=dict(environ),
    )
    if test.returncode != 0:
        reason = (test.stderr.strip().splitlines() or ["it does not say why"])[0]
        name = shlex.join(command)
        raise BuildError(f"{name} cannot compile C++20 ({reason}): {COMPILER_ADVICE}")


def check_headers(include: Path) -> None:
    if not (include / "Python.h").is_file():
        raise BuildError(f"Python's headers are missing (no {include}/Python.h): {HEADERS_ADVICE}")


def work_folders() -> tuple[Path, Path]:
    """Where objects and the wheel go, and where the compilers put what they need meanwhile."""
    return Path.cwd(), Path(tempfile.gettempdir())


def free_mb(folder: Path) -> int:
    return shutil.disk_usage(folder).free // 2**20


@contextlib.contextmanager
def machine_checked(config_settings: Mapping[str, Any] | None) -> Iterator[None]:
    """Checks the machine, then ends whatever it cannot do with one line."""
    try:
        check_machine(config_settings)
        with full_disk_explained():
            yield
    except BuildError as error:
        # Front ends print the message of a SystemExit, but a whole traceback of anything else.
        raise SystemExit(f"robustcore: {error}") from None


@contextlib.contextmanager
def full_disk_explained() -> Iterator[None]:
    """Gives the reason of a failure that is a disk that ran full meanwhile.

    The compiler's own message is somewhere in the middle of a long output, or gone.
    """
    try:
        yield
    except (OSError, SystemExit) as error:
        left = min(map(free_mb, work_folders()))
        if getattr(error, "errno", None) == errno.ENOSPC or left < SPACE_MB // 4:
            raise BuildError(f"the build failed on a full disk: {left} MB are left") from error
        raise
