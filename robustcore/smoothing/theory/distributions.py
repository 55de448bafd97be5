"""Smoothing distributions: how to sample, which vote is counted, and what the votes certify."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import require_choice, require_flag, require_positive, require_seed
from robustcore.smoothing.theory import grids, norms
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
    def sound(self) -> bool:
        """Whether certificates are true for the arithmetic that is run, not for real numbers."""
        return self.deterministic

    def total_variation(self, shape: Shape) -> float:
        """At most, between the noise that is drawn and the one that the radius is of."""
        return 0.0

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

    def augment(self, x: Tensor, *, step: int | Tensor, **arguments: Any) -> Tensor:
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


class _Normed(Distribution):
    """Noise with a scale and a choice of norm."""

    offsets_on_device = True
    _norms: ClassVar[tuple[str, ...]] = ("l1", "l2", "linf")

    def _check_norm(self) -> None:
        require_choice("norm", self.norm, self._norms)


class Additive(_Normed):
    """Noise of real numbers or, with a grid, of integers: the two have one radius."""

    grid: grids.Grid
    _kind: ClassVar[str]

    def __repr__(self) -> str:
        own = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        if self.grid is None:
            del own["grid"]
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in own.items())})"

    @property
    def _level(self) -> float:
        """The first field: what the noise of scale 1 is multiplied by."""
        level: float = getattr(self, fields(self)[0].name)  # type: ignore[arg-type]
        return level

    def __post_init__(self) -> None:
        name = fields(self)[0].name  # type: ignore[arg-type]
        object.__setattr__(self, name, require_positive(name, self._level))
        self._check_norm()
        object.__setattr__(self, "grid", grids.require_grid(self._kind, self._level, self.grid))

    @property
    def sound(self) -> bool:
        return self.grid is not None

    def on_grid(self, grid: grids.Grid) -> Additive:
        """The same noise on another grid."""
        return replace(self, grid=grid)  # type: ignore[type-var]  # its subclasses are dataclasses

    def total_variation(self, shape: Shape) -> float:
        if self.grid is None:
            return 0.0
        if not shape:
            raise ValueError("shape: got none, want an image's: the more noise, the more it errs")
        return grids.total_variation(self._kind, self._level, self.grid, math.prod(shape))

    def check(self, images: Tensor, normalized: bool) -> None:
        if self.grid is not None:
            steps = grids.steps_of(self._kind, self._level, self.grid)
            grids.check_on_grid(images, self.grid, steps)

    def sample(self, x: Tensor, num_samples: int, **arguments: Any) -> Tensor:
        if self.grid is not None:
            return ops.lattice_noise(
                x, num_samples, self._level, grid=self.grid, kind=self._kind, **arguments
            )
        draw = getattr(ops, f"{self._kind}_noise")
        samples: Tensor = draw(x, num_samples, self._level, **arguments)
        return samples

    def augment(self, x: Tensor, *, step: int | Tensor, **arguments: Any) -> Tensor:
        # Augmented images are on no grid, and training asks for no exact noise.
        return self.on_grid(None).sample(x, 1, sample_offset=step, **arguments).squeeze(1)

    def radius(self, p: Tensor, shape: Shape) -> Tensor:
        radius = self._radius(p, shape)
        return radius if self.grid is None else radius * grids.DOWN

    @abstractmethod
    def _radius(self, p: Tensor, shape: Shape) -> Tensor: ...

    def shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        shifted = self._shift(p, radius, shape)
        return shifted if self.grid is None else (shifted / grids.DOWN).clamp(max=1)

    @abstractmethod
    def _shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor: ...


@dataclass(frozen=True, repr=False)
class Gaussian(Additive):
    """Gaussian noise: l2 radius ``sigma * Phi^-1(p)``, in other norms by conversion.

    Args:
        level: sigma, the standard deviation, above 0, in the units of the images.
        norm: of the radius: l2, l1 or linf.
        grid: 255 for 8-bit images, q or (q, m): images are multiples of 1/q, and the noise is an
            integer number of steps of 1/(q m), see :class:`Certificates`. None: real numbers.

    Raises TypeError or ValueError, naming the argument. Source: Cohen et al., 2019.
    """

    level: float
    norm: str = "l2"
    grid: grids.Grid = None
    _kind = "gaussian"

    @property
    def sigma(self) -> float:
        return self.level

    def _radius(self, p: Tensor, shape: Shape) -> Tensor:
        return norms.convert(gaussian_radius(p, self.level), math.prod(shape), "l2", self.norm)

    def _shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        # A ball of another norm lies in the l2 ball that conversion gives.
        l2 = norms.enclosing(radius, math.prod(shape), "l2", self.norm)
        shifted: Tensor = torch.special.ndtr(torch.special.ndtri(p) + l2 / self.level)
        return shifted


@dataclass(frozen=True, repr=False)
class Uniform(Additive):
    """Uniform noise on [-scale, scale]: the better of two radii, each converted to the norm.

    They are ``2 * scale * (p - 1/2)`` in l1 and ``2 * scale * (1 - (3/2 - p) ** (1/d))`` in linf.

    Args:
        scale: half the width, above 0, in the units of the images: sqrt(3) standard deviations.
        norm: of the radius: l1, l2 or linf.
        grid: 255 for 8-bit images, q or (q, m): images are multiples of 1/q, and the noise is an
            integer number of steps of 1/(q m), see :class:`Certificates`. None: real numbers.

    Raises TypeError or ValueError, naming the argument.
    Source: Lee et al., 2019; Yang et al., 2020.
    """

    scale: float
    norm: str = "l1"
    grid: grids.Grid = None
    _kind = "uniform"

    @property
    def sigma(self) -> float:
        return self.scale / math.sqrt(3)

    def _radius(self, p: Tensor, shape: Shape) -> Tensor:
        d = math.prod(shape)
        l1 = norms.convert(norms.total_variation_l1(p, self.scale), d, "l1", self.norm)
        linf = norms.convert(norms.uniform_linf(p, self.scale, d), d, "linf", self.norm)
        return torch.maximum(l1, linf)

    def _shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        l1 = norms.enclosing(radius, math.prod(shape), "l1", self.norm)
        return norms.total_variation_shift(p, l1, self.scale)


@dataclass(frozen=True, repr=False)
class Laplace(Additive):
    """Laplace noise: l1 radius ``-scale * ln(2 * (1 - p))``, in other norms by conversion.

    Args:
        scale: mean of the absolute noise, above 0, in the units of the images: the standard
            deviation over sqrt(2).
        norm: of the radius: l1, l2 or linf.
        grid: 255 for 8-bit images, q or (q, m): images are multiples of 1/q, and the noise is an
            integer number of steps of 1/(q m), see :class:`Certificates`. None: real numbers.

    Raises TypeError or ValueError, naming the argument. Source: Teng et al., 2019.
    """

    scale: float
    norm: str = "l1"
    grid: grids.Grid = None
    _kind = "laplace"

    @property
    def sigma(self) -> float:
        return self.scale * math.sqrt(2)

    def _radius(self, p: Tensor, shape: Shape) -> Tensor:
        return norms.convert(norms.laplace_l1(p, self.scale), math.prod(shape), "l1", self.norm)

    def _shift(self, p: Tensor, radius: Tensor, shape: Shape) -> Tensor:
        l1 = norms.enclosing(radius, math.prod(shape), "l1", self.norm)
        return norms.laplace_shift(p, l1 / self.scale)


@dataclass(frozen=True)
class Splitting(_Normed):
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

    def augment(self, x: Tensor, *, step: int | Tensor, **arguments: Any) -> Tensor:
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
