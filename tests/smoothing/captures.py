"""Models that are captured or not, and runs with and without."""

import torch
from torch import nn

from robustcore.smoothing import Dual, Gaussian, Laplace, PixelAblation, Smooth, Splitting, Uniform
from testing import assert_same


class Calls:
    """Counts in a place that no fingerprint looks at."""

    __slots__ = ("number",)

    def __init__(self):
        self.number = 0


class Head(nn.Module):
    """A small convolutional net that counts how often its Python code runs."""

    def __init__(self, channels=2, num_classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.linear = nn.Linear(6, num_classes)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.temperature = 1.0
        self.calls = Calls()
        self.eval()

    def forward(self, x):
        self.calls.number += 1
        return self.linear(self.conv(x).relu().mean((2, 3))) / self.temperature


def assert_same_counts(got, expected):
    for field in ("counts0", "counts", "prediction", "radius"):
        assert_same(getattr(got, field), getattr(expected, field))


RUN = dict(n0=5, n=100, alpha=0.01, batch_size=10)


def certify(images, model, *, graph, image_offset=0, **options):
    run = RUN | {name: options.pop(name) for name in RUN if name in options}
    options = {"sigma": None if "noise" in options else 0.3, "seed": 7, **options}
    smooth = Smooth(model, 4, cuda_graph=graph, **options)
    return smooth.certify(images, **run, image_offset=image_offset)


NOISES = {
    "gaussian": Gaussian(0.3),
    "uniform": Uniform(0.5),
    "laplace": Laplace(0.2),
    "splitting": Splitting(0.4),
    "in turn": Splitting(0.2, derandomized=True),
    "pixels": PixelAblation(9, fill=0.5),
    "channels": PixelAblation(9, fill=(0.5, 0.25)),
    "null": PixelAblation(9),
    "dual": Dual(Gaussian(0.3)),
}


def hooked():
    model = Head()
    model.conv.register_forward_hook(lambda *_: None)
    return model


def function():
    model = Head()
    return lambda x: model(x)


SURPRISES = {"a hook": hooked, "a function": function}
