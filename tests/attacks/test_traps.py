"""What attacks are known to get wrong: each a test. And the untargeted FAB, AutoAttack "plus"."""

import pytest
import torch
from torch import nn

from attacks.models import Linear, images, labelled
from attacks.test_attacks import RADIUS, optimum
from robustcore import attacks


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_ball_holds_whatever_the_dtype_of_the_model(dtype, norm):
    model = Linear().to(dtype)
    x, y = labelled(model, 20)
    for kind in (attacks.PGD, attacks.APGD, attacks.FAB):
        made = kind(model, RADIUS[norm], steps=10, norm=norm, seed=0).run(x, y)
        assert made.images.dtype == torch.float32
        assert made.images.min() >= 0
        assert made.images.max() <= 1
        assert made.distance.max() <= RADIUS[norm] * (1 + (1e-6 if norm != "Linf" else 0))
        assert made.success.any()


@pytest.mark.parametrize("kind", ["PGD", "APGD", "Square"])
def test_what_is_not_fooled_comes_back_at_its_highest_loss(kind):
    """The highest that the attack has seen, and not that of its last point."""
    seen = []

    class Bumpy(nn.Module):
        def forward(self, x):
            z = (x.flatten(1).sum(1) * 40).sin() * 0.5 - 1
            if len(x) == 1:
                seen.append(float(z.detach()))
            return torch.stack([torch.zeros_like(z), z], 1)

    steps = {"queries": 60} if kind == "Square" else {"steps": 15}
    attack = getattr(attacks, kind)(Bumpy(), 0.05, loss="margin", seed=0, batch_size=1, **steps)
    for b in range(4):
        seen.clear()
        made = attack.run(images(1, seed=b), torch.tensor([0]))
        assert not made.success.any()
        points = seen[3:]  # after the looks at the image itself
        assert len(set(points)) > 1
        assert float(made.loss) == pytest.approx(max(points), abs=1e-4)


def test_success_is_that_of_the_last_look_alone():
    """A model that takes back its errors when all images are looked at again."""

    class Retracts(Linear):
        attacked = False

        def forward(self, x):
            logits = super().forward(x)
            if self.attacked and len(x) == 40:
                return nn.functional.one_hot(self.labels, 5).float()
            self.attacked |= len(x) < 40 and torch.is_grad_enabled()
            return logits

    model = Retracts()
    x, y = labelled(model, 40)
    model.labels = y
    options = dict(seed=0, batch_size=40)
    honest = attacks.PGD(Linear(), 0.05, **options).run(x, y)
    made = attacks.PGD(model, 0.05, **options).run(x, y)
    assert 5 < honest.success.sum() < 40
    assert not made.success.any()
    assert made.flipped == honest.success.sum()
    assert torch.equal(made.images[honest.success], honest.images[honest.success])


def test_a_batch_does_not_scale_gradients():
    """The step of l2 has its length for an image among 200 as for one alone."""
    model = Linear()
    x, y = labelled(model, 200)
    options = dict(norm="L2", steps=1, alpha=0.1, random_start=False, batch_size=200)
    many = attacks.PGD(model, 0.2, **options).run(x, y)
    one = attacks.PGD(model, 0.2, **options).run(x[7:8], y[7:8], 7)
    assert torch.equal(many.images[7:8], one.images)


def test_tiny_and_vanishing_gradients_step_as_others_do():
    model = Linear(classes=2)
    x, y = labelled(model, 20)

    def tiny(x):
        return model(x) * 1e-30

    for norm in ("L2", "Linf", "L1"):
        options = dict(norm=norm, steps=5, seed=0, loss="margin", random_start=False)
        made = attacks.PGD(tiny, RADIUS[norm] / 10, **options).run(x, y)
        want = attacks.PGD(model, RADIUS[norm] / 10, **options).run(x, y)
        assert made.zero_gradients == made.nan_gradients == 0
        right = ~want.success
        torch.testing.assert_close(made.images[right], want.images[right], rtol=0, atol=1e-5)
    flat = attacks.PGD(lambda x: model(x).detach() + 0 * x.sum(), 0.1, norm="L2", seed=0).run(x, y)
    assert flat.images.isfinite().all()
    assert flat.zero_gradients == 20


@pytest.mark.parametrize("norm", RADIUS)
def test_untargeted_fab_finds_the_nearest_boundary(norm):
    """Of a linear model one step reaches it: no target is needed, nor another step."""
    model = Linear()
    x, y = labelled(model, 60)
    best = torch.tensor([optimum(model, x[i], y[i], RADIUS[norm], norm) for i in range(60)])
    made = attacks.FAB(model, RADIUS[norm], 10, norm=norm, targets=0, seed=0).run(x, y)
    assert not made.success[best < 0].any()
    assert not (~made.success & (best > 0.02)).any()
    assert made.distance.max() <= RADIUS[norm] * (1 + 1e-6)
    part = attacks.FAB(model, RADIUS[norm], 10, norm=norm, targets=0, seed=0, batch_size=7)
    assert torch.equal(part.run(x, y).images, made.images)
    assert set(made.queries[~made.success].tolist()) == {1 + 21}


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_autoattack_plus_for_any_number_of_classes(classes):
    model = Linear(classes=classes)
    x, y = labelled(model, 8)
    attack = attacks.AutoAttack(model, eps=0.02, version="plus", seed=0)
    attack.attacks["Square"].queries = 20
    result = attack.evaluate(x, y)
    best = torch.tensor([optimum(model, x[i], y[i], 0.02, "Linf") for i in range(8)])
    assert torch.equal(result.attacked.success, best > 0)
