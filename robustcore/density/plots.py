"""The demo's picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from robustcore.common.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attribution_figure(
    images: Tensor, names: Sequence[str], attributions: Sequence[Tensor]
) -> Figure:
    """Images ``[B, 1, H, W]`` and below each the models' attributions, on one colour scale."""
    figure = new_figure(8, 1.6 * (1 + len(names)))
    rows = figure.subplots(1 + len(names), len(images))
    limit = max(float(a.abs().max()) for a in attributions)
    for column, image in enumerate(images):
        rows[0, column].imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        for row, values in enumerate(attributions, start=1):
            rows[row, column].imshow(values[column, 0], cmap="RdBu_r", vmin=-limit, vmax=limit)
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
        axes.axhline(images.shape[2] / 2 - 0.5, color="gray", lw=0.6)
    for axes, name in zip(rows[:, 0], ["image", *names], strict=True):
        axes.set_ylabel(name, fontsize="small")
    figure.suptitle(
        "Integrated gradients: what falls on the lower block has leaked", fontsize="medium"
    )
    return figure
