"""CUDA graphs of an attack's gradients, captured and replayed as a tape on the CPU."""

import pytest
import torch
from torch import nn

from attacks.models import Linear, conv_net, images, labelled
from robustcore import attacks
from robustcore.common import cuda_graph
from smoothing.fake_cuda import FakeCuda


@pytest.fixture
def cuda(monkeypatch):
    """Captures and replays on the CPU."""
    fake = FakeCuda()
    monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", fake)
    return fake


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    return nn.Sequential(*layers).eval()


NORMAL = dict(mean=0.5, std=[0.2, 0.3, 0.4])
KINDS = {
    "PGD": lambda m, **o: attacks.PGD(m, 0.05, steps=12, restarts=3, seed=0, batch_size=6, **o),
    "targeted": lambda m: attacks.PGD(m, 0.05, steps=12, seed=0, batch_size=6, targeted=True),
    "APGD": lambda m: attacks.APGD(m, 0.05, steps=20, norm="L2", seed=0, batch_size=6),
    "APGDT": lambda m: attacks.APGDT(m, 0.02, steps=20, seed=0, batch_size=6),
    "FAB": lambda m: attacks.FAB(m, 0.02, steps=20, seed=0, batch_size=6),
    "normalised": lambda m: attacks.APGD(m, 0.002, steps=20, seed=0, batch_size=6, **NORMAL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_replays_change_nothing(kind, cuda):
    model = net()
    x = images(24)
    y = (model(x).argmax(1) + (kind == "targeted")) % 5
    attack = KINDS[kind](model)
    attack.graphs.wanted = False
    want = attack.run(x, y)
    assert not cuda.log
    made = KINDS[kind](model).run(x, y)
    assert torch.equal(made.images, want.images)
    assert torch.equal(made.success, want.success)
    assert torch.equal(made.queries, want.queries)
    assert cuda.log.count("capture") == 1
    assert cuda.log.count("replay") > 3


def test_a_graph_is_kept_and_sees_new_weights(cuda):
    model = net()
    x = images(24)
    y = model(x).argmax(1)
    attack = attacks.PGD(model, 0.01, steps=12, seed=0)
    attack.run(x, y)
    attack.run(x, y)
    assert cuda.log.count("capture") == 1
    with torch.no_grad():
        model[3].weight.mul_(-1)
    made, y = None, model(x).argmax(1)
    made = attack.run(x, y)
    assert cuda.log.count("capture") == 1
    attack.graphs.wanted = False
    assert torch.equal(attack.run(x, y).images, made.images)
    attack.graphs.wanted = None
    model[3] = nn.Linear(128, 5)
    attack.run(x, model(x).argmax(1))
    assert cuda.log.count("capture") == 2


def test_autoattack_captures_once_a_loss(cuda):
    model = net()
    x = images(16)
    y = model(x).argmax(1)
    attack = attacks.AutoAttack(model, eps=0.004, seed=0)
    attack.attacks["Square"].queries = 20
    made = attack.evaluate(x, y, bs=8)
    assert len(made.lines) == 4
    assert 1 <= cuda.log.count("capture") <= 3


def test_what_cannot_be_captured_goes_on_without(cuda):
    class Waits(nn.Module):
        def forward(self, x):
            cuda.waits()
            return x.flatten(1)[:, :5] * 1.0

    model = Waits().eval()
    x = images(20)
    y = model(x).argmax(1)
    attack = attacks.PGD(model, 0.01, steps=12, seed=0)
    with pytest.warns(UserWarning, match="cuda_graph: the step cannot be captured"):
        made = attack.run(x, y)
    assert "capture" not in cuda.log
    attack.graphs.wanted = False
    assert torch.equal(attack.run(x, y).images, made.images)


def test_functions_hooks_and_training_are_not_captured(cuda):
    model = Linear()
    x, y = labelled(model, 20)
    attacks.PGD(lambda x: model(x), 0.01, seed=0).run(x, y)
    hooked = net()
    hooked[0].register_forward_hook(lambda *_: None)
    attacks.PGD(hooked, 0.01, seed=0).run(x, y)
    trained = conv_net().train()
    attack = attacks.PGD(trained, 0.01, seed=0)
    for kind in ("pgd", "trades"):
        attacks.adversarial_training_loss(trained, x, y, attack, kind)
    assert not cuda.log
