"""Curvature: bounds of Hessians and certificates against brute force, and training."""

import gc
import math
import weakref
from fractions import Fraction
from functools import partial
from unittest import mock

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustcore.lipschitz import CRCHead, crc_certificate, curvature_certificate, curvature_penalty
from robustcore.lipschitz.curvature.bounds import (
    estimated_eigenvalues,
    most_negative,
    upper_eigenvalues,
)
from robustcore.lipschitz.curvature.mlp import read_mlp
from robustcore.lipschitz.curvature.proof import margins, proven_radii

ACTIVATIONS = {"softplus": nn.Softplus, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
NETS = [(name, depth) for name in ACTIVATIONS for depth in (2, 3, 4)]


def network(name, depth, seed=0, inputs=6, hidden=8, classes=4, gain=2.0):
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for i in range(depth - 1):
        layers += [nn.Linear(inputs if i == 0 else hidden, hidden), ACTIVATIONS[name]()]
    net = nn.Sequential(*layers, nn.Linear(hidden, classes)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= gain
    return net


def concavity(net, x, own, other, bound=upper_eigenvalues):
    with torch.no_grad():
        found = read_mlp(net, x)
        return most_negative(found, found.weights[-1][own] - found.weights[-1][other], bound)


@pytest.mark.parametrize(("name", "depth"), NETS)
def test_hessians_keep_the_bound(name, depth):
    """At random points and where an ascent makes the Hessian as negative as it can."""
    net, own, other = network(name, depth), torch.tensor([0]), torch.tensor([1])
    m = concavity(net, torch.zeros(1, 6, dtype=torch.float64), own, other)

    def lowest(x):
        gradient = torch.func.jacrev(lambda v: net(v[None])[0, 0] - net(v[None])[0, 1])
        hessian = torch.func.jacrev(gradient)
        return torch.linalg.eigvalsh(torch.func.vmap(hessian)(x))[:, 0]

    x = torch.randn(32, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.1)
    least = 0.0
    for _ in range(40):
        values = lowest(x)
        least = min(least, float(values.min().detach()))
        optimizer.zero_grad()
        values.sum().backward()
        optimizer.step()
    assert least >= -float(m)
    assert -least > float(m) * {2: 0.3, 3: 0.01, 4: 0.0001}[depth]  # no trivial bound


def nearest_failure(net, x, label, other, tries=16):
    """The distance of the nearest point found where `other` reaches `label`."""

    def margin(u):
        z = net(u)
        return z[:, label] - z[:, other]

    u = (x + 0.5 * torch.randn(tries, x.numel(), dtype=x.dtype)).requires_grad_()
    best = math.inf
    for step in range(80):
        f = margin(u)
        (g,) = torch.autograd.grad(f.sum(), u)
        with torch.no_grad():
            failed = f <= 0
            distance = (u - x).norm(dim=1)
            best = min([best, *distance[failed].tolist()])
            # To the linearised boundary's nearest point, with a small excess.
            to = ((u - x) * g).sum(1) - f - 1e-9
            projected = x + to[:, None] * g / g.square().sum(1, keepdim=True).clamp(min=1e-12)
            u += (0.5 if step % 2 else 1.0) * (projected - u)
    return best


@pytest.mark.parametrize(("name", "depth"), NETS)
def test_nothing_fails_inside_a_radius(name, depth):
    for seed in range(2):
        net = network(name, depth, seed, gain=3.0 if name == "sigmoid" else 1.5)
        x = torch.randn(4, 6, dtype=torch.float64)
        certificate = curvature_certificate(net, x)
        assert torch.equal(certificate.prediction, net(x).argmax(1))
        assert (certificate.radius > 0).all()
        for image, label, radius in zip(x, certificate.prediction, certificate.radius, strict=True):
            nearest = min(
                nearest_failure(net, image, int(label), k) for k in range(4) if k != label
            )
            assert radius <= nearest
            if depth == 2:
                assert radius > 0.2 * min(nearest, 1.0)


def test_a_convex_margin_is_certified_to_its_boundary():
    net = nn.Sequential(nn.Linear(3, 1), nn.Softplus(), nn.Linear(1, 2)).double().eval()
    w = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    with torch.no_grad():
        net[0].weight.copy_(w), net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]])), net[2].bias.copy_(torch.tensor([0.0, 1]))
    x = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    # softplus(t) = 1 at t = log(e - 1)
    want = (3 - math.log(math.e - 1)) / 3
    radius = float(curvature_certificate(net, x).radius)
    assert want * (1 - 1e-6) < radius <= want


def test_at_least_the_closed_form_of_crc():
    torch.manual_seed(1)
    head = CRCHead(6, 4, hidden=9, beta=3.0).double().eval()
    x = torch.randn(20, 6, dtype=torch.float64)
    closed = crc_certificate(head, x, 1.0)
    assert (curvature_certificate(head, x).radius >= closed * (1 - 1e-3)).all()


