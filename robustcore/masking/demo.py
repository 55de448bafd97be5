"""``robustcore demo --family masking``: digits explained by hiding patches, and masked accuracy."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from robustcore.common.digits import Digits, load_digits
from robustcore.common.errors import UsageError
from robustcore.common.files import replacing
from robustcore.common.plots import require_matplotlib
from robustcore.masking import plots
from robustcore.masking.evaluate import Curves, masked_accuracy_curve, replaced
from robustcore.masking.explain import explain_lime
from robustcore.masking.model import MaskedModel

SCALE = 4  # digits of 8x8 are enlarged: a patch is one of their pixels
SHOWN = 5


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
    table, picture = args.out / "masked_digits.tsv", args.out / "masked_digits.png"
    for path in (table, picture):
        if path.exists() and not args.overwrite:
            raise UsageError(f"--out: {path} exists; add --overwrite")
    try:
        require_matplotlib()
        data = load_digits(settings.test_images)
    except ImportError as error:
        raise UsageError(f"{error} (pip install 'robustcore[demo]')") from error
    data = Digits(*(part.to(args.device) for part in data))
    args.out.mkdir(parents=True, exist_ok=True)
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
    )
    print(report(curves, settings))
    rows = [explain(masked, image, settings.samples) for image in images[:SHOWN]]
    figure = plots.demo_figure(rows, labels[:SHOWN].tolist(), curves)
    with replacing(table, args.overwrite) as temporary:
        temporary.write_text(tsv(curves), encoding="utf-8")
    with replacing(picture, args.overwrite) as temporary:
        figure.savefig(temporary, dpi=150)
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = masking_cnn().to(images.device)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in tqdm(range(epochs), desc="train", unit="epoch", disable=None):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


def explain(masked: MaskedModel, image: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image, which patches matter most to its class, and every patch's weight."""
    at = torch.arange(8).repeat_interleave(SCALE)
    result = explain_lime(masked, image, at[:, None] * 8 + at, samples, batch_size=200, ridge=0.1)
    strongest = result.weights >= result.weights.quantile(2 / 3)
    return image.cpu(), strongest[result.segments], result.attribution


def tsv(curves: Curves) -> str:
    """One row a method and fraction."""
    lines = ["method\thidden\taccuracy\tentropy_bits\tunchanged"]
    for name in curves.accuracy:
        columns = (curves.accuracy[name], curves.entropy[name], curves.unchanged[name])
        for fraction, *values in zip(curves.x, *columns, strict=True):
            lines.append("\t".join([name, f"{fraction:g}", *(f"{v:.6g}" for v in values)]))
    return "\n".join(lines) + "\n"


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
