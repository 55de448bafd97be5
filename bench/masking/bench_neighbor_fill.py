"""ops.neighbor_fill against the published chain of convolutions with ones, and a copy (limit)."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustcore import ops

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))

CASES = {  # name: shape, masks, iterations, side of a block, channels last
    "6 iterations, 1x3x224x224": ((1, 3, 224, 224), 1, 6, 16, False),
    "6 iterations, 32 masks of 3x224x224": ((1, 3, 224, 224), 32, 6, 16, False),
    "1 iteration, 8x64x56x56": ((8, 64, 56, 56), 8, 1, 4, False),
    "1 iteration, 8x64x56x56, channels last": ((8, 64, 56, 56), 8, 1, 4, True),
    "2 iterations, 8x512x14x14": ((8, 512, 14, 14), 8, 2, 2, False),
    "1 iteration, 1x8x8x8 (call overhead)": ((1, 8, 8, 8), 1, 1, 2, False),
}


@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("impl", ["robustcore", "published", "copy (limit)"])
@pytest.mark.parametrize("case", CASES)
def test_neighbor_fill(case, impl, measure, device):
    shape, masks, iters, block, last = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(shape, device=device)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    small = torch.rand(masks, 1, shape[2] // block, shape[3] // block, device=device) < 0.53
    mask = small.float().repeat_interleave(block, 2).repeat_interleave(block, 3)
    implementations = {
        "robustcore": lambda: ops.neighbor_fill(x, mask, iters),
        "published": lambda: published.fill(x, mask, iters),
        "copy (limit)": lambda: x.expand(masks, -1, -1, -1).clone(),
    }
    with torch.inference_mode():
        want = implementations["published"]()
        torch.testing.assert_close(implementations["robustcore"](), want, rtol=1e-4, atol=1e-5)
        measure(f"neighbor_fill: {case}", impl, implementations[impl])
