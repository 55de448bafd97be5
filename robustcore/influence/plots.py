"""The demo's picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from robustcore.common.plots import new_figure
from robustcore.influence.trak import Top

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def influence_figure(
    images: Tensor, predictions: Tensor, train_images: Tensor, labels: Tensor, helpful: Top,
    harmful: Top, wrong: Tensor,
) -> Figure:  # fmt: skip
    """A row a test image: itself, the most helpful training images, and the most harmful ones.

    Args:
        images, predictions: test images ``[T, 1, H, W]`` and classes ``[T]``.
        train_images, labels: ``[N, 1, H, W]`` and ``[N]``.
        helpful, harmful: n training images each.
        wrong: bool ``[N]``, whose labels are wrong: their titles are red.
    """
    n = helpful.indices.shape[1]
    figure = new_figure(1.0 * (1 + 2 * n) + 1, 1.3 * len(images))
    rows = figure.subplots(len(images), 1 + 2 * n, squeeze=False)
    for axes, image, prediction, good, bad in zip(
        rows, images, predictions, helpful.indices, harmful.indices, strict=True
    ):
        axes[0].imshow(image[0], cmap="Blues", vmin=0, vmax=1)
        axes[0].set_title(f"is a {int(prediction)}", fontsize="small")
        for place, i in zip(axes[1:], [*good.tolist(), *bad.tolist()], strict=True):
            place.imshow(train_images[i, 0], cmap="gray_r", vmin=0, vmax=1)
            color = "tab:red" if wrong[i] else "black"
            place.set_title(f"{int(labels[i])}", fontsize="small", color=color)
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
    rows[-1, 1].set_xlabel("helpful", fontsize="small", loc="left")
    rows[-1, 1 + n].set_xlabel("harmful", fontsize="small", loc="left")
    figure.suptitle(
        "Predictions, and the training images with their labels that speak for and against them "
        "(red: label is wrong)",
        fontsize="medium",
    )
    return figure
