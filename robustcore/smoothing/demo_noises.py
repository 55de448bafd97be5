"""``robustcore demo --noise NAME``: the digits by other distributions, and partition votes."""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from robustcore.common.digits import Digits, load_digits, one_thread
from robustcore.common.errors import UsageError
from robustcore.common.files import replacing
from robustcore.smoothing.augment import noise_augment
from robustcore.smoothing.certificates import Certificates
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.theory.ablations import BandAblation, BlockAblation, PixelAblation
from robustcore.smoothing.theory.distributions import (
    Distribution,
    Dual,
    Gaussian,
    Laplace,
    Splitting,
    Uniform,
)
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


def run(args: argparse.Namespace, settings: Any) -> None:
    """Trains, certifies, prints a table and writes it."""
    table = args.out / f"digits_{args.noise}.tsv"
    if table.exists() and not args.overwrite:
        raise UsageError(f"--out: {table} exists; add --overwrite")
    try:
        data = load_digits(settings.test_images)
    except ImportError as error:
        raise UsageError(f"{error} (pip install 'robustcore[demo]')") from error
    # The 17 grey levels as 8-bit ones, which exact certificates want.
    levels = [(part * 255).round() / 255 if part.is_floating_point() else part for part in data]
    data = Digits(*(part.to(args.device) for part in levels))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.noise == "dpa":
        partition_votes(data, settings.epochs, table, args.overwrite)
    else:
        noise, radii = NOISES[args.noise]
        certificates = certify_digits(data, noise, settings, args.seed)
        print(report(certificates, data.test_labels, noise, radii), flush=True)
        certificates.to_tsv(table, data.test_labels, overwrite=args.overwrite)
    print("wrote", table)


def certify_digits(data: Digits, noise: Distribution, settings: Any, seed: int) -> Certificates:
    """Certificates of the test images by a network trained on samples of the noise."""
    model = train(data, noise, settings.epochs, seed)
    smooth = Smooth(model, 10, noise=noise, seed=seed)
    certificates = smooth.certify(data.test_images, n=settings.n, progress=True)
    assert isinstance(certificates, Certificates)  # of a batch
    return certificates


def train(data: Digits, noise: Distribution, epochs: int, seed: int) -> nn.Module:
    """A small network trained on samples of the noise, in eval mode.

    torch's random state and number of threads are left as they were.
    """
    images, labels = data.train_images, data.train_labels
    channels, height, width = noise.output_shape(noise.views(images[:1])[0].shape[1:])
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(16 * (height // 2) * (width // 2), 32),
            nn.ReLU(inplace=True),
            nn.Linear(32, 10),
        ).to(images.device)
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=5e-3, epochs=epochs, steps_per_epoch=-(-len(images) // 64)
        )
        for _ in tqdm(
            range(epochs), desc=f"train with {type(noise).__name__}", unit="epoch", disable=None
        ):
            for batch in torch.randperm(len(images)).split(64):
                views = noise.views(images[batch])
                noisy = torch.cat([noise_augment(view, noise) for view in views])
                optimizer.zero_grad()
                cross_entropy(model(noisy), labels[batch].repeat(len(views))).backward()
                optimizer.step()
                schedule.step()
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
            _line(_UNITS[noise.norm], [f"{radius:g}" for radius in radii]),
            _line("certified accuracy", [f"{value:.1%}" for value in accuracy.tolist()]) + "\n",
        )
    )


def _line(name: str, values: list[str]) -> str:
    return f"  {name:<36}" + "".join(f"{value:>8}" for value in values)


def partition_votes(data: Digits, epochs: int, table: Any, overwrite: bool) -> None:
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
        + _line("poisoned training images", [str(m) for m in sizes])
        + "\n"
        + _line("certified accuracy", [f"{value:.1%}" for value in certified])
        + "\n",
        flush=True,
    )
    with replacing(table, overwrite) as temporary:
        lines = ["idx\tlabel\tpredict\tpoisoned\tcorrect\n"]
        rows = zip(
            data.test_labels.tolist(), certificate.prediction.tolist(), certificate.size.tolist(),
            strict=True,
        )  # fmt: skip
        for i, (label, prediction, size) in enumerate(rows):
            lines.append(f"{i}\t{label}\t{prediction}\t{size}\t{int(prediction == label)}\n")
        temporary.write_text("".join(lines), encoding="utf-8")


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
    with one_thread():
        for _ in tqdm(
            range(epochs), desc=f"train {PARTITIONS} learners", unit="step", disable=None
        ):
            logits = torch.einsum("nd,pdk->pnk", x, weight) + bias[:, None]
            losses = cross_entropy(
                logits.flatten(0, 1), y.repeat(PARTITIONS), reduction="none"
            ).view(PARTITIONS, -1)
            optimizer.zero_grad()
            (losses * member).sum().backward()
            optimizer.step()
    return weight.detach(), bias.detach()
