"""How well an attribution orders the pixels of an image: insertion and deletion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.common.checks import (
    require_choice,
    require_floating,
    require_int,
    require_module,
    require_single_image,
)
from robustcore.common.game import play, ranks
from robustcore.common.plots import save
from robustcore.masking.engine import Engine, Score, Target
from robustcore.masking.predictor import Predictor, as_predictor, replaced, require_eval


@dataclass(frozen=True)
class Game:
    """The score of an image as its pixels come and go, see :func:`insertion_deletion`."""

    fractions: list[float]
    """Of the pixels, from 0 to 1."""
    insertion: list[float]
    deletion: list[float]
    insertion_auc: float
    """Area under the curve: the higher the better; of deletion, the lower."""
    deletion_auc: float

    def plot(self, path: Any) -> None:
        """Writes both curves as a picture. Needs matplotlib."""
        from robustcore.masking import plots

        save(plots.game_figure(self), path, overwrite=True)


@torch.no_grad()
def insertion_deletion(
    model: Any,
    image: Tensor,
    attribution: Tensor,
    *,
    target: Target = None,
    step: int | None = None,
    fill: str = "mask",
    batch_size: int = 32,
    progress: bool = False,
) -> Game:
    """The score of an image as its pixels are inserted, and deleted, in the attribution's order.

    Args:
        model: a :class:`MaskedModel`, a module that one can be made of, or a function of (x, mask)
            to the model's output, as :func:`replaced` makes.
        image: ``[C, H, W]`` or ``[1, C, H, W]``.
        attribution: ``[H, W]``, the most important pixels highest; ties go by position.
        target: class, whose probability is the score; None: the model's own answer on the image; or
            a function of the model's output for a batch to ``[N]``, as in :func:`explain_lime`.
        step: pixels a step; default ``8 * W``, as published.
        fill: ``"mask"``: layer masking, absent pixels are hidden. ``"published"``: the plain model;
            insertion starts from a blurred image (11 taps, sigma 5), deletion ends at zeros.
        batch_size: steps run at a time. progress: a progress bar.

    The area is ``(sum - half the ends) / (n - 1)`` over the n scores. Raises TypeError, ValueError
    naming the argument, the latter too where the attribution has no order or the score is the same
    whatever is hidden.
    Source: Petsiuk, Das and Saenko, "RISE: randomized input sampling for explanation", 2018.
    """
    x = require_single_image(image)
    rank = _order(attribution, x)
    require_choice("fill", fill, ("mask", "published"))
    pixels = rank.numel()
    step = 8 * x.shape[3] if step is None else require_int("step", step, 1)
    score = Score(target)
    engines = [
        Engine(predict, x, score, batch_size, progress) for predict in _fillings(model, fill, x)
    ]
    whole = engines[0].whole
    counts = torch.tensor([*range(0, pixels, step), pixels])
    insertion, deletion = (
        torch.cat(
            play(engine, rank, counts, insert=insert, batch_size=batch_size, shown=progress)
        ).cpu()
        for engine, insert in zip(engines, (True, False), strict=True)
    )
    both = torch.cat([insertion, deletion, insertion.new_tensor([whole])])
    score.require_finite(both)
    score.require_varied(both)
    return Game(
        (counts.double() / pixels).tolist(),
        insertion.tolist(),
        deletion.tolist(),
        _area(insertion.tolist()),
        _area(deletion.tolist()),
    )


def _order(attribution: Any, x: Tensor) -> Tensor:
    """The rank of each pixel, ``[1, 1, H, W]`` where x is."""
    size = x.shape[2:]
    if require_floating("attribution", attribution).shape != size:
        got = list(attribution.shape)
        raise ValueError(f"attribution: got {got}, want a tensor {list(size)} like image")
    if bool(attribution.isnan().any()):
        raise ValueError("attribution: got nan, want values that have an order")
    if bool((attribution == attribution[0, 0]).all()):
        raise ValueError(
            f"attribution: got {float(attribution[0, 0]):g} for every pixel, which puts them in no "
            "order"
        )
    return ranks(attribution.reshape(1, -1).cpu()).view(1, 1, *size).to(x.device)


def _fillings(model: Any, fill: str, x: Tensor) -> tuple[Predictor, Predictor]:
    """What answers in the insertion game, and in the deletion game."""
    if fill == "published":
        require_module("model", model)
        require_eval(model)
        return replaced(model, blur(x)[0]), replaced(model, 0.0)
    predict = as_predictor(model)
    return predict, predict


def blur(x: Tensor, taps: int = 11, sigma: float = 5.0) -> Tensor:
    """x ``[N, C, H, W]`` blurred as published, zeros outside.

    The published filter of ``taps`` x ``taps`` is a delta smoothed by SciPy's ``gaussian_filter``,
    which reflects at the ends: what of a Gaussian lies outside of the taps is folded into them.
    """
    reach = int(4 * sigma + 0.5)
    at = torch.arange(-reach, reach + 1, device=x.device)
    gaussian = (-at.double().square() / (2 * sigma**2)).exp()
    turn = (at + taps // 2) % (2 * taps)
    row = gaussian.new_zeros(taps).index_add(0, torch.minimum(turn, 2 * taps - 1 - turn), gaussian)
    row = (row / gaussian.sum()).to(x.dtype)
    channels = x.shape[1]
    rows = row.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    x = functional.conv2d(x, rows, padding=(taps // 2, 0), groups=channels)
    return functional.conv2d(x, rows.transpose(2, 3), padding=(0, taps // 2), groups=channels)


def _area(scores: list[float]) -> float:
    if len(scores) == 1:
        return scores[0]
    return (sum(scores) - (scores[0] + scores[-1]) / 2) / (len(scores) - 1)
