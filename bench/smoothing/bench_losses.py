"""Losses of certified training, forward and backward: ours against the formulas as published."""

import pytest
import torch
from torch.nn import functional as F

from robustcore import ops
from robustcore.smoothing import losses

SIGMA = 0.25
SHAPES = {"[256, 16, 10]": (256, 16, 10), "[64, 8, 1000]": (64, 8, 1000)}


def smooth_adv(z, labels):
    return F.nll_loss(z.softmax(2).mean(1).log(), labels)


def macer(z, labels):
    cross_entropy = F.nll_loss((z.softmax(2).mean(1) + 1e-10).log(), labels, reduction="sum")
    top, index = (16 * z).softmax(2).mean(1).topk(2)
    at = index[:, 0] == labels
    normal = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    robustness = normal.icdf(top[at, 1]) - normal.icdf(top[at, 0])
    used = ~robustness.isnan() & ~robustness.isinf() & (robustness.abs() <= 8)
    first, second = top[at, 0][used], top[at, 1][used]
    hinge = (normal.icdf(second) - normal.icdf(first) + 8).sum() * SIGMA / 2
    return (cross_entropy + 12 * hinge) / len(z)


def consistency(z, labels):
    each = [z[:, i] for i in range(z.shape[1])]
    mean = torch.stack([F.softmax(one, dim=1) for one in each]).mean(0)
    divergence = [
        F.kl_div(F.log_softmax(one, dim=1), mean, reduction="none").sum(1) for one in each
    ]
    entropy = -(mean * mean.clamp(min=1e-20).log()).sum(1)
    return (10 * sum(divergence) / len(each) + 0.5 * entropy).mean()


def smoothmix(z, labels):
    mixed, share = z.flip(0), torch.full((len(z), 1), 0.3, device=z.device)
    mean = z.softmax(2).mean(1)
    target = (1 - share) * mean + share / z.shape[2]
    target = target[:, None].expand_as(mixed)
    each = F.kl_div(mixed.log_softmax(2), target, reduction="none").sum(2).mean(1)
    return (each * (mean.argmax(1) == labels)).mean()


LOSSES = {
    smooth_adv: losses.smooth_adv,
    macer: lambda z, labels: losses.macer(z, labels, SIGMA),
    consistency: lambda z, labels: losses.consistency(z),
    smoothmix: lambda z, labels: losses.smoothmix(
        z, z.flip(0), labels, torch.full((len(z),), 0.3, device=z.device)
    ),
}


@pytest.mark.parametrize("published", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss(shape, published, measure, device):
    size = SHAPES[shape]
    torch.manual_seed(0)
    labels = torch.randint(size[2], size[:1], device=device)
    z = (torch.randn(size, device=device) + 4 * F.one_hot(labels, size[2])[:, None]) / 2
    z.requires_grad_()

    def step(loss):
        return lambda: torch.autograd.grad(loss(z, labels), z)[0]

    ours, theirs = step(LOSSES[published]), step(published)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-5)
    name = f"{published.__name__}: {shape}, forward and backward"
    measure(name, "robustcore", ours, against=("the published form", theirs))


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_softmax(shape, measure, device):
    z = torch.randn(SHAPES[shape], device=device).requires_grad_()

    def ours():
        log_mean, mean_log = ops.mean_softmax(z)
        return torch.autograd.grad((log_mean + mean_log).sum(), z)[0]

    def eager():
        each = z.log_softmax(2)
        return torch.autograd.grad((each.logsumexp(1) + each.mean(1)).sum(), z)[0]

    torch.testing.assert_close(ours(), eager(), rtol=1e-4, atol=1e-6)
    name = f"mean_softmax: {shape}, forward and backward"
    measure(name, "robustcore", ours, against=("eager", eager))
