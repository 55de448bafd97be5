"""``robustcore demo --family lipschitz``: handwritten digits, from training to certificates."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from robustcore.common.digits import Digits, load_digits
from robustcore.common.errors import UsageError
from robustcore.common.files import replacing
from robustcore.common.plots import require_matplotlib, save
from robustcore.common.table import HEADER, format_row
from robustcore.lipschitz.certificates import (
    Certificate,
    certificate_loss,
    certify,
    margin_certificate,
)
from robustcore.lipschitz.networks import LipConvNet

RADII = (0.0, 36 / 255, 72 / 255, 108 / 255)


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    test_images: int
    depth: int


FULL = Settings(epochs=40, test_images=500, depth=6)
FAST = Settings(epochs=6, test_images=100, depth=3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that the smoothing demo does not have."""
    parser.add_argument(
        "--gamma", type=float, default=0.5, help="lipschitz: weight of the certificates in the loss"
    )


def run(args: argparse.Namespace) -> None:
    """Trains, certifies, prints a table, writes a table and a picture."""
    settings = FAST if args.fast else FULL
    table, picture = args.out / "digits_lipschitz.tsv", args.out / "digits_lipschitz.png"
    for path in (table, picture):
        if path.exists() and not args.overwrite:
            raise UsageError(f"--out: {path} exists; add --overwrite")
    if not 0 <= args.gamma < float("inf"):
        raise UsageError(f"--gamma: got {args.gamma}, want a number of at least 0")
    try:
        require_matplotlib()
        data = load_digits(settings.test_images)
    except ImportError as error:
        raise UsageError(f"{error} (pip install 'robustcore[demo]')") from error
    data = Digits(*(part.to(args.device) for part in data))
    args.out.mkdir(parents=True, exist_ok=True)
    model = train(data, settings, args.gamma, args.seed)
    started = time.perf_counter()
    certificate = certify(model, data.test_images)
    seconds = time.perf_counter() - started
    print(report(certificate, data.test_labels, seconds), flush=True)
    write_table(table, certificate, data.test_labels, seconds, args.overwrite)
    save(figure(certificate, data.test_images, data.test_labels), picture, args.overwrite)
    print("wrote", table, picture)


def digits_net(depth: int) -> LipConvNet:
    """A 1-Lipschitz network for images ``[N, 1, 8, 8]``; logits ``[N, 10]``."""
    return LipConvNet(
        depth, 10, in_channels=1, init_channels=16, input_size=8, stages=3, head="normalized"
    )


def train(data: Digits, settings: Settings, gamma: float, seed: int) -> LipConvNet:
    """A :func:`digits_net`, in eval mode. torch's random state is left as it was."""
    images, labels = data.train_images, data.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_net(settings.depth).to(images.device)
        head = model.body_and_head()[1]
        # Unit rows bound the logits by the image's norm: a larger temperature lets the loss end.
        sharpness = 8.0
        optimizer = torch.optim.AdamW(model.parameters())
        batches = -(-len(images) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1e-2, epochs=settings.epochs, steps_per_epoch=batches
        )
        for _ in tqdm(range(settings.epochs), desc="train", unit="epoch", disable=None):
            for batch in torch.randperm(len(images)).split(64):
                logits = model(images[batch])
                certificates = margin_certificate(logits, 1.0, head=head, labels=labels[batch])
                loss = certificate_loss(sharpness * logits, labels[batch], certificates, gamma)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def report(certificate: Certificate, labels: Tensor, seconds: float) -> str:
    """The table that the demo prints."""
    accuracy = certificate.certified_accuracy(labels, RADII)

    def line(name: str, values: Any) -> str:
        return f"  {name:<36}" + "".join(f"{value:>9}" for value in values)

    radii = [f"{round(255 * radius)}/255" if radius else "clean" for radius in RADII]
    return "\n".join(
        (
            f"\ndigits: {len(certificate)} test images, no sampling, every radius certain",
            line("l2 radius", radii),
            line("certified accuracy", [f"{value:.1%}" for value in accuracy.tolist()]),
            line("median radius", [f"{float(certificate.radius.median()):.3f}"]),
            line("Lipschitz bound of the features", [f"{certificate.bound:.6f}"]),
            line("images a second", [f"{len(certificate) / seconds:,.0f}"]) + "\n",
        )
    )


def write_table(
    path: Path, certificate: Certificate, labels: Tensor, seconds: float, overwrite: bool
) -> None:
    """The table of the smoothing demo: ``idx label predict radius correct time``."""
    columns = (labels.tolist(), certificate.prediction.tolist(), certificate.radius.tolist())
    share = seconds / max(1, len(certificate))
    with replacing(path, overwrite) as temporary:
        rows = [
            format_row(i, label, prediction, radius, share)
            for i, (label, prediction, radius) in enumerate(zip(*columns, strict=True))
        ]
        temporary.write_text("".join([HEADER, *rows]), encoding="utf-8")


def figure(certificate: Certificate, images: Tensor, labels: Tensor) -> Any:
    """Certified accuracy against radius, and eight images from the least to the most robust."""
    from matplotlib.figure import Figure

    whole = Figure(figsize=(8, 5.5), layout="constrained")
    top, bottom = whole.subfigures(2, 1, height_ratios=(3, 1))  # type: ignore[misc]
    axes = top.subplots()
    radii = torch.linspace(0, float(certificate.radius.max()), 1001, dtype=torch.float64)
    height = certificate.certified_accuracy(labels, radii)
    axes.plot(radii, height, lw=2)
    axes.fill_between(radii, height, alpha=0.12, lw=0)
    for radius in RADII[1:]:
        axes.axvline(radius, color="gray", lw=1, ls=":")
        axes.text(radius, 1.01, f"{round(255 * radius)}/255", ha="center", fontsize="small")
    axes.set(
        xlim=(0, float(radii[-1])),
        ylim=(0, 1.08),
        xlabel=r"$\ell_2$ radius (pixels in [0, 1])",
        ylabel="certified accuracy",
    )
    axes.grid(alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    chosen = certificate.radius.argsort()[torch.linspace(0, len(certificate) - 1, 8).long()]
    for panel, i in zip(bottom.subplots(1, len(chosen)), chosen.tolist(), strict=True):
        panel.imshow(images[i, 0].cpu(), cmap="gray_r", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])
        prediction = int(certificate.prediction[i])
        color = "tab:green" if prediction == int(labels[i]) else "tab:red"
        panel.set_title(
            f"{prediction} within {certificate.radius[i]:.2f}", fontsize="small", color=color
        )
    return whole
