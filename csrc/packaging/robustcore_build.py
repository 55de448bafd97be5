"""The PEP 517 backend: scikit-build-core, plus build requirements that depend on the machine.

pip builds in an isolated environment, and a fixed requirement on torch would download a second one
into it, gigabytes with CUDA, when the environment that the wheel is for has its own. So torch is
asked for only when that has none, and nvcc only when kernels are wanted and the machine has none;
CMake then finds both (see robustcore_toolchain.py). What a build cannot do without is checked first
(see robustcore_preflight.py).
"""

from __future__ import annotations

from typing import Any

from scikit_build_core import build as backend
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import robustcore_toolchain as toolchain
from robustcore_preflight import machine_checked

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

Settings = dict[str, Any] | None

# The machine is checked before the requirements are downloaded, and again for a build without
# isolation.


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    with machine_checked(config_settings):
        own = toolchain.build_requirements()
        return [*backend.get_requires_for_build_wheel(config_settings), *own]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    with machine_checked(config_settings):
        own = toolchain.build_requirements()
        return [*backend.get_requires_for_build_editable(config_settings), *own]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    with machine_checked(config_settings):
        return backend.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    with machine_checked(config_settings):
        return backend.build_editable(wheel_directory, config_settings, metadata_directory)
