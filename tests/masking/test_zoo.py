"""The facts that hold exactly, on torchvision's and timm's networks where they are installed."""

import pytest
import torch
from torch import nn

from masking import nets, zoo
from masking.reference import Published
from robustcore.masking import MaskedModel
from testing import assert_same

NETWORKS = [("torchvision", name) for name in zoo.TORCHVISION] + [("timm", n) for n in zoo.TIMM]
# The most fills and multiplications that a network's plan may need.
PLANS = {
    "resnet18": (12, 2), "resnet34": (20, 2), "resnet50": (17, 2), "wide_resnet50_2": (17, 2),
    "resnext50_32x4d": (17, 2), "vgg16_bn": (13, 7), "alexnet": (5, 5), "squeezenet1_1": (9, 12),
    "densenet121": (59, 191), "efficientnet_b0": (17, 17), "mobilenet_v2": (18, 1),
    "mobilenet_v3_large": (16, 9), "convnext_tiny": (22, 1),
}  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_a_network(library, name):
    model = zoo.build(library, name)
    size = 96 if name in ("alexnet", "vgg16_bn") else 64
    x = nets.image(2, size, dtype=torch.float32)
    mask = nets.blocks(2, size, dtype=torch.float32, seed=3)
    masked = MaskedModel(model)
    with torch.no_grad():
        want = model(x)
        assert_same(masked(x), want)
        assert_same(masked(x, torch.ones(1, 1, size, size)), want)
        got = masked(x, mask)
        assert_same(masked(torch.where(mask > 0, x, float("nan")), mask), got)
        assert got.isfinite().all()
        assert (got - want).abs().max() > 0
        nothing = masked(x, torch.zeros(1, 1, size, size))
        last = [m for m in model.modules() if isinstance(m, nn.Linear)]
        assert_same(nothing, (last[-1].bias if last else torch.zeros(1000)).expand(2, -1).clone())
        folded = MaskedModel(model, fold=True)
        for m, expected in ((mask, got), (None, want)):
            error = (folded(x, m) - expected).abs().max()
            assert error <= 1e-5 * expected.abs().max()
    fills, multiplications = counts(masked.plan())
    assert fills <= PLANS[name][0]
    assert multiplications <= PLANS[name][1]


def counts(plan):
    steps = plan.steps.values()
    return sum(len(s.fills) for s in steps), sum(len(s.clean) for s in steps)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_equals_the_published_rules(name):
    model = nets.randomized(zoo.build("torchvision", name))
    x, mask = nets.image(2, 96), nets.blocks(2, 96, share=0.3)
    with torch.no_grad():
        want = Published(model)(x, mask)
        got = MaskedModel(model)(x, mask)
        assert (got - want).abs().max() < 1e-9 * want.abs().max()


def test_the_masks_of_a_resnet50_have_closed_form():
    plan = MaskedModel(zoo.build("torchvision", "resnet50"), torch.zeros(1, 3, 224, 224)).plan()
    fills = [n for step in plan.steps.values() for n in step.fills.values()]
    assert fills == [6] + [1] * 16
    assert counts(plan) == PLANS["resnet50"]
    windows = [str(m.params) for m in plan.masks[1:-1]]
    assert windows == ["7, stride 2", "3, stride 2"] + ["1, stride 2"] * 3


def test_the_calls_of_a_resnet50():
    """As many convolutions as the plain network, and few calls more."""
    model = zoo.build("torchvision", "resnet50")
    masked, x, mask = MaskedModel(model), nets.image(1, 64, dtype=torch.float32), nets.blocks(1, 64)

    def calls(f):
        with torch.no_grad(), torch.profiler.profile() as profile:
            f()
        return [e.name for e in profile.events() if e.cpu_parent is None]

    masked(x, mask.float())  # the trace is no call of the network
    plain, ours = calls(lambda: model(x)), calls(lambda: masked(x, mask.float()))
    assert ours.count("aten::conv2d") == plain.count("aten::conv2d") == 53
    assert len(ours) < 1.35 * len(plain)
