"""Segments of an image, and scores of sets of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcore.common.checks import require_int, require_integers
from robustcore.masking.engine import Engine


def blocks(height: int, width: int, side: int) -> Tensor:
    """A map ``[H, W]`` of square blocks, numbered row by row; the last ones may be smaller."""
    columns = -(-width // side)
    return torch.arange(height)[:, None] // side * columns + torch.arange(width) // side


class Segments:
    """A map ``[H, W]`` of integers; those that no pixel has are left out of what is sampled.

    scikit-image numbers superpixels from 1, and merging leaves gaps: a segment without a pixel has
    no influence, and a regression would give it the noise of its samples.
    """

    def __init__(self, segments: Any, x: Tensor) -> None:
        self.map = _as_map(segments, x)
        self.labels, self._dense = self.map.unique(return_inverse=True)
        self.size = int(self.labels[-1]) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def spread(self, values: Tensor) -> Tensor:
        """A value for each segment that there is, ``[..., len(self)]``, as one a label; else 0."""
        zeros: Tensor = values.new_zeros(*values.shape[:-1], self.size)
        zeros[..., self.labels.cpu()] = values
        return zeros

    def fields(self, engine: Engine, z: Tensor, scores: Tensor, weights: Tensor) -> dict[str, Any]:
        """What every :class:`SegmentExplanation` holds, of the samples z and a weight a segment."""
        spread, segments = self.spread(weights), self.map.cpu()
        return {
            "image": engine.x[0].cpu(),
            "target": engine.score.as_class,
            "score": engine.whole,
            "attribution": spread[segments],
            "weights": spread,
            "segments": segments,
            "shown": self.spread(z),
            "scores": scores,
        }

    def scores(self, engine: Engine, z: Tensor, what: str) -> Tensor:
        """Of sets of segments, bool ``[N, len(self)]``; each different set is asked once."""
        rows, where = z.unique(dim=0, return_inverse=True)
        distinct: Tensor = rows.to(self.map.device)

        def masks(begin: int, end: int) -> Tensor:
            mask: Tensor = distinct[begin:end, self._dense]
            return mask.unsqueeze(1)

        parts = [scores for _, scores in engine.run(len(distinct), masks, what)]
        scores: Tensor = engine.gather(parts)[where]
        return scores


def _as_map(segments: Any, x: Tensor) -> Tensor:
    """int64 ``[H, W]`` where x is."""
    height, width = x.shape[2:]
    if isinstance(segments, (int, np.integer)):
        side = min(require_int("segments", segments, 1), max(height, width))
        return blocks(height, width, side).to(x.device)
    if not isinstance(segments, Tensor):
        try:
            segments = torch.as_tensor(segments)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            got = type(segments).__name__
            want = "a map [H, W], tensor or array, or the side of square blocks"
            raise TypeError(f"segments: got {got}, want {want}") from None
    require_integers("segments", segments)
    if segments.shape != (height, width):
        raise ValueError(
            f"segments: got shape {list(segments.shape)}, want {[height, width]} like image"
        )
    whole: Tensor = segments.to(x.device, torch.int64)
    low, high = (int(v) for v in torch.aminmax(whole))
    if low < 0 or high > segments.numel():
        raise ValueError(
            f"segments: got {low} to {high}, want 0 to at most {segments.numel()}, one a pixel"
        )
    return whole
