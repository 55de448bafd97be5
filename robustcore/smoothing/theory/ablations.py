"""Smoothing by ablation: most of the image is hidden, so a sparse change is seldom seen."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import require_choice, require_int, require_real, require_sequence
from robustcore.smoothing.theory import norms, votes
from robustcore.smoothing.theory.distributions import Distribution, Shape


class _Ablation(Distribution):
    """Ablation, with the NULL encoding or a fill."""

    fill: float | tuple[float, ...] | None

    def _check_fill(self) -> None:
        if self.fill is None:
            return
        wanted = "None or finite numbers"
        many = isinstance(self.fill, Sequence)
        each = require_sequence("fill", self.fill, wanted) if many else [self.fill]
        values = tuple(require_real("fill", value, wanted) for value in each)
        if not values:
            raise ValueError(f"fill: got {self.fill!r}, want {wanted}")
        object.__setattr__(self, "fill", values if many else values[0])

    def check(self, images: Tensor, normalized: bool) -> None:
        if images.dim() < 3:
            raise ValueError(f"x: got inputs {list(images.shape[1:])}, want channels and pixels")
        if self.fill is None and normalized:
            raise ValueError("mean, std: cannot normalise the NULL encoding; give noise a fill")

    def output_shape(self, shape: Shape) -> tuple[int, ...]:
        channels = 2 * shape[0] if self.fill is None else shape[0]
        return (channels, *shape[1:])


@dataclass(frozen=True)
class PixelAblation(_Ablation):
    """All but k pixels ablated at random: l0, the largest r with ``3/2 - p < C(d-r, k) / C(d, k)``.

    Args:
        k: pixels kept, at least 1, at most those of an image (d).
        fill: what an ablated pixel becomes, a float or one a channel; None: the NULL encoding, and
            the base classifier receives 2C channels ``[x, 1 - x]``.

    Raises TypeError or ValueError, naming the argument. Source: Levine and Feizi, 2020.
    """

    offsets_on_device = True

    k: int
    fill: float | tuple[float, ...] | None = None
    norm: str = "l0"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", require_int("k", self.k, 1))
        self._check_fill()
        require_choice("norm", self.norm, ("l0",))

    def check(self, images: Tensor, normalized: bool) -> None:
        super().check(images, normalized)
        pixels = math.prod(images.shape[2:])
        if self.k > pixels:
            raise ValueError(f"k: got {self.k} for images of {pixels} pixels, want at most those")

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        return ops.ablate_pixels(x, num_samples, self.k, fill=self.fill, **arguments)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        return norms.ablation_l0(p, math.prod(shape[1:]), self.k)

    def shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        # The samples that keep none of r pixels do not see their change.
        d, k = math.prod(shape[1:]), self.k
        most = int(radius.max()) if radius.numel() else 0
        moved = [1 - math.comb(max(d - r, 0), k) / math.comb(d, k) for r in range(most + 1)]
        # Rounded up, so that no radius is certified by it.
        table = torch.tensor([math.nextafter(m, 2) if m else 0.0 for m in moved]).double()
        return (p + table[radius.long()]).clamp(max=1)


class _PatchAblation(_Ablation):
    """All but one window ablated, at every position; certified by the positions a patch meets."""

    norm = "patch"
    threshold: float | None

    @property
    def deterministic(self) -> bool:
        return True

    @abstractmethod
    def _window(self, shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) and (down, right) of the window and its stride."""

    @property
    def several_votes(self) -> bool:
        return self.threshold is not None

    def _check_window(self, size_name: str, size: int, stride: int) -> None:
        require_int(size_name, size, 1)
        require_int("stride", stride, 1)
        if stride > size:
            raise ValueError(
                f"stride: got {stride} for a window of {size}, which leaves pixels that no window "
                f"covers; want at most {size}"
            )
        if self.threshold is not None:
            value = require_real("threshold", self.threshold, "None or a number in (0, 1]")
            if not 0 < value <= 1:
                raise ValueError(f"threshold: got {value}, want None or a number in (0, 1]")
        self._check_fill()

    def check(self, images: Tensor, normalized: bool) -> None:
        super().check(images, normalized)
        if images.dim() != 4:
            raise ValueError(f"x: got inputs {list(images.shape[1:])}, want images [C, H, W]")
        size, _ = self._window(images.shape[1:])
        if size[0] > images.shape[2] or size[1] > images.shape[3]:
            raise ValueError(
                f"noise: got a window of {size[1]} for images of {images.shape[2]} x "
                f"{images.shape[3]}, want one that fits"
            )

    def num_samples(self, shape: Shape) -> int:
        _, stride = self._window(shape)
        return math.ceil(shape[1] / stride[0]) * math.ceil(shape[2] / stride[1])

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        size, stride = self._window(x.shape[1:])
        first = arguments.pop("sample_offset", 0)
        for name in ("seed", "image_offset"):
            arguments.pop(name, None)
        return ops.ablate_patches(
            x, size, stride=stride, positions=(first, first + num_samples), fill=self.fill,
            **arguments,
        )  # fmt: skip

    def augment(self, x: Tensor, *, step: int | Tensor, **arguments: Any) -> Tensor:
        # One position for the batch, as the published training has it.
        position = random.Random(f"{arguments['seed']}/{step}").randrange(
            self.num_samples(x.shape[1:])
        )
        return self.sample(x, 1, sample_offset=position, **arguments).squeeze(1)

    def count(self, logits: Tensor) -> Tensor:
        if self.threshold is None:
            return super().count(logits)
        return (logits.float().softmax(-1) >= self.threshold).sum(-2)

    def influence(self, shape: Shape) -> list[int]:
        """The most positions that an m x m patch meets, m = 0, 1, ..., by enumeration."""
        size, stride = self._window(shape)
        down = votes.axis_influence(shape[1], size[0], stride[0])
        right = votes.axis_influence(shape[2], size[1], stride[1])
        return [a * b for a, b in zip(down, right, strict=False)]

    def radius_of_votes(self, tolerated: Tensor, shape: Shape) -> Tensor:
        steps = torch.tensor(self.influence(shape))
        return torch.searchsorted(steps, tolerated, right=True).double() - 1


@dataclass(frozen=True)
class BandAblation(_PatchAblation):
    """All but a band of columns ablated, at every position: the side of a patch, with certainty.

    Args:
        width: of the band, at least 1, at most the image's.
        stride: between bands, at most ``width``.
        threshold: a class whose softmax reaches it gets a vote, so a band may vote for several
            classes or none; None: for the most likely one.
        fill: as in :class:`PixelAblation`.

    Raises TypeError or ValueError, naming the argument. Source: Levine and Feizi, "(De)randomized
    smoothing for certifiable defense against patch attacks", 2020 (threshold 0.2).
    """

    width: int
    stride: int = 1
    threshold: float | None = 0.2
    fill: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check_window("width", self.width, self.stride)

    def _window(self, shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
        return (shape[1], self.width), (shape[1], self.stride)


@dataclass(frozen=True)
class BlockAblation(_PatchAblation):
    """All but a square block ablated, at every position: the side of a patch, with certainty.

    Args:
        size: of the block's side, at least 1, at most the image's.
        stride: between blocks, down and right, at most ``size``.
        threshold, fill: as in :class:`BandAblation`.

    Raises TypeError or ValueError, naming the argument. Source: Levine and Feizi, 2020.
    """

    size: int
    stride: int = 1
    threshold: float | None = 0.2
    fill: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check_window("size", self.size, self.stride)

    def _window(self, shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.size, self.size), (self.stride, self.stride)
