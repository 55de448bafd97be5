"""How well scores of influence predict what training without some images does."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.common.checks import require_floating, require_values


def lds(scores: Tensor, subsets: Tensor, outputs: Tensor) -> Tensor:
    """The linear datamodeling score: how well sums of scores rank outputs of retrained models.

    For each test sample, Spearman's correlation over subsets S of ``sum_{i in S} scores[t, i]`` and
    the output of a model trained on S.

    Args:
        scores: ``[T, N]``, floating: of each training on each test sample.
        subsets: bool ``[M, N]``, at least two: which training samples each model saw.
        outputs: ``[M, T]``, floating: what each model says of the test samples, best the margin
            that the scores are about, and the mean over several trainings.

    Returns:
        ``[T]`` float64 in [-1, 1]; NaN where all sums or all outputs are the same.

    Raises TypeError or ValueError naming the argument. Source: Park et al., "TRAK: Attributing
    model behavior at scale", 2023.
    """
    if require_floating("scores", scores).dim() != 2:
        raise ValueError(f"scores: got shape {list(scores.shape)}, want [T, N]")
    tests, images = scores.shape
    if require_values("subsets", subsets).dtype != torch.bool:
        raise TypeError(f"subsets: got {subsets.dtype}, want a bool tensor [M, {images}]")
    if subsets.dim() != 2 or subsets.shape[1] != images or len(subsets) < 2:
        raise ValueError(
            f"subsets: got shape {list(subsets.shape)}, want [M, {images}] with M at least 2"
        )
    if require_floating("outputs", outputs).shape != (len(subsets), tests):
        raise ValueError(
            f"outputs: got shape {list(outputs.shape)}, want [{len(subsets)}, {tests}]"
        )
    for name, values in (("scores", scores), ("outputs", outputs)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name}: got NaN or infinity, want finite numbers")
    predicted = subsets.cpu().double() @ scores.detach().cpu().double().mT
    actual = outputs.detach().cpu().double()
    each = [_spearman(predicted[:, t], actual[:, t]) for t in range(tests)]
    return torch.tensor(each, dtype=torch.float64)


def _spearman(a: Tensor, b: Tensor) -> float:
    from scipy.stats import spearmanr

    constant = bool((a == a[0]).all()) or bool((b == b[0]).all())
    return float("nan") if constant else float(spearmanr(a.numpy(), b.numpy()).statistic)
