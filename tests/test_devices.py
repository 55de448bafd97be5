"""What has no test of its own on a GPU: kernels in every precision, layers, networks, captures.

Each body runs on the CPU too, where it has to hold as well; on a GPU its results are those of the
CPU, to the bit where only kernels of ours run.
"""

import copy

import pytest
import torch
from torch import nn

from robustcore import density, ops
from robustcore.lipschitz import SOC
from robustcore.masking import MaskedModel
from testing import TOLERANCE, assert_same

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
raw = torch.ops.robustcore


def normal(*shape, dtype=torch.float32, last=False, seed=0):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return t.contiguous(memory_format=torch.channels_last) if last else t


def with_gradients(fn, *inputs):
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = fn(*inputs)
    upstream = normal(*y.shape, dtype=y.dtype, seed=9).to(y.device)
    return [t.detach() for t in (y, *torch.autograd.grad(y, inputs, upstream))]


def on_both(fn, device, *inputs):
    """fn's results on the device and on the CPU, pair by pair."""
    got = fn(*(t.to(device) for t in inputs))
    assert all(t.device.type == device.type for t in got)
    return list(zip([t.cpu() for t in got], fn(*inputs), strict=True))


def assert_near(got, want, factor=10):
    tolerance = factor * TOLERANCE[got.dtype]
    size = float(want.double().abs().max())
    torch.testing.assert_close(
        got.double(), want.double(), rtol=tolerance, atol=tolerance * max(size, 1.0)
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairs", [3, 8, 20])
def test_maxmin_forward_and_backward(pairs, dtype, last, device):
    x = normal(3, 2 * pairs, 5, 7, dtype=dtype, last=last)
    for got, want in on_both(lambda x: with_gradients(ops.maxmin, x), device, x):
        assert_same(got, want)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["householder", "householder2", "projection"])
def test_pair_maps_in_every_precision(name, dtype, last, device):
    op = ops.projection_pool if name == "projection" else ops.householder
    shape = (3, 9) if name == "householder2" else (9,)
    theta = 3 * torch.rand(shape, generator=torch.Generator().manual_seed(1))
    x = normal(3, 18, 5, 7, dtype=dtype, last=last)
    for got, want in on_both(lambda x, t: with_gradients(op, x, t), device, x, theta):
        assert_near(got, want)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("iters", [1, 3, 6, 9])
@pytest.mark.parametrize("binary", [True, False])
def test_the_transposed_fill(binary, iters, dtype, last, device):
    x = normal(2, 20, 11, 13, dtype=dtype, last=last)
    mask = torch.rand(2, 1, 11, 13, generator=torch.Generator().manual_seed(2))
    mask = (mask < 0.2).float() if binary else torch.where(mask < 0.7, 0, mask)
    mask = mask.to(torch.promote_types(dtype, torch.float32))

    def run(x, mask):
        return with_gradients(lambda x: ops.neighbor_fill(x, mask, iters, detach=False), x)

    for got, want in on_both(run, device, x, mask):
        assert_same(got, want)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("present", ["mask", "scale", "shift", "mask scale", "mask scale shift"])
def test_the_epilogue(present, relu, dtype, last, device):
    wide = torch.promote_types(dtype, torch.float32)
    x = normal(2, 20, 9, 7, dtype=dtype, last=last)
    mask = (normal(2, 1, 9, 7, seed=1) > 0).to(wide)
    scale, shift = normal(20, dtype=wide, seed=2), normal(20, dtype=wide, seed=3)

    def run(x, mask, scale, shift):
        given = [t if n in present.split() else None
                 for n, t in (("mask", mask), ("scale", scale), ("shift", shift))]  # fmt: skip
        own = x.clone()
        raw.mask_epilogue_(own, *given, relu)
        return raw.mask_epilogue(x, *given, relu), own

    results = on_both(run, device, x, mask, scale, shift)
    for got, want in results:
        assert_same(got, want)
    assert_same(results[0][0], results[1][0])


