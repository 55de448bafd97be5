"""BlockDigits: the 8x8 handwritten digits of scikit-learn, made as BlockMNIST is from MNIST.

Each image ``[1, 16, 8]`` stacks a digit block and a null block (a frame with a diagonal, the same
in every image); only the digit says the class. Which is on top is random in training and fixed in
the test set, where the digit is, so that what an attribution puts on the lower half has leaked.

Source: Shah, Jain, Netrapalli, "Do input gradients highlight discriminative features?", 2021;
digits: Alpaydin and Kaynak, 1998.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.common.digits import all_digits


class BlockDigits(NamedTuple):
    """Images ``[B, 1, 16, 8]`` float32 in [0, 1], labels ``[B]``, and the test null block."""

    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor  # as in training
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    null_region: Tensor  # bool [1, 16, 8]

    def to(self, device: torch.device | str) -> BlockDigits:
        """The same on another device."""
        return BlockDigits(*(part.to(device) for part in self))


def null_block() -> Tensor:
    """``[8, 8]``: a frame with a diagonal."""
    block = torch.eye(8)
    block[[0, -1], :] = 1
    block[:, [0, -1]] = 1
    return block


def load_block_digits(validation_images: int, test_images: int, seed: int = 0) -> BlockDigits:
    """1797 digits: the last for the test, those before them for validation, the rest for training.

    They lie by writer, so few writers are in two of the sets. ``seed`` places the blocks.
    """
    digits, labels = all_digits()
    null = null_block().expand_as(digits)
    top = torch.cat([digits, null], 2)
    bottom = torch.cat([null, digits], 2)
    side = torch.rand(len(digits), generator=torch.Generator().manual_seed(seed)) < 0.5
    mixed = torch.where(side.view(-1, 1, 1, 1), top, bottom)
    region = torch.zeros(1, 16, 8, dtype=torch.bool)
    region[:, 8:] = True
    sizes = [len(digits) - validation_images - test_images, validation_images, test_images]
    train, validation, _ = zip(mixed.split(sizes), labels.split(sizes), strict=True)
    return BlockDigits(*train, *validation, top[-test_images:], labels[-test_images:], region)
