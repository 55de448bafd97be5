"""The captured step on a GPU: counts of the ordinary loop, without a wait."""

import warnings

import pytest
import torch
from tqdm import tqdm

from robustcore.common.cuda_graph import WARM_UP
from robustcore.smoothing import Smooth
from smoothing.captures import (
    NOISES,
    RUN,
    Head,
    assert_same_counts,
    certify,
)
from smoothing.models import Pixels
from testing import assert_same


@pytest.mark.cuda
@pytest.mark.parametrize("batch_size", [7, 10, 50])
@pytest.mark.parametrize("name", [name for name in NOISES if name != "null"])
def test_gpu_counts_are_those_of_the_loop(images, name, batch_size):
    x, model = ((images * 255).round() / 255).cuda(), Pixels(4).cuda()
    options = dict(noise=NOISES[name], batch_size=batch_size, n=200)
    expected = certify(x.cpu(), model, graph=False, **options)
    for graph in (False, None, True):
        got = certify(x, model, graph=graph, **options)
        assert_same(got.counts, expected.counts)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gpu_formats(images, dtype, memory_format):
    x, model = images.cuda(), Head().cuda()
    options = dict(dtype=dtype, memory_format=memory_format, mean=[0.1, 0.2], std=[0.5, 2.0])
    expected = certify(x, model, graph=False, **options)
    model.calls.number = 0
    got = certify(x, model, graph=True, n0=10, **options)
    assert model.calls.number == WARM_UP + 1
    # The model's own kernels may round otherwise when they are captured.
    assert (got.counts - expected.counts).abs().max() <= 3


@pytest.mark.cuda
def test_gpu_nothing_waits_inside_an_image(images):
    x, smooth = images.cuda(), Smooth(Head().cuda(), 4, 0.3, seed=7, mean=0.1, std=0.5)
    expected = smooth.certify(x, **RUN | {"n": 1000})  # captures
    sampler = smooth._start(x, 10, 0, 1, 1000)
    bar = tqdm(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
        try:
            counts = sampler.count(x, 5, 1000, bar)
            few = sampler.count(x, 0, 5, bar)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert_same(counts.cpu(), expected.counts)
    assert_same(few.cpu(), expected.counts0)


@pytest.mark.cuda
def test_gpu_a_model_that_waits(images):
    class Net(Pixels):
        def forward(self, x):
            return super().forward(x) * float(x.sum().isfinite())

    x = images.cuda()
    expected = certify(x, Net(4), graph=False)
    with pytest.warns(UserWarning, match="cuda_graph: the step cannot be captured"):
        assert_same_counts(certify(x, Net(4), graph=None), expected)
    with pytest.raises(RuntimeError, match="cuda_graph: got True"):
        certify(x, Net(4), graph=True)
    # Random numbers and captures still work.
    torch.randn(4, device="cuda")
    assert_same_counts(certify(x, Pixels(4), graph=True), certify(x, Pixels(4), graph=False))


@pytest.mark.cuda
def test_gpu_weights_and_seeds_change(images):
    x, model = images.cuda(), Head().cuda()
    smooth = Smooth(model, 4, 0.3)
    for turn in range(3):
        result = smooth.certify(x, **RUN | {"n": 200})
        expected = certify(x, model, graph=False, n=200, seed=result.seed)
        assert (result.counts - expected.counts).abs().max() <= 3
        with torch.no_grad():
            model.linear.weight.normal_(generator=torch.Generator("cuda").manual_seed(turn))
