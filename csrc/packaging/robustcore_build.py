"""The PEP 517 backend: scikit-build-core, plus build requirements that depend on the machine.

pip builds in an isolated environment, and a fixed requirement on torch would download a second one
into it, gigabytes with CUDA, when the environment that the wheel is for has its own. So torch is
asked for only when that has none, and nvcc only when the machine has none; CMake then finds both
(see robustcore_toolchain.py).
"""

from __future__ import annotations

from typing import Any

from scikit_build_core import build as backend
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import robustcore_toolchain as toolchain

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def machine_requirements() -> list[str]:
    try:
        return toolchain.build_requirements()
    except toolchain.BuildError as error:
        # Front ends print the message of a SystemExit, but a whole traceback of anything else.
        raise SystemExit(f"robustcore: {error}") from None


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*backend.get_requires_for_build_wheel(config_settings), *machine_requirements()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*backend.get_requires_for_build_editable(config_settings), *machine_requirements()]
