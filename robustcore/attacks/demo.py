"""``robustcore demo --family attacks``: handwritten digits, trained plainly and against attacks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustcore.attacks.apgd import APGD
from robustcore.attacks.autoattack import AutoAttack
from robustcore.attacks.pgd import PGD
from robustcore.attacks.plots import AXES, draw_images
from robustcore.attacks.training import adversarial_training_loss
from robustcore.common import demo
from robustcore.common.demo import line
from robustcore.common.digits import Digits, load_digits
from robustcore.common.errors import UsageError
from robustcore.common.plots import new_figure, restrain, save
from robustcore.common.table import write_table

TRAININGS = ("plain", "pgd", "trades")


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    test_images: int
    steps: int
    radii: int


FULL = Settings(epochs=25, test_images=200, steps=7, radii=6)
FAST = Settings(epochs=4, test_images=30, steps=3, radii=3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only this family's demo has."""
    parser.add_argument(
        "--eps", type=float, default=0.1, help="radius in linf, pixels in [0, 1] (%(default)s)"
    )


class Outcome(NamedTuple):
    """What became of one network."""

    clean: float
    pgd: float
    auto: float
    curve: list[float]
    """Accuracy under APGD at each radius."""
    images: Tensor


def run(args: argparse.Namespace) -> None:
    """Trains, attacks, prints a table, writes a table and a picture."""
    settings = FAST if args.fast else FULL
    if not 0 < args.eps <= 1:
        raise UsageError(f"--eps: got {args.eps}, want a number in (0, 1]")
    names = ["digits_attacks.tsv", "digits_attacks.png"]
    data, (table, picture) = demo.start(args, names, lambda: load_digits(settings.test_images))
    data = data.to(args.device)
    radii = np.linspace(0, 2 * args.eps, settings.radii + 1)[1:]
    outcomes = {}
    for kind in TRAININGS:
        with demo.one_thread():
            model = train(data, kind, args.eps, settings, args.seed)
        outcomes[kind] = attack(model, data, args.eps, radii, args.seed)
    print(report(outcomes, args.eps, settings), flush=True)
    write_rows(table, outcomes, args.overwrite)
    save(figure(outcomes, data, radii, args.eps), picture, args.overwrite)
    print("wrote", table, picture)


def digits_net() -> nn.Sequential:
    """A small CNN for images ``[N, 1, 8, 8]``; logits ``[N, 10]``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train(data: Digits, kind: str, eps: float, settings: Settings, seed: int) -> nn.Sequential:
    """A :func:`digits_net`, in eval mode. torch's random state is left as it was."""
    images, labels = data.train_images, data.train_labels
    with demo.seeded(seed):
        model = digits_net().to(images.device)
        pgd = PGD(model, eps, steps=settings.steps)

        def loss(batch: Tensor) -> Tensor:
            x, y = images[batch], labels[batch]
            if kind == "plain":
                return functional.cross_entropy(model(x), y)
            return adversarial_training_loss(model, x, y, pgd, kind)

        rate = demo.one_cycle(model, len(images), settings.epochs, max_lr=5e-3)
        demo.fit(loss, len(images), settings.epochs, *rate, what=f"train, {kind}")
    return model.eval()


def attack(model: nn.Module, data: Digits, eps: float, radii: Any, seed: int) -> Outcome:
    """Clean accuracy, that under PGD-20 and AutoAttack, and the curve of APGD."""
    x, y = data.test_images, data.test_labels
    pgd = PGD(model, eps, steps=20, seed=seed).run(x, y)
    auto = AutoAttack(model, eps=eps, seed=seed).evaluate(x, y)
    curve = [
        APGD(model, float(radius), steps=50, loss="dlr", seed=seed).run(x, y).robust_accuracy
        for radius in radii
    ]
    return Outcome(
        auto.clean_accuracy, pgd.robust_accuracy, auto.robust_accuracy, curve, auto.attacked.images
    )


def report(outcomes: dict[str, Outcome], eps: float, settings: Settings) -> str:
    """The table that the demo prints."""
    columns = {"clean": "clean", "PGD-20": "pgd", "AutoAttack": "auto"}
    rows = [
        line(title, [f"{getattr(outcomes[kind], name):.1%}" for kind in TRAININGS], 9)
        for title, name in columns.items()
    ]
    head = f"\ndigits: accuracy of {settings.test_images} test images, linf eps = {eps:g}"
    return "\n".join([head, line("trained", TRAININGS, 9), *rows]) + "\n"


def write_rows(path: Path, outcomes: dict[str, Outcome], overwrite: bool) -> None:
    """One row a training: clean, PGD-20 and AutoAttack accuracy."""
    rows = [(k, *(f"{v:.4f}" for v in outcomes[k][:3])) for k in TRAININGS]
    write_table(path, ("training", "clean", "pgd20", "autoattack"), rows, overwrite)


def figure(outcomes: dict[str, Outcome], data: Digits, radii: Any, eps: float) -> Any:
    """Accuracy under attack against radius, and digits that AutoAttack made of the plain net's."""
    whole = new_figure(8, 6.5)
    top, bottom = whole.subfigures(2, 1, height_ratios=(3, 2))  # type: ignore[misc]
    axes = top.subplots()
    for number, (kind, outcome) in enumerate(outcomes.items()):
        axes.plot(
            [0, *radii], [outcome.clean, *outcome.curve], lw=2, color=f"C{number}", label=kind
        )
        axes.plot(eps, outcome.auto, "o", color=f"C{number}")
    axes.set(ylim=(0, 1.02), xlabel=AXES["linf"], ylabel="accuracy under APGD")
    restrain(axes)
    axes.legend(frameon=False, title="dots: AutoAttack", title_fontsize="small")
    made = outcomes["plain"].images
    chosen = [i for i in range(len(made)) if not torch.equal(made[i], data.test_images[i])][:8]
    chosen = chosen if len(chosen) == 8 else list(range(min(8, len(made))))
    titles = [f"a {int(data.test_labels[i])}" for i in chosen]
    draw_images(bottom, data.test_images[chosen], made[chosen], titles)
    return whole
