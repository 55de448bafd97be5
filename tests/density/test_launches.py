"""How much a training step with a penalty gives a GPU to launch, counted without one.

On the CPU, every op that reaches a kernel is counted as it is dispatched, below autograd: not views
and not allocations. One of torch's counts once, however many kernels it has; one of ours as many
times as it launches. Where the CPU has kernels that a GPU has not, the way of the GPU is taken.
"""

import collections
import runpy
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from robustcore.ops.density import batch_norm, conv3x3

BENCH = Path(__file__).parents[2] / "bench" / "density" / "bench_penalty.py"

# Others launch once. Three times with more than 64 units a channel (batch_norm.cu).
LAUNCHES = {"robustcore::batch_norm_backward": 2, "robustcore::batch_norm_double_backward": 2}


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.of = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = [r.alias_info for r in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in results)
        name = func._schema.name
        if not view and not name.split("::")[1].startswith(("empty", "new_empty")):
            self.of[name] += LAUNCHES.get(name, 1)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("training", "most"), [(True, 440), (False, 380)])
def test_a_penalty_step_of_a_resnet18(training, most, monkeypatch):
    monkeypatch.setattr(conv3x3, "_is_ours", lambda *arguments: False)
    monkeypatch.setattr(batch_norm, "_forward_is_ours", lambda x: False)
    monkeypatch.setattr(batch_norm, "_backward_is_ours", lambda x: True)
    bench = runpy.run_path(str(BENCH))
    torch.manual_seed(0)
    model = bench["resnet18"]().train(training)
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    with Launches() as launches:
        bench["step"]("robustcore", model, x, y)
    if training:
        assert launches.of["robustcore::batch_norm_backward"] == 2 * 2 * 20
        assert launches.of["robustcore::batch_norm_double_backward"] == 2 * 20
    assert launches.of["aten::convolution"] == 2 * 20  # forward, and of the double backward's v
    assert launches.of["aten::convolution_backward"] == 3 * 20
    assert launches.of.total() <= most, launches.of.most_common()
