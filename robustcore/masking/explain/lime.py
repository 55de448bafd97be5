"""LIME: a linear model of the score in which segments are shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustcore.common.checks import (
    require_int,
    require_not_negative,
    require_positive,
    require_seed,
)
from robustcore.masking.engine import Engine, Target
from robustcore.masking.explain.explanation import LimeExplanation
from robustcore.masking.explain.solve import solve
from robustcore.masking.segments import Segments


@torch.no_grad()
def explain_lime(
    model: Any,
    image: Tensor,
    segments: Any,
    num_samples: int = 1000,
    *,
    target: Target = None,
    batch_size: int = 32,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> LimeExplanation:
    """LIME with layer masking: hidden segments have no influence, instead of a grey that has.

    Each sample shows a random half of the segments (the first shows all). Samples are weighed by
    LIME's kernel, ``sqrt(exp(-d^2 / kernel_width^2))``, d the cosine distance of the shown set to
    the whole one, and a ridge regression of the score on the sets gives each segment's weight.

    Args:
        model: a :class:`MaskedModel`, a module that one can be made of, or a function of (x, mask)
            to the model's output, as :func:`replaced` makes.
        image: ``[C, H, W]`` or ``[1, C, H, W]``; it is not copied for the samples.
        segments: integers ``[H, W]`` from 0, tensor or array; or the side of square blocks in
            pixels.
        num_samples: at least 2. Equal samples run once.
        target: class, whose probability is explained; None: the model's own answer; or a function
            of the model's output for a batch to ``[N]``, where the output is no ``[N, K]`` or
            something else than a probability is meant. A model with one output is explained by it.
        batch_size: samples run at a time.
        kernel_width, ridge: LIME's defaults, .25 and 1.
        seed: of the samples; the same seed gives the same explanation.
        progress: a progress bar over batches.

    Raises TypeError, ValueError naming the argument, the latter too where the score is the same
    whatever is hidden. Not differentiable.
    Source: Ribeiro, Singh and Guestrin, "Why should I trust you?", 2016; Balasubramanian and Feizi,
    2023.
    """
    engine = Engine.of(model, image, target, batch_size, progress)
    parts = Segments(segments, engine.x)
    require_int("num_samples", num_samples, 2, 2**31)
    width = require_positive("kernel_width", kernel_width)
    penalty = require_not_negative("ridge", ridge)
    generator = torch.Generator().manual_seed(require_seed(seed))
    z = torch.rand(num_samples, len(parts), generator=generator) < 0.5
    z[0] = True
    if bool(z.all()):
        raise ValueError(f"num_samples: got {num_samples}, and all of them show everything")
    scores = parts.scores(engine, z, "LIME")
    weights, intercept, r2 = ridge_regression(z.double(), scores, width, penalty)
    shared = parts.fields(engine, z, scores, weights)
    return LimeExplanation(**shared, intercept=intercept, r2=r2)


def ridge_regression(
    z: Tensor, y: Tensor, width: float, penalty: float
) -> tuple[Tensor, float, float]:
    """Weights, intercept and weighted r2 of a ridge regression of y ``[N]`` on z ``[N, S]``."""
    distance = 1 - z.mean(1).sqrt()  # of the angle to the set of all
    sample_weight = (-(distance**2) / (2 * width * width)).exp()
    share = sample_weight / sample_weight.sum()
    z_mean, y_mean = share @ z, float(share @ y)
    centred, residual = z - z_mean, y - y_mean
    weighted = sample_weight[:, None] * centred
    gram = weighted.T @ centred + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    weights = solve(gram, weighted.T @ residual)
    if weights is None:
        raise ValueError(
            f"ridge: got {penalty}, too little for {len(z)} samples of {z.shape[1]} segments"
        )
    left = residual - centred @ weights
    variance = float(share @ residual.square())
    r2 = 1 - float(share @ left.square()) / variance if variance > 0 else 0.0
    return weights, y_mean - float(z_mean @ weights), r2