def test_single_precision_and_parametrized_weights():
    net = network("softplus", 2).float()
    x = torch.randn(5, 1, 2, 3)
    single = curvature_certificate(net, x)
    double = curvature_certificate(net.double(), x.double())
    torch.testing.assert_close(single.radius, double.radius, rtol=1e-4, atol=1e-7)
    nn.utils.parametrizations.weight_norm(net[1])
    torch.testing.assert_close(curvature_certificate(net, x.double()).radius, double.radius)


def test_images_do_not_depend_on_their_batch():
    net, x = network("tanh", 3), torch.randn(9, 6, dtype=torch.float64)
    whole = curvature_certificate(net, x).radius
    alone = torch.cat([curvature_certificate(net, one[None]).radius for one in x])
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=1e-9)


def test_no_certificate_without_a_margin():
    net = network("softplus", 2)
    with torch.no_grad():
        net[-1].weight[1] = net[-1].weight[0]
        net[-1].bias[1] = net[-1].bias[0]
        net[-1].bias[:2] += 100
    assert curvature_certificate(net, torch.randn(3, 6, dtype=torch.float64)).radius.eq(0).all()
    net[1].weight.data[0, 0] = math.nan
    assert curvature_certificate(net, torch.randn(3, 6, dtype=torch.float64)).radius.eq(0).all()


def test_a_low_threshold_of_softplus_counts():
    """torch's softplus is t above its threshold: at 0, a step of log 2 that no Hessian shows."""
    net = network("softplus", 2)
    x = torch.randn(6, 6, dtype=torch.float64)
    smooth = curvature_certificate(net, x).radius
    net[2].threshold = 0.5
    stepped = curvature_certificate(net, x)
    assert (stepped.radius < smooth).all()
    for image, label, radius in zip(x, stepped.prediction, stepped.radius, strict=True):
        failures = [nearest_failure(net, image, int(label), k) for k in range(4) if k != label]
        assert radius <= min(failures)


