"""Smoothing distributions: how to sample, which vote is counted, and what the votes certify."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import require_choice, require_flag, require_positive, require_seed
from robustcore.smoothing.theory import norms
from robustcore.smoothing.theory.bounds import gaussian_radius

Shape = Sequence[int]


class Distribution(ABC):
    """What a classifier is smoothed by. Shapes are those of one input, ``[C, H, W]`` of an image.

    Random distributions certify a probability (:meth:`radius`); deterministic ones enumerate all
    their samples and certify the votes (:meth:`radius_of_votes`).
    """

    norm: str
    """Of the radius: l2, l1, linf, l0 (pixels), or patch (the side of a square)."""
    offsets_on_device: ClassVar[bool] = False
    """Whether :meth:`sample` takes its offsets as 0-d int64 tensors too, and so can be captured in
    a CUDA graph."""

    @property
    def deterministic(self) -> bool:
        """Whether all samples are enumerated, and the certificate is certain."""
        return False

    @property
    def sequential(self) -> bool:
        """Whether the radius is a function of one probability, which looks on the way can bound."""
        return not self.deterministic

    @property
    def several_votes(self) -> bool:
        """Whether one sample may vote for several classes."""
        return False

    @property
    def sigma(self) -> float:
        """Standard deviation of additive noise, in the units of the images; else NaN."""
        return math.nan

    @abstractmethod
    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        """Samples ``[B, S, *output_shape]`` of images ``[B, C, H, W]``.

        The arguments are the op's: seed, image_offset, sample_offset, mean, std, dtype,
        memory_format, out.
        """

    def augment(self, x: Tensor, *, step: int, **arguments: Any) -> Tensor:
        """One sample of each image for training, ``[B, *output_shape]``."""
        return self.sample(x, 1, sample_offset=step, **arguments).squeeze(1)

    def check(self, images: Tensor, normalized: bool) -> None:  # noqa: B027  (most can take any)
        """Raises ValueError, naming the argument, for images it cannot certify."""

    def output_shape(self, shape: Shape) -> tuple[int, ...]:
        """The shape of one sample of an image of ``shape``."""
        return tuple(shape)

    def num_samples(self, shape: Shape) -> int:
        """Of a deterministic distribution: how many samples an image has in all."""
        raise TypeError(f"noise: {self!r} is random, its samples have no end")

    def views(self, images: Tensor) -> list[Tensor]:
        """The parts of the images that are smoothed and certified apart, and then together."""
        return [images]

    def count(self, logits: Tensor) -> Tensor:
        """Votes int64 ``[B, K]`` of logits ``[B, S, K]``."""
        return ops.count_votes(logits)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        """Radius from lower bounds in [1/2, 1] of the class's probability, float64 of p's shape."""
        raise TypeError(f"noise: {self!r} is certified by its votes")

    def shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        """The largest probability, anywhere within ``radius``, of an event of probability p."""
        raise TypeError(f"noise: {self!r} has no top-k certificate")

    def radius_of_votes(self, tolerated: Tensor, shape: Shape) -> Tensor:
        """Radius, float64, within which no more than so many votes change."""
        raise TypeError(f"noise: {self!r} is certified by a probability")


class _Additive(Distribution):
    """Noise with a scale and a choice of norm."""

    offsets_on_device = True
    _norms: ClassVar[tuple[str, ...]] = ("l1", "l2", "linf")

    def _check_norm(self) -> None:
        require_choice("norm", self.norm, self._norms)


@dataclass(frozen=True)
class Gaussian(_Additive):
    """Gaussian noise: l2 radius ``sigma * Phi^-1(p)``, in other norms by conversion.

    Args:
        level: sigma, the standard deviation, above 0, in the units of the images.
        norm: of the radius: l2, l1 or linf.

    Raises TypeError or ValueError, naming the argument. Source: Cohen et al., 2019.
    """

    level: float
    norm: str = "l2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", require_positive("level", self.level))
        self._check_norm()

    @property
    def sigma(self) -> float:
        return self.level

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        return ops.gaussian_noise(x, num_samples, self.level, **arguments)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        return norms.convert(gaussian_radius(p, self.level), math.prod(shape), "l2", self.norm)

    def shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        # A ball of another norm lies in the l2 ball that conversion gives.
        l2 = norms.enclosing(radius, math.prod(shape), "l2", self.norm)
        shifted: Tensor = torch.special.ndtr(torch.special.ndtri(p) + l2 / self.level)
        return shifted


@dataclass(frozen=True)
class Uniform(_Additive):
    """Uniform noise on [-scale, scale]: the better of two radii, each converted to the norm.

    They are ``2 * scale * (p - 1/2)`` in l1 and ``2 * scale * (1 - (3/2 - p) ** (1/d))`` in linf.

    Args:
        scale: half the width, above 0, in the units of the images: sqrt(3) standard deviations.
        norm: of the radius: l1, l2 or linf.

    Raises TypeError or ValueError, naming the argument.
    Source: Lee et al., 2019; Yang et al., 2020.
    """

    scale: float
    norm: str = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", require_positive("scale", self.scale))
        self._check_norm()

    @property
    def sigma(self) -> float:
        return self.scale / math.sqrt(3)

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        return ops.uniform_noise(x, num_samples, self.scale, **arguments)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        d = math.prod(shape)
        l1 = norms.convert(norms.total_variation_l1(p, self.scale), d, "l1", self.norm)
        linf = norms.convert(norms.uniform_linf(p, self.scale, d), d, "linf", self.norm)
        return torch.maximum(l1, linf)

    def shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        l1 = norms.enclosing(radius, math.prod(shape), "l1", self.norm)
        return norms.total_variation_shift(p, l1, self.scale)


@dataclass(frozen=True)
class Laplace(_Additive):
    """Laplace noise: l1 radius ``-scale * ln(2 * (1 - p))``, in other norms by conversion.

    Args:
        scale: mean of the absolute noise, above 0, in the units of the images: the standard
            deviation over sqrt(2).
        norm: of the radius: l1, l2 or linf.

    Raises TypeError or ValueError, naming the argument. Source: Teng et al., 2019.
    """

    scale: float
    norm: str = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", require_positive("scale", self.scale))
        self._check_norm()

    @property
    def sigma(self) -> float:
        return self.scale * math.sqrt(2)

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        return ops.laplace_noise(x, num_samples, self.scale, **arguments)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        return norms.convert(norms.laplace_l1(p, self.scale), math.prod(shape), "l1", self.norm)

    def shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        l1 = norms.enclosing(radius, math.prod(shape), "l1", self.norm)
        return norms.laplace_shift(p, l1 / self.scale)


@dataclass(frozen=True)
class Splitting(_Additive):
    """Splitting noise: l1 radius ``2 * scale * (p - 1/2)``, for any distribution of thresholds.

    Derandomized, all L = ``2 * scale * 255`` thresholds vote (:func:`ops.splitting_levels`) and the
    radius is ``floor((n1 - n2 - [c2 < c1]) / 2) / 255``, with certainty, for 8-bit images.

    Args:
        scale: half the distance of the thresholds, above 0, in the units of the images.
        derandomized: whether to enumerate the thresholds.
        norm: of the radius: l1, l2 or linf.
        seed: of the derandomized thresholds' offsets; another one is another classifier.

    Raises TypeError or ValueError, naming the argument. Source: Levine and Feizi, 2021.
    """

    scale: float
    derandomized: bool = False
    norm: str = "l1"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", require_positive("scale", self.scale))
        self._check_norm()
        require_seed(self.seed)
        require_flag("derandomized", self.derandomized)
        if self.derandomized:
            ops.splitting_levels(self.scale)

    @property
    def deterministic(self) -> bool:
        return self.derandomized

    def check(self, images: Tensor, normalized: bool) -> None:
        if not self.derandomized or images.numel() == 0:
            return
        # One rounding of a level near 1 is allowed for, and must not reach the next level.
        slack = 255 * torch.finfo(images.dtype).eps
        if slack >= 0.5:
            raise ValueError(f"x: got {images.dtype}, which does not hold 8-bit levels")
        levels = images.double() * 255
        if float(images.min()) < 0 or float(images.max()) > 1:
            raise ValueError("x: got pixels outside [0, 1], want 8-bit levels over 255")
        if float((levels - levels.round()).abs().max()) > slack:
            raise ValueError(
                "x: got pixels that are no multiples of 1/255; the derandomized certificate is "
                "exact for 8-bit images only (round them, or use Splitting at random)"
            )

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        if self.derandomized:
            arguments["seed"] = self.seed
        return ops.splitting_noise(
            x, num_samples, self.scale, derandomized=self.derandomized, **arguments
        )

    def augment(self, x: Tensor, *, step: int, **arguments: Any) -> Tensor:
        # The thresholds in turn are a sample of the random ones, each pixel's uniform.
        return Splitting(self.scale).sample(x, 1, sample_offset=step, **arguments).squeeze(1)

    def num_samples(self, shape: Shape) -> int:
        return ops.splitting_levels(self.scale)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        l1 = norms.total_variation_l1(p, self.scale)
        return norms.convert(l1, math.prod(shape), "l1", self.norm)

    def shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        l1 = norms.enclosing(radius, math.prod(shape), "l1", self.norm)
        return norms.total_variation_shift(p, l1, self.scale)

    def radius_of_votes(self, tolerated: Tensor, shape: Shape) -> Tensor:
        return norms.convert(tolerated.double() / 255, math.prod(shape), "l1", self.norm)


@dataclass(frozen=True)
class Dual(Distribution):
    """Two half-resolution images, the even and the odd columns, smoothed apart and certified in l2.

    The radius is ``(r_l + r_r) / sqrt(2)``, negative ones included, each at half of alpha. The
    prediction is the most likely class of the two halves' mean. ``Smooth`` takes one base
    classifier for both halves or a pair, for images ``[N, C, H, W / 2]``.

    Args:
        base: the Gaussian of both halves.

    Raises TypeError or ValueError, naming the argument. Source: Xia et al., "Mitigating the curse
    of dimensionality for certified robustness via dual randomized smoothing", 2024.
    """

    offsets_on_device = True

    base: Gaussian
    norm: str = "l2"

    def __post_init__(self) -> None:
        if not isinstance(self.base, Gaussian) or self.base.norm != "l2":
            raise TypeError(f"base: got {self.base!r}, want a Gaussian with norm 'l2'")
        require_choice("norm", self.norm, ("l2",))

    @property
    def sequential(self) -> bool:
        return False

    @property
    def sigma(self) -> float:
        return self.base.sigma

    def check(self, images: Tensor, normalized: bool) -> None:
        if images.dim() < 3:
            raise ValueError(f"x: got inputs {list(images.shape[1:])}, want channels and columns")
        if images.shape[-1] % 2:
            raise ValueError(f"x: got images of width {images.shape[-1]}, want an even one")

    def views(self, images: Tensor) -> list[Tensor]:
        return [images[..., 0::2], images[..., 1::2]]

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        return self.base.sample(x, num_samples, **arguments)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        """From bounds ``[..., 2]``, one a half; negative where it certifies nothing."""
        return gaussian_radius(p, self.sigma).sum(-1) / math.sqrt(2)
