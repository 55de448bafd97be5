"""Certification by several processes.

A sample is a function of seed, image and sample index, so who draws it does not matter: the counts
of a run are the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustcore.common.progress import Bar
from robustcore.common.ranks import Ranks
from robustcore.smoothing.sampler import Sampler
from robustcore.smoothing.smooth import Smooth


class SharedSmooth(Smooth):
    """A :class:`Smooth` whose samples are shared between the ranks of torch.distributed.

    Every rank calls its methods with the same arguments and has the same results; they are those of
    ``Smooth`` on one process. A seed that is not given is drawn by rank 0. Without an initialised
    process group it is ``Smooth``.
    """

    def _start(
        self,
        images: Tensor,
        batch_size: Any,
        image_offset: Any,
        image_stride: Any,
        most_samples: int | None,
    ) -> Sampler:
        sampler = super()._start(images, batch_size, image_offset, image_stride, most_samples)
        return _SharedSampler(sampler, Ranks())

    def _draw_seed(self) -> int:
        return Ranks().from_first(super()._draw_seed())


class _SharedSampler:
    """Counts the votes of this rank's part of the samples, and adds up those of all."""

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self._sampler, self._ranks = sampler, ranks
        self.seed = sampler.seed
        self.image_offset, self.image_stride = sampler.image_offset, sampler.image_stride

    def count(
        self,
        images: Tensor,
        first_sample: int,
        num_samples: int,
        bar: Bar,
        indices: Sequence[int] | None = None,
        whole: bool = False,
    ) -> Tensor:
        part = self._ranks.share(num_samples)
        votes = self._sampler.count(
            images, first_sample + part.start, len(part), bar, indices, whole
        )
        # The others' samples are done as well when this returns; the bar shows all.
        counts = self._ranks.add(votes)
        bar.update(len(images) * (num_samples - len(part)))
        return counts

    def invalid(self) -> Tensor:
        return self._ranks.add(self._sampler.invalid().clone())
