"""Runs a model of any output on noisy copies: what segmentation and regression share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcore.common.checks import (
    require_callable,
    require_int,
    require_positive,
    require_seed,
)
from robustcore.common.normalize import Normalization
from robustcore.common.progress import Bar
from robustcore.smoothing.inputs import (
    MAX_IMAGES,
    dtype_for,
    place_of,
    require_batch,
    require_form,
    warn_if_training,
)
from robustcore.smoothing.sampler import autocast
from robustcore.smoothing.theory.distributions import Gaussian
from robustcore.smoothing.theory.grids import Grid

Pick = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FromCopies:
    """Which noise a result is from, and how long it took."""

    sigma: float
    seed: int
    image_offset: int
    """Image b is number ``image_offset + b`` of the noise stream."""
    seconds: float
    """Wall time of all images together."""
    total_variation: float
    """At most, between the noise that was drawn and the ideal one; accounted for. 0 without a grid,
    where results hold in real arithmetic."""


class SmoothedModel:
    """A model under Gaussian noise, and how its noisy copies are made; see the subclasses."""

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        sigma: float,
        *,
        grid: Grid = None,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        input_dims: int = 3,
        output: Pick | None = None,
    ) -> None:
        require_callable("model", model)
        if output is not None:
            require_callable("output", output)
        self.model, self.output = model, output
        self.noise = Gaussian(require_positive("sigma", sigma), grid=grid)
        self.sigma = self.noise.sigma
        self.input_dims = require_int("input_dims", input_dims, 1, 6)
        require_form(dtype, memory_format)
        if memory_format == torch.channels_last and self.input_dims != 3:
            raise ValueError(f"memory_format: got {memory_format}, which is for input_dims=3")
        self.dtype, self.memory_format = dtype, memory_format
        self.seed = None if seed is None else require_seed(seed)
        self.last_seed: int | None = None
        self._normalization = Normalization(mean, std)

    def _start(
        self, x: Any, batch_size: Any, image_offset: Any, most_samples: int
    ) -> tuple[Tensor, bool, Copies]:
        """x as a batch, whether it was one image, and what runs the model, after the checks."""
        images, single = require_batch(x, self.input_dims)
        if isinstance(x, np.ndarray):
            images = images.to(place_of([self.model]) or images.device)
        if not len(images):
            raise ValueError(f"x: got shape {list(images.shape)}, want at least one image")
        batch_size = require_int("batch_size", batch_size, 1)
        offset = require_int("image_offset", image_offset, 0, MAX_IMAGES - len(images) + 1)
        mean, std = self._normalization.on(images)
        self.noise.check(images, mean is not None or std is not None)
        warn_if_training(self.model, "model")
        self.last_seed = secrets.randbits(64) if self.seed is None else self.seed
        return images, single, Copies(self, images, offset, min(batch_size, most_samples))


class Copies:
    """One run: the copies of one image after another pass through one buffer."""

    def __init__(self, smooth: SmoothedModel, images: Tensor, image_offset: int, rows: int) -> None:
        self._smooth, self._images, self._offset, self._rows = smooth, images, image_offset, rows
        self._dtype = smooth.dtype or dtype_for([smooth.model], images)
        self._normalization = smooth._normalization.on(images)
        self._buffer: Tensor | None = None
        self.total_variation = smooth.noise.total_variation(images.shape[1:])
        self._started = time.perf_counter()

    def origin(self) -> dict[str, Any]:
        """The fields of a result that is made now."""
        return {
            "sigma": self._smooth.sigma,
            "seed": self._smooth.last_seed,
            "image_offset": self._offset,
            "seconds": time.perf_counter() - self._started,
            "total_variation": self.total_variation,
        }

    def run(
        self,
        image: int,
        first_sample: int,
        num_samples: int,
        take: Callable[[Tensor], None],
        bar: Bar,
        whole: bool = False,
    ) -> None:
        """Gives ``take`` the outputs ``[N, ...]`` of an image's samples, a batch at a time.

        With ``whole`` the model meets one shape alone: the last batch has samples that are not
        handed on.
        """
        smooth = self._smooth
        mean, std = self._normalization
        if self._buffer is None:
            shape = (self._rows, *self._images.shape[1:])
            self._buffer = torch.empty(
                shape, dtype=self._dtype, device=self._images.device,
                memory_format=smooth.memory_format,
            )  # fmt: skip
        with torch.inference_mode(), autocast(self._images.device, self._dtype):
            for done in range(0, num_samples, self._rows):
                wanted = min(self._rows, num_samples - done)
                batch = self._buffer if whole else self._buffer[:wanted]
                smooth.noise.sample(
                    self._images[image : image + 1],
                    len(batch),
                    seed=smooth.last_seed,
                    image_offset=self._offset + image,
                    sample_offset=first_sample + done,
                    mean=mean,
                    std=std,
                    memory_format=smooth.memory_format,
                    out=batch.unsqueeze(0),
                )
                made = smooth.model(batch)
                take(self._checked(made, len(batch))[:wanted])
                bar.update(wanted)

    def _checked(self, made: Any, rows: int) -> Tensor:
        """The output as floating ``[N, ...]``: the tensor itself, what it calls logits, or picked.

        Raises TypeError or ValueError, naming the model.
        """
        output = self._smooth.output
        if output is not None:
            made = output(made)
        elif not isinstance(made, Tensor):
            made = _logits_in(made)
        if not isinstance(made, Tensor) or not made.is_floating_point():
            got = made.dtype if isinstance(made, Tensor) else type(made).__name__
            raise TypeError(
                f"model: gave {got}, want a floating tensor [{rows}, ...]; output= takes a "
                "function that picks it"
            )
        if made.dim() == 0 or len(made) != rows:
            raise ValueError(f"model: gave shape {list(made.shape)}, want [{rows}, ...]")
        return made


def _logits_in(made: Any) -> Any:
    """What an output calls logits or, as torchvision does, out."""
    for name in ("logits", "out"):
        found = made.get(name) if isinstance(made, dict) else getattr(made, name, None)
        if found is not None:
            return found
    return made
