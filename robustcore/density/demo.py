"""``robustcore demo --family density``: what three trainings make an MLP rely on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common import demo
from robustcore.common.plots import save
from robustcore.common.table import write_table
from robustcore.density import spurious_demo
from robustcore.density.blockdigits import BlockDigits, load_block_digits
from robustcore.density.evaluate import feature_leakage, integrated_gradients
from robustcore.density.penalties import input_gradient_penalty, marginal_density_penalty
from robustcore.density.plots import attribution_figure

PENALTIES: dict[str, Any] = {
    "standard": None,
    "input gradient": input_gradient_penalty,
    "density": marginal_density_penalty,
}
# A penalty's weight is the largest of these that costs no accuracy on the validation images, which
# neither training nor the table sees.
WEIGHTS = (0.1, 0.2, 0.4, 0.8, 1.6)
EPSILON = 0.1  # of PGD, l-infinity, pixels in [0, 1]
BATCH = 128
COLUMNS = (
    "training", "weight", "seed", "leakage", "leakage_share", "pgd20_accuracy", "accuracy",
)  # fmt: skip


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    validation_images: int
    test_images: int
    seeds: int
    weights: tuple[float, ...]


FULL = Settings(40, 300, 500, 3, WEIGHTS)
FAST = Settings(20, 300, 200, 1, WEIGHTS[1:4:2])


class Trained(NamedTuple):
    """One training's weight, and its model from each seed."""

    weight: float
    models: list[nn.Module]


class Score(NamedTuple):
    """Of one training, over the test set."""

    leakage: float
    share: float  # of the attribution's norm that is leakage
    robust: float
    accuracy: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--spurious``."""
    parser.add_argument(
        "--spurious", action="store_true",
        help="instead: digits with a coloured corner, and the groups that leaning on it hurts",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Trains three ways from each of a few seeds; prints and writes a table, and a picture."""
    if args.spurious:
        spurious_demo.run(args)
        return
    settings = FAST if args.fast else FULL
    names = ["blockdigits.tsv", "blockdigits.png"]
    seeds = range(args.seed, args.seed + settings.seeds)
    sizes = settings.validation_images, settings.test_images
    sets, (table, picture) = demo.start(
        args, names, lambda: [load_block_digits(*sizes, seed) for seed in seeds]
    )
    sets = [data.to(args.device) for data in sets]
    trained = train_all(sets, seeds, settings)
    scores = {
        name: [
            evaluate(model, data, seed)
            for model, data, seed in zip(models, sets, seeds, strict=True)
        ]
        for name, (_, models) in trained.items()
    }
    print(report({name: each.weight for name, each in trained.items()}, scores, settings))
    rows = [
        (name, f"{trained[name].weight:g}", seed, *(f"{value:.6g}" for value in score))
        for name, each in scores.items()
        for seed, score in zip(seeds, each, strict=True)
    ]
    write_table(table, COLUMNS, rows, args.overwrite)
    images, labels = sets[0].test_images[:8], sets[0].test_labels[:8]
    shown = [
        integrated_gradients(each.models[0], images, labels).cpu() for each in trained.values()
    ]
    save(attribution_figure(images.cpu(), list(trained), shown), picture, args.overwrite)
    print("wrote", table, picture)


def train_all(
    sets: Sequence[BlockDigits], seeds: Sequence[int], settings: Settings
) -> dict[str, Trained]:
    """Each of the trainings, its penalty's weight chosen on the validation images.

    If every weight costs accuracy, the smallest.
    """

    def train_seeds(name: str, weight: float) -> tuple[Trained, float]:
        models = [
            train(name, weight, data, settings.epochs, seed)
            for data, seed in zip(sets, seeds, strict=True)
        ]
        accuracy = [
            float(
                (model(data.validation_images).argmax(1) == data.validation_labels).double().mean()
            )
            for model, data in zip(models, sets, strict=True)
        ]
        return Trained(weight, models), sum(accuracy) / len(accuracy)

    trained: dict[str, Trained] = {}
    trained["standard"], to_reach = train_seeds("standard", 0.0)
    for name in PENALTIES:
        if name == "standard":
            continue
        for weight in settings.weights:
            candidate, accuracy = train_seeds(name, weight)
            if accuracy >= to_reach or name not in trained:
                trained[name] = candidate
    return trained


def train(name: str, weight: float, data: BlockDigits, epochs: int, seed: int) -> nn.Module:
    """An MLP 128-256-256-10, trained one of the three ways; torch's random state stays."""
    penalty = PENALTIES[name]
    images, labels = data.train_images, data.train_labels
    with demo.seeded(seed):
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        ).to(images.device)

        def loss(batch: Tensor) -> Tensor:
            x, y = images[batch].requires_grad_(penalty is not None), labels[batch]
            logits = model(x)
            value = cross_entropy(logits, y)
            if penalty is None:
                return value
            return value + weight * penalty(model, x, logits=logits, target=y)  # type: ignore[no-any-return]

        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        steps = epochs * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        what = f"train {name} {weight:g}, seed {seed}"
        demo.fit(loss, len(images), epochs, optimizer, schedule, batch=BATCH, what=what)
    return model.eval().requires_grad_(False)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int = 20, seed: int = 0
) -> Tensor:
    """Adversarial images by projected gradient ascent on the loss, l-infinity, from a random start.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(x.shape, generator=generator).to(x.device)
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    at = low + start * (high - low)
    for _ in range(steps):
        at = at.detach().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(model(at), y), at)
        at = (at.detach() + 2.5 * epsilon / steps * g.sign()).clamp(low, high)
    return at


def evaluate(model: nn.Module, data: BlockDigits, seed: int) -> Score:
    """Leakage of the test images into the null block, and accuracy under PGD-20 and without."""
    x, y = data.test_images, data.test_labels
    leakage = feature_leakage(model, x, data.null_region, y)
    whole = feature_leakage(model, x, torch.ones_like(data.null_region), y)
    robust = model(pgd(model, x, y, EPSILON, seed=seed)).argmax(1) == y
    accuracy = model(x).argmax(1) == y
    return Score(*(float(t.float().mean()) for t in (leakage, leakage / whole, robust, accuracy)))


def report(weights: dict[str, float], scores: dict[str, list[Score]], settings: Settings) -> str:
    """The table, means over seeds with the range of the leakage."""
    text = [
        f"\nBlockDigits: MLP, {settings.epochs} epochs, {settings.test_images} test images, "
        f"{settings.seeds} seed(s); PGD-20 with l-infinity {EPSILON:g}",
        f"{'training':<16}{'weight':>7}{'leakage':>9}{'(range)':>16}{'share':>8}{'PGD-20':>9}"
        f"{'accuracy':>10}",
    ]
    for name, each in scores.items():
        mean = Score(*(sum(column) / len(each) for column in zip(*each, strict=True)))
        leakages = [score.leakage for score in each]
        span = f"{min(leakages):.2f} to {max(leakages):.2f}"
        text.append(
            f"{name:<16}{weights[name]:>7g}{mean.leakage:>9.3f}{span:>16}{mean.share:>8.1%}"
            f"{mean.robust:>9.1%}{mean.accuracy:>10.1%}"
        )
    text.append(
        "leakage: l2 norm of the integrated gradients in the block without a digit; share: of "
        f"their whole norm; weight: the largest of {', '.join(f'{w:g}' for w in settings.weights)} "
        f"at no cost in accuracy on {settings.validation_images} validation images"
    )
    return "\n".join(text)
