"""The attacks: closed forms of linear models, and the traps that attacks fall into."""

import copy
import warnings

import pytest
import torch
from torch import nn

from attacks.models import Linear, conv_net, images, labelled
from robustcore import attacks

RADIUS = {"Linf": 0.05, "L2": 0.3, "L1": 1.5}
KINDS = {
    "PGD": lambda m, norm, **o: attacks.PGD(m, RADIUS[norm], steps=20, norm=norm, **o),
    "APGD": lambda m, norm, **o: attacks.APGD(m, RADIUS[norm], steps=30, norm=norm, **o),
    "APGDT": lambda m, norm, **o: attacks.APGDT(m, RADIUS[norm], steps=20, norm=norm, **o),
    "FAB": lambda m, norm, **o: attacks.FAB(m, RADIUS[norm], steps=20, norm=norm, **o),
    "Square": lambda m, norm, **o: attacks.Square(m, RADIUS[norm], queries=60, norm=norm, **o),
}
EACH = [(kind, norm) for kind in KINDS for norm in RADIUS]


def gain(w, x, eps, norm):
    """The most that <w, d> reaches for x + d in [0, 1] and |d| <= eps, in float64."""
    w, x = w.double(), x.double().flatten()
    room = torch.where(w > 0, 1 - x, x)
    size = w.abs()
    if norm == "Linf":
        return (size * room.clamp(max=eps)).sum()
    if norm == "L1":
        order = size.argsort(descending=True)
        way = room[order].cumsum(0).clamp(max=eps).diff(prepend=torch.zeros(1, dtype=w.dtype))
        return (size[order] * way).sum()
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        inside = torch.minimum(middle * size, room).norm() <= eps
        low, high = (middle, high) if inside else (low, middle)
    return (size * torch.minimum(low * size, room)).sum()


def optimum(model, x, y, eps, norm):
    """The largest margin over the classes, in the ball."""
    margins = []
    for t in range(len(model.weight)):
        if t != y:
            w = (model.weight[t] - model.weight[y]).detach()
            margins.append(float((w.double() * x.double().flatten()).sum() + gain(w, x, eps, norm)))
    return max(margins)


@pytest.mark.parametrize("norm", RADIUS)
@pytest.mark.parametrize("kind", ["PGD", "APGDT", "FAB"])
def test_success_is_that_of_the_closed_form(kind, norm):
    """Of a linear model the images that can be fooled are known."""
    model = Linear()
    x, y = labelled(model, 60)
    best = torch.tensor([optimum(model, x[i], y[i], RADIUS[norm], norm) for i in range(len(x))])
    options = {"loss": "margin", "restarts": 3} if kind == "PGD" else {}
    if kind == "PGD" and norm == "L1":
        options["alpha"] = RADIUS[norm] / 4
    made = KINDS[kind](model, norm, seed=0, **options).run(x, y)
    assert 5 < (best > 0).sum() < 58
    assert not made.success[best < 0].any()
    # In l1 and l2 plain steps may end at another class than the nearest.
    missed = (best > 0.05) & ~made.success
    assert missed.sum() <= {"Linf": 0, "L2": 2, "L1": 12}[norm] * (kind == "PGD")


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_margin_is_that_of_the_closed_form(norm):
    """With two classes the loss is linear, and PGD ends at its maximum."""
    model = Linear(classes=2)
    x, y = labelled(model, 20)
    eps = 0.01
    made = attacks.PGD(model, eps, steps=100, norm=norm, loss="margin", seed=0).run(x, y)
    best = torch.tensor([optimum(model, x[i], y[i], eps, norm) for i in range(len(x))])
    right = ~made.success
    assert right.sum() > 5
    reached, most = made.loss[right].double(), best[right].double()
    assert (reached <= most + 1e-5).all()
    torch.testing.assert_close(reached, most, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("kind", "norm"), EACH)
def test_ball_and_box_hold(kind, norm):
    model = Linear()
    x, y = labelled(model, 40)
    made = KINDS[kind](model, norm, seed=0).run(x, y)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    slack = 1 if norm == "Linf" else 1 + 1e-6
    assert made.distance.max() <= RADIUS[norm] * slack
    with torch.no_grad():
        wrong = model(made.images).argmax(1) != y
    assert torch.equal(made.success, wrong)
    assert made.success.any()


@pytest.mark.parametrize(("kind", "norm"), EACH)
def test_equal_bits_for_any_batch_and_order(kind, norm):
    model = Linear()
    x, y = labelled(model, 30)
    whole = KINDS[kind](model, norm, seed=3).run(x, y)
    for size in (1, 7):
        parts = KINDS[kind](model, norm, seed=3, batch_size=size).run(x, y)
        assert torch.equal(parts.images, whole.images)
        assert torch.equal(parts.success, whole.success)
        assert torch.equal(parts.steps, whole.steps)
        assert torch.equal(parts.queries, whole.queries)
    second = KINDS[kind](model, norm, seed=3).run(x[20:], y[20:], 20)
    assert torch.equal(second.images, whole.images[20:])
    even = KINDS[kind](model, norm, seed=3).run(x[::2], y[::2], 0, image_stride=2)
    assert torch.equal(even.images, whole.images[::2])


