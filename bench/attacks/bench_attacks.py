"""Whole attacks on the digits CNN of the demo: the engine's own cost, and torchattacks'.

The peers are timed where they are installed; robust accuracy is printed, or stands in the notes.
"""

import functools
import sys
import types
import warnings

import pytest
import torch

from robustcore import attacks
from robustcore.attacks import demo
from robustcore.common.digits import load_digits

pytest.importorskip("sklearn")
EPS = 0.1
WHOLE = 50  # images of AutoAttack, whose 5000 queries take their time


@functools.cache
def digits(kind):
    """The demo's CNN, trained to the end, and the images of its test that it classifies."""
    data = load_digits(demo.FULL.test_images)
    model = demo.train(data, kind, EPS, demo.FULL._replace(epochs=10), seed=0)
    with torch.no_grad():
        right = model(data.test_images).argmax(1) == data.test_labels
    return model, data.test_images[right], data.test_labels[right]


def peer(name):
    """The library, where torchvision, which it imports, can be imported or stood in for."""
    for op in () if torch.version.cuda else ("nms", "qnms"):  # compiled for a torch with CUDA
        if not hasattr(torch.ops.torchvision, op):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{op}", schema)
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def robust(model, made, y):
    with torch.no_grad():
        return f"{(model(made).argmax(1) == y).double().mean():.1%} robust"


def autoattack(impl, model, x, y):
    if impl == "robustcore":
        return attacks.AutoAttack(model, eps=EPS, seed=0).run_standard_evaluation(x, y)
    theirs = peer(impl).AutoAttack(model, eps=EPS, seed=0)
    for part in theirs._autoattack.attacks:  # by default it takes 10 steps of the published
        part.steps = 100
    return theirs(x, y)


@pytest.mark.parametrize("impl", ["robustcore", "torchattacks"])
def test_autoattack(impl, measure, device):
    model, x, y = digits("pgd")
    model, x, y = model.to(device), x[:WHOLE].to(device), y[:WHOLE].to(device)
    note = f"{robust(model, autoattack(impl, model, x, y), y)}"
    measure(
        f"AutoAttack, {WHOLE} digits, CNN trained by PGD",
        impl,
        lambda: autoattack(impl, model, x, y),
        rounds=1,
        warmups=0,
        note=note,
        against=in_turn(impl, lambda: autoattack("robustcore", model, x, y)),
        memory=False,
    )


def in_turn(impl, ours):
    return None if impl == "robustcore" else ("robustcore", ours)


STEPS = 100


def passes(model, x, y):
    """What APGD asks of the model, and nothing else."""
    for _ in range(STEPS):
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y), leaf)
    with torch.no_grad():
        model(x)


@pytest.mark.parametrize("impl", ["robustcore", "the model alone", "torchattacks", "adv-lib"])
def test_apgd_on_robust_images(impl, measure, device):
    """128 images that no step fools: the cost of the steps themselves."""
    apgd("pgd", 1e-4, f"APGD-{STEPS}, batch 128, none fooled", impl, measure, device)


@pytest.mark.parametrize("impl", ["robustcore", "torchattacks", "adv-lib"])
def test_apgd_on_half_robust_images(impl, measure, device):
    """Where half of the images are fooled at once, they leave the batch."""
    apgd("plain", 0.1, f"APGD-{STEPS}, batch 128, half fooled", impl, measure, device)


def apgd(kind, eps, group, impl, measure, device):
    model, x, y = digits(kind)
    model, x, y = model.to(device), x[:128].to(device), y[:128].to(device)
    fn, ours = (runner(i, model, x, y, eps) for i in (impl, "robustcore"))
    made = fn()
    note = "" if made is None else f"{robust(model, made, y)}"
    measure(group, impl, fn, note=note, against=in_turn(impl, ours), warmups=2)


def runner(impl, model, x, y, eps):
    if impl == "robustcore":
        return lambda: attacks.APGD(model, eps, STEPS, seed=0)(x, y)
    if impl == "the model alone":
        return lambda: passes(model, x, y)
    if impl == "torchattacks":
        return lambda: peer(impl).APGD(model, eps=eps, steps=STEPS)(x, y)
    library = peer("adv_lib.attacks")
    return lambda: library.apgd(model, x, y, eps=eps, norm=float("inf"), n_iter=STEPS)
