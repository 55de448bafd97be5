"""Occlusion: what the score loses as a window of the image is hidden."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustcore.masking.engine import Engine, Target
from robustcore.masking.explain.explanation import Explanation
from robustcore.ops.checks import pair


@torch.no_grad()
def explain_occlusion(
    model: Any,
    image: Tensor,
    size: int | tuple[int, int] = 16,
    stride: int | tuple[int, int] = 8,
    *,
    target: Target = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Explanation:
    """A window slides over the image; a pixel's attribution is the mean loss of its windows.

    Args:
        model: a :class:`MaskedModel`, a module that one can be made of, or a function of (x, mask)
            to the model's output, as :func:`replaced` makes.
        image: ``[C, H, W]`` or ``[1, C, H, W]``.
        size, stride: of the window in pixels, one number or rows and columns; a stride is at most
            the size. The last windows are cut off at the border.
        target: class, function of the output or None, as in :func:`explain_lime`.
        batch_size: windows run at a time. progress: a progress bar.

    Raises TypeError, ValueError naming the argument, the latter too where the score is the same
    whatever is hidden. Not differentiable.
    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014.
    """
    engine = Engine.of(model, image, target, batch_size, progress)
    sizes, strides = pair("size", size), pair("stride", stride)
    if any(step > side for step, side in zip(strides, sizes, strict=True)):
        raise ValueError(f"stride: got {stride}, want at most the size, {size}: it leaves gaps")
    rows, columns = (
        windows(length, side, step).to(engine.x.device)
        for length, side, step in zip(engine.x.shape[2:], sizes, strides, strict=True)
    )

    def masks(begin: int, end: int) -> Tensor:
        at = torch.arange(begin, end, device=rows.device)
        down, across = rows[at // len(columns)], columns[at % len(columns)]
        return ~(down[:, :, None] & across[:, None, :]).unsqueeze(1)

    number = len(rows) * len(columns)
    scores = engine.gather([s for _, s in engine.run(number, masks, "occlusion")])
    rows, columns = rows.double().cpu(), columns.double().cpu()
    lost = rows.T @ (engine.whole - scores).view(len(rows), len(columns)) @ columns
    return Explanation(
        image=engine.x[0].cpu(),
        target=engine.score.as_class,
        score=engine.whole,
        attribution=lost / (rows.sum(0)[:, None] * columns.sum(0)),
    )


def windows(length: int, side: int, step: int) -> Tensor:
    """Which of ``length`` pixels each window of a side covers, bool ``[windows, length]``."""
    begin = step * torch.arange(1 - (min(side - length, 0)) // step)[:, None]
    at = torch.arange(length)
    return (at >= begin) & (at < begin + side)