def test_restarts_go_on_where_an_image_is_right():
    model = Linear()
    x, y = labelled(model, 40)
    one = attacks.PGD(model, 0.02, steps=1, alpha=1e-4, seed=0).run(x, y)
    many = attacks.PGD(model, 0.02, steps=1, alpha=1e-4, seed=0, restarts=30).run(x, y)
    assert many.success.sum() > one.success.sum()
    assert torch.equal(many.images[one.success], one.images[one.success])
    assert set(many.queries[~many.success].tolist()) == {1 + 30 * 2}


def test_fooled_images_leave_and_batches_are_full():
    model = Linear()
    x, y = labelled(model, 64)
    attack = attacks.APGDT(model, 0.01, steps=20, seed=0, batch_size=16)
    made = attack.run(x, y)
    assert 0 < made.success.sum() < 64
    asked = [n for n in model.calls if n != 8]
    assert max(asked) == 16
    # All but the clean passes, the last one and the tail are full.
    assert sum(n == 16 for n in asked) > 0.9 * len(asked)
    alone = int(made.queries.sum())
    assert sum(model.calls) < alone + 16 * 21 + 3 * 64
    model.calls.clear()
    attacks.PGD(model, 0.5, steps=50, seed=0, batch_size=64).run(x, y)
    assert sum(model.calls) < 64 * 20


def test_what_is_wrong_already_is_left_alone():
    model = Linear()
    x, y = labelled(model, 8)
    y = (y + 1) % 5
    made = attacks.PGD(model, 0.1, seed=0).run(x, y)
    assert made.success.all()
    assert torch.equal(made.images, x)
    assert made.distance.max() == 0
    assert made.clean_accuracy == 0
    assert made.queries.tolist() == [1] * 8


def test_targeted():
    model = Linear()
    x, y = labelled(model, 30)
    target = (y + 1) % 5
    made = attacks.PGD(model, 0.2, steps=30, targeted=True, seed=0).run(x, target)
    with torch.no_grad():
        assert torch.equal(model(made.images).argmax(1) == target, made.success)
    assert made.success.sum() > 15


def test_modes_gradients_and_flags_are_as_found():
    model = conv_net().train()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    x, y = images(), torch.arange(12) % 5
    with pytest.warns(UserWarning, match="model: in training mode"):
        attacks.APGD(model, 0.05, steps=5, seed=0).run(x, y)
    assert [m.training for m in model.modules()] == modes
    assert not model[5].weight.requires_grad
    assert model[0].weight.requires_grad
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    attacks.adversarial_training_loss(model, x, y, attacks.PGD(model, 0.05))
    assert [m.training for m in model.modules()] == modes


def test_modes_are_put_back_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = nn.Sequential(Broken(), nn.BatchNorm2d(3)).train()
    with pytest.raises(RuntimeError, match="broken"), pytest.warns(match="in training mode"):
        attacks.PGD(model).run(images(2), torch.tensor([0, 1]))
    assert all(m.training for m in model.modules())


def test_a_model_that_changes_its_mode_is_refused():
    class Restless(Linear):
        def forward(self, x):
            self.train()
            return super().forward(x)

    model = Restless().eval()
    with pytest.raises(ValueError, match="model: goes into training mode"):
        attacks.PGD(model, seed=0).run(images(), torch.arange(12) % 5)
    assert not model.training


def test_masked_gradients_are_counted():
    model = Linear()

    def masked(x):
        return (model(x) * 1e3).softmax(1).round()

    x, y = labelled(model, 20)
    assert attacks.PGD(model, 0.05, seed=0).run(x, y).zero_gradients == 0
    assert attacks.PGD(masked, 0.05, seed=0, random_start=False).run(x, y).zero_gradients == 20
    assert attacks.Square(masked, 0.2, queries=200, seed=0).run(x, y).success.any()


def test_what_is_no_number_is_counted_and_no_success():
    def model(x):
        logits = x.flatten(1)[:, :3]
        return torch.where(x.flatten(1)[:, 5:6] > 0.5, torch.nan, logits)

    x, y = images(40), torch.zeros(40, dtype=torch.int64)
    with pytest.warns(UserWarning, match="model: gave logits that are no numbers"):
        made = attacks.PGD(model, 1e-4, seed=0).run(x, y)
    broken = x.flatten(1)[:, 5] > 0.501
    assert made.nan_logits >= int(broken.sum()) > 0
    assert not made.success[broken].any()

    def rooted(x):
        return (x.flatten(1)[:, :3] * 0).sqrt() + x.flatten(1)[:, :3].detach()

    with pytest.warns(UserWarning, match="model: gave gradients that are no numbers"):
        made = attacks.PGD(rooted, 1e-4, seed=0).run(x, rooted(x).argmax(1))
    assert made.nan_gradients == 40
    assert made.images.isfinite().all()


