"""``robustcore demo --family attacks``: handwritten digits, trained plainly and against attacks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustcore.attacks.apgd import APGD
from robustcore.attacks.autoattack import AutoAttack
from robustcore.attacks.pgd import PGD
from robustcore.attacks.plots import AXES, draw_images, draw_sandwich
from robustcore.attacks.training import adversarial_training_loss
from robustcore.common import demo
from robustcore.common.demo import line
from robustcore.common.digits import Digits, load_digits
from robustcore.common.errors import UsageError
from robustcore.common.plots import new_figure, restrain, save
from robustcore.common.table import write_table

TRAININGS = ("plain", "pgd", "trades")
SMOOTHED, SIGMA = "pgd", 0.25  # the network that is certified too, and the noise in front of it


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    test_images: int
    steps: int
    radii: int
    samples: int


FULL = Settings(epochs=25, test_images=200, steps=7, radii=6, samples=5000)
FAST = Settings(epochs=4, test_images=30, steps=3, radii=3, samples=500)


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


class Sandwich(NamedTuple):
    """What is known of a smoothed network's robust accuracy within each l2 radius."""

    radii: Any
    certified: Any
    """It is at least this."""
    attacked: Any
    """And at most this."""


def run(args: argparse.Namespace, smooth: Callable[..., Any]) -> None:
    """Trains, attacks, prints tables, writes them and a picture.

    ``smooth(network, classes, sigma, seed=)`` is a smoothed classifier, that of another family.
    """
    settings = FAST if args.fast else FULL
    if not 0 < args.eps <= 1:
        raise UsageError(f"--eps: got {args.eps}, want a number in (0, 1]")
    names = ["digits_attacks.tsv", "digits_sandwich.tsv", "digits_attacks.png"]
    data, (table, bounds, picture) = demo.start(
        args, names, lambda: load_digits(settings.test_images)
    )
    data = data.to(args.device)
    radii = np.linspace(0, 2 * args.eps, settings.radii + 1)[1:]
    outcomes, networks = {}, {}
    with demo.one_thread():
        for kind in TRAININGS:
            networks[kind] = train(data, kind, args.eps, settings, args.seed)
            outcomes[kind] = attack(networks[kind], data, args.eps, radii, args.seed)
        print(report(outcomes, args.eps, settings), flush=True)
        classifier = smooth(networks[SMOOTHED], 10, SIGMA, seed=args.seed)
        found = both_bounds(classifier, data, settings, args.seed)
    print(report_bounds(found), flush=True)
    write_rows(table, outcomes, args.overwrite)
    rows = [tuple(f"{v:.4f}" for v in row) for row in zip(*found, strict=True)]
    write_table(bounds, ("radius", "certified", "attacked"), rows, args.overwrite)
    save(figure(outcomes, data, radii, args.eps, found), picture, args.overwrite)
    print("wrote", table, bounds, picture)


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


def both_bounds(smooth: Any, data: Digits, settings: Settings, seed: int) -> Sandwich:
    """Certified accuracy, and that under PGD through the noise, of the same images."""
    x, y = data.test_images, data.test_labels
    certificates = smooth.certify(x, n=settings.samples)
    radius = torch.where(certificates.prediction == y, certificates.radius, -1).cpu().numpy()
    radii = np.linspace(0, max(radius.max(), SIGMA), settings.radii + 1)
    predict = {"n": settings.samples}
    attacked = [float((smooth.predict(x, **predict).prediction == y).double().mean())]
    for eps in radii[1:].tolist():
        pgd = PGD(smooth, eps, norm="L2", steps=10, eot=16, seed=seed, predict=predict)
        attacked.append(min(attacked[-1], pgd.run(x, y).robust_accuracy))
    return Sandwich(radii, np.array([(radius >= r).mean() for r in radii]), np.array(attacked))


def report_bounds(found: Sandwich) -> str:
    """The second table that the demo prints."""
    head = f"the network trained by {SMOOTHED}, smoothed, sigma = {SIGMA:g}: accuracy, l2 radius"
    rows = {"certified": found.certified, "attacked": found.attacked}
    lines = [line(title, [f"{v:.1%}" for v in values], 9) for title, values in rows.items()]
    return "\n".join([head, line("radius", [f"{r:.2f}" for r in found.radii], 9), *lines]) + "\n"


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


def figure(
    outcomes: dict[str, Outcome], data: Digits, radii: Any, eps: float, found: Sandwich
) -> Any:
    """Accuracy under attack against radius, both bounds of one network, and digits of AutoAttack's.

    The digits are those that it made for the plain network.
    """
    whole = new_figure(10, 6.5)
    top, bottom = whole.subfigures(2, 1, height_ratios=(3, 2))  # type: ignore[misc]
    axes, beside = top.subplots(1, 2)
    draw_sandwich(beside, *found, "l2", found.radii[-1])
    beside.set_title(f"trained by {SMOOTHED}, smoothed, $\\sigma$ = {SIGMA:g}", fontsize="medium")
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
