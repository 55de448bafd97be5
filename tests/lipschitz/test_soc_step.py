"""A SOC's training step as a GPU runs it: how much it launches, and captured whole."""

import copy

import pytest
import torch

from launches import Launches
from robustcore.common import cuda_graph
from robustcore.lipschitz import SOC
from robustcore.ops.autograd import is_channels_last
from robustcore.ops.lipschitz import recurrence
from smoothing.fake_cuda import FakeCuda
from testing import TOLERANCE

LAST = torch.channels_last


@pytest.fixture
def gpu_path(monkeypatch):
    """The choices of a GPU: torch's convolutions, in the layout that the images have."""
    monkeypatch.setattr(recurrence, "_choose_tile", lambda x, filter, series: 0)
    monkeypatch.setattr(
        recurrence, "_memory_format",
        lambda x: LAST if is_channels_last(x) else torch.contiguous_format,
    )  # fmt: skip


def made(layout=torch.contiguous_format, **options):
    """A layer that has looked at its radius, images, and the gradient of its output."""
    torch.manual_seed(0)
    layer = SOC(8, 8, **options)
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=layout).requires_grad_()
    layer(x)
    return layer, x, torch.randn_like(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize(
    ("options", "autocast", "most"),
    [({}, False, 28), ({}, True, 32), ({"recompute": True}, False, 35)],
)
def test_launches_of_a_step(options, autocast, most, layout, gpu_path):
    """Forward and backward to weight, bias and images; ten of them are convolutions."""
    layer, x, upstream = made(layout, **options)
    if autocast:
        upstream = upstream.bfloat16()
    with Launches() as launches:
        with torch.autocast("cpu", enabled=autocast):
            y = layer(x)
        y.backward(upstream)
    convolutions = launches.by_op["convolution"] + launches.by_op["convolution_backward"]
    assert convolutions == (13 if options else 10)
    assert launches.total <= most, launches.by_op
    assert x.grad.stride() == x.stride()


def test_launches_of_a_step_of_second_order(gpu_path):
    """Through operations of torch."""
    layer, x, upstream = made()
    with Launches() as launches:
        (grad,) = torch.autograd.grad(layer(x), x, upstream, create_graph=True)
        grad.square().sum().backward()
    assert layer.weight.grad.norm() > 0
    assert launches.total <= 165, launches.by_op


def test_a_captured_step_trains_as_an_eager_one(device, monkeypatch):
    """No wait, no memory but torch's: weights after replays are those after steps."""
    if device.type == "cpu":
        monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", FakeCuda())
    torch.manual_seed(0)
    layer = SOC(24, 24, 3).to(device)
    x, upstream = torch.randn(2, 24, 8, 8).to(device), torch.randn(2, 24, 8, 8).to(device)
    twin = copy.deepcopy(layer)

    def step_of(module):
        def step():
            module.zero_grad(set_to_none=True)
            module(x).backward(upstream)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.sub_(parameter.grad, alpha=1e-3)

        return step

    captured = cuda_graph.CapturedStep(step_of(layer), device)
    eager = step_of(twin)
    for _ in range(cuda_graph.WARM_UP + 3):
        captured.run()
        eager()
    assert captured._graph is not None
    for got, want in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        tolerance = 10 * TOLERANCE[torch.float32]
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
