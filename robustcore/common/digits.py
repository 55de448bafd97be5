"""The digits that the demos train on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Digits(NamedTuple):
    """Images ``[B, 1, 8, 8]`` float32 in [0, 1] and labels ``[B]``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device | str) -> Digits:
        """The same on another device."""
        return Digits(*(part.to(device) for part in self))

    def eight_bit(self) -> Digits:
        """The 17 grey levels as the nearest of 256, which exact certificates want."""
        return Digits(
            *((part * 255).round() / 255 if part.is_floating_point() else part for part in self)
        )


def all_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits ``[B, 1, 8, 8]`` float32 in [0, 1], and labels ``[B]``.

    ImportError says how to get scikit-learn. Source: Alpaydin and Kaynak, 1998.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "the demo needs scikit-learn: pip install 'robustcore[demo]' (or scikit-learn)"
        ) from error
    digits = load()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.as_tensor(digits.target)


def load_digits(test_images: int) -> Digits:
    """The digits in a fixed split of 1297 and up to 500."""
    images, labels = all_digits()
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        range(len(labels)), test_size=500, stratify=labels, random_state=0
    )
    test = test[:test_images]
    return Digits(images[train], labels[train], images[test], labels[test])
