"""What an explanation holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustcore.common.plots import save


@dataclass(frozen=True)
class Explanation:
    """How much each pixel matters to a model's answer."""

    image: Tensor
    """``[C, H, W]``."""
    target: int | None
    """The class explained; None where a function of the output was."""
    score: float
    """What is explained, on the whole image: a class's probability, one output, a function's."""
    attribution: Tensor
    """float64 ``[H, W]``."""

    def plot(self, path: Any) -> None:
        """Writes a picture: image, strongest quarter shown, attribution. Needs matplotlib."""
        from robustcore.masking import plots

        values = self.attribution.flatten()
        strongest = self.attribution >= values.kthvalue(1 + 3 * (len(values) - 1) // 4).values
        row = [(self.image, strongest, self.attribution)]
        save(plots.explanation_figure(row, ["strongest quarter"]), path, overwrite=True)


@dataclass(frozen=True)
class SegmentExplanation(Explanation):
    """How much each segment of an image matters, and the samples that say so."""

    weights: Tensor
    """float64 ``[S]``, one a segment; 0 for a number below S that no pixel has."""
    segments: Tensor
    """int64 ``[H, W]``."""
    shown: Tensor
    """Which segments each sample showed, bool ``[N, S]``."""
    scores: Tensor
    """Each sample's score, float64 ``[N]``."""


@dataclass(frozen=True)
class LimeExplanation(SegmentExplanation):
    """A linear model of the score in which segments are shown."""

    intercept: float
    r2: float
    """Of the weighted regression, on its own samples."""


@dataclass(frozen=True)
class ShapExplanation(SegmentExplanation):
    """Shapley values of the segments: they add up to what the image adds to ``base``."""

    base: float
    """The score where nothing is shown."""
    exact: bool
    """Whether every set of segments was asked, or samples of them."""
