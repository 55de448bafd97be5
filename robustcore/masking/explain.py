"""Explanations: which segments of an image a model's answer rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_flag,
    require_int,
    require_logits,
    require_not_negative,
    require_positive,
    require_seed,
    require_segments,
    require_single_image,
)
from robustcore.common.plots import save
from robustcore.masking.evaluate import as_masked, require_target


@dataclass(frozen=True)
class LimeExplanation:
    """A linear model of the target's probability in which segments are shown.

    ``weights``: float64 ``[S]``, one a segment. ``intercept``, ``r2``: of the weighted ridge
    regression. ``target``: the class explained. ``segments``: int64 ``[H, W]``.
    """

    weights: Tensor
    intercept: float
    r2: float
    target: int
    segments: Tensor
    image: Tensor

    @property
    def attribution(self) -> Tensor:
        """Each pixel's segment's weight, ``[H, W]``."""
        return self.weights[self.segments]

    def plot(self, path: Any) -> None:
        """Writes a picture: image, strongest segments shown, attribution. Needs matplotlib."""
        from robustcore.masking import plots

        best = self.weights >= self.weights.quantile(0.75)
        mask = best[self.segments]
        row = [(self.image, mask, self.attribution)]
        save(plots.explanation_figure(row, ["strongest quarter"]), path, overwrite=True)


@torch.no_grad()
def explain_lime(
    model: nn.Module,
    image: Tensor,
    segments: Any,
    num_samples: int = 1000,
    *,
    target: int | None = None,
    batch_size: int = 32,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> LimeExplanation:
    """LIME with layer masking: hidden segments have no influence, instead of a grey that has.

    Each sample shows a random half of the segments (the first shows all); samples are weighed by
    ``exp(-d^2 / kernel_width^2)``, d the cosine distance of the shown set to the whole one, and a
    ridge regression of the target's probability on the sets gives each segment's weight.

    Args:
        model: a :class:`MaskedModel`, or any model that one can be made of.
        image: ``[C, H, W]`` or ``[1, C, H, W]``; it is not copied for the samples.
        segments: integers ``[H, W]`` from 0 to S - 1, tensor or array.
        num_samples: at least 2.
        target: class index; default: the model's own answer.
        batch_size: samples run at a time.
        kernel_width, ridge: LIME's defaults, .25 and 1.
        seed: of the samples; the same seed gives the same explanation.
        progress: a progress bar over batches.

    Raises TypeError, ValueError naming the argument.
    Source: Ribeiro, Singh and Guestrin, "Why should I trust you?", 2016; Balasubramanian and Feizi,
    2023.
    """
    x = require_single_image(image)
    segments, number = require_segments(segments, x)
    require_int("num_samples", num_samples, 2, 2**31)
    require_flag("progress", progress)
    width = require_positive("kernel_width", kernel_width)
    penalty = require_not_negative("ridge", ridge)
    generator = torch.Generator().manual_seed(require_seed(seed))
    masked = as_masked(model)
    z = torch.rand(num_samples, number, generator=generator) < 0.5
    z[0] = True
    logits = masked(
        x, segments=segments, z=z.to(x.device), batch_size=batch_size, progress=progress
    )
    probabilities = require_logits("model", logits, num_samples).double().softmax(1).cpu()
    target = require_target(target, probabilities[:1])
    weights, intercept, r2 = ridge_regression(z.double(), probabilities[:, target], width, penalty)
    return LimeExplanation(weights, intercept, r2, target, segments.cpu(), x[0].cpu())


def ridge_regression(
    z: Tensor, y: Tensor, width: float, penalty: float
) -> tuple[Tensor, float, float]:
    """Weights, intercept and weighted r2 of a ridge regression of y ``[N]`` on z ``[N, S]``."""
    shown = z.sum(1)
    distance = 1 - (shown / z.shape[1]).sqrt()  # of the angle to the set of all
    sample_weight = (-(distance**2) / (width * width)).exp().unsqueeze(1)
    total = sample_weight.sum()
    z_mean, y_mean = (
        (sample_weight * z).sum(0) / total,
        float((sample_weight[:, 0] * y).sum() / total),
    )
    centred, residual = z - z_mean, y - y_mean
    gram = centred.T @ (sample_weight * centred) + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    try:
        weights = torch.linalg.solve(gram, centred.T @ (sample_weight[:, 0] * residual))
    except RuntimeError as error:  # singular
        raise ValueError(f"ridge: got {penalty}, too little for these samples") from error
    left = residual - centred @ weights
    variance = float((sample_weight[:, 0] * residual.square()).sum())
    r2 = 1 - float((sample_weight[:, 0] * left.square()).sum()) / variance if variance > 0 else 0.0
    return weights, y_mean - float(z_mean @ weights), r2
