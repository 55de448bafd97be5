"""The CUDA kernels, executed on CPU threads from their own source and compared to the bit."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = sorted({path.parent.name for path in (ROOT / "csrc").glob("*/*.cu")})
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def test_every_family_is_here():
    assert len(FAMILIES) >= 3


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_match_the_cpu(family, sanitizer, tmp_path):
    program = tmp_path / "cuda_on_cpu"
    sources = ROOT / "csrc" / family
    build = [
        COMPILER, "-std=c++20", "-O1", "-g1", f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all", "-ffp-contract=off", "-DRC_CUDA_SHIM",
        "-I", ROOT / "csrc", "-I", ROOT / "tests" / "shim",
        "-x", "c++", *sorted(sources.glob("*.cu")), *sorted(sources.glob("*_simd.cpp")),
        ROOT / "tests" / family / "cuda_on_cpu.cpp", "-o", program, "-pthread",
    ]  # fmt: skip
    subprocess.run(list(map(str, build)), check=True)
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    run = subprocess.run([program], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert run.stdout.endswith("0 cases differ\n")
    assert run.stdout.count("same ") > 50
