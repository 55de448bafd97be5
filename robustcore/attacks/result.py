"""What an attack found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Attacked:
    """The outcome of an attack on B images."""

    images: Tensor
    """``[B, C, H, W]``: a misclassified point where one was seen, else that of the highest loss."""
    success: Tensor
    """Bool ``[B]``: what a clean forward pass of the returned images says, in eval mode."""
    prediction: Tensor
    """int64 ``[B]``: classes of the returned images; -1 where a smoothed classifier abstains."""
    loss: Tensor
    """``[B]``: the attack's loss at the returned images."""
    distance: Tensor
    """float64 ``[B]``: between image and returned image, in the norm of the attack."""
    steps: Tensor
    """int64 ``[B]``: of the run that ended the search, up to the returned point."""
    queries: Tensor
    """int64 ``[B]``: forward passes that this image takes when it is attacked alone."""
    norm: str
    eps: float
    seed: int
    clean_accuracy: float
    zero_gradients: int
    """Images without any gradient at the first step: a sign of masked gradients."""
    nan_logits: int
    """Images whose logits were no numbers at some point; such a point is no success."""
    nan_gradients: int
    """Images whose gradient was no number at some step; it counted as zero there."""
    flipped: int
    """Images misclassified during the attack and not after, or the other way round: rounding, where
    a model's rows depend on their batch, or a random model."""

    def __len__(self) -> int:
        return len(self.success)

    @property
    def robust_accuracy(self) -> float:
        """The part of the images that the attack left right: a bound from above."""
        return 1 - float(self.success.double().mean()) if len(self) else float("nan")

    def __repr__(self) -> str:
        fooled, within = int(self.success.sum()), f"{self.norm} eps={self.eps:.4g}"
        return (
            f"Attacked({fooled} of {len(self)} images fooled within {within}, "
            f"clean accuracy {self.clean_accuracy:.1%}, robust {self.robust_accuracy:.1%})"
        )


def distances(images: Tensor, x0: Tensor, norm: str) -> Tensor:
    """float64 ``[B]``; l0 counts pixels, all channels of one together."""
    difference = (images.double() - x0.double()).abs()
    if norm == "l0":
        pixels: Tensor = (difference.amax(1) > 0).flatten(1).sum(1).double()
        return pixels
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    lengths: Tensor = torch.linalg.vector_norm(difference.flatten(1), order, dim=1)
    return lengths
