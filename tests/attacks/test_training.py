"""The losses of adversarial training."""

import copy

import pytest
import torch
from torch import nn

from attacks.models import conv_net, images
from robustcore import attacks


def test_training_attacks_every_image_to_the_end():
    model = conv_net()
    x, y = images(), torch.arange(12) % 5
    pgd = attacks.PGD(model, 0.05, steps=3, seed=0)
    given = []
    with model.register_forward_pre_hook(lambda model, inputs: given.append(inputs[0].detach())):
        attacks.adversarial_training_loss(model, x, y, pgd)
    seen = given[-1]
    assert (seen != x).flatten(1).any(1).all()
    for kind in ("pgd", "trades", "mart"):
        loss = attacks.adversarial_training_loss(model, x, y, pgd, kind)
        loss.backward()
        assert model[0].weight.grad.abs().sum() > 0
    own = attacks.adversarial_training_loss(model, x, y, lambda x, y: seen)
    assert own == attacks.adversarial_training_loss(model, x, y, pgd)
    expected = nn.functional.cross_entropy(model(seen), y)
    torch.testing.assert_close(own, expected)
    whole = attacks.AutoAttack(model, eps=0.05, version="rand", seed=0)
    assert attacks.adversarial_training_loss(model, x, y, whole).requires_grad


def test_training_losses_are_those_of_the_publications():
    model = conv_net().double()
    x, y = images().double(), torch.arange(12) % 5
    moved = images(seed=5).double()

    def attack(x, y):
        return moved

    p, q = model(x).softmax(1), model(moved).softmax(1)
    kl = (p * (p / q).log()).sum(1)
    clean = -p[range(12), y].log().mean()
    loss = attacks.adversarial_training_loss(model, x, y, attack, "trades", beta=3.0)
    torch.testing.assert_close(loss, clean + 3 * kl.mean())
    rival = q.scatter(1, y.unsqueeze(1), 0).amax(1)
    boosted = -q[range(12), y].log() - (1 - rival).log()
    loss = attacks.adversarial_training_loss(model, x, y, attack, "mart", beta=2.0)
    torch.testing.assert_close(loss, (boosted + 2 * kl * (1 - p[range(12), y])).mean())


@pytest.mark.parametrize("kind", ["pgd", "trades", "mart"])
def test_batch_norm_counts_the_images_that_are_trained_on(kind):
    """And none of the attack's points, although the model is in training mode."""
    model = conv_net().train()
    x, y = images(), torch.arange(12) % 5
    pgd = attacks.PGD(model, 0.05, steps=3, seed=0)
    given, alike = [], copy.deepcopy(model)
    with model.register_forward_pre_hook(
        lambda model, inputs: given.append((model.training, inputs[0].detach()))
    ):
        attacks.adversarial_training_loss(model, x, y, pgd, kind)
    counted = [batch for training, batch in given if training]
    assert len(counted) == (1 if kind == "pgd" else 2)
    assert len(given) >= len(counted) + 3
    for batch in counted:
        alike(batch)
    found, want = model[1].state_dict(), alike[1].state_dict()
    assert found["num_batches_tracked"] == len(counted)
    assert all(torch.equal(found[name], want[name]) for name in want)
