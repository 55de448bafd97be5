"""SOC against the published sequence: training steps, inference, a whole LipConvNet's memory.

The published layer (Singla and Feizi, "Skew orthogonal convolutions", 2021) is its sequence of
operations, written from its description: at every forward the skew kernel, one power iteration on
four reshapes (training), and the Taylor series by autograd, 5 terms in training and 12 in eval.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad, pixel_unshuffle

from robustcore.lipschitz import SOC, LipConvNet, MaxMin
from robustcore.ops import exp_series
from robustcore.ops.lipschitz import series_block
from robustcore.ops.lipschitz.soc import normalised_filter

TRAIN_TERMS, EVAL_TERMS = 5, 12
SHAPES = {  # channels, side: about the same work each
    "64 x 32x32x32": (32, 32),
    "64 x 64x16x16": (64, 16),
    "64 x 128x8x8": (128, 8),
    "64 x 256x4x4": (256, 4),
}
IMPLS = ["robustcore", "robustcore, recompute", "published"]


def unit(t):
    """t over its norm, which goes through the host as published."""
    return t / max(float(t.square().sum().sqrt()), 1e-12)


class PublishedSOC(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, scale=0.7):
        super().__init__()
        self.stride, self.out_channels, self.scale = stride, out_channels, scale
        c, k = max(in_channels * stride**2, out_channels), kernel_size
        self.weight = nn.Parameter(torch.randn(c, c, k, k) / c**0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        shapes = [(1, c, 1, k), (1, c, k, 1), (1, c, k, k), (c, 1, k, k)]
        # Parameters that want no gradient, as published: they move with the module.
        vectors = [nn.Parameter(unit(torch.randn(shape)), False) for shape in shapes]
        self.u = nn.ParameterList(vectors)
        self.v = nn.ParameterList([nn.Parameter(torch.empty(0), False) for _ in shapes])
        self.converge(50)

    @torch.no_grad()
    def converge(self, steps):
        kernel = self.skew()
        for _ in range(steps):
            self.iterate(kernel)

    def skew(self):
        return 0.5 * (self.weight - self.weight.transpose(0, 1).flip(2, 3))

    def iterate(self, kernel):
        for i, (over_v, over_u) in enumerate(
            (((1, 3), (0, 2)), ((1, 2), (0, 3)), ((1, 2, 3), (0,)), ((0, 2, 3), (1,)))
        ):
            self.v[i].data = unit((kernel * self.u[i]).sum(over_v, keepdim=True))
            self.u[i].data = unit((kernel * self.v[i]).sum(over_u, keepdim=True))

    def kernel(self):
        kernel = self.skew()
        if self.training:
            with torch.no_grad():
                self.iterate(kernel)
        norms = [(kernel * u * v).sum() for u, v in zip(self.u, self.v, strict=True)]
        return self.scale * kernel / torch.stack(norms).min()

    def forward(self, x):
        kernel = self.kernel()
        if self.stride > 1:
            x = pixel_unshuffle(x, self.stride)
        channels = len(kernel)
        if x.shape[1] < channels:
            x = pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
        term = y = x
        for i in range(1, (TRAIN_TERMS if self.training else EVAL_TERMS) + 1):
            term = conv2d(term, kernel, padding=kernel.shape[2] // 2) / i
            y = y + term
        return y[:, : self.out_channels] + self.bias.view(1, -1, 1, 1)


def layers(channels, device):
    """Ours and the published layer with the same weight."""
    torch.manual_seed(0)
    ours = SOC(channels, channels, scale=0.7, tol=2.5e-6).to(device)
    theirs = PublishedSOC(channels, channels).to(device)
    theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias}, strict=False)
    theirs.converge(200)
    return ours, theirs


def fused(ours, x):
    """The same layer with its series in one kernel, or None where that does not run."""
    longest = exp_series(1.5, degree=10)  # of eval, about
    if series_block.cannot(x, ours.weight, longest) is not None:
        return None
    layer = SOC(x.shape[1], x.shape[1], scale=0.7, tol=2.5e-6, fused=True).to(x.device)
    layer.load_state_dict(ours.state_dict())
    return layer


def polynomial_errors(layer, side):
    """Largest distances of the two training polynomials to exp, up to the norm on such images."""
    with torch.no_grad():
        vectors, _ = layer._train_vectors(side, side)
        kernel = normalised_filter(layer.weight, layer.scale, vectors)
    x = torch.randn(1, len(kernel), side, side, device=kernel.device)
    for _ in range(60):
        x = torch.conv2d(x / x.norm(), kernel, padding=kernel.shape[2] // 2)
    t = 1j * torch.linspace(0, float(x.norm()), 201, dtype=torch.float64)
    taylor = sum(t**i / math.factorial(i) for i in range(TRAIN_TERMS + 1))
    series = exp_series(layer._radius, degree=layer.train_degree)
    after = before = torch.zeros_like(t)
    for k in range(series.degree, -1, -1):
        step = series.step if k else series.first
        after, before = series.coefficients[k] + step * t * after + series.carry * before, after
    return (after - t.exp()).abs().max(), (taylor - t.exp()).abs().max()


def step_of(layer, x, layout):
    """A training step of the layer on x, in the memory format that its output has."""
    inputs = x.contiguous(memory_format=layout).requires_grad_()
    upstream = torch.randn_like(inputs)

    def step():
        inputs.grad = layer.weight.grad = layer.bias.grad = None
        layer(inputs).backward(upstream)

    return step


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", SHAPES)
def test_training_step(case, impl, measure, device):
    channels, side = SHAPES[case]
    ours, theirs = layers(channels, device)
    error, published = polynomial_errors(ours, side)
    assert error <= published
    ours.recompute = "recompute" in impl
    x = torch.randn(64, channels, side, side, device=device)
    ours_step = step_of(ours, x, torch.channels_last)  # a network of it keeps this layout
    against = ("robustcore", ours_step) if impl == "published" else None
    step = step_of(theirs, x, torch.contiguous_format) if against else ours_step
    measure(f"SOC training step: {case}", impl, step, against=against)


@pytest.mark.parametrize("impl", ["robustcore", "published"])
@pytest.mark.parametrize("case", SHAPES)
def test_inference(case, impl, measure, device):
    channels, side = SHAPES[case]
    ours, theirs = (layer.eval() for layer in layers(channels, device))
    x = torch.randn(64, channels, side, side, device=device)
    with torch.no_grad():
        ours_y, theirs_y = ours(x), theirs(x)
        # The power iterations of the two differ a little.
        assert (ours_y - theirs_y).norm() < 2e-2 * x.norm()
        last = x.contiguous(memory_format=torch.channels_last)
        frozen = ours._kept
        if impl == "published":
            against = "robustcore", lambda: ours(last)
            measure(f"SOC inference: {case}", impl, lambda: theirs(x), against=against)
        else:
            measure(f"SOC inference: {case}", impl, lambda: ours(last))
        assert ours._kept is frozen  # nothing was rebuilt


class PublishedMaxMin(nn.Module):
    def forward(self, x):
        a, b = x.split(x.shape[1] // 2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], dim=1)


def published_net(net, device):
    """The same network out of the published layers, made on the device: minutes on two cores."""
    with torch.device(device):
        return _published_net(net)


def _published_net(net):
    layers = []
    for module in net.modules():
        if isinstance(module, SOC):
            layers.append(
                PublishedSOC(
                    module.in_channels, module.out_channels, module.kernel_size, module.stride
                )
            )
        elif isinstance(module, MaxMin):
            layers.append(PublishedMaxMin())
    return nn.Sequential(*layers, nn.Flatten())


@pytest.mark.parametrize("impl", IMPLS)
def test_network_training_step(impl, measure, device):
    torch.manual_seed(0)
    net = LipConvNet(20, 10, recompute="recompute" in impl).to(device)
    if impl == "published":
        net = published_net(net, device)
    x = torch.rand(32, 3, 32, 32, device=device)
    labels = torch.randint(10, (32,), device=device)

    def step():
        net.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x), labels).backward()

    measure("LipConvNet-20 training step, 32 images", impl, step, rounds=3)
