"""``robustcore demo --family density``: what three trainings make an MLP rely on."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from robustcore.density.blockdigits import BlockDigits, load_block_digits
from robustcore.density.evaluate import feature_leakage, integrated_gradients
from robustcore.density.penalties import input_gradient_penalty, marginal_density_penalty
from robustcore.smoothing.results import replacing

# Weights at which both penalties cost about the same accuracy, a point at most: what they buy for
# it is then comparable.
TRAININGS: dict[str, tuple[Any, float]] = {
    "standard": (None, 0.0),
    "input gradient": (input_gradient_penalty, 0.6),
    "density": (marginal_density_penalty, 0.2),
}
EPSILON = 0.1  # of PGD, l-infinity, pixels in [0, 1]
BATCH = 128


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    test_images: int
    seeds: int


FULL = Settings(epochs=40, test_images=500, seeds=3)
FAST = Settings(epochs=20, test_images=200, seeds=1)


class Score(NamedTuple):
    """Of one training, over the test set."""

    leakage: float
    share: float  # of the attribution's norm that is leakage
    robust: float
    accuracy: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo has no options beyond the common ones."""


def run(args: argparse.Namespace) -> None:
    """Trains three ways from each of a few seeds; prints and writes a table, and a picture."""
    settings = FAST if args.fast else FULL
    table, picture = args.out / "blockdigits.tsv", args.out / "blockdigits.png"
    for path in (table, picture):
        if path.exists() and not args.overwrite:
            raise argparse.ArgumentError(None, f"--out: {path} exists; add --overwrite")
    try:
        from robustcore.density.plots import attribution_figure

        data = load_block_digits(settings.test_images)
    except ImportError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    args.out.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[Score]] = {name: [] for name in TRAININGS}
    shown: dict[str, Tensor] = {}
    lines = ["training\tweight\tseed\tleakage\tleakage_share\tpgd20_accuracy\taccuracy\n"]
    for seed in range(args.seed, args.seed + settings.seeds):
        data = BlockDigits(
            *(t.to(args.device) for t in load_block_digits(settings.test_images, seed))
        )
        for name, (_, weight) in TRAININGS.items():
            model = train(name, data, settings.epochs, seed)
            score = evaluate(model, data, seed)
            scores[name].append(score)
            values = "\t".join(f"{value:.6g}" for value in score)
            lines.append(f"{name}\t{weight:g}\t{seed}\t{values}\n")
            if seed == args.seed:
                images, labels = data.test_images[:8], data.test_labels[:8]
                shown[name] = integrated_gradients(model, images, labels).cpu()
    print(report(scores, settings))
    with replacing(table, args.overwrite) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    figure = attribution_figure(data.test_images[:8].cpu(), list(shown), list(shown.values()))
    with replacing(picture, args.overwrite) as temporary:
        figure.savefig(temporary, dpi=150)
    print("wrote", table, picture)


def train(name: str, data: BlockDigits, epochs: int, seed: int) -> nn.Module:
    """An MLP 128-256-256-10, trained one of the three ways; torch's random state stays."""
    penalty, weight = TRAININGS[name]
    images, labels = data.train_images, data.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        ).to(images.device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        steps = epochs * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in tqdm(range(epochs), desc=f"train {name}, seed {seed}", unit="epoch"):
            for batch in torch.randperm(len(images)).split(BATCH):
                x, y = images[batch].requires_grad_(penalty is not None), labels[batch]
                logits = model(x)
                loss = cross_entropy(logits, y)
                if penalty is not None:
                    loss = loss + weight * penalty(model, x, logits=logits, target=y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
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


def report(scores: dict[str, list[Score]], settings: Settings) -> str:
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
            f"{name:<16}{TRAININGS[name][1]:>7g}{mean.leakage:>9.3f}{span:>16}{mean.share:>8.1%}"
            f"{mean.robust:>9.1%}{mean.accuracy:>10.1%}"
        )
    text.append(
        "leakage: l2 norm of the integrated gradients in the block without a digit; share: of "
        "their whole norm"
    )
    return "\n".join(text)
