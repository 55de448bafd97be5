"""Perceptual attacks: the ball of the distance, the step of PPGD, training against them."""

import pytest
import torch
from torch import nn

from attacks.models import Linear, conv_net, images, labelled
from robustcore import attacks, ops
from robustcore.attacks.perceptual import Steepest

EPS = 0.25


class Net(nn.Module):
    """Two layers of features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2)

    def forward(self, x):
        one = self.first(x).relu()
        return [one, self.second(one).relu()]


def identity(x):
    return [x]


KINDS = {
    "LPA": lambda m, f, **o: attacks.PerceptualLPA(m, f, EPS, 8, searches=3, seed=0, **o),
    "fast": lambda m, f, **o: attacks.PerceptualLPA(m, f, EPS, 20, fast=True, seed=0, **o),
    "PPGD": lambda m, f, **o: attacks.PerceptualPGD(m, f, EPS, 8, seed=0, **o),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_successes_are_within_the_distance(kind, weighted):
    model, net = Linear(), Net().eval()
    x, y = labelled(model, 24)
    weights = [torch.linspace(0.5, 2, 8), torch.linspace(0, 3, 6)] if weighted else None
    made = KINDS[kind](model, net, weights=weights).run(x, y)
    with torch.no_grad():
        distance = ops.perceptual_distance(net(made.images), net(x), weights).sqrt()
        assert torch.equal(model(made.images).argmax(1) != y, made.success)
    torch.testing.assert_close(made.distance, distance.double(), rtol=1e-5, atol=1e-6)
    assert made.distance.max() <= EPS * (1 + 1e-5)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert made.success.sum() > 4
    assert made.norm == "perceptual"


@pytest.mark.parametrize("kind", KINDS)
def test_equal_for_any_batch(kind):
    model = Linear()
    x, y = labelled(model, 12)
    whole = KINDS[kind](model, identity).run(x, y)
    parts = KINDS[kind](model, identity, batch_size=5).run(x, y)
    assert torch.equal(parts.success, whole.success)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-4)


def test_more_is_fooled_farther_away():
    model, net = Linear(), Net().eval()
    x, y = labelled(model, 24)
    rates = [
        attacks.PerceptualPGD(model, net, eps, 6, seed=0).run(x, y).success.double().mean()
        for eps in (0.02, 0.1, 0.5)
    ]
    assert rates[0] < rates[1] <= rates[2]


def test_a_step_is_the_steepest_one():
    """Against ``(J^T J)^-1 g`` with J written out, in float64."""
    net = Net().double().eval()
    x, grad = images(2).double(), images(2, seed=7).double() - 0.5
    attack = attacks.PerceptualPGD(Linear(), net, EPS, 4, iterations=60, alpha=0.3)
    steepest = Steepest(attack, 0)
    step = steepest._step(x, grad)
    for b in range(2):

        def seen(one):
            return steepest._flat(net(one.unsqueeze(0)))[0]

        jacobian = torch.autograd.functional.jacobian(seen, x[b]).flatten(1)
        metric = jacobian.T @ jacobian
        # Where the features see nothing of a direction it would be free: a little keeps it short.
        want = torch.linalg.lstsq(metric, grad[b].flatten().unsqueeze(1), driver="gelsd").solution
        if torch.linalg.matrix_rank(metric) < len(metric):
            assert torch.dot(step[b].flatten(), grad[b].flatten()) > 0
            continue
        want = want.squeeze(1) * 0.3 / (jacobian @ want.squeeze(1)).norm()
        torch.testing.assert_close(step[b].flatten(), want, rtol=1e-2, atol=1e-4)
    length = [
        (torch.autograd.functional.jacobian(seen, x[b]).flatten(1) @ step[b].flatten()).norm()
        for b in range(2)
    ]
    torch.testing.assert_close(torch.stack(length), torch.full((2,), 0.3, dtype=torch.float64))


def test_features_of_the_model_itself_and_training():
    model = conv_net().train()
    modes = [m.training for m in model.modules()]
    x, y = images(), torch.arange(12) % 5

    def features(x):
        return [model[:3](x)]

    for attack in (
        attacks.PerceptualLPA(model, features, EPS, 5, fast=True, seed=0),
        attacks.PerceptualPGD(model, features, EPS, 3, seed=0),
    ):
        loss = attacks.adversarial_training_loss(model, x, y, attack)
        assert [m.training for m in model.modules()] == modes
        model.zero_grad()
        loss.backward()
        assert model[0].weight.grad.abs().sum() > 0
    trades = attacks.adversarial_training_loss(model, x, y, attack, "trades")
    assert trades.isfinite()
    model.eval()
    pairs = [(model(x), "clean"), (model(attack(x, y)), "attacked")]
    clean, attacked = (nn.functional.cross_entropy(z, y) for z, _ in pairs)
    assert attacked > clean


def test_targeted():
    model = Linear()
    x, y = labelled(model, 20)
    made = KINDS["PPGD"](model, identity, targeted=True).run(x, (y + 1) % 5)
    assert made.success.any()
    assert torch.equal(made.prediction == (y + 1) % 5, made.success)


def test_bad_features():
    x, y = images(), torch.arange(12) % 5
    with pytest.raises(TypeError, match="features: gave Tensor, want a list"):
        attacks.PerceptualPGD(Linear(), lambda x: x).run(x, y)
    with pytest.raises(TypeError, match="features: got int"):
        attacks.PerceptualLPA(Linear(), 3)
    with pytest.raises(ValueError, match="weights: got shape"):
        attacks.PerceptualLPA(Linear(), identity, weights=[torch.ones(4)]).run(x, y)
