"""``robustcore doctor``: what is installed, what this machine has, what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

from robustcore import ops
from robustcore._build import build_info

# Module, what it is for, how to get it.
OPTIONAL = (
    ("matplotlib", "pictures", "pip install 'robustcore[demo]'"),
    ("scikit-learn", "the demo's data", "pip install 'robustcore[demo]'"),
    ("pytest-benchmark", "robustcore bench", "pip install 'robustcore[bench]'"),
    ("cupy-cuda13x", "CuPy arrays", "pip install 'robustcore[cupy]'"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> None:
    """Prints what was found, and what to do about what is missing."""
    for line in (*_build_lines(), *_device_lines(), *_package_lines()):
        print(line)


def _build_lines() -> Iterator[str]:
    info = build_info()
    kernels = "for " + " ".join(info["cuda_archs"]) if info["cuda"] else "none"
    yield f"robustcore    {info['version']}, built by {info['compiler']}"
    yield f"              CUDA kernels: {kernels}; torch >= {info['torch_target']}"
    yield f"torch         {torch.__version__}, Python {platform.python_version()}"


def _device_lines() -> Iterator[str]:
    info = build_info()
    yield (
        f"CPU           {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {info['simd']} kernels"
    )
    if info["simd"] == "baseline":
        yield "              ! neither AVX2 nor AVX-512: the same results, several times slower"
    if not torch.backends.cuda.is_built():
        yield "GPU           not usable: this torch is built without CUDA"
        yield "              ! for a GPU install a CUDA build of torch, then robustcore again"
        return
    if not torch.cuda.is_available():
        yield f"GPU           none found by torch (CUDA {torch.version.cuda})"
        yield "              ! if there is one, its driver may be too old: see nvidia-smi"
        if not info["cuda"]:
            yield from _reinstall("robustcore was built without CUDA kernels", "ROBUSTCORE_CUDA=on")
        return
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        yield f"GPU {i}         {torch.cuda.get_device_name(i)}, compute capability {major}.{minor}"
        code = _code_for(info["cuda_archs"], 10 * major + minor)
        if code is not None:
            yield f"              {code} runs here; {_trial(i)}"
            continue
        lack = "no kernel for it" if info["cuda"] else "robustcore was built without CUDA kernels"
        yield from _reinstall(lack, f"ROBUSTCORE_CUDA=on ROBUSTCORE_CUDA_ARCHS={major}{minor}")


def _trial(gpu: int) -> str:
    """What came of a small kernel."""
    x = torch.linspace(0, 1, 37).view(1, 37)
    want = ops.gaussian_noise(x, 3, 0.5, seed=1)
    try:
        got = ops.gaussian_noise(x.to(torch.device("cuda", gpu)), 3, 0.5, seed=1).cpu()
    except (RuntimeError, AssertionError) as error:  # the other of a torch without CUDA
        return f"! a kernel failed: {str(error).splitlines()[0]}"
    same = torch.equal(got, want)
    return "a kernel ran, with the CPU's bits" if same else "! a kernel's bits are not the CPU's"


def _reinstall(lack: str, settings: str) -> Iterator[str]:
    yield f"              ! {lack}; in a clone of it:"
    yield f"                {settings} pip install --force-reinstall --no-deps ."


def _code_for(archs: list[str], capability: int) -> str | None:
    """What of a build a GPU runs: machine code of its major version, else PTX not above it."""

    def number(arch: str) -> int:
        return int(arch.split("+")[0].rstrip("af"))

    below = sorted((a for a in archs if number(a) <= capability), key=number, reverse=True)
    for arch in below:
        if number(arch) // 10 == capability // 10:
            return f"code for {number(arch) / 10}"
    for arch in below:
        if arch.endswith("PTX"):
            return f"PTX for {number(arch) / 10}, which the driver compiles at the first call,"
    return None


def _package_lines() -> Iterator[str]:
    for name, purpose, command in OPTIONAL:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is not None:
            yield f"{name:<18}{found}"
        elif not name.startswith("cupy") or torch.cuda.is_available():
            yield f"{name:<18}! missing, for {purpose}: {command}"
