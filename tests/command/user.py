"""A user's module for ``robustcore certify``, and the command on it."""

from pathlib import Path

from robustcore.command.main import main

USER_MODULE = """
import numpy as np, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
    def forward(self, x):
        return x.flatten(1)[:, :3] * self.gain

def model():
    return Net()

def data():
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return [(image, int(image.flatten()[:3].argmax())) for image in images]

class Two(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2]

def two():
    return Two()

def levels():
    return [((image * 255).round() / 255, label) for image, label in data()]

def two_levels():
    return [(image, min(label, 1)) for image, label in levels()]

def sixteen_bits():
    return [((image * 65535).round() / 65535, label) for image, label in data()]

def black_at_first():
    return [(image * (i > 3), label) for i, (image, label) in enumerate(levels())]

def later_off_grid():
    return [pair if i == 4 else level for i, (pair, level) in enumerate(zip(data(), levels()))]

def arrays():
    return [(image.numpy(), np.int64(label)) for image, label in data()]

def bad_pixels():
    return [(image * float("nan") if i == 1 else image, y) for i, (image, y) in enumerate(data())]

def bytes_instead():
    return [((image * 255).byte(), y) for image, y in data()]

def flat():
    return [(image[0], y) for image, y in data()]

def vectors():
    return [(image.flatten().double(), y) for image, y in data()]

def minus_one():
    return [(image, -1) for image, _ in data()]

def three():
    return [(image, 3) for image, _ in data()]

def linear():
    return nn.Linear(7, 3)

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3, 4))
    def forward(self, x):
        return {"loss": None, "scores": x @ self.weight.T, "hidden": x}

def of_vectors():
    return Linear()

def scores(made):
    return made["scores"]

def half():
    return [(image.bfloat16(), y) for image, y in data()]

def wide():
    return [(image.double(), y) for image, y in data()]

def no_pairs():
    return [image for image, _ in data()]

def stream():
    return iter(data())

def function():
    return lambda x: x

def flat_logits():
    return nn.Flatten(0)

def broken():
    return 1 / 0

class broken_items:
    def __len__(self):
        return 6
    def __getitem__(self, i):
        return {}[i]

a_number = 7
"""


def arguments(
    *options, out="out.tsv", model="mine:model", data="mine:data", sigma="0.25", noise=None
):
    required = ["certify", "--model", model, "--data", data, "--out", out]
    required += ["--noise", noise] if noise else ["--sigma", sigma]
    return [*required, "--N", "200", "--N0", "20", "--device", "cpu", *options]


def certify(*options, **required):
    return main(arguments(*options, **required))


def rows(path):
    """The table without its times."""
    return [line.split("\t")[:5] for line in Path(path).read_text().splitlines()]
