"""The demos' pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from robustcore.common.plots import new_figure, restrain

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


def group_figure(worst: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy in the worst group: a panel a data set, a column a training, a point a seed."""
    figure = new_figure(8, 3.2)
    panels = figure.subplots(1, len(worst), sharey=True, squeeze=False)[0]
    for axes, (title, trainings) in zip(panels, worst.items(), strict=True):
        for column, values in enumerate(trainings.values()):
            axes.plot([column] * len(values), values, "o", color="tab:blue", alpha=0.5)
            mean = sum(values) / len(values)
            axes.hlines(mean, column - 0.3, column + 0.3, color="tab:red")
        axes.set_xticks(range(len(trainings)), list(trainings))
        axes.set_title(title, fontsize="medium")
        restrain(axes)
    panels[0].set(ylabel="accuracy in the worst group", ylim=(0, 1))
    return figure
