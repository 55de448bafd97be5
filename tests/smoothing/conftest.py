"""Fixtures of the tests of captured steps."""

import pytest
import torch

from robustcore.common import cuda_graph
from smoothing.fake_cuda import FakeCuda


@pytest.fixture
def images():
    return torch.rand(3, 2, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cuda(monkeypatch):
    """Captures and replays on the CPU."""
    fake = FakeCuda()
    monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", fake)
    return fake
