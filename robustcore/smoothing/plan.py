"""Which noisy copies go into which model call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """Samples ``[first_sample, first_sample + samples)`` of each of ``images`` images."""

    first_image: int
    images: int
    first_sample: int
    samples: int

    @property
    def size(self) -> int:
        return self.images * self.samples


def plan_batches(num_images: int, num_samples: int, batch_size: int) -> Iterator[list[Block]]:
    """Batches of blocks that cover every (image, sample) once, in order.

    The pairs, image by image, are one line cut every ``batch_size``: every batch but the last is
    full, whatever ``num_samples`` is. A piece of the line is at most three blocks: the tail of an
    image, whole images, and the head of another.
    """
    total = num_images * num_samples
    for start in range(0, total, batch_size):
        yield list(_blocks(start, min(start + batch_size, total), num_samples))


def _blocks(start: int, stop: int, num_samples: int) -> Iterator[Block]:
    while start < stop:
        image, sample = divmod(start, num_samples)
        if sample == 0 and stop - start >= num_samples:
            block = Block(image, (stop - start) // num_samples, 0, num_samples)
        else:
            block = Block(image, 1, sample, min(num_samples - sample, stop - start))
        yield block
        start += block.size


def cut_runs(blocks: Sequence[Block], indices: Sequence[int]) -> list[Block]:
    """The same pairs in the same order, in blocks whose images have consecutive ``indices``."""
    runs = []
    for block in blocks:
        first, stop = block.first_image, block.first_image + block.images
        for i in range(first + 1, stop + 1):
            if i == stop or indices[i] != indices[i - 1] + 1:
                runs.append(block._replace(first_image=first, images=i - first))
                first = i
    return runs
