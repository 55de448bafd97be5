"""``robustcore demo --family lipschitz``: handwritten digits, from training to certificates."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustcore.common import demo
from robustcore.common.demo import line, percent
from robustcore.common.digits import Digits, load_digits
from robustcore.common.errors import UsageError
from robustcore.common.plots import new_figure, restrain, save
from robustcore.common.table import COLUMNS, certificate_cells, write_table
from robustcore.lipschitz.certificates import (
    Certificate,
    certificate_loss,
    margin_certificate,
)
from robustcore.lipschitz.certify import certify
from robustcore.lipschitz.layers import MaxMin, NormalizedLinear
from robustcore.lipschitz.networks import LipConvNet
from robustcore.lipschitz.orthogonal import OrthogonalConv2d

RADII = (0.0, 36 / 255, 72 / 255, 108 / 255)


class Settings(NamedTuple):
    """How much work the demo does."""

    epochs: int
    test_images: int
    depth: int


FULL = Settings(epochs=40, test_images=500, depth=6)
FAST = Settings(epochs=6, test_images=100, depth=3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only this family's demo has."""
    parser.add_argument(
        "--gamma",
        type=float,
        default=0.5,
        help="weight of the certificates in the loss (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Trains and certifies with either layer, prints a table, writes a table and a picture."""
    settings = FAST if args.fast else FULL
    if not 0 <= args.gamma < float("inf"):
        raise UsageError(f"--gamma: got {args.gamma}, want a number of at least 0")
    names = ["digits_lipschitz.tsv", "digits_lipschitz.png"]
    data, (table, picture) = demo.start(args, names, lambda: load_digits(settings.test_images))
    data = data.to(args.device)
    results = {name: result(data, settings, args.gamma, args.seed, name) for name in NETS}
    print(report(results, data.test_labels), flush=True)
    soc = results["SOC"]
    write_rows(table, soc.certificate, data.test_labels, soc.seconds, args.overwrite)
    curves = {name: one.certificate for name, one in results.items()}
    save(figure(curves, data.test_images, data.test_labels), picture, args.overwrite)
    print("wrote", table, picture)


class Result(NamedTuple):
    """What one network came to, and what it took."""

    certificate: Certificate
    step: float
    """Seconds a training step."""
    first: float
    """Seconds to certify the test images, everything derived."""
    seconds: float
    """The same again, with what is kept."""


def result(data: Digits, settings: Settings, gamma: float, seed: int, name: str) -> Result:
    """A network of these layers, trained and certified twice."""
    started = time.perf_counter()
    model = train(data, settings, gamma, seed, name)
    steps = settings.epochs * -(-len(data.train_images) // demo.BATCH)
    step = (time.perf_counter() - started) / steps
    times = []
    for _ in range(2):
        started = time.perf_counter()
        certificate = certify(model, data.test_images)
        times.append(time.perf_counter() - started)
    return Result(certificate, step, *times)


def digits_net(depth: int) -> LipConvNet:
    """A 1-Lipschitz network for images ``[N, 1, 8, 8]``; logits ``[N, 10]``."""
    return LipConvNet(
        depth, 10, in_channels=1, init_channels=16, input_size=8, stages=3, head="normalized"
    )


def orthogonal_net(depth: int) -> nn.Sequential:
    """The same widths out of OrthogonalConv2d."""
    layers: list[nn.Module] = []
    channels, width = 1, 16
    for i in range(1, depth + 1):
        stride = 2 if i % (depth // 3) == 0 else 1
        width *= stride
        layers += [OrthogonalConv2d(channels, width, 3, stride), MaxMin()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), NormalizedLinear(channels, 10))


NETS: dict[str, Callable[[int], nn.Module]] = {
    "SOC": digits_net,
    "OrthogonalConv2d": orthogonal_net,
}


def train(
    data: Digits, settings: Settings, gamma: float, seed: int, name: str = "SOC"
) -> nn.Module:
    """One of :data:`NETS`, in eval mode. torch's random state is left as it was."""
    images, labels = data.train_images, data.train_labels
    with demo.seeded(seed):
        model = NETS[name](settings.depth).to(images.device)
        head = next(m for m in model.modules() if isinstance(m, NormalizedLinear))
        # Unit rows bound the logits by the image's norm: a larger temperature lets the loss end.
        sharpness = 8.0

        def loss(batch: Tensor) -> Tensor:
            logits = model(images[batch])
            certificates = margin_certificate(logits, 1.0, head=head, labels=labels[batch])
            return certificate_loss(sharpness * logits, labels[batch], certificates, gamma)

        rate = demo.one_cycle(model, len(images), settings.epochs, max_lr=1e-2)
        demo.fit(loss, len(images), settings.epochs, *rate, what=f"train {name}")
    return model.eval()


def report(results: dict[str, Result], labels: Tensor) -> str:
    """The table that the demo prints."""
    radii = [f"{round(255 * radius)}/255" if radius else "clean" for radius in RADII]
    lines = [f"\ndigits: {len(labels)} test images, no sampling, every radius certain"]
    lines.append(line("certified accuracy at l2 radius", radii, 9))
    for name, one in results.items():
        accuracy = one.certificate.certified_accuracy(labels, RADII)
        lines.append(line(name, percent(accuracy), 9))
    lines.append(line("", list(results), 18))
    each = list(results.values())
    medians = [float(r.certificate.radius.median()) for r in each]
    for what, values in (
        ("median radius", [f"{median:.3f}" for median in medians]),
        ("bound of the features", [f"{r.certificate.bound:.6f}" for r in each]),
        ("ms a training step", [f"{1e3 * r.step:.1f}" for r in each]),
        ("ms to certify all, first", [f"{1e3 * r.first:.0f}" for r in each]),
        ("ms to certify all, again", [f"{1e3 * r.seconds:.0f}" for r in each]),
    ):
        lines.append(line(what, values, 18))
    return "\n".join(lines) + "\n"


def write_rows(
    path: Path, certificate: Certificate, labels: Tensor, seconds: float, overwrite: bool
) -> None:
    """The table of the smoothing demo: ``idx label predict radius correct time``."""
    columns = (labels.tolist(), certificate.prediction.tolist(), certificate.radius.tolist())
    share = seconds / max(1, len(certificate))
    rows = [
        certificate_cells(i, label, prediction, radius, share)
        for i, (label, prediction, radius) in enumerate(zip(*columns, strict=True))
    ]
    write_table(path, COLUMNS, rows, overwrite, {"alpha": 0.0})  # no sampling: certain


def figure(certificates: dict[str, Certificate], images: Tensor, labels: Tensor) -> Any:
    """Certified accuracy against radius; eight images from the least to the most robust by SOC."""
    certificate = certificates["SOC"]
    whole = new_figure(8, 5.5)
    top, bottom = whole.subfigures(2, 1, height_ratios=(3, 1))  # type: ignore[misc]
    axes = top.subplots()
    radii = torch.linspace(0, float(certificate.radius.max()), 1001, dtype=torch.float64)
    for name, each in certificates.items():
        height = each.certified_accuracy(labels, radii)
        axes.plot(radii, height, lw=2, label=name)
        axes.fill_between(radii, height, alpha=0.12, lw=0)
    axes.legend(loc="lower left", fontsize="small", frameon=False)
    for radius in RADII[1:]:
        axes.axvline(radius, color="gray", lw=1, ls=":")
        axes.text(radius, 1.01, f"{round(255 * radius)}/255", ha="center", fontsize="small")
    axes.set(
        xlim=(0, float(radii[-1])),
        ylim=(0, 1.08),
        xlabel=r"$\ell_2$ radius (pixels in [0, 1])",
        ylabel="certified accuracy",
    )
    restrain(axes)
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
