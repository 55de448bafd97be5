"""Where a build finds torch and nvcc, and which GPU architectures it compiles for.

The rules live here once and have two readers: the PEP 517 backend beside this file imports them,
and CMakeLists.txt runs `python robustcore_toolchain.py`, so a plain `cmake` finds the same things.
Standard library only, and torch is never imported: that costs seconds and proves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TORCH_MINIMUM = (2, 10)  # the stable ABI that the extension targets; also in CMakeLists.txt
TORCH_REQUIREMENT = "torch>=2.10"

# A whole CUDA compiler out of PyPI; the wheels unpack into one tree, site-packages/nvidia/cu13.
NVCC_REQUIREMENTS = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
]
NVCC_WHEEL_PATH = Path("nvidia", "cu13", "bin", "nvcc")
NVCC_DEFAULT = Path("/usr/local/cuda/bin/nvcc")
NVCC_ADVICE = "install a CUDA toolkit, or say where one is with CUDACXX or CUDA_HOME"

# GPUs of 8.6 and 8.9 run what is compiled for 8.0; 12.1, what is for 12.0. For those of 10.x and
# 11.x the driver compiles the PTX at the first call; code of their own is a seventh of the wheel.
DEFAULT_ARCHS = [75, 80, 90, 120]
PTX_ARCH = 90


class BuildError(Exception):
    """The build cannot go on; the message says what to change."""


def say(message: str) -> None:
    # Not stdout: CMake reads the answer there.
    print(f"robustcore: {message}", file=sys.stderr)


# ---- torch --------------------------------------------------------------------------------------


def target_sites() -> list[Path]:
    """The site-packages folders of the environment that the wheel is built for.

    pip's build isolation hides them from sys.path but runs the same interpreter, whose own idea of
    its folders does not change.
    """
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return [Path(p) for p in dict.fromkeys(paths)]


def find_torch(sites: Iterable[Path], environ: Mapping[str, str] = os.environ) -> Path | None:
    """$ROBUSTCORE_TORCH_DIR, else the first torch package in `sites`; one too old is an error."""
    if chosen := environ.get("ROBUSTCORE_TORCH_DIR"):
        if not Path(chosen, "version.py").is_file():
            raise BuildError(f"ROBUSTCORE_TORCH_DIR is {chosen!r}, which is no torch package")
        return check_torch(Path(chosen))
    for folder in sites:
        if (folder / "torch" / "version.py").is_file():
            return check_torch(folder / "torch")
    return None


def check_torch(torch: Path) -> Path:
    version_file = torch / "version.py"
    match = re.search(
        r"^__version__\b.*?['\"]((\d+)\.(\d+)[^'\"]*)['\"]", version_file.read_text(), re.M
    )
    if match is None:
        raise BuildError(f"cannot read torch's version from {version_file}")
    if (int(match[2]), int(match[3])) < TORCH_MINIMUM:
        raise BuildError(
            f"found torch {match[1]} in {torch.parent}, but robustcore needs {TORCH_REQUIREMENT}: "
            f"upgrade it with pip install '{TORCH_REQUIREMENT}'"
        )
    return torch


def has_cuda(torch: Path) -> bool:
    """Whether a torch package is a CUDA build."""
    return bool(re.search(r"^cuda\b.*=\s*['\"]", (torch / "version.py").read_text(), re.M))


# ---- nvcc ---------------------------------------------------------------------------------------


def cuda_wanted(value: str | None, torch: Path | None) -> bool:
    """Whether ROBUSTCORE_CUDA, "auto" by default, asks for the CUDA kernels.

    "auto" wants them where they can be of use: with a CUDA build of torch, or with a GPU. Without a
    torch, pip is about to install PyPI's, which is one.
    """
    if value in (None, "", "auto"):
        return torch is None or has_cuda(torch) or bool(visible_gpu_archs())
    if value in ("on", "off"):
        return value == "on"
    raise BuildError(f"ROBUSTCORE_CUDA must be 'auto', 'on' or 'off', got {value!r}")


def find_nvcc(
    environ: Mapping[str, str] = os.environ, search: Sequence[str] = sys.path
) -> Path | None:
    """$CUDACXX, $CUDA_HOME/bin, PATH, /usr/local/cuda/bin, then PyPI's nvcc in `search`."""
    path = environ.get("PATH", os.defpath)
    if chosen := environ.get("CUDACXX"):
        found = shutil.which(chosen, path=path)
        if found is None:
            raise BuildError(f"CUDACXX is {chosen!r}, which is not a program that can be run")
        return Path(found)
    candidates = []
    if home := environ.get("CUDA_HOME"):
        candidates.append(Path(home, "bin", "nvcc"))
    if on_path := shutil.which("nvcc", path=path):
        candidates.append(Path(on_path))
    candidates.append(NVCC_DEFAULT)
    candidates += [Path(folder, NVCC_WHEEL_PATH) for folder in search]
    return next((c for c in candidates if c.is_file() and os.access(c, os.X_OK)), None)


def nvcc_requirements() -> list[str]:
    """What to install from PyPI when there is no nvcc; nothing where PyPI has none."""
    supported = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    return list(NVCC_REQUIREMENTS) if supported else []


def run(*command: str | Path) -> str:
    try:
        # Both streams: nvcc prints a dry run to stderr, and its complaints explain a failure.
        return subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ).stdout
    except subprocess.CalledProcessError as error:
        line = " ".join(map(str, command))
        raise BuildError(f"`{line}` failed:\n{error.stdout}") from error


