"""The evaluations: their definitions, on models whose answers are known."""

import pytest
import torch
from torch import nn

from robustcore import density


def linear(weight):
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[1].weight.data = weight.clone()
    return model


def model_and_batch(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), torch.rand(
        5, 1, 4, 2
    )


def test_integrated_gradients_are_complete():
    model, x = model_and_batch()
    y = torch.tensor([0, 1, 2, 0, 1])
    start = torch.full_like(x, 0.25)
    got = density.integrated_gradients(model, x, y, baseline=start, steps=100)
    change = (model(x) - model(start)).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(got.flatten(1).sum(1), change.detach(), rtol=1e-3, atol=1e-4)
    assert got.shape == x.shape
    assert not got.requires_grad


def test_integrated_gradients_of_a_linear_model():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    _, x = model_and_batch()
    y = torch.tensor([0, 1, 2, 0, 1])
    got = density.integrated_gradients(linear(weight), x, y, steps=3)
    torch.testing.assert_close(got.flatten(1), x.flatten(1) * weight[y])


def test_integrated_gradients_as_a_prior():
    """With create_graph, a loss of them has the derivatives of their definition."""
    model, x = model_and_batch()
    model, x = model.double(), x.double().requires_grad_()
    y = torch.tensor([0, 1, 2, 0, 1])
    got = density.integrated_gradients(model, x, y, steps=4, create_graph=True)
    total = 0
    for i in range(4):
        at = x * ((i + 0.5) / 4)
        total = total + torch.autograd.grad(
            model(at).gather(1, y[:, None]).sum(), at, create_graph=True
        )[0]  # fmt: skip
    want = x * total / 4
    torch.testing.assert_close(got, want)
    wrt = (x, model[1].weight, model[3].weight)
    for a, b in zip(
        torch.autograd.grad(got.abs().sum(), wrt), torch.autograd.grad(want.abs().sum(), wrt),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert not density.integrated_gradients(model, x, y, create_graph=True).requires_grad
    torch.testing.assert_close(density.integrated_gradients(model, x, y, steps=4), want.detach())


def test_an_attribution_prior_moves_attributions():
    """Training with their l1 norm in a region takes the attributions out of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                          nn.Flatten(), nn.Linear(64, 3)).eval()  # fmt: skip
    x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    region = torch.zeros(1, 4, 4)
    region[:, 2:] = 1
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    leaked = []
    for _ in range(20):
        attributions = density.integrated_gradients(model, x, y, steps=4, create_graph=True)
        loss = (attributions * region).abs().sum()
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + loss).backward()
        optimizer.step()
        leaked.append(float(loss.detach()))
    assert leaked[-1] < leaked[0] / 4


def test_feature_leakage():
    weight = torch.zeros(2, 8)
    weight[0, :4], weight[1, 6] = 1.0, -2.0
    _, x = model_and_batch()
    region = torch.zeros(1, 4, 2, dtype=torch.bool)
    region[:, 2:] = True  # elements 4 to 7
    y = torch.tensor([0, 0, 1, 1, 1])
    got = density.feature_leakage(linear(weight), x, region, y)
    assert (got[:2] == 0).all()
    torch.testing.assert_close(got[2:], 2 * x[2:].flatten(1)[:, 6])
    with pytest.raises(TypeError, match=r"region: got torch\.float32, want a bool tensor"):
        density.feature_leakage(linear(weight), x, region.float(), y)


def test_pixel_perturbation_and_insertion():
    model, x = model_and_batch()
    y = model(x).argmax(1)
    saliency = density.integrated_gradients(model, x, y)
    probability = lambda at: model(at).softmax(1).gather(1, y[:, None]).squeeze(1).detach()  # noqa: E731
    fractions = [0.0, 0.25, 1.0]
    least = density.pixel_perturbation(model, x, saliency, fractions=fractions)
    most = density.pixel_perturbation(model, x, saliency, fractions=fractions, remove="most")
    insertion = density.insertion_game(model, x, saliency, fractions=fractions)
    blank = probability(torch.full_like(x, 0.5))
    for curve, start, end in ((least, x, blank), (most, x, blank), (insertion, None, None)):
        assert curve.shape == (5, 3)
        if start is not None:
            torch.testing.assert_close(curve[:, 0], probability(x))
            torch.testing.assert_close(curve[:, 2], end)
    torch.testing.assert_close(insertion[:, 0], blank)
    torch.testing.assert_close(insertion[:, 2], probability(x))
    # A quarter of eight: by hand.
    order = saliency.abs().flatten(1).argsort(1)
    flat = x.flatten(1).clone()
    flat.scatter_(1, order[:, :2], 0.5)
    torch.testing.assert_close(least[:, 1], probability(flat.view_as(x)))
    assert density.pixel_perturbation(model, x, saliency).shape == (5, 25)
    with pytest.raises(ValueError, match="remove: got 'some'"):
        density.pixel_perturbation(model, x, saliency, remove="some")
    with pytest.raises(ValueError, match=r"fractions: got 1\.5"):
        density.insertion_game(model, x, saliency, fractions=[1.5])
    with pytest.raises(ValueError, match="attributions: got shape"):
        density.insertion_game(model, x, saliency[:2])


def test_pixels_go_with_all_of_their_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
    x, attributions = torch.rand(5, 3, 4, 2), torch.randn(5, 3, 4, 2)
    probability = lambda at, y: model(at).softmax(1).gather(1, y[:, None]).squeeze(1)  # noqa: E731
    y = model(x).argmax(1)
    order = attributions.abs().sum(1).flatten(1).argsort(1)  # least salient pixels first
    gone = torch.ones(5, 8).scatter_(1, order[:, :2], 0).view(5, 1, 4, 2)
    got = density.pixel_perturbation(model, x, attributions, fractions=[0.25])[:, 0]
    want = probability(torch.where(gone > 0, x, torch.tensor(0.5)), y)
    torch.testing.assert_close(got, want.detach())
    shown = torch.zeros(5, 8).scatter_(1, order[:, -2:], 1).view(5, 1, 4, 2)
    got = density.insertion_game(model, x, attributions, fractions=[0.25])[:, 0]
    want = probability(torch.where(shown > 0, x, torch.tensor(0.5)), y)
    torch.testing.assert_close(got, want.detach())
    # By element, a quarter of 24.
    order = attributions.abs().flatten(1).argsort(1)
    gone = torch.ones(5, 24).scatter_(1, order[:, :6], 0).view(5, 3, 4, 2)
    got = density.pixel_perturbation(model, x, attributions, fractions=[0.25], unit="element")[:, 0]
    want = probability(torch.where(gone > 0, x, torch.tensor(0.5)), y)
    torch.testing.assert_close(got, want.detach())
    flat = density.pixel_perturbation(model, x.flatten(1), attributions.flatten(1))
    assert flat.shape == (5, 25)  # vectors have no channels
    with pytest.raises(ValueError, match="unit: got 'patch'"):
        density.pixel_perturbation(model, x, attributions, unit="patch")


def test_curves():
    model, x = model_and_batch()
    for curve in (density.density_curve, density.gradient_curve):
        got = curve(model, x, [0.0, 0.1, 1.0], seed=3)
        assert got.shape == (5, 3)
        assert (got[:, 0] == 0).all()
        assert got[:, 1].mean() < got[:, 2].mean()
        torch.testing.assert_close(curve(model, x, [0.1], seed=3)[:, 0], got[:, 1])
        assert not got.requires_grad
    # lse of a model with one class is its logit, whose gradient is the same everywhere.
    one = linear(torch.ones(1, 8))
    assert density.gradient_curve(one, x, [0.5]).max() < 1e-6
