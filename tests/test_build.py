"""What an installation says of itself."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import robustcore
from robustcore import _C


def test_build_info():
    info = robustcore.build_info()
    assert set(info) == {"version", "torch_target", "cuda", "cuda_archs", "simd", "compiler"}
    assert info["version"] == robustcore.__version__ == metadata.version("robustcore")
    assert info["torch_target"] == "2.10"
    assert isinstance(info["cuda"], bool)
    assert all(re.fullmatch(r"\d+(\+PTX)?", arch) for arch in info["cuda_archs"])
    assert bool(info["cuda_archs"]) == info["cuda"]
    assert info["simd"] in ("baseline", "avx2", "avx512")
    assert re.match(r"(gcc|clang) \d+", info["compiler"])


def test_unknown_simd():
    with pytest.raises(ValueError, match="'mmx', want baseline, avx2 or avx512"):
        _C.select_simd("mmx")


def import_under(simd, tmp_path):
    code = """
from robustcore import _C, build_info
print(build_info()["simd"])
for name in ("baseline", "avx2", "avx512"):
    try:
        _C.select_simd(name)
    except ValueError as error:
        print(error)
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "ROBUSTCORE_SIMD": simd},
    )


def test_simd_of_the_environment_hides_what_is_wider(tmp_path):
    run = import_under("baseline", tmp_path)
    first, *refusals = run.stdout.splitlines()
    assert first == "baseline"
    assert len(refusals) == 2
    for name, refusal in zip(("avx2", "avx512"), refusals, strict=True):
        assert f"'{name}'" in refusal


def test_unknown_simd_in_the_environment(tmp_path):
    run = import_under("sse9", tmp_path)
    message = "ImportError: ROBUSTCORE_SIMD: got 'sse9', want baseline, avx2 or avx512\n"
    assert run.stderr.endswith(message)


def test_source_folder_without_the_compiled_part(tmp_path):
    source = Path(__file__).parents[1] / "robustcore" / "__init__.py"
    (tmp_path / "robustcore").mkdir()
    shutil.copy(source, tmp_path / "robustcore")
    run = subprocess.run(
        [sys.executable, "-S", "-c", "import robustcore"],  # as if nothing were installed
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    *_, message = run.stderr.splitlines()
    assert message.startswith(f"ImportError: {tmp_path / 'robustcore'} is robustcore's source")
    assert "`pip install -e .`" in message


def test_every_family_is_in_the_package():
    for name in ("attacks", "density", "lipschitz", "masking", "smoothing", "ops"):
        assert name in robustcore.__all__
        assert hasattr(robustcore, name)
        assert name in dir(robustcore)


def test_import_does_not_touch_the_gpu(tmp_path):
    code = "import robustcore, torch; print(torch.cuda.is_initialized())"
    # From a folder without a source tree, so that the installed package is imported.
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.strip() == "False"


@pytest.mark.skipif(robustcore.build_info()["cuda"], reason="this build has CUDA kernels")
@pytest.mark.cuda
def test_cuda_tensor_without_cuda_kernels():
    with pytest.raises(RuntimeError, match="no CUDA kernels"):
        robustcore.ops.count_votes(torch.zeros(1, 1, 2, device="cuda"))
