"""The digits that the demos train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Digits(NamedTuple):
    """Images ``[B, 1, 8, 8]`` float32 in [0, 1] and labels ``[B]``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(test_images: int) -> Digits:
    """scikit-learn's 1797 digits, pixels in [0, 1]: a fixed split of 1297 and up to 500."""
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(digits.target)
    train, test = model_selection.train_test_split(
        range(len(labels)), test_size=500, stratify=labels, random_state=0
    )
    test = test[:test_images]
    return Digits(images[train], labels[train], images[test], labels[test])


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread for the time of a block."""
    # Steps this small gain nothing from a second thread, and wait for it where it is not free.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
