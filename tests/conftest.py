"""Fixtures and markers every test file shares."""

import functools
import os
import sys

import pytest
import torch

from robustcore import _C, build_info

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

# cuDNN's default for float32; the references are float32 in earnest.
torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no GPU on this machine")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Dynamo compiles a function anew so many times only, and those of other tests would count."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return torch.device(request.param)


# Instruction sets of the CPU kernels. ROBUSTCORE_SIMD=avx2, say, hides what is wider, and the tests
# of that are skipped, as on a processor without it.
VECTORS = ["avx2", "avx512"]


@pytest.fixture
def widest(request):
    """The instruction set that was picked at load, back when the test ends."""
    if not request.node.get_closest_marker("kernel"):
        pytest.fail("tests of instruction sets are about compiled code: mark them `kernel`")
    loaded = build_info()["simd"]
    yield loaded
    _C.select_simd(loaded)


def select_or_skip(name):
    try:
        _C.select_simd(name)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["baseline", *VECTORS])
def simd(request, widest):
    """Each instruction set in turn: it runs from the call of this fixture to the test's end."""
    select_or_skip(request.param)
    _C.select_simd(widest)
    return functools.partial(_C.select_simd, request.param)


@pytest.fixture(params=VECTORS)
def vectors(request, widest):
    """Runs a test with each instruction set that has vectors, for kernels without a baseline."""
    select_or_skip(request.param)
    return request.param


@pytest.fixture
def with_each_vectors(widest):
    """Calls a function once with each instruction set that has vectors, and lists the results."""

    def call(fn):
        results = []
        for name in VECTORS:
            select_or_skip(name)
            results.append(fn())
        return results

    return call


def pytest_terminal_summary(terminalreporter):
    """How many calls with bad input were tried, by tests/test_bad_input.py."""
    tried = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for key, value in report.user_properties
        if key == "bad_input" and report.when == "call"
    ]
    if tried:
        arguments, calls = map(sum, zip(*tried, strict=True))
        terminalreporter.write_line(
            f"bad input: {len(tried)} callables, {arguments} arguments, {calls} calls tried"
        )
