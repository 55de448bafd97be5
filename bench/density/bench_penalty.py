"""A training step with the density penalty: ours, the published forms, and no penalty at all."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.functional import cross_entropy

from robustcore import density

WEIGHT = 0.1


def vgg():
    layers, channels = [], 3
    for width, pool in [
        (32, 1),
        (64, 1),
        (128, 0),
        (128, 1),
        (256, 0),
        (256, 1),
        (256, 0),
        (256, 1),
    ]:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pool
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


class Block(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip = nn.Sequential()
        if stride != 1 or channels != width:
            self.skip = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def resnet18(base=32):
    """ResNet-18's blocks at half its width."""
    layers = [nn.Conv2d(3, base, 3, 1, 1, bias=False), nn.BatchNorm2d(base), nn.ReLU()]
    channels = base
    for stage in range(4):
        for block in range(2):
            width = base * 2**stage
            layers.append(Block(channels, width, 2 if stage and not block else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def norm(g):
    return g.flatten(1).norm(dim=1).mean()


def step(impl, model, x, y):
    """Loss and penalty of one step; gradients are left in the parameters."""
    if impl == "reverse over forward":
        return reverse_over_forward(model, x, y)
    x = x.detach().requires_grad_(impl != "no penalty")
    ours = density.fast_double_backward() if impl == "robustcore" else nullcontext()
    with ours:
        logits = model(x)
    loss = cross_entropy(logits, y)

    def gradient(values):
        return torch.autograd.grad(values.sum(), x, create_graph=True)[0]

    if impl in ("robustcore", "robustcore, torch's layers", "finite difference"):
        mode = "finite_difference" if impl == "finite difference" else "double_backward"
        penalty = density.marginal_density_penalty(model, x, logits=logits, mode=mode)
        loss = loss + WEIGHT * penalty
    elif impl != "no penalty":
        j = torch.randint(10, (len(x), 1), device=x.device)
        f_j = logits.gather(1, j).squeeze(1)
        log_p_j = logits.log_softmax(1).gather(1, j).squeeze(1)
        if impl == "published, two gradients":
            g = gradient(f_j) - gradient(log_p_j)
        else:
            g = gradient(f_j - log_p_j)
        loss = loss + WEIGHT * norm(g)
    loss.backward()
    return loss.detach()


def reverse_over_forward(model, x, y):
    """The penalty's derivative as that of the slope of lse along the gradient's dual direction.

    No convolution is differentiated twice. With BatchNorm in training mode the gradients are
    torch's, and off: its forward mode takes the batch's statistics for constants when it is
    differentiated in turn.
    """
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    v = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with forward_ad.dual_level():
        logits, slopes = forward_ad.unpack_dual(model(forward_ad.make_dual(x.detach(), v)))
        slope = (logits.softmax(1) * slopes).sum(1).mean()
        loss = cross_entropy(logits, y) + WEIGHT * slope
        loss.backward()
    return loss.detach()


IMPLS = [
    "robustcore",
    "robustcore, torch's layers",
    "published, two gradients",
    "published, one gradient",
    "finite difference",
    "reverse over forward",
    "no penalty",
]


@pytest.mark.usefixtures("no_tf32")
@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")  # of torch's jvp
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("network", [vgg, resnet18], ids=["vgg", "resnet18"])
def test_training_step(network, impl, measure, device):
    torch.manual_seed(0)
    model = network().to(device)
    x, y = torch.rand(32, 3, 32, 32, device=device), torch.randint(10, (32,), device=device)

    def run(impl):
        model.zero_grad()
        return step(impl, model, x, y)

    if impl not in ("no penalty", "robustcore"):
        torch.testing.assert_close(run(impl), run("robustcore"), rtol=1e-3, atol=1e-4)
    other = {"robustcore": "no penalty", "no penalty": None}.get(impl, "robustcore")
    measure(
        f"density training step: {network.__name__}, 32 x 3 x 32 x 32", impl, lambda: run(impl),
        rounds=15, against=other and (other, lambda: run(other)),
    )  # fmt: skip
