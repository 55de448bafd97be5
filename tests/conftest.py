"""Fixtures and markers every test file shares."""

import os

import pytest
import torch

from robustcore import _C, build_info

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no GPU on this machine")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return torch.device(request.param)


@pytest.fixture
def simd():
    """Switches the CPU kernels to another instruction set for the length of a test."""
    loaded = build_info()["simd"]
    yield _C.select_simd
    _C.select_simd(loaded)


@pytest.fixture(params=["avx2", "avx512"])
def vectors(request, simd):
    """Runs a test with each instruction set that has vectors, for kernels without a baseline."""
    try:
        simd(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param
