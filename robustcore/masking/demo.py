"""``robustcore demo --family masking``: digits explained by hiding patches, and masked accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common import demo
from robustcore.common.digits import Digits, load_digits
from robustcore.common.plots import save
from robustcore.common.progress import on_terminal
from robustcore.common.table import write_table
from robustcore.masking import plots
from robustcore.masking.curves import Curves, masked_accuracy_curve
from robustcore.masking.explain import explain_lime
from robustcore.masking.model import MaskedModel
from robustcore.masking.predictor import replaced

SCALE = 4  # digits of 8x8 are enlarged: a patch is one of their pixels
SHOWN = 5
COLUMNS = ("method", "hidden", "accuracy", "entropy_bits", "unchanged")


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    test_images: int
    samples: int


FULL = Settings(epochs=30, test_images=500, samples=1000)
FAST = Settings(epochs=8, test_images=200, samples=400)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo has no options beyond the common ones."""


def run(args: argparse.Namespace) -> None:
    """Trains a small CNN; prints and writes the masked-accuracy curves, and a picture."""
    settings = FAST if args.fast else FULL
    names = ["masked_digits.tsv", "masked_digits.png"]
    data, (table, picture) = demo.start(args, names, lambda: load_digits(settings.test_images))
    data = data.to(args.device)
    mean = float(data.train_images.mean())
    model = train(data, settings.epochs, args.seed)
    masked = MaskedModel(model, fold=True)
    images, labels = enlarge(data.test_images), data.test_labels
    curves = masked_accuracy_curve(
        masked,
        images,
        labels,
        block=SCALE,
        fills={"grey": replaced(model, 0.5), "mean of the data": replaced(model, mean)},
        batch_size=100,
        seed=args.seed,
        progress=on_terminal(),
    )
    print(report(curves, settings))
    rows = [explain(masked, image, settings.samples) for image in images[:SHOWN]]
    figure = plots.demo_figure(rows, labels[:SHOWN].tolist(), curves)
    write_table(table, COLUMNS, table_rows(curves), args.overwrite)
    save(figure, picture, args.overwrite)
    print("wrote", table, picture)


def enlarge(images: Tensor) -> Tensor:
    """``[B, 1, 8, 8]`` to ``[B, 1, 32, 32]``, bilinear."""
    return nn.functional.interpolate(images, scale_factor=SCALE, mode="bilinear")


def masking_cnn() -> nn.Sequential:
    """A small network for images ``[N, 1, 32, 32]``; logits ``[N, 10]``."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def train(data: Digits, epochs: int, seed: int) -> nn.Module:
    """A :func:`masking_cnn` in eval mode; torch's random state is left as it was."""
    images, labels = enlarge(data.train_images), data.train_labels
    with demo.seeded(seed):
        model = masking_cnn().to(images.device)

        def loss(batch: Tensor) -> Tensor:
            return cross_entropy(model(images[batch]), labels[batch])

        demo.fit(loss, len(images), epochs, torch.optim.Adam(model.parameters(), 3e-3))
    return model.eval().requires_grad_(False)


def explain(masked: MaskedModel, image: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image, which patches matter most to its class, and every patch's weight."""
    result = explain_lime(masked, image, SCALE, samples, batch_size=200, ridge=0.1)
    strongest = result.weights >= result.weights.quantile(2 / 3)
    return image.cpu(), strongest[result.segments], result.attribution


def table_rows(curves: Curves) -> Iterator[list[str]]:
    """One row a method and fraction."""
    for name in curves.accuracy:
        columns = (curves.accuracy[name], curves.entropy[name], curves.unchanged[name])
        for fraction, *values in zip(curves.x, *columns, strict=True):
            yield [name, f"{fraction:g}", *(f"{value:.6g}" for value in values)]


def report(curves: Curves, settings: Settings) -> str:
    """The table that the demo prints."""
    text = [
        f"\ndigits, {settings.test_images} test images: accuracy with part of the image hidden",
        f"{'hidden':<20}" + "".join(f"{fraction:>7.0%}" for fraction in curves.x) + f"{'mean':>8}",
    ]
    for name, values in curves.accuracy.items():
        mean = sum(values) / len(values)
        text.append(f"{name:<20}" + "".join(f"{v:>7.1%}" for v in values) + f"{mean:>8.1%}")
    return "\n".join(text) + "\n"
