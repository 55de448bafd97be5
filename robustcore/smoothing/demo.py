"""``robustcore demo``: handwritten digits, from training with noise to certificates."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustcore.common import demo
from robustcore.common.demo import line, percent
from robustcore.common.digits import Digits, load_digits
from robustcore.common.errors import UsageError
from robustcore.common.plots import save
from robustcore.common.progress import on_terminal
from robustcore.common.table import ABSTAIN
from robustcore.smoothing import demo_noises, demo_training, plots
from robustcore.smoothing.certificates import Certificates
from robustcore.smoothing.smooth import Smooth

RADII = (0.0, 0.25, 0.5, 0.75)
NOISES = ("gaussian", *demo_noises.NOISES, "dpa")
SIGMA = 0.25


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    test_images: int
    n: int


FULL = Settings(epochs=200, test_images=500, n=10_000)
FAST = Settings(epochs=30, test_images=100, n=1_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only this family's demo has."""
    add = parser.add_argument
    add("--sigma", type=float, nargs="+", help=f"noise levels, one model each ({SIGMA})")
    add(
        "--noise",
        choices=NOISES,
        default="gaussian",
        help="what to smooth by, or dpa: a vote of 50 partitions (%(default)s)",
    )
    add(
        "--train",
        choices=demo_training.METHODS,
        nargs="+",
        help="how to train for Gaussian noise, one model each (gaussian)",
    )


def run(args: argparse.Namespace) -> None:
    """Trains, certifies, prints a table a noise level, writes tables and a picture."""
    settings = FAST if args.fast else FULL
    if args.noise != "gaussian":
        if args.sigma is not None:
            raise UsageError(f"--sigma: --noise {args.noise} has none")
        if args.train is not None:
            raise UsageError(f"--train: --noise {args.noise} has none")
        demo_noises.run(args, settings.epochs, settings.test_images, settings.n)
        return
    sigmas = args.sigma or [SIGMA]
    for sigma in sigmas:
        if not 0 < sigma < float("inf"):
            raise UsageError(f"--sigma: got {sigma}, want a number above 0")
    jobs = [(method, sigma) for method in args.train or ["gaussian"] for sigma in sigmas]
    jobs = list(dict.fromkeys(jobs))
    names = [
        f"digits_{'' if method == 'gaussian' else method + '_'}sigma{sigma:g}.tsv"
        for method, sigma in jobs
    ]
    data, paths = demo.start(
        args, [*names, "digits.png"], lambda: load_digits(settings.test_images)
    )
    data = data.to(args.device)
    runs, radii = [], {}
    for (method, sigma), table in zip(jobs, paths, strict=False):
        certificates, clean = certify_digits(data, sigma, settings, args.seed, method)
        print(report(certificates, data.test_labels, clean, method), flush=True)
        certificates.to_tsv(table, data.test_labels, overwrite=args.overwrite)
        runs.append(certificates)
        radii[method, sigma] = certificates.average_certified_radius(data.test_labels)
    if args.train is not None:
        print(demo_training.table(radii, sigmas), flush=True)
    trained = [f"{method}, " if args.train else "" for method, _ in jobs]
    picture = plots.demo_figure(runs, data.test_images, data.test_labels, trained)
    save(picture, paths[-1], args.overwrite)
    print("wrote", *paths)


def digits_cnn() -> nn.Sequential:
    """A small network for images ``[N, 1, 8, 8]``; logits ``[N, 10]``."""
    # Every layer is as small as the accuracy allows: certification is 10 000 calls an image.
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=4, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, 32),
        nn.ReLU(inplace=True),
        nn.Linear(32, 10),
    )


def train(
    data: Digits, sigma: float, epochs: int, seed: int, method: str = "gaussian"
) -> tuple[nn.Module, float, float]:
    """A :func:`digits_cnn` trained on noisy digits, in eval mode, and the mean and std it expects.

    torch's random state and number of threads are left as they were.
    """
    images, labels = data.train_images, data.train_labels
    mean, std = float(images.mean()), float(images.std())
    with demo.seeded(seed), demo.one_thread():
        model = digits_cnn().to(images.device)

        loss = demo_training.loss_of(method, model, sigma, mean, std)
        rate = demo.one_cycle(model, len(images), epochs, max_lr=5e-3)
        what = f"{'train' if method == 'gaussian' else method} with sigma {sigma:g}"
        demo.fit(lambda b: loss(images[b], labels[b]), len(images), epochs, *rate, what=what)
    return model.eval(), mean, std


def certify_digits(
    data: Digits, sigma: float, settings: Settings, seed: int, method: str = "gaussian"
) -> tuple[Certificates, float]:
    """Certificates of the test images and the base classifier's accuracy without noise."""
    model, mean, std = train(data, sigma, settings.epochs, seed, method)
    images = data.eight_bit().test_images
    with torch.inference_mode():
        clean = model((images - mean) / std).argmax(1) == data.test_labels
    smooth = Smooth(model, 10, sigma, grid=255, seed=seed, mean=mean, std=std)
    certificates = smooth.certify(images, n=settings.n, progress=on_terminal())
    assert isinstance(certificates, Certificates)  # of a batch
    return certificates, float(clean.double().mean())


def report(
    certificates: Certificates, labels: Tensor, clean: float, method: str = "gaussian"
) -> str:
    """The table that the demo prints."""
    images, n = len(certificates), certificates.n
    accuracy = certificates.certified_accuracy(labels, RADII)
    lower = certificates.certified_accuracy_lower(labels, RADII).clamp(min=0)
    abstained = int((certificates.prediction == ABSTAIN).sum())
    trained = "" if method == "gaussian" else f"{method} training, "
    speed = images * (certificates.n0 + n) / float(certificates.seconds.sum())

    return "\n".join(
        (
            f"\ndigits, {trained}sigma {certificates.sigma:g}: {images} test images, "
            f"n = {n:,} samples each, alpha = {certificates.alpha:g}",
            line("l2 radius", [f"{radius:.2f}" for radius in RADII]),
            line("certified accuracy", percent(accuracy)),
            line("at least, with 99.9 % confidence", percent(lower)),
            line("accuracy without noise or smoothing", [f"{clean:.1%}"]),
            line(
                "average certified radius", [f"{certificates.average_certified_radius(labels):.3f}"]
            ),
            line("abstained", [f"{abstained}"]),
            line("noisy images a second", [f"{speed:,.0f}"]) + "\n",
        )
    )
