"""``robustcore demo --family density --spurious``: the groups that a coloured corner hurts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common import demo
from robustcore.common.plots import save
from robustcore.common.table import write_table
from robustcore.density.groups import GroupAccuracy, GroupDRO, core_accuracy, group_accuracy
from robustcore.density.penalties import marginal_density_penalty
from robustcore.density.plots import group_figure
from robustcore.density.spurious_digits import (
    GROUPS,
    Part,
    SpuriousDigits,
    corner_region,
    load_spurious_digits,
)

# Whether a training is Group DRO, and whether it has the density penalty.
TRAININGS = {
    "plain": (False, False),
    "density": (False, True),
    "group DRO": (True, False),
    "both": (True, True),
}
# A penalty's weight is that of these with the best worst group of the validation images.
WEIGHTS = (0.05, 0.1, 0.2, 0.4, 0.8)
# A faint corner takes a steep function to see, which the penalty forbids; of a strong one the
# corner is the flattest way to the training labels, and the penalty alone makes models lean on it.
CONTRASTS = (0.25, 1.0)
ETA = 0.1
BATCH = 128
COLUMNS = (
    "contrast", "training", "weight", "seed", "worst", "mean", "core",
    *(f"group_{g}" for g in range(len(GROUPS))),
)  # fmt: skip


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    validation_images: int
    test_images: int
    seeds: int
    weights: tuple[float, ...]


FULL = Settings(20, 300, 500, 5, WEIGHTS)
FAST = Settings(20, 300, 500, 2, WEIGHTS[2:3])


class Score(NamedTuple):
    """Of one model, over the test set."""

    worst: float
    mean: float
    core: float  # the accuracy with noise on the corner
    groups: list[float]


class Trained(NamedTuple):
    """One training's weight of the penalty, and its model from each seed."""

    weight: float
    models: list[nn.Module]


def run(args: argparse.Namespace) -> None:
    """Trains four ways at two contrasts; prints and writes a table, and a picture."""
    settings = FAST if args.fast else FULL
    seeds = range(args.seed, args.seed + settings.seeds)
    sizes = settings.validation_images, settings.test_images

    def load() -> dict[float, list[SpuriousDigits]]:
        return {c: [load_spurious_digits(*sizes, c, seed) for seed in seeds] for c in CONTRASTS}

    names = ["spuriousdigits.tsv", "spuriousdigits.png"]
    data, (table, picture) = demo.start(args, names, load)
    rows, shown = [], {}
    for contrast, sets in data.items():
        sets = [each.to(args.device) for each in sets]
        trained = train_all(sets, seeds, settings)
        scores = {
            name: [score(model, each.test) for model, each in zip(models, sets, strict=True)]
            for name, (_, models) in trained.items()
        }
        print(report(contrast, trained, scores, settings))
        shown[f"contrast {contrast:g}"] = {
            name: [value.worst for value in each] for name, each in scores.items()
        }
        rows += [
            (f"{contrast:g}", name, f"{trained[name].weight:g}", seed,
             *(f"{v:.6g}" for v in (value.worst, value.mean, value.core, *value.groups)))
            for name, each in scores.items()
            for seed, value in zip(seeds, each, strict=True)
        ]  # fmt: skip
    print(f"groups: {'; '.join(GROUPS)}. core: accuracy with noise on the corner.")
    write_table(table, COLUMNS, rows, args.overwrite)
    save(group_figure(shown), picture, args.overwrite)
    print("wrote", table, picture)


def train_all(
    sets: Sequence[SpuriousDigits], seeds: Sequence[int], settings: Settings
) -> dict[str, Trained]:
    """Each of the trainings, its penalty's weight chosen on the validation images."""
    trained = {}
    for name, (robust, penalised) in TRAININGS.items():
        best = -1.0
        for weight in settings.weights if penalised else (0.0,):
            models = [
                train(each.train, robust, weight, settings.epochs, seed, name)
                for each, seed in zip(sets, seeds, strict=True)
            ]
            worst = [accuracy(m, s.validation).worst for m, s in zip(models, sets, strict=True)]
            if sum(worst) / len(worst) > best:
                best = sum(worst) / len(worst)
                trained[name] = Trained(weight, models)
    return trained


def train(part: Part, robust: bool, weight: float, epochs: int, seed: int, name: str) -> nn.Module:
    """An MLP 192-128-128-2; torch's random state stays."""
    x, y, groups = part
    with demo.seeded(seed), demo.one_thread():
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
            nn.Linear(128, 2),
        ).to(x.device)  # fmt: skip
        dro = GroupDRO(len(GROUPS), ETA).to(x.device)

        def loss(batch: Tensor) -> Tensor:
            at = x[batch].requires_grad_(weight > 0)
            logits = model(at)
            each = cross_entropy(logits, y[batch], reduction="none")
            value: Tensor = dro(each, groups[batch]) if robust else each.mean()
            if weight > 0:
                value = value + weight * marginal_density_penalty(model, at, logits=logits)
            return value

        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0)
        steps = epochs * -(-len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        what = f"train {name} {weight:g}, seed {seed}"
        demo.fit(loss, len(x), epochs, optimizer, schedule, batch=BATCH, what=what)
    return model.eval().requires_grad_(False)


def accuracy(model: nn.Module, part: Part) -> GroupAccuracy:
    """By group."""
    predicted = model(part.images).argmax(1)
    return group_accuracy(predicted, part.labels, part.groups, num_groups=len(GROUPS))


def score(model: nn.Module, part: Part) -> Score:
    """What the table says of a model."""
    by_group = accuracy(model, part)
    core = core_accuracy(model, part.images, part.labels, corner_region().to(part.images.device))
    return Score(by_group.worst, by_group.mean, core, by_group.groups.tolist())


def report(
    contrast: float,
    trained: dict[str, Trained],
    scores: dict[str, list[Score]],
    settings: Settings,
) -> str:
    """The table of one contrast: means over seeds, with the range of the worst group."""
    text = [
        f"\nSpuriousDigits, a corner of contrast {contrast:g}: MLP, {settings.epochs} epochs, "
        f"{settings.test_images} test images, {settings.seeds} seeds",
        f"{'training':<12}{'weight':>7}{'worst group':>13}{'(range)':>18}{'mean':>8}{'core':>8}",
    ]
    for name, each in scores.items():
        worst = [s.worst for s in each]
        span = f"{min(worst):.1%} to {max(worst):.1%}"
        columns = worst, [s.mean for s in each], [s.core for s in each]
        means = [sum(column) / len(each) for column in columns]
        text.append(
            f"{name:<12}{trained[name].weight:>7g}{means[0]:>13.1%}{span:>18}"
            f"{means[1]:>8.1%}{means[2]:>8.1%}"
        )
    return "\n".join(text)
