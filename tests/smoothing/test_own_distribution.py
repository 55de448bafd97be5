"""robustcore.get_include(): the kernel of CUPY.md, compiled by every compiler that is at hand."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import numpy
import pytest
import torch

import robustcore

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "robustcore" / "smoothing" / "CUPY.md"
SOURCE = re.search(r'SOURCE = r"""\n(.*?)"""', GUIDE.read_text(), re.DOTALL)[1]
INCLUDE = Path(robustcore.get_include())
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
IMAGES, SAMPLES, ELEMENTS = 2, 50, 30

PROGRAM = """
#include "cuda_shim.h"
#include "own.cu"
#include <cstdio>
int main() {{
  static float x[{images} * {elements}], out[{images} * {samples} * {elements}];
  if (std::fread(x, sizeof(x), 1, stdin) != 1) return 1;
  cuda_shim::launch(
      3, 64, [&] {{ contaminated(x, out, {images}, {samples}, {elements}, 0.25f, 7); }});
  return std::fwrite(out, sizeof(out), 1, stdout) == 1 ? 0 : 1;
}}
"""


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, **options)


def test_headers_know_no_torch():
    headers = [*INCLUDE.rglob("*.h")]
    assert {"stream.h", "philox.h", "math.h"} <= {path.name for path in headers}
    assert not [path for path in headers if "torch/" in path.read_text()]


@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
def test_bits_are_those_of_the_op(tmp_path):
    sizes = {"images": IMAGES, "samples": SAMPLES, "elements": ELEMENTS}
    (tmp_path / "own.cu").write_text(SOURCE)
    (tmp_path / "main.cpp").write_text(PROGRAM.format(**sizes))
    folders = [f"-I{folder}" for folder in (INCLUDE, tmp_path, ROOT / "tests" / "shim")]
    options = ("-std=c++20", "-O1", "-ffp-contract=off", "-pthread", *folders)
    run(COMPILER, *options, tmp_path / "main.cpp", "-o", tmp_path / "program")
    x = torch.rand(IMAGES, ELEMENTS)
    result = run(tmp_path / "program", input=x.numpy().tobytes(), capture_output=True)
    out = torch.from_numpy(numpy.frombuffer(result.stdout, dtype=numpy.float32).copy())
    out = out.view(IMAGES, SAMPLES, ELEMENTS)
    tame, wild = (robustcore.ops.gaussian_noise(x, SAMPLES, s, seed=7) for s in (0.25, 0.75))
    assert ((out == tame) | (out == wild)).all()
    assert 0.08 < (out != tame).float().mean() < 0.12


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_nvcc_compiles_it(tmp_path):
    (tmp_path / "own.cu").write_text(SOURCE)
    run("nvcc", "-std=c++20", "-fmad=false", "-arch=sm_90", "-Werror=all-warnings", "-I", INCLUDE,
        "-cubin", tmp_path / "own.cu", "-o", tmp_path / "own.cubin")  # fmt: skip


def nvrtc():
    """NVRTC of PyPI's nvidia-cuda-nvrtc, or a toolkit's; None where there is none."""
    found = [p for path in sys.path for p in Path(path).glob("nvidia/*/lib/libnvrtc.so.*")]
    for builtins in (p for lib in found for p in lib.parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))  # which it looks for in the loader's folders alone
    for name in (*found, "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return ctypes.CDLL(str(name))
        except OSError:
            continue
    return None


@pytest.mark.skipif(nvrtc() is None, reason="needs nvidia-cuda-nvrtc")
def test_nvrtc_compiles_it():
    library, program = nvrtc(), ctypes.c_void_p()
    options = [f"-I{INCLUDE}", f"-I{INCLUDE}/nvrtc", "-std=c++20", "-fmad=false", "-arch=sm_90"]
    created = library.nvrtcCreateProgram(
        ctypes.byref(program), SOURCE.encode(), b"own.cu", 0, None, None
    )
    assert created == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), given)
    log = ctypes.create_string_buffer(1 << 16)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()


def test_a_base_classifier_of_another_library(monkeypatch, capsys):
    """CUPY.md's, with NumPy for CuPy and the CPU for the GPU."""
    shared = []

    def asarray(tensor):
        shared.append(tensor.numpy().ctypes.data == tensor.data_ptr())
        return tensor.numpy()

    cupy = types.ModuleType("cupy")
    cupy.asarray, cupy.float32 = asarray, numpy.float32
    draw = numpy.random.default_rng(0).standard_normal
    cupy.random = types.SimpleNamespace(standard_normal=draw)
    cupy.cuda = types.SimpleNamespace(ExternalStream=lambda pointer: nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    stream = types.SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    block = r"classifier in CuPy\n.*?```python\n(.*?)^```$"
    block = re.search(block, GUIDE.read_text(), re.DOTALL | re.MULTILINE)[1]
    exec(block.replace('"cuda"', '"cpu"'), {})
    assert "tensor([" in capsys.readouterr().out
    assert len(shared) > 2
    assert all(shared)
