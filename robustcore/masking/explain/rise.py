"""RISE: the mean of random soft masks, weighed by the scores under them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.common.checks import require_choice, require_int, require_real, require_seed
from robustcore.masking.engine import Engine, Target
from robustcore.masking.explain.explanation import Explanation


@torch.no_grad()
def explain_rise(
    model: Any,
    image: Tensor,
    num_samples: int = 4000,
    *,
    grid: int = 7,
    p: float = 0.5,
    normalize: str = "shown",
    target: Target = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Explanation:
    """RISE: a pixel is as important as the score is high when it is shown.

    A mask is a ``grid`` x ``grid`` of cells, each shown with probability p, enlarged bilinearly
    and shifted by a random part of a cell. The attribution is the mean score of the masks that show
    a pixel, ``sum_i score_i mask_i / sum_i mask_i``.

    Args:
        model: a :class:`MaskedModel`, a module that one can be made of, or a function of (x, mask)
            to the model's output: ``replaced(model, 0)`` multiplies the image, as published.
        image: ``[C, H, W]`` or ``[1, C, H, W]``.
        num_samples: masks; published: 4000, and 8000 for a ResNet-50.
        grid, p: published: 7 cells a side, .5.
        normalize: ``"shown"``, as above; or ``"published"``: divided by ``N p``, which the sum of
            the masks is on average. What it is beyond that times the mean score is noise, small
            for probabilities, large for logits or a regression far from 0.
        target: class, function of the output or None, as in :func:`explain_lime`.
        batch_size: masks run at a time. seed: of the masks. progress: a progress bar.

    Raises TypeError, ValueError naming the argument, the latter too where the score is the same
    whatever is hidden. Not differentiable.
    Source: Petsiuk, Das and Saenko, "RISE: randomized input sampling for explanation of black-box
    models", 2018.
    """
    engine = Engine.of(model, image, target, batch_size, progress)
    height, width = engine.x.shape[2:]
    require_int("num_samples", num_samples, 1, 2**31)
    require_int("grid", grid, 1, 1 + max(height, width))
    share = require_real("p", p, "a number in (0, 1)")
    if not 0 < share < 1:
        raise ValueError(f"p: got {p}, want a number in (0, 1)")
    require_choice("normalize", normalize, ("shown", "published"))
    generator = torch.Generator().manual_seed(require_seed(seed))
    cells = torch.rand(num_samples, 1, grid, grid, generator=generator) < share
    cells = cells.to(engine.x.device)
    shift = torch.rand(num_samples, 2, generator=generator).to(engine.x.device)
    dtype = torch.float64 if engine.x.dtype == torch.float64 else torch.float32

    def masks(begin: int, end: int) -> Tensor:
        return enlarge(cells[begin:end].to(dtype), shift[begin:end].to(dtype), height, width)

    total = torch.zeros(2, height * width, dtype=torch.float64, device=engine.x.device)
    parts = []
    for mask, scores in engine.run(num_samples, masks, "RISE"):
        total += torch.stack([scores, torch.ones_like(scores)]) @ mask.flatten(1).double()
        parts.append(scores)
    mean = float(engine.gather(parts).mean())
    weighed, shown = total.view(2, height, width).cpu()
    if normalize == "published":
        attribution = weighed / (num_samples * share)
    else:  # what no mask shows is as important as anything
        attribution = torch.where(shown > 0, weighed / shown, mean)
    return Explanation(
        image=engine.x[0].cpu(),
        target=engine.score.as_class,
        score=engine.whole,
        attribution=attribution,
    )


def enlarge(cells: Tensor, shift: Tensor, height: int, width: int) -> Tensor:
    """Soft masks ``[N, 1, H, W]`` of cells ``[N, 1, g, g]``, shifted by parts of a cell ``[N, 2]``.

    The cells are enlarged to one cell more than the image, and a window of the image's size is cut
    out of that; here by reading only what is in it.
    """
    grid = cells.shape[-1]
    at = []
    for side, part in ((height, shift[:, :1]), (width, shift[:, 1:])):
        cell = math.ceil(side / grid)
        pixel = torch.arange(side, dtype=cells.dtype, device=cells.device) + 0.5
        at.append(2 * (pixel + (part * cell).floor()) / ((grid + 1) * cell) - 1)
    rows, columns = at[0].unsqueeze(2), at[1].unsqueeze(1)
    where = torch.stack(torch.broadcast_tensors(columns, rows), 3)
    masks = functional.grid_sample(cells, where, padding_mode="border", align_corners=False)
    return masks.clamp_(0, 1)  # of rounding