@pytest.mark.parametrize("fill", ["neighbor", "zero", "partial"])
@pytest.mark.parametrize("last", [False, True])
def test_masked_conv2d(last, fill, device):
    x, weight = normal(2, 8, 12, 11, last=last), normal(6, 8, 3, 3, last=last, seed=1) / 9
    mask = (normal(2, 1, 12, 11, seed=2) > 0.5).float()
    scale = normal(6, seed=3)

    def run(x, mask, weight, scale):
        fn = lambda x, w, s: ops.masked_conv2d(  # noqa: E731
            x, mask, w, stride=2, padding=1, fill=fill, scale=s, relu=True
        )[0]
        return with_gradients(fn, x, weight, scale)

    for got, want in on_both(run, device, x, mask, weight, scale):
        assert_near(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_random_projections_and_their_gradients(kind, dtype, device):
    x = normal(33, 2100, dtype=dtype)  # three segments
    fn = lambda x: ops.random_projection(x, 300, seed=3, row_offset=2**32 - 900, kind=kind)  # noqa: E731
    for got, want in on_both(lambda x: with_gradients(fn, x), device, x):
        assert_same(got, want)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


@pytest.mark.parametrize("fold", [False, True])
def test_masked_model(fold, device):
    model, x = network().eval(), normal(4, 3, 32, 32)
    mask = (normal(4, 1, 8, 8, seed=1) > 0).float()
    mask = mask.repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.inference_mode():
        want = MaskedModel(copy.deepcopy(model), fold=fold)(x, mask)
        got = MaskedModel(model.to(device), fold=fold)(x.to(device), mask.to(device))
    assert got.device.type == device.type
    assert_near(got.cpu(), want)


@pytest.mark.parametrize("channels", [6, 32])
@pytest.mark.parametrize("training", [True, False])
def test_soc(training, channels, device):
    torch.manual_seed(0)
    layer, x = SOC(channels, channels), normal(2, channels, 6, 5)
    layer(x)  # singular vectors converge at the first forward, on the CPU for both
    results = []
    for to in (device, torch.device("cpu")):
        own = copy.deepcopy(layer).to(to).train(training)
        y = own(x.to(to))
        y.square().sum().backward()
        results.append([y.detach().cpu(), own.weight.grad.cpu(), own.bias.grad.cpu()])
    for got, want in zip(*results, strict=True):
        assert_near(got, want)


@pytest.mark.parametrize("penalty", ["marginal_density_penalty", "curvature_penalty"])
def test_penalties_of_convolutional_nets(penalty, device):
    model, x, y = network().double().train(), normal(4, 3, 16, 16).double(), torch.arange(4)
    results = []
    for to in (device, torch.device("cpu")):
        own = copy.deepcopy(model).to(to)
        value = getattr(density, penalty)(own, x.to(to), target=y.to(to))
        grads = torch.autograd.grad(value, list(own.parameters()), materialize_grads=True)
        results.append([t.detach().cpu() for t in (value, *grads)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def images(device):
    return torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)


def full_mask(x):
    return (x[:, :1] > 0.4).float()


CAPTURED = {
    "gaussian_noise": lambda x: ops.gaussian_noise(x, 3, 0.2, seed=1, mean=0.5, std=0.2),
    "uniform_noise": lambda x: ops.uniform_noise(x, 3, 0.2, seed=1),
    "laplace_noise": lambda x: ops.laplace_noise(x, 3, 0.2, seed=1),
    "splitting_noise": lambda x: ops.splitting_noise(x, 3, 0.2, seed=1),
    "ablate_pixels": lambda x: ops.ablate_pixels(x, 3, 5, seed=1),
    "ablate_patches": lambda x: ops.ablate_patches(x, 3),
    "count_votes": lambda x: ops.count_votes(x.flatten(2)),
    "mean_softmax": lambda x: ops.mean_softmax(x.flatten(2))[0],
    "logsumexp": lambda x: ops.logsumexp(x.flatten(1)),
    "grad_norm": lambda x: ops.grad_norm(x, 3.0),
    "random_projection": lambda x: ops.random_projection(x.flatten(1), 300, seed=1),
    "linear_logsumexp": lambda x: ops.linear_logsumexp(x.flatten(1), x.flatten(1)),
    "maxmin": ops.maxmin,
    "householder": lambda x: ops.householder(x, x[0, :2, 0, 0]),
    "projection_pool": lambda x: ops.projection_pool(x, x[0, :2, 0, 0]),
    "neighbor_fill": lambda x: ops.neighbor_fill(x, full_mask(x), 2),
    "mask_multiply": lambda x: ops.mask_multiply(x, full_mask(x)),
    "masked_conv2d": lambda x: ops.masked_conv2d(x, full_mask(x), x[:, :, :3, :3], padding=1)[0],
    "conv_exp": lambda x: ops.conv_exp(
        x, raw.skew(x[0, :, None, :3, :3].expand(4, 4, 3, 3).contiguous()), radius=20.0,
        degree=3, check=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTURED)
def test_a_captured_op_gives_the_same_bits(name, device):
    """As a CUDA graph on a GPU: no wait, no memory but torch's, the current stream."""
    fn, x = CAPTURED[name], images(device)
    want = fn(x)
    if device.type == "cpu":
        assert_same(fn(x.clone()), want)
        return
    held = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        fn(held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fn(held)
    held.copy_(x)
    graph.replay()
    assert_same(out, want)
