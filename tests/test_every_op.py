"""Every public op, on a GPU and in all that a model may hand it, beside itself on the CPU.

The calls are those of tests/bad_input/examples.py, which no op can be missing from. Each body runs
on the CPU too, where a capture is a tape of the ops called, and where it has to hold as well.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._pytree import tree_map

from op_calls import (
    CALLS,
    IN_PLACE,
    NEAR,
    arguments,
    is_float,
    op_of,
    run,
    tensors,
    with_derivatives,
)
from robustcore.common import cuda_graph
from smoothing.fake_cuda import FakeCuda
from testing import TOLERANCE, assert_same, relayouts

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float16, torch.bfloat16]
# Steps and projections of a search, counts, masks, and numbers of the host.
WITHOUT_DERIVATIVE = {
    "add_pixel_votes", "apgd_step", "attack_loss", "attack_step", "attack_watch",
    "conv_norm_bound", "count_votes", "exp_series", "hyperplane_projection", "lattice_noise",
    "mask_pool", "project", "random_start",
    "splitting_levels", "splitting_noise", "square_propose", "square_start",
}  # fmt: skip
# Of the host, in what they take or in what they give.
NUMBERS = {"conv_norm_bound", "exp_series", "splitting_levels"}
# What an op writes to has to be as it asks for.
WRITTEN = {"out", "counts"}
# Gradients of one number a channel are torch's sums, in the order of the memory.
SUMMED = {"gaussian_noise"}


def assert_agrees(call, got, want, near=False):
    assert len(got) == len(want)
    near = near or op_of(call) in NEAR
    for a, b in zip(got, want, strict=True):
        if not near or not is_float(b):
            assert_same(a.cpu(), b.cpu())
            continue
        assert a.dtype == b.dtype
        tolerance = 20 * TOLERANCE[b.dtype]
        size = max(1.0, float(b.double().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(
            a.double().cpu(), b.double().cpu(), rtol=tolerance, atol=tolerance * size
        )


@pytest.mark.parametrize("call", CALLS)
def test_bits(call, device):
    assert_agrees(call, run(call, arguments(call, device)), run(call, arguments(call, CPU)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_in_other_precisions(call, dtype, device):
    def results(device):
        # What is kept of a search stays in float32 at least.
        kept = 2 if op_of(call) in ("apgd_step", "attack_watch") and dtype.itemsize == 2 else 0
        given = arguments(
            call, device, lambda t: t.to(dtype) if is_float(t) and t.dim() >= kept else t
        )
        if isinstance(given.get("dtype"), torch.dtype):
            given["dtype"] = dtype
        return run(call, given), with_derivatives(call, given, 1)

    for got, want in zip(results(device), results(CPU), strict=True):
        assert_agrees(call, got, want)


@pytest.mark.parametrize("orders", [1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_derivatives(call, orders, device):
    got = with_derivatives(call, arguments(call, device), orders)
    assert bool(got) == (op_of(call) not in WITHOUT_DERIVATIVE)
    assert_agrees(call, got, with_derivatives(call, arguments(call, CPU), orders))


LAYOUTS = ["channels last", "slice of a larger tensor", "every other element", "transposed"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", [call for call in CALLS if op_of(call) not in IN_PLACE])
def test_layouts(call, layout, device):
    """How an argument lies in memory changes no bit of the results."""

    def relayout(v):
        return relayouts(v).get(layout, v) if is_float(v) and v.dim() else v

    def given():
        plain = arguments(call, device)
        return {n: v if n in WRITTEN else tree_map(relayout, v) for n, v in plain.items()}

    assert_agrees(call, run(call, given()), run(call, arguments(call, CPU)))
    got, want = (with_derivatives(call, g, 1) for g in (given(), arguments(call, CPU)))
    assert_agrees(call, got, want, near=op_of(call) in SUMMED)


def captured_arguments(call, device, change=lambda t: t):
    given = arguments(call, device, change)
    return given | {"check": False} if op_of(call) == "conv_exp" else given  # reads the kernel


@pytest.mark.parametrize("call", [call for call in CALLS if op_of(call) not in NUMBERS])
def test_captured(call, device, monkeypatch):
    """As a step that is captured and replayed: no wait, no memory but torch's, the current stream.

    The derivative is captured with the op.
    """
    if device.type == "cpu":
        monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", FakeCuda())
    held, results = captured_arguments(call, device, torch.zeros_like), []

    def step():
        results[:] = run(call, held), with_derivatives(call, held, 1)

    captured = cuda_graph.CapturedStep(step, device)
    for _ in range(cuda_graph.WARM_UP):
        captured.run()
    fresh = captured_arguments(call, device)
    for to, value in zip(tensors(held), tensors(fresh), strict=True):
        to.copy_(value)
    captured.run()
    given = captured_arguments(call, CPU)
    want = run(call, given), with_derivatives(call, given, 1)
    for a, b in zip(results, want, strict=True):
        assert_agrees(call, a, b)


@pytest.mark.parametrize("call", CALLS)
def test_on_the_current_stream(call, device):
    """Arguments that another stream's work is still filling: the op waits in line behind it."""
    want = run(call, arguments(call, CPU))
    fresh, late = arguments(call, device), arguments(call, device, torch.zeros_like)
    side = torch.cuda.Stream() if device.type == "cuda" else None
    if side is not None:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side) if side is not None else nullcontext():
        if side is not None:
            torch.cuda._sleep(20_000_000)  # ten milliseconds
        for to, value in zip(tensors(late), tensors(fresh), strict=True):
            to.copy_(value)
        got = run(call, late)
        if side is not None:
            side.synchronize()
    assert_agrees(call, got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("call", CALLS)
def test_on_a_device_that_is_not_the_current_one(call):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU on this machine")
    got = run(call, arguments(call, torch.device("cuda", 1)))
    assert all(t.device.index == 1 for t in got if t.is_cuda)
    assert_agrees(call, got, run(call, arguments(call, CPU)))
