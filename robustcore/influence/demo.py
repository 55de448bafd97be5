"""``robustcore demo --family influence``: the digits behind predictions, and wrong labels."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common import demo
from robustcore.common.digits import Digits, load_digits
from robustcore.common.plots import save
from robustcore.common.progress import on_terminal, steps
from robustcore.common.table import write_table
from robustcore.influence.evaluate import lds
from robustcore.influence.plots import influence_figure
from robustcore.influence.trak import TRAK

CLASSES = 10
WRONG = 0.02  # of the training labels
HALF = 0.5  # of the training images in a subset
COLUMNS = "idx", "label", "true_label", "self_influence"


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    checkpoints: int
    k: int
    retrainings: int
    test_images: int


FULL = Settings(12, 5, 512, 50, 200)
FAST = Settings(8, 2, 256, 8, 50)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo has no options beyond the common ones."""


def run(args: argparse.Namespace) -> None:
    """Finds wrong labels, and the digits behind predictions; prints, writes a table, a picture."""
    settings = FAST if args.fast else FULL
    names = ["influence.tsv", "influence.png"]
    digits, (table, picture) = demo.start(args, names, lambda: load_digits(settings.test_images))
    digits = digits.to(args.device)
    labels, wrong = with_wrong_labels(digits.train_labels, args.seed)
    everything = torch.arange(len(labels), device=args.device)
    models = [
        train(digits, labels, everything, settings.epochs, 1000 * args.seed + i)
        for i in steps(range(settings.checkpoints), "train", "model", shown=on_terminal())
    ]
    trak = TRAK(models[0], CLASSES, settings.k, args.seed)
    batches = list(zip(digits.train_images.split(256), labels.split(256), strict=True))
    trak.fit(batches, [model.state_dict() for model in models], progress=on_terminal())
    own = trak.self_influence().cpu()
    print(report_wrong(own, wrong.cpu(), models, digits))
    scores = trak.score(digits.test_images, digits.test_labels)
    print(report_lds(retrained_lds(scores, digits, labels, settings, args.seed), settings))
    rows = zip(labels.tolist(), digits.train_labels.tolist(), own.tolist(), strict=True)
    cells = [(i, given, true, f"{value:.6g}") for i, (given, true, value) in enumerate(rows)]
    write_table(table, COLUMNS, cells, args.overwrite)
    shown = chosen_tests(models[0], digits)
    x = digits.test_images[shown]
    predicted = models[0](x).argmax(1)
    figure = influence_figure(
        x.cpu(), predicted.cpu(), digits.train_images.cpu(), labels.cpu(),
        trak.top(x, 4, predicted), trak.top(x, 4, predicted, largest=False), wrong.cpu(),
    )  # fmt: skip
    save(figure, picture, args.overwrite)
    print("wrote", table, picture)


def network() -> nn.Module:
    """A small CNN for digits ``[B, 1, 8, 8]``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(digits: Digits, labels: Tensor, images: Tensor, epochs: int, seed: int) -> nn.Module:
    """The network, trained on the images of these indices; torch's random state stays."""
    with demo.seeded(seed), demo.one_thread():
        model = network().to(labels.device)
        optimizer, schedule = demo.one_cycle(model, len(images), epochs, 5e-3)
        x, y = digits.train_images[images], labels[images]

        def loss(chosen: Tensor) -> Tensor:
            return cross_entropy(model(x[chosen]), y[chosen])

        demo.fit(loss, len(images), epochs, optimizer, schedule)
    model.eval()
    return model


def with_wrong_labels(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of which a share is another class at random, and which these are, bool ``[N]``."""
    generator = torch.Generator().manual_seed(seed)
    count = round(WRONG * len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[:count].to(labels.device)
    shift = torch.randint(1, CLASSES, (count,), generator=generator).to(labels.device)
    wrong = torch.zeros_like(labels, dtype=torch.bool)
    wrong[chosen] = True
    given = labels.clone()
    given[chosen] = (labels[chosen] + shift) % CLASSES
    return given, wrong


@torch.no_grad()
def retrained_lds(
    scores: Tensor, digits: Digits, labels: Tensor, settings: Settings, seed: int
) -> Tensor:
    """The linear datamodeling score of each test digit, by trainings on random halves."""
    count = len(labels)
    subsets = torch.zeros(settings.retrainings, count, dtype=torch.bool)
    outputs = torch.zeros(settings.retrainings, len(digits.test_labels))
    classes = torch.arange(CLASSES, device=labels.device)
    label = classes == digits.test_labels[:, None]
    generator = torch.Generator().manual_seed(seed)
    for m in steps(range(settings.retrainings), "retrain", "model", shown=on_terminal()):
        images = torch.randperm(count, generator=generator)[: round(HALF * count)]
        subsets[m, images] = True
        with torch.enable_grad():
            model = train(digits, labels, images.to(labels.device), settings.epochs, seed + m)
        logits = model(digits.test_images)
        outputs[m] = logits[label] - logits.masked_fill(label, -torch.inf).logsumexp(1)
    return lds(scores, subsets, outputs)


@torch.no_grad()
def chosen_tests(model: nn.Module, digits: Digits) -> Tensor:
    """The four test digits whose predictions are the least sure."""
    sure: Tensor = model(digits.test_images).softmax(1).amax(1)
    return sure.argsort()[:4]


def report_wrong(own: Tensor, wrong: Tensor, models: list[nn.Module], digits: Digits) -> str:
    """How many of the largest self-influences are wrong labels, as many as there are of them."""
    count = int(wrong.sum())
    found = int(wrong[own.topk(count).indices].sum())
    with torch.no_grad():
        right = [m(digits.test_images).argmax(1) == digits.test_labels for m in models]
    accuracy = float(torch.stack(right).float().mean())
    lines = [
        f"\nDigits: {len(models)} CNNs on {len(wrong)} images, {count} of them with a wrong label; "
        f"test accuracy {accuracy:.1%}",
        demo.line("wrong labels among the largest", []),
        demo.line(f"  {count} self-influences", [f"{found}", f"{found / count:.1%}"]),
        demo.line(
            "  by chance", [f"{count * count / len(wrong):.1f}", f"{count / len(wrong):.1%}"]
        ),
    ]
    return "\n".join(lines)


def report_lds(each: Tensor, settings: Settings) -> str:
    """The mean over test digits, and its standard error."""
    known = each[~each.isnan()]
    error = float(known.std()) / max(1, len(known)) ** 0.5
    return (
        demo.line(
            f"LDS, {settings.retrainings} trainings on halves", [f"{float(known.mean()):.3f}"]
        )
        + f"  +- {error:.3f} over {len(known)} test digits (0: by chance)"
    )
