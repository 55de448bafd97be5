"""Pictures of explanations and curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustcore.common.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustcore.masking.curves import Curves
    from robustcore.masking.game import Game


def _show(axes: Any, image: Tensor) -> None:
    """``[C, H, W]`` scaled to [0, 1]; one channel in grey."""
    pixels = image.detach().float().cpu()
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    if len(pixels) == 3:
        axes.imshow(pixels.permute(1, 2, 0).numpy())
    else:
        axes.imshow(pixels[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def explanation_rows(axes: Any, rows: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """In three columns: image ``[C, H, W]``, what a mask ``[H, W]`` shows of it, attribution."""
    for row, (image, mask, attribution) in zip(axes, rows, strict=True):
        _show(row[0], image)
        _show(row[1], image)
        hidden = torch.tensor([0.62, 0.73, 0.85, 1.0]) * (mask == 0).unsqueeze(-1)
        row[1].imshow(hidden.numpy())
        limit = float(attribution.abs().max()) or 1.0
        row[2].imshow(attribution.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        row[2].set(xticks=[], yticks=[])


def explanation_figure(
    rows: Sequence[tuple[Tensor, Tensor, Tensor]], names: Sequence[str]
) -> Figure:
    """A row an image; ``names``: what each mask shows."""
    figure = new_figure(6, 2.1 * len(rows))
    axes = figure.subplots(len(rows), 3, squeeze=False)
    explanation_rows(axes, rows)
    axes[0, 0].set_title("image", fontsize="small")
    axes[0, 1].set_title(names[0], fontsize="small")
    axes[0, 2].set_title("attribution", fontsize="small")
    return figure


def draw_curves(axes: Any, curves: Curves) -> None:
    """Accuracy against the hidden fraction, a line a method, named at its end."""
    for name, values in curves.accuracy.items():
        axes.plot(curves.x, values, marker="o", ms=3, label=name)
    axes.set(xlabel="fraction of the image hidden", ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)


def curve_figure(curves: Curves) -> Figure:
    """Masked-accuracy curves."""
    figure = new_figure(5, 3.5)
    draw_curves(figure.subplots(), curves)
    return figure


def game_figure(game: Game) -> Figure:
    """Insertion and deletion."""
    figure = new_figure(5, 3.5)
    axes = figure.subplots()
    for name, values, area in (
        ("insertion", game.insertion, game.insertion_auc),
        ("deletion", game.deletion, game.deletion_auc),
    ):
        axes.plot(game.fractions, values, label=f"{name}, area {area:.3f}")
    axes.set(xlabel="fraction of pixels", ylabel="score")
    if all(0 <= value <= 1 for value in (*game.insertion, *game.deletion)):  # a probability's
        axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    return figure


def demo_figure(
    rows: Sequence[tuple[Tensor, Tensor, Tensor]], labels: Sequence[int], curves: Curves
) -> Figure:
    """Explanations on the left, curves on the right."""
    figure = new_figure(10, 1.15 * len(rows) + 0.4)
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.5))
    left, right = parts
    axes = left.subplots(len(rows), 3)
    explanation_rows(axes, rows)
    titles = ("image", "strongest third", "attribution")
    for column, title in zip(axes[0], titles, strict=True):
        column.set_title(title, fontsize="small")
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(f"{label}", rotation=0, labelpad=8)
    draw_curves(right.subplots(), curves)
    return figure