def test_a_random_model_is_noticed():
    class Noisy(Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(len(x), 5)

    x, y = images(), torch.arange(12) % 5
    with pytest.warns(UserWarning, match="model: two passes of the same images differ"):
        attacks.PGD(Noisy(), 0.05, seed=0).run(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = attacks.PGD(Noisy(), 1e-3, seed=0, eot=4).run(x, y)
    assert made.queries.max() == 1 + 4 * 11


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_autoattack_for_any_number_of_classes(classes):
    model = Linear(classes=classes)
    x, y = labelled(model, 16)
    attack = attacks.AutoAttack(model, eps=0.02, seed=0)
    attack.attacks["Square"].queries = 50
    result = attack.evaluate(x, y, bs=8)
    best = torch.tensor([optimum(model, x[i], y[i], 0.02, "Linf") for i in range(16)])
    assert torch.equal(result.attacked.success, best > 0)
    assert result.robust_accuracy == pytest.approx(float((best <= 0).double().mean()))
    assert str(result).count("\n") == 1 + len(result.lines)


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("standard", ["APGD-ce", "APGD-t", "FAB-t", "Square"]),
        ("plus", ["APGD-ce", "APGD-dlr", "FAB", "Square", "APGD-t", "FAB-t"]),
        ("rand", ["APGD-ce", "APGD-dlr"]),
    ],
)
def test_versions_of_autoattack(version, names):
    attack = attacks.AutoAttack(Linear(), "L1", version=version)
    assert list(attack.attacks) == names
    assert attack.attacks["APGD-ce"].larger_radii == (version != "rand")
    assert attack.attacks["APGD-ce"].eot == (20 if version == "rand" else 1)


def test_larger_radii_end_inside_the_ball():
    model = Linear()
    x, y = labelled(model, 40)
    made = attacks.APGD(model, 1.0, steps=40, norm="L1", larger_radii=True, seed=0).run(x, y)
    assert made.distance.max() <= 1 + 1e-6
    assert made.success.any()
    assert not made.success.all()


def test_images_of_a_grid_stay_on_it():
    model = Linear()
    x, y = labelled(model, 30)
    with pytest.raises(ValueError, match="images: got pixels that are not k / 255"):
        attacks.PGD(model, 8 / 255, grid=255).run(x, y)
    x = (x * 255).round() / 255
    for kind, eps in ((attacks.PGD, 8 / 255), (attacks.APGD, 8 / 255), (attacks.Square, 8 / 255)):
        made = kind(model, eps, grid=255, seed=0).run(x, y)
        assert torch.equal((made.images * 255).round() / 255, made.images)
        levels = (made.images * 255).round() - (x * 255).round()
        assert levels.abs().max() == 8
        assert made.success.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_ball_holds_in_any_dtype(dtype):
    model = Linear()
    x = images(20).to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    made = attacks.PGD(model, 8 / 255, seed=0).run(x, y)
    assert made.images.dtype == dtype
    assert made.distance.max() <= 8 / 255
    assert made.images.min() >= 0


def test_autocast_compiled_and_inference_mode():
    model = conv_net()
    x, y = images(), torch.arange(12) % 5
    expected = attacks.PGD(model, 0.05, seed=0).run(x, y)
    with torch.inference_mode():
        again = attacks.PGD(model, 0.05, seed=0).run(x.clone(), y.clone())
    assert torch.equal(again.images, expected.images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = attacks.PGD(model, 0.05, seed=0).run(x, y)
    assert made.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((12,), 5)}, "labels: got"),
        ({"labels": torch.full((12,), -1)}, "labels: got -1"),
        ({"images": images() * 2}, "images: got pixels from"),
        ({"images": images() - 1}, "images: got pixels from"),
        ({"images": images() * torch.nan}, "images: got pixels from nan"),
        ({"eps": 0.0}, "eps: got 0.0"),
        ({"eps": -1}, "eps: got -1"),
        ({"norm": "L3"}, "norm: got 'l3'"),
    ],
)
def test_bad_input(change, message):
    given = {"images": images(), "labels": torch.arange(12) % 5, "eps": 0.1, "norm": "linf"}
    given |= change
    with pytest.raises(ValueError, match=message):
        attacks.PGD(Linear(), given["eps"], norm=given["norm"]).run(
            given["images"], given["labels"]
        )


def test_no_image():
    made = attacks.APGD(Linear(), 0.1).run(
        torch.empty(0, 3, 4, 4), torch.empty(0, dtype=torch.int64)
    )
    assert len(made) == 0