def toolkit_root(nvcc: Path) -> Path:
    """The toolkit as nvcc itself sees it: what is on PATH may be a link or a wrapper script."""
    match = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-c", "-x", "cu", "-"), re.M)
    if match is None:
        raise BuildError(f"{nvcc} does not say where its toolkit is")
    return Path(match[1].strip()).resolve()


def compression(nvcc: Path) -> str:
    """How to compress the GPU code: to a ninth, where every driver that can run it can read that.

    nvcc 12.8 has this mode too, but not all drivers for CUDA 12 know the format.
    """
    release = re.search(r"release (\d+)\.", run(nvcc, "--version"))
    newest = release is not None and int(release[1]) >= 13
    return "--compress-mode=size" if newest else "-Xfatbin=-compress-all"


# ---- architectures ------------------------------------------------------------------------------


def parse_archs(text: str, source: str = "ROBUSTCORE_CUDA_ARCHS") -> list[int]:
    """ "80 90", "80;90", "80,90" or "8.0 9.0" -> [80, 90], sorted and without repeats."""
    archs = set()
    for word in re.split(r"[\s;,]+", text.strip()):
        if not re.fullmatch(r"\d{1,2}\.\d|\d{2,3}", word):
            raise BuildError(
                f"{source} must be compute capabilities such as '80 90', got {word!r} in {text!r}"
            )
        archs.add(int(word.replace(".", "")))
    return sorted(archs)


def visible_gpu_archs() -> list[int]:
    """The compute capabilities of this machine's GPUs; empty without one."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        return parse_archs(answer, "nvidia-smi")
    except (OSError, subprocess.SubprocessError, BuildError):
        return []  # no driver, no device, or one that does not answer


def choose_archs(requested: str | None, visible: Sequence[int], known: Sequence[int]) -> list[int]:
    """The architectures to compile, all of them `known` to nvcc.

    What was asked for is built or refused; what was only found or assumed is fitted to the nvcc.
    """
    if requested:
        archs = parse_archs(requested)
        if unknown := set(archs) - set(known):
            raise BuildError(
                f"ROBUSTCORE_CUDA_ARCHS: this nvcc does not know {sorted(unknown)}, "
                f"only {sorted(known)}"
            )
        return archs
    # A GPU newer than the nvcc runs the PTX of the newest architecture below its own.
    if archs := sorted({max(k for k in known if k <= gpu) for gpu in visible if gpu >= min(known)}):
        return archs
    if visible:
        say(f"this nvcc compiles for none of this machine's GPUs ({visible}): too old for it")
    if dropped := [a for a in DEFAULT_ARCHS if a not in known]:
        say(f"leaving out the architectures {dropped}, which this nvcc does not know")
    return [a for a in DEFAULT_ARCHS if a in known]


def choose_ptx(archs: Sequence[int]) -> int:
    """Of which of these the PTX goes with them, for GPUs that none of their code runs on."""
    return max((a for a in archs if a <= PTX_ARCH), default=max(archs))


def known_archs(nvcc: Path) -> list[int]:
    return sorted({int(a) for a in re.findall(r"sm_(\d+)\b", run(nvcc, "--list-gpu-code"))})


# ---- for the backend ----------------------------------------------------------------------------


def build_requirements() -> list[str]:
    """What this machine lacks for a build: torch, nvcc, both or neither."""
    torch = find_torch(target_sites())
    missing = [] if torch else [TORCH_REQUIREMENT]
    if cuda_wanted(os.environ.get("ROBUSTCORE_CUDA"), torch) and find_nvcc() is None:
        missing += nvcc_requirements()
    return missing


# ---- for CMake ----------------------------------------------------------------------------------


def resolve(cuda: str | None, archs: str | None) -> dict[str, str]:
    """All that CMakeLists.txt needs to know; without CUDA, `nvcc` is empty."""
    torch = find_torch([*target_sites(), *map(Path, sys.path)])
    if torch is None:
        raise BuildError(f"no torch found: pip install '{TORCH_REQUIREMENT}' first")
    answer = dict.fromkeys(("torch", "nvcc", "toolkit", "archs", "ptx", "compression"), "")
    answer["torch"] = str(torch)
    if not cuda_wanted(cuda, torch):
        return answer
    nvcc = find_nvcc()
    if nvcc is None:
        if cuda == "on":
            raise BuildError(f"ROBUSTCORE_CUDA=on, but no nvcc found: {NVCC_ADVICE}")
        say(f"building without the CUDA kernels, since no nvcc was found: {NVCC_ADVICE}")
        return answer
    # A build that was asked for is not for this machine alone.
    chosen = choose_archs(archs, [] if cuda == "on" else visible_gpu_archs(), known_archs(nvcc))
    answer["nvcc"] = str(nvcc)
    answer["toolkit"] = str(toolkit_root(nvcc))
    answer["archs"] = " ".join(map(str, chosen))
    answer["ptx"] = str(choose_ptx(chosen))
    answer["compression"] = compression(nvcc)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", help="auto, on or off")
    parser.add_argument("--archs", help="compute capabilities, such as '80 90'")
    options = parser.parse_args()
    try:
        print(json.dumps(resolve(options.cuda, options.archs)))
    except BuildError as error:
        raise SystemExit(f"robustcore: {error}") from None


if __name__ == "__main__":
    main()
