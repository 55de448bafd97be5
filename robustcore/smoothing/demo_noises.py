"""``robustcore demo --noise NAME``: the digits by other distributions, and partition votes."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common import demo
from robustcore.common.demo import line, percent
from robustcore.common.digits import Digits, load_digits
from robustcore.common.progress import on_terminal, steps
from robustcore.common.table import write_table
from robustcore.smoothing.augment import noise_augment
from robustcore.smoothing.certificates import Certificates
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.theory.ablations import BandAblation, BlockAblation, PixelAblation
from robustcore.smoothing.theory.distributions import (
    Distribution,
    Gaussian,
    Laplace,
    Splitting,
    Uniform,
)
from robustcore.smoothing.theory.dual import Dual
from robustcore.smoothing.theory.votes import dpa_certificate

# Each distribution for images of 8 x 8, and the radii of its table.
NOISES: dict[str, tuple[Distribution, tuple[float, ...]]] = {
    "uniform": (Uniform(0.5), (0.0, 0.1, 0.25, 0.4)),
    "laplace": (Laplace(0.2), (0.0, 0.25, 0.5, 0.75)),
    "splitting": (Splitting(0.75), (0.0, 0.25, 0.5, 0.7)),
    "splitting-derandomized": (Splitting(0.75, derandomized=True), (0.0, 0.25, 0.5, 0.7)),
    "pixels": (PixelAblation(16), (0, 1, 2, 3)),
    "band": (BandAblation(3), (0, 1, 2)),
    "block": (BlockAblation(4), (0, 1, 2)),
    "dual": (Dual(Gaussian(0.25)), (0.0, 0.25, 0.5, 0.75)),
}
PARTITIONS = 50
_UNITS = {
    "l1": "l1 radius",
    "l2": "l2 radius",
    "linf": "linf radius",
    "l0": "pixels changed",
    "patch": "side of a patch",
}


def run(args: argparse.Namespace, epochs: int, test_images: int, n: int) -> None:
    """Trains, certifies, prints a table and writes it."""
    name = f"digits_{args.noise}.tsv"
    data, (table,) = demo.start(args, [name], lambda: load_digits(test_images))
    data = data.eight_bit().to(args.device)
    if args.noise == "dpa":
        partition_votes(data, epochs, table, args.overwrite)
    else:
        noise, radii = NOISES[args.noise]
        smooth = Smooth(train(data, noise, epochs, args.seed), 10, noise=noise, seed=args.seed)
        certificates = smooth.certify(data.test_images, n=n, progress=on_terminal())
        assert isinstance(certificates, Certificates)  # of a batch
        print(report(certificates, data.test_labels, noise, radii), flush=True)
        certificates.to_tsv(table, data.test_labels, overwrite=args.overwrite)
    print("wrote", table)


def train(data: Digits, noise: Distribution, epochs: int, seed: int) -> nn.Module:
    """A small network trained on samples of the noise, in eval mode.

    torch's random state and number of threads are left as they were.
    """
    images, labels = data.train_images, data.train_labels
    channels, height, width = noise.output_shape(noise.views(images[:1])[0].shape[1:])
    with demo.seeded(seed), demo.one_thread():
        model = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(16 * (height // 2) * (width // 2), 32),
            nn.ReLU(inplace=True),
            nn.Linear(32, 10),
        ).to(images.device)

        def loss(batch: Tensor) -> Tensor:
            views = noise.views(images[batch])
            noisy = torch.cat([noise_augment(view, noise) for view in views])
            return cross_entropy(model(noisy), labels[batch].repeat(len(views)))

        rate = demo.one_cycle(model, len(images), epochs, max_lr=5e-3)
        demo.fit(loss, len(images), epochs, *rate, what=f"train with {type(noise).__name__}")
    return model.eval()


def report(
    certificates: Certificates, labels: Tensor, noise: Distribution, radii: tuple[float, ...]
) -> str:
    """The table that the demo prints."""
    accuracy = certificates.certified_accuracy(labels, radii)
    sure = "with certainty" if noise.deterministic else f"alpha = {certificates.alpha:g}"
    return "\n".join(
        (
            f"\ndigits, {noise}: {len(certificates)} test images, "
            f"n = {certificates.n:,} samples each, {sure}",
            line(_UNITS[noise.norm], [f"{radius:g}" for radius in radii]),
            line("certified accuracy", percent(accuracy)) + "\n",
        )
    )


def partition_votes(data: Digits, epochs: int, table: Path, overwrite: bool) -> None:
    """Deep partition aggregation: a sample's hash picks the one learner that is trained on it."""
    models = train_partitions(data, epochs)
    features = data.test_images.flatten(1)
    votes = torch.einsum("nd,pdk->npk", features, models[0]) + models[1]
    counts = nn.functional.one_hot(votes.argmax(2), 10).sum(1)
    certificate = dpa_certificate(counts)
    correct = certificate.prediction == data.test_labels.cpu()
    sizes = (0, 2, 5, 10, 15)
    certified = [float((correct & (certificate.size >= m)).double().mean()) for m in sizes]
    print(
        f"\ndigits, {PARTITIONS} partitions of {len(data.train_labels)} training images: "
        f"{len(features)} test images, with certainty\n"
        + line("poisoned training images", [str(m) for m in sizes])
        + "\n"
        + line("certified accuracy", [f"{value:.1%}" for value in certified])
        + "\n",
        flush=True,
    )
    rows = zip(
        range(len(features)), data.test_labels.tolist(), certificate.prediction.tolist(),
        certificate.size.tolist(), correct.long().tolist(), strict=True,
    )  # fmt: skip
    write_table(table, ("idx", "label", "predict", "poisoned", "correct"), rows, overwrite)


def train_partitions(data: Digits, epochs: int) -> tuple[Tensor, Tensor]:
    """Weights ``[P, 64, 10]`` and biases ``[P, 10]`` of linear learners.

    A learner depends on its own part alone: it starts at zero and sees all of it at every step.
    """
    x, y = data.train_images.flatten(1), data.train_labels
    digests = (hashlib.sha256(row.cpu().numpy().tobytes()).digest() for row in x)
    part = torch.tensor([int.from_bytes(digest[:8], "big") % PARTITIONS for digest in digests])
    # Every learner's loss is the mean over its part; the sum of the losses trains each alone.
    member = nn.functional.one_hot(part, PARTITIONS).T.to(x)
    member = member / member.sum(1, keepdim=True).clamp(min=1)
    weight = torch.zeros(PARTITIONS, x.shape[1], 10, device=x.device, requires_grad=True)
    bias = torch.zeros(PARTITIONS, 10, device=x.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1.0)
    what = f"train {PARTITIONS} learners"
    with demo.one_thread():
        for _ in steps(range(epochs), what, "step", shown=on_terminal()):
            logits = torch.einsum("nd,pdk->pnk", x, weight) + bias[:, None]
            losses = cross_entropy(
                logits.flatten(0, 1), y.repeat(PARTITIONS), reduction="none"
            ).view(PARTITIONS, -1)
            optimizer.zero_grad()
            (losses * member).sum().backward()
            optimizer.step()
    return weight.detach(), bias.detach()
