"""SpuriousDigits: handwritten digits with a coloured corner that tells the class, most of the time.

The class is whether the digit is 5 or more. A corner of 2 x 2 pixels is reddish or greenish; in
training its colour goes with the class in 95 % of the images, in validation and test in half of
them, as in Waterbirds. Groups are 2 * class + colour.

Digits: scikit-learn's, Alpaydin and Kaynak, 1998.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.common.digits import all_digits

AGREE = 0.95
CORNER = 2  # pixels a side
GROUPS = ("small, red", "small, green", "large, red", "large, green")


class Part(NamedTuple):
    """Images ``[B, 3, 8, 8]`` float32 in [0, 1], classes ``[B]`` and groups ``[B]``."""

    images: Tensor
    labels: Tensor
    groups: Tensor


class SpuriousDigits(NamedTuple):
    """Three sets; few writers are in two of them."""

    train: Part
    validation: Part
    test: Part

    def to(self, device: torch.device | str) -> SpuriousDigits:
        """The same on another device."""
        return SpuriousDigits(*(Part(*(t.to(device) for t in part)) for part in self))


def corner_region() -> Tensor:
    """Bool ``[1, 8, 8]``: where the colour is."""
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[:, :CORNER, :CORNER] = True
    return region


def load_spurious_digits(
    validation_images: int, test_images: int, contrast: float, seed: int = 0
) -> SpuriousDigits:
    """1797 digits: the last for the test, those before them for validation, the rest for training.

    ``contrast`` in [0, 1] is the difference of red and green in the corner, about grey. ``seed``
    draws the images whose colour does not go with the class.
    """
    digits, numbers = all_digits()
    labels = (numbers >= 5).long()
    sizes = [len(digits) - validation_images - test_images, validation_images, test_images]
    shares = torch.tensor([AGREE, 0.5, 0.5]).repeat_interleave(torch.tensor(sizes))
    agrees = torch.rand(len(digits), generator=torch.Generator().manual_seed(seed)) < shares
    colour = torch.where(agrees, labels, 1 - labels)
    tint = contrast / 2 * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    images = digits.repeat(1, 3, 1, 1)
    images[:, :, :CORNER, :CORNER] = 0.5 + tint[colour][:, :, None, None]
    groups = 2 * labels + colour
    parts = zip(images.split(sizes), labels.split(sizes), groups.split(sizes), strict=True)
    return SpuriousDigits(*(Part(*part) for part in parts))
