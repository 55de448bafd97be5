"""Draws noisy copies of images batch by batch, and counts what the base classifier votes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from robustcore.common.cuda_graph import Graphs, NotCapturable
from robustcore.common.progress import Bar
from robustcore.smoothing.graph_loop import GraphLoop, Step
from robustcore.smoothing.outputs import Output, checked_logits
from robustcore.smoothing.plan import Block, cut_runs, plan_batches
from robustcore.smoothing.theory.distributions import Distribution

# Of noise with two views, the second has images of its own in the noise stream.
SECOND_VIEW = 2**47


class Sampler(Protocol):
    """What draws samples and counts their votes: on one device, or across ranks."""

    seed: int
    image_offset: int
    image_stride: int

    def count(
        self,
        images: Tensor,
        first_sample: int,
        num_samples: int,
        bar: Bar,
        indices: Sequence[int] | None = None,
        whole: bool = False,
    ) -> Tensor: ...

    def invalid(self) -> Tensor: ...


class Origin(TypedDict):
    """Which samples a result is from, and how long they took."""

    seed: int
    image_offset: int
    image_stride: int
    seconds: float


def origin(sampler: Sampler, started: float) -> Origin:
    """Of a result whose run started at that ``time.perf_counter()``."""
    return Origin(
        seed=sampler.seed,
        image_offset=sampler.image_offset,
        image_stride=sampler.image_stride,
        seconds=time.perf_counter() - started,
    )


class LocalSampler:
    """One run on one device: all noisy copies pass through one buffer.

    Args:
        models: one a view of the noise, or one for all.
        num_classes: columns of their logits.
        noise: how to sample, and which votes to count.
        images: those that will be sampled, or others of their form, ``[B, *D]``.
        rows: of the buffer, most images in one call of a model.
        dtype, memory_format: of what the models receive.
        image_offset, image_stride: ``images[b]`` is number ``image_offset + b * image_stride`` of
            the noise stream.
        seed: of the noise.
        normalization: mean and std, each ``[C]`` or None.
        graphs: where the captured steps are kept.
        output: where the logits are in what the models return.
    """

    def __init__(
        self,
        models: Sequence[Callable[[Tensor], Tensor]],
        num_classes: int,
        noise: Distribution,
        images: Tensor,
        rows: int,
        *,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        image_offset: int,
        image_stride: int,
        seed: int,
        normalization: tuple[Tensor | None, Tensor | None],
        graphs: Graphs[GraphLoop],
        output: Output = "logits",
    ) -> None:
        self.image_offset, self.image_stride, self.seed = image_offset, image_stride, seed
        self._models, self._num_classes, self._noise = models, num_classes, noise
        self._rows, self._graphs, self._output = rows, graphs, output
        shape = noise.output_shape(noise.views(images[:1])[0].shape[1:])
        self._new_buffer = partial(
            torch.empty,
            (rows, *shape),
            dtype=dtype,
            device=images.device,
            memory_format=memory_format,
        )
        self._buffer: Tensor | None = None
        self._invalid = torch.zeros((), dtype=torch.int64, device=images.device)
        mean, std = normalization
        self._sample = partial(noise.sample, mean=mean, std=std, memory_format=memory_format)
        # What a captured step depends on. Normalisation by its tensors, which live as long as it.
        self._depends = (
            num_classes, noise, rows, shape, dtype, memory_format, id(mean), id(std), output,
        )  # fmt: skip
        self._loops: dict[int, GraphLoop | None] = {}
        # Around all batches: autocast keeps its casts of the weights until it is left.
        self._autocast = partial(autocast, images.device, dtype)

    def count(
        self,
        images: Tensor,
        first_sample: int,
        num_samples: int,
        bar: Bar,
        indices: Sequence[int] | None = None,
        whole: bool = False,
    ) -> Tensor:
        """Votes ``[B, K]`` of each image's samples from ``first_sample`` on, on x's device; of
        noise with two views ``[B, 2, K]``.

        ``images[b]`` is what the constructor says of b, or of ``indices[b]``. With ``whole`` every
        batch is: the last one is padded, so that the model meets one shape alone.
        Nothing here waits for the device, but for the capture of a graph.
        """
        votes = []
        for number, view in enumerate(self._noise.views(images)):
            votes.append(
                self._count_view(number, view, first_sample, num_samples, bar, indices, whole)
            )
        return votes[0] if len(votes) == 1 else torch.stack(votes, 1)

    def _count_view(
        self, number: int, images: Tensor, first_sample: int, num_samples: int, bar: Bar,
        indices: Sequence[int] | None, whole: bool,
    ) -> Tensor:  # fmt: skip
        start = number * SECOND_VIEW + self.image_offset
        numbers = range(len(images)) if indices is None else indices
        positions = [start + number * self.image_stride for number in numbers]
        gaps = indices is not None or self.image_stride > 1
        votes = images.new_zeros((len(images), self._num_classes), dtype=torch.int64)
        model = self._models[number % len(self._models)]
        logits = partial(checked_logits, model, self._num_classes, output=self._output)
        loop = None
        if num_samples >= self._rows:
            loop = self._loop(number, model, images, logits)
        if loop is not None:
            loop.begin()
        with torch.inference_mode(), self._autocast():
            for blocks in plan_batches(len(images), num_samples, self._rows):
                size = sum(block.size for block in blocks)
                if loop is not None and blocks[0].samples == self._rows:
                    image, sample = blocks[0].first_image, first_sample + blocks[0].first_sample
                    try:
                        loop.run(images[image], positions[image], sample, votes[image])
                    except NotCapturable as error:
                        loop.finish()
                        self._loops[number] = loop = None
                        self._graphs.refuse(number, error.__cause__)
                    else:
                        bar.update(size)
                        continue
                if gaps:
                    blocks = cut_runs(blocks, positions)
                self._count_batch(images, positions, blocks, first_sample, logits, votes, whole)
                bar.update(size)
            if loop is not None:
                loop.finish()
        return votes

    def _count_batch(
        self, images: Tensor, positions: Sequence[int], blocks: Sequence[Block], first_sample: int,
        logits: Callable[[Tensor], Tensor], votes: Tensor, whole: bool,
    ) -> None:  # fmt: skip
        """One batch, of any images."""
        if self._buffer is None:
            self._buffer = self._new_buffer()
        row = 0
        for block in blocks:
            out = self._buffer[row : row + block.size]
            self._sample(
                images[block.first_image : block.first_image + block.images],
                block.samples,
                seed=self.seed,
                image_offset=positions[block.first_image],
                sample_offset=first_sample + block.first_sample,
                out=out.view(block.images, block.samples, *out.shape[1:]),
            )
            row += block.size
        if whole:
            self._buffer[row:] = 0  # an empty one may hold anything
        ballots = logits(self._buffer if whole else self._buffer[:row])
        row = 0
        for block in blocks:
            part = ballots[row : row + block.size].view(block.images, block.samples, -1)
            votes[block.first_image : block.first_image + block.images] += self._noise.count(part)
            if self._noise.several_votes:
                self._invalid += part.isnan().any(-1).sum()
            row += block.size

    def invalid(self) -> Tensor:
        """int64 0-d: samples whose logits held a NaN, where votes, being several, do not tell."""
        return self._invalid

    def _loop(
        self, number: int, model: Any, images: Tensor, logits: Callable[[Tensor], Tensor]
    ) -> GraphLoop | None:
        """What runs full batches of one image, None where all go the same way."""
        if not self._noise.offsets_on_device or not len(images):
            return None
        if number not in self._loops:
            image = images[0]

            def make() -> GraphLoop:
                if self._buffer is None:
                    self._buffer = self._new_buffer()
                step = Step(
                    self._sample,
                    logits,
                    self._noise.count,
                    image,
                    self._buffer,
                    self._num_classes,
                    self.seed,
                )
                return GraphLoop(step, image.device)

            depends = (*self._depends, image.shape, image.dtype)
            loop = self._graphs.loop(number, model, image.device, depends, make)
            if loop is not None:
                loop.use_seed(self.seed)
                self._buffer = loop.step.buffer  # one is enough
            self._loops[number] = loop
        return self._loops[number]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """What a model that receives ``dtype`` runs under."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype) if half else nullcontext()


def count_classes(
    model: Callable[[Tensor], Any],
    noise: Distribution,
    images: Tensor,
    dtype: torch.dtype,
    output: Output = "logits",
) -> int:
    """Columns of the logits that the model gives for images ``[B, *D]``, found by one call."""
    shape = noise.output_shape(noise.views(images[:1])[0].shape[1:])
    with torch.inference_mode(), autocast(images.device, dtype):
        batch = torch.zeros((1, *shape), dtype=dtype, device=images.device)
        return checked_logits(model, None, batch, output=output).shape[1]
