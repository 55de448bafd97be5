"""Bounds of random operations and nets: nothing that is searched for breaks them."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lipschitz.bounded import Functional
from robustcore import lipschitz as lip

MODES = ["zeros", "circular", "reflect", "replicate"]


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 2))
    k, s, d, p = (draw(st.integers(1, n)) for n in (4, 3, 2, 4))
    groups, mode = draw(st.sampled_from([1, 2])), draw(st.sampled_from(MODES))
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    layer = kind(2, 4, k, s, p - 1, d, groups, padding_mode=mode)
    return layer, (2, *[draw(st.integers(4, 7)) for _ in range(dims)])


@st.composite
def transposed(draw):
    k, s, d = (draw(st.integers(1, n)) for n in (4, 3, 2))
    p, more = draw(st.integers(0, 2)), draw(st.integers(0, 1))
    assume(more < max(s, d))
    layer = nn.ConvTranspose2d(2, 4, k, s, p, more, draw(st.sampled_from([1, 2])), dilation=d)
    return layer, (2, draw(st.integers(3, 5)), draw(st.integers(3, 5)))


@st.composite
def pools(draw):
    k, s = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    p = draw(st.integers(0, k // 2))
    ceil, counted = draw(st.booleans()), draw(st.booleans())
    divisor = draw(st.sampled_from([None, 1, 3, -2]))
    layer = draw(st.sampled_from([
        nn.AvgPool2d(k, s, p, ceil, counted, divisor), nn.MaxPool2d(k, s, p, ceil_mode=ceil),
        nn.LPPool2d(2, k, s, ceil), nn.LPPool2d(4, k, s, ceil), nn.AdaptiveAvgPool2d((k, s)),
        nn.AdaptiveMaxPool2d((k, s)),
    ]))  # fmt: skip
    return layer, (1, draw(st.integers(4, 7)), draw(st.integers(4, 7)))


@st.composite
def resizes(draw):
    pads = [draw(st.integers(0, 3)) for _ in range(4)]
    layer = draw(st.sampled_from([
        nn.ReflectionPad2d(pads), nn.ReplicationPad2d(pads), nn.CircularPad2d(pads),
        nn.ZeroPad2d(pads), nn.Upsample(size=(pads[0] + 2, pads[1] + 3)),
        nn.Upsample(size=(pads[0] + 2, pads[1] + 5), mode="bilinear"),
    ]))  # fmt: skip
    return layer, (1, draw(st.integers(4, 6)), draw(st.integers(4, 6)))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.one_of(convolutions(), transposed(), pools(), resizes()), st.integers(0, 99))
def test_random_operations(case, seed):
    torch.manual_seed(seed)
    layer, shape = case
    layer = layer.double().eval()
    for p in layer.parameters():
        p.requires_grad_(False).normal_()
    x = torch.randn(1, *shape, dtype=torch.float64)
    try:
        jacobian = torch.autograd.functional.jacobian(layer, x)
    except RuntimeError:
        assume(False)  # a filter larger than its image
    assume(jacobian.numel())
    true = float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), ord=2))
    assert true <= lip.lipschitz_bound(layer, x) * (1 + 1e-12)
    rows = float(jacobian.reshape(-1, x.numel()).abs().sum(1).max())
    if not isinstance(layer, nn.LPPool2d):
        assert rows <= lip.lipschitz_bound(layer, x, norm="linf") * (1 + 1e-12)


# ---- Nets ----------------------------------------------------------------------------------------


class Parallel(nn.Module):
    """Two branches, summed or put side by side."""

    def __init__(self, first, second, concat):
        super().__init__()
        self.first, self.second, self.concat = first, second, concat

    def forward(self, x):
        a, b = self.first(x), self.second(x)
        return torch.cat([a, b], 1)[:, 1:5] if self.concat else a + b


def small_net(seed):
    """Layers of four channels in a random order, for images [2, 4, 4]."""
    torch.manual_seed(seed)
    shared = nn.Conv2d(4, 4, 3, padding=1, padding_mode=MODES[seed % 4])
    make = [
        lambda: shared, lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.GELU, nn.Mish,
        lambda: nn.BatchNorm2d(4), lip.MaxMin, lambda: lip.Householder(4), nn.Softsign,
        lambda: nn.PReLU(4, 1.4), lambda: nn.MaxPool2d(3, 1, 1), lambda: nn.AvgPool2d(3, 1, 1),
        lambda: Parallel(shared, nn.Softplus(2.0), False), lambda: lip.SOC(4, 4),
        lambda: Parallel(nn.SiLU(), nn.Conv2d(4, 4, 1), True),
        lambda: Functional(lambda x: x - 0.5 * x.flip(2).tanh()), nn.Hardswish,
    ]  # fmt: skip
    chosen = torch.randint(len(make), (5,)).tolist()
    layers = [make[i]() for i in chosen]
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, nn.Flatten(), nn.Linear(64, 3))
    return net.double().eval()


def ascent(net, x, steps=12):
    """The largest quotient of distances that gradient ascent finds."""
    y = (x + 1e-3 * torch.randn_like(x)).requires_grad_()
    x = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x, y], lr=0.1)
    best = 0.0
    for _ in range(steps):
        apart = (net(x) - net(y)).flatten(1).norm(dim=1)
        quotient = apart / (x - y).flatten(1).norm(dim=1)
        best = max(best, float(quotient.detach().max()))
        optimizer.zero_grad()
        (-quotient.log().sum()).backward()
        optimizer.step()
    return best


@pytest.mark.parametrize("seed", range(40))
def test_nets_keep_their_bound(seed):
    net = small_net(seed)
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    found = ascent(net, x)
    assert 0 < found <= lip.lipschitz_bound(net, x) * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(6))
def test_no_adversarial_example_inside_a_radius(seed, norm):
    torch.manual_seed(seed)
    net = small_net(seed) if norm == "l2" else nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double().eval()  # fmt: skip
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    certificate = lip.certify(net, x, norm=norm)
    assert (certificate.radius > 0).all()
    radius, chosen = certificate.radius.view(-1, 1, 1, 1), certificate.prediction
    delta = torch.zeros_like(x)
    for _ in range(30):
        delta.requires_grad_()
        logits = net(x + delta)
        others = logits.scatter(1, chosen[:, None], -math.inf).amax(1)
        margin = logits.gather(1, chosen[:, None])[:, 0] - others
        assert (margin > 0).all()
        (grad,) = torch.autograd.grad(margin.sum(), delta)
        with torch.no_grad():
            if norm == "linf":
                delta = (delta - 0.3 * radius * grad.sign()).clamp(-radius, radius)
                continue
            delta = delta - 0.3 * radius * grad / length(grad).clamp(min=1e-30)
            delta = delta * (radius / length(delta).clamp(min=1e-30)).clamp(max=1)
    assert (net(x + delta).argmax(1) == chosen).all()


def length(t):
    return t.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
