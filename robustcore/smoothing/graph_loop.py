"""The sampling loop as replays of a CUDA graph, which go on counting on the device.

A step is a full batch of one image: noise, model, votes. It reads from device memory which image
and which samples are next, and its last kernel advances that counter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustcore.common.cuda_graph import CapturedStep


class Step:
    """Noise, model and votes of the next ``len(buffer)`` samples of one image.

    Calling it queues the kernels; it is the same whether they run, or are captured.

    Args:
        sample: ``Distribution.sample`` with what stays the same, the seed apart.
        logits: maps a batch to logits ``[N, num_classes]``.
        count: ``Distribution.count``.
        image: one like those that will be loaded, ``[C, H, W]``.
        buffer: what the model receives, ``[N, ...]``.
        seed: of the noise; a captured step keeps the one it was captured with.
    """

    def __init__(
        self,
        sample: Callable[..., Tensor],
        logits: Callable[[Tensor], Tensor],
        count: Callable[[Tensor], Tensor],
        image: Tensor,
        buffer: Tensor,
        num_classes: int,
        seed: int,
    ) -> None:
        self._sample, self._logits, self._count = sample, logits, count
        self.buffer, self.seed = buffer, seed
        self._image = image.new_empty((1, *image.shape))
        self._image_index = torch.zeros((), dtype=torch.int64, device=image.device)
        self._sample_index = torch.zeros_like(self._image_index)
        self._votes = self._image_index.new_zeros((1, num_classes))
        self._loaded: int | None = None  # index of the image in its buffer
        self._next: int | None = None  # value of the counter on the device

    def __call__(self) -> None:
        rows = len(self.buffer)
        self._sample(
            self._image,
            rows,
            seed=self.seed,
            image_offset=self._image_index,
            sample_offset=self._sample_index,
            out=self.buffer.view(1, *self.buffer.shape),
        )
        self._votes.add_(self._count(self._logits(self.buffer).view(1, rows, -1)))
        self._sample_index.add_(rows)

    def load(self, image: Tensor, index: int, first_sample: int) -> None:
        """Makes samples ``first_sample`` on of the image of that index the next. Queues only."""
        if self._loaded != index:
            self._image.copy_(image.unsqueeze(0))
            self._image_index.fill_(index)
        if self._next != first_sample:
            self._sample_index.fill_(first_sample)
        self._loaded, self._next = index, first_sample

    def advanced(self) -> None:
        """Says that the step has run."""
        assert self._next is not None
        self._next += len(self.buffer)

    def take_votes(self, into: Tensor) -> None:
        """Adds the votes since the last time to ``into``, ``[K]``, and starts again from none."""
        into.add_(self._votes.squeeze(0))
        self._votes.zero_()

    def reset(self) -> None:
        """No votes, and nothing that is loaded: another image may have the same index."""
        self._votes.zero_()
        self._loaded = self._next = None


class GraphLoop:
    """Runs steps: the first ones eagerly, to warm up, all later ones as replays of a capture."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self._captured = CapturedStep(step, device)
        self._votes: Tensor | None = None  # where those of the present image go
        self._index: int | None = None

    def use_seed(self, seed: int) -> None:
        """The seed of all further steps; another one is captured anew, in the same memory."""
        if seed != self.step.seed:
            self.step.seed = seed
            self._captured.forget()

    def begin(self) -> None:
        """Before the first step of a count; one that was left by an error is forgotten."""
        self._votes = self._index = None
        self.step.reset()

    def run(self, image: Tensor, index: int, first_sample: int, votes: Tensor) -> None:
        """One full batch of ``image``, whose votes are in ``votes`` after :meth:`finish`.

        Raises NotCapturable where a model waits for the device, say.
        """
        if index != self._index:
            self.finish()
        self._index, self._votes = index, votes
        self.step.load(image, index, first_sample)
        self._captured.run()
        self.step.advanced()

    def finish(self) -> None:
        """After the last step: hands over the votes."""
        if self._votes is not None:
            self.step.take_votes(self._votes)
        self._votes = self._index = None
