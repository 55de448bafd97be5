"""SmoothGrad, activation maximisation and Langevin samples, on models whose answers are known."""

import pytest
import torch
from torch import nn

from robustcore import density, ops
from testing import assert_same


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def images(n=5):
    return torch.rand(n, 1, 4, 2, generator=torch.Generator().manual_seed(0)).double()


class Quadratic(nn.Module):
    """One logit, -|x - centre|^2 / 2: the density of N(centre, I)."""

    def __init__(self, centre=0.0):
        super().__init__()
        self.centre = centre

    def forward(self, x):
        return -(x - self.centre).square().flatten(1).sum(1, keepdim=True) / 2


# ---- SmoothGrad ----------------------------------------------------------------------------------


def test_smooth_grad_is_the_mean_over_the_documented_copies():
    model, x = network(), images()
    y = torch.tensor([0, 1, 2, 0, 1])
    got = density.smooth_grad(model, x, y, sigma=0.3, samples=6, seed=4, image_offset=2)
    copies = ops.gaussian_noise(x, 6, 0.3, seed=4, image_offset=2).requires_grad_()
    logits = model(copies.flatten(0, 1)).gather(1, y.repeat_interleave(6)[:, None])
    (want,) = torch.autograd.grad(logits.sum(), copies)
    torch.testing.assert_close(got, want.mean(1))
    assert not got.requires_grad


def test_smooth_grad_of_a_quadratic():
    """E grad f(x + n) = grad f(x), with the deviation sigma / sqrt(samples)."""
    x = images()
    got = density.smooth_grad(Quadratic(0.5), x, sigma=0.2, samples=400)
    assert ((got - (0.5 - x)).abs() < 4.5 * 0.2 / 20).all()
    exact = density.smooth_grad(Quadratic(0.5), x, sigma=0.0, samples=2)
    torch.testing.assert_close(exact, 0.5 - x)


def test_smooth_grad_keeps_no_copies():
    x = torch.rand(1, 1, 512, 512)
    peak = {}
    for samples in (2, 12):
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            density.smooth_grad(Quadratic(), x, sigma=0.1, samples=samples)
        held = most = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        peak[samples] = most
    assert peak[12] < peak[2] + x.nbytes


# ---- activation maximisation ---------------------------------------------------------------------


def test_a_linear_logit_takes_its_pixels_to_the_bounds():
    weight = torch.tensor([[1.0, -1.0, 2.0, -0.5], [-1.0, 1.0, 1.0, 1.0]])
    model = nn.Linear(4, 2, bias=False)
    model.weight.data = weight
    start = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    got = density.activation_maximisation(
        model, start, torch.tensor([0, 1]), steps=200, step_size=0.05, bounds=(-1.0, 2.0)
    )
    assert_same(got, torch.where(weight > 0, 2.0, -1.0))
    free = density.activation_maximisation(
        model, start, torch.tensor([0, 1]), steps=10, step_size=0.1, bounds=None
    )
    torch.testing.assert_close(free, start + weight / weight.norm(dim=1, keepdim=True))


def test_the_density_and_the_models_own_answer():
    start = torch.zeros(3, 4).double()
    got = density.activation_maximisation(
        Quadratic(0.4), start, of="density", steps=90, step_size=0.01
    )
    torch.testing.assert_close(got, torch.full_like(start, 0.4), rtol=0, atol=0.01)
    model, x = network(), images()
    y = model(x).argmax(1)
    assert_same(
        density.activation_maximisation(model, x, steps=5),
        density.activation_maximisation(model, x, y, steps=5),
    )
    risen = model(density.activation_maximisation(model, x, y, steps=5)).gather(1, y[:, None])
    assert (risen > model(x).gather(1, y[:, None])).all()


# ---- Langevin dynamics ---------------------------------------------------------------------------


def test_langevin_samples_have_the_stationary_moments():
    """x <- (1 - a) x + a c + sqrt(2 a) z: mean c, variance 2 / (2 - a)."""
    a, n = 0.2, 4000
    start = torch.zeros(n, 4).double()
    got = density.langevin_samples(Quadratic(1.5), start, steps=60, step_size=a, noise=None, seed=1)
    variance = 2 / (2 - a)
    assert abs(got.mean() - 1.5) < 4.5 * (variance / got.numel()) ** 0.5
    assert abs(got.var() / variance - 1) < 4.5 * (2 / got.numel()) ** 0.5
    assert torch.corrcoef(got.T).fill_diagonal_(0).abs().max() < 4.5 / n**0.5


def test_langevin_goes_on_to_the_same_bits_in_any_batch():
    model, x = network(), images()
    whole = density.langevin_samples(model, x, steps=7, step_size=0.1, noise=0.05, seed=9)
    first = density.langevin_samples(model, x, steps=3, step_size=0.1, noise=0.05, seed=9)
    assert_same(
        density.langevin_samples(
            model, first, steps=4, step_size=0.1, noise=0.05, seed=9, step_offset=3
        ),
        whole,
    )
    part = density.langevin_samples(
        model, x[2:4], steps=7, step_size=0.1, noise=0.05, seed=9, image_offset=2
    )
    torch.testing.assert_close(part, whole[2:4])


def test_langevin_by_hand_with_a_class_and_bounds():
    model, x = network(), images()
    y = torch.tensor([0, 1, 2, 0, 1])
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(at).gather(1, y[:, None]).sum(), at)
    z = ops.gaussian_noise(torch.zeros_like(x), 1, 1.0, seed=2).squeeze(1)
    want = (x + 0.5 * g + 0.1 * z).clamp(0.2, 0.8)
    got = density.langevin_samples(
        model, x, y, steps=1, step_size=0.5, noise=0.1, bounds=(0.2, 0.8), seed=2
    )
    torch.testing.assert_close(got, want.detach())


BAD = [
    (lambda: density.smooth_grad(network(), images(), sigma=-1), "sigma: got -1"),
    (lambda: density.smooth_grad(network(), images(), sigma=1, samples=0), "samples: got 0"),
    (lambda: density.activation_maximisation(network(), torch.rand(3)), r"start: got shape \[3\]"),
    (lambda: density.activation_maximisation(network(), images(), of="loss"), "of: got 'loss'"),
    (lambda: density.activation_maximisation(network(), images(), bounds=(1, 0)), "bounds: got"),
    (lambda: density.langevin_samples(network(), images(), step_size=0), "step_size: got 0"),
    (lambda: density.langevin_samples(network(), images(), noise=-1.0), "noise: got -1"),
    (lambda: density.langevin_samples(network(), images(), seed=-1), "seed: got -1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
