"""How much a training step with a penalty launches on a GPU."""

import runpy
from pathlib import Path

import pytest
import torch

from launches import Launches
from robustcore.ops.density import batch_norm, conv3x3

BENCH = Path(__file__).parents[2] / "bench" / "density" / "bench_penalty.py"


@pytest.fixture
def gpu_path(monkeypatch):
    """The choices of a GPU: torch's convolutions, and its forward pass of batch normalisation."""
    monkeypatch.setattr(conv3x3, "_is_ours", lambda *arguments: False)
    monkeypatch.setattr(batch_norm, "_forward_is_ours", lambda x: False)
    monkeypatch.setattr(batch_norm, "_backward_is_ours", lambda x: True)


@pytest.mark.parametrize(("training", "most"), [(True, 440), (False, 380)])
def test_launches_of_a_penalty_step_of_a_resnet18(training, most, gpu_path):
    """Forward, penalty and backward; 20 convolutions, each with a batch normalisation."""
    bench = runpy.run_path(str(BENCH))
    torch.manual_seed(0)
    model = bench["resnet18"]().train(training)
    with Launches() as launches:
        bench["step"]("robustcore", model, torch.rand(4, 3, 32, 32), torch.arange(4))
    assert launches.total <= most, launches.by_op
    # Forward, and of the double backward; of the gradient, of the double backward, of all at last.
    assert launches.by_op["convolution"] == 2 * 20
    assert launches.by_op["convolution_backward"] == 3 * 20
    if training:
        assert launches.by_op["batch_norm_backward"] == 2 * 2 * 20
        assert launches.by_op["batch_norm_double_backward"] == 2 * 20
    else:
        assert launches.by_op["native_batch_norm_backward"] == 3 * 20