# ---- what a proof rests on -----------------------------------------------------------------------


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
)  # fmt: skip
def test_eigenvalues_from_above(rows, columns, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale
    d = torch.randn(3, rows, generator=generator, dtype=torch.float64).clamp(min=0)
    d[2] = 0
    want = torch.stack([torch.linalg.eigvalsh(weight.T * one @ weight)[-1] for one in d])
    got = upper_eigenvalues(weight, d)
    assert (got >= want * (1 - 1e-14)).all()
    assert (got <= want.clamp(min=0) * (1 + 1e-2) + 1e-290).all()
    assert (estimated_eigenvalues(weight, d, 200) <= got).all()


def test_equal_eigenvalues():
    bound = upper_eigenvalues(torch.eye(9).double(), torch.ones(1, 9).double())
    assert 1 <= float(bound) < 1.001


@pytest.mark.parametrize(("name", "depth"), NETS)
def test_rounding_is_counted(name, depth):
    """The error that the running bound states, against arithmetic of 60 digits."""
    net = network(name, depth, gain=5.0)
    x = 3 * torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        found = read_mlp(net, x)
        rows = found.weights[-1][[0, 1]] - found.weights[-1][[2, 3]]
        offsets = found.biases[-1][[0, 1]] - found.biases[-1][[2, 3]]
        f, gradient = margins(found, x, rows, offsets)
    exact = {
        "softplus": (lambda t: mpmath.log1p(mpmath.exp(t)), lambda t: 1 / (1 + mpmath.exp(-t))),
        "sigmoid": (
            lambda t: 1 / (1 + mpmath.exp(-t)),
            lambda t: mpmath.exp(-t) / (1 + mpmath.exp(-t)) ** 2,
        ),
        "tanh": (mpmath.tanh, lambda t: 1 - mpmath.tanh(t) ** 2),
    }[name]
    with mpmath.workdps(60):
        for n in range(2):
            h, slopes = mpmath.matrix(x[n].tolist()), []
            for weight, bias in zip(found.weights[:-1], found.biases[:-1], strict=True):
                z = mpmath.matrix(weight.tolist()) * h + mpmath.matrix(bias.tolist())
                h, slope = z.apply(exact[0]), z.apply(exact[1])
                slopes.append(slope)
            row = mpmath.matrix(rows[n].tolist())
            value = (row.T * h)[0] + mpmath.mpf(float(offsets[n]))
            assert abs(value - mpmath.mpf(float(f.value[n]))) <= float(f.error[n])
            g = row
            for weight, slope in zip(reversed(found.weights[:-1]), reversed(slopes), strict=True):
                scaled = mpmath.matrix([a * b for a, b in zip(g, slope, strict=True)])
                g = mpmath.matrix(weight.tolist()).T * scaled
            for got, error, want in zip(gradient.value[n], gradient.error[n], g, strict=True):
                assert abs(want - mpmath.mpf(float(got))) <= float(error)
            assert float(f.error[n]) < 1e-9 * (1 + abs(float(value)))


def test_any_point_proves_something_true():
    """The dual bound holds at points and multipliers that no search would give."""
    net = network("softplus", 2)
    x = torch.randn(1, 6, dtype=torch.float64)
    label = int(net(x).argmax())
    other = (label + 1) % 4
    nearest = nearest_failure(net, x[0], label, other)
    with torch.no_grad():
        found = read_mlp(net, x)
        rows = (found.weights[-1][label] - found.weights[-1][other])[None]
        offsets = (found.biases[-1][label] - found.biases[-1][other])[None]
        concave = most_negative(found, rows, upper_eigenvalues)
        points = x + torch.randn(400, 6, dtype=torch.float64) * torch.logspace(-3, 0, 400)[:, None]
        eta = 1.5 * torch.rand(400, dtype=torch.float64) / concave
        radii = proven_radii(
            found, x.expand(400, -1), points, eta, rows.expand(400, -1), offsets.expand(400),
            concave.expand(400), torch.zeros(400, dtype=torch.float64),
        )  # fmt: skip
    assert 0 < radii.max() <= nearest
    assert (radii[eta * concave >= 1] == 0).all()


def test_bends_are_the_activations_own():
    for name in ACTIVATIONS:
        activation = read_mlp(network(name, 2), torch.zeros(1, 6).double()).activations[0]
        z = torch.linspace(-20, 20, 400_001, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(ACTIVATIONS[name]()(z).sum(), z, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), z)
        low, high = activation.bend
        assert bend.min() >= low - 1e-12
        assert bend.max() <= high + 1e-12
        assert bend.max() > 0.999 * high
        assert slope.min() >= 0
        assert 0.999 * activation.max_slope < slope.max() <= activation.max_slope + 1e-12
        torch.testing.assert_close(activation.slope(z), slope)
    assert Fraction(activation.bend[1]) ** 2 >= Fraction(16, 27)  # tanh's: 4 / (3 sqrt 3)


# ---- training and refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3])
def test_the_penalty_makes_room(depth):
    torch.manual_seed(0)
    net = network("softplus", depth)
    x, labels = torch.randn(64, 6, dtype=torch.float64), torch.randint(4, (64,))
    before = curvature_penalty(net, x, labels)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    assert before <= concavity(net, x, *pairs.T).max()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        curvature_penalty(net, x, labels).backward()
        optimizer.step()
    assert curvature_penalty(net, x, labels) < 0.7 * before


def test_the_gradient_of_a_bound():
    net, x = network("tanh", 2), torch.zeros(1, 6, dtype=torch.float64)
    converged = partial(estimated_eigenvalues, steps=2000)
    weight, step = net[1].weight, 1e-5

    def bound():
        found = read_mlp(net, x)
        return most_negative(found, found.weights[-1][:1] - found.weights[-1][1:2], converged)

    bound().backward()
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += step * direction
        above = float(bound())
        weight -= 2 * step * direction
        slope = (above - float(bound())) / (2 * step)
    assert slope == pytest.approx(float((weight.grad * direction).sum()), rel=1e-4)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(x + torch.tanh(self.first(x)))


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


def mlp(*between, **options):
    return nn.Sequential(nn.Linear(6, 6), *between, nn.Linear(6, 3), **options).eval()


REFUSED = {
    "relu": (lambda: mlp(nn.ReLU()), "calls relu"),
    "one layer": (lambda: nn.Sequential(nn.Linear(6, 3)), "1 linear layers and 0 activations"),
    "two in a row": (lambda: mlp(nn.Linear(6, 6), nn.Tanh()), "calls linear"),
    "two activations": (lambda: mlp(nn.Tanh(), nn.Tanh()), "calls tanh"),
    "at the end": (lambda: nn.Sequential(mlp(nn.Tanh()), nn.Sigmoid()), "2 linear layers and 2"),
    "norm": (lambda: mlp(nn.LayerNorm(6), nn.Tanh()), "'1' calls layer_norm"),
    "dropout in training": (lambda: mlp(nn.Dropout(), nn.Tanh()).train(), "calls dropout"),
    "residual": (Residual, "calls add"),
    "more than its parts": (lambda: Twice(*mlp(nn.Tanh())), "calls mul"),
    "negative beta": (lambda: mlp(nn.Softplus(-1.0)), "beta -1.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_smooth_perceptron_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        curvature_certificate(make(), torch.zeros(2, 6))


def test_one_trace_a_model():
    net, x, labels = mlp(nn.Tanh()), torch.zeros(2, 6), torch.tensor([0, 1])
    first = curvature_penalty(net, x, labels)
    with mock.patch("robustcore.common.graph.trace", side_effect=AssertionError("traced again")):
        with torch.no_grad():
            net[0].weight *= 2
        assert curvature_penalty(net, x, labels) > first
    net[1] = nn.Softplus()
    assert curvature_penalty(net, x, labels) < first * 4  # not the old one's curvature
    seen = weakref.ref(net)
    del net
    gc.collect()
    assert seen() is None


def test_a_hook_is_part_of_what_runs():
    net = mlp(nn.Tanh())
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match="calls mul"):
        curvature_certificate(net, torch.zeros(2, 6))


@pytest.mark.parametrize("scale", [0.0, 1e-200])
def test_weights_of_zero(scale):
    net = mlp(nn.Tanh())
    with torch.no_grad():
        net[0].weight.mul_(scale)
    assert (curvature_certificate(net, torch.zeros(2, 6)).radius >= 0).all()
