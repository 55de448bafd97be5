"""Sequential sampling: the same guarantee from as many samples as an image needs.

:class:`EarlyStop` estimates a radius and stops where more samples would not change much;
:class:`RadiusTest` tests one radius. Both look at the votes at sizes that grow by half
(:mod:`robustcore.smoothing.theory.spending`) and spend alpha over these looks, so an image may stop
at any of them. Samples are those of a run of fixed size, from the same stream, in the same order.

On a grid, votes may differ by their place in a batch: looks then fall on whole batches, so that all
of them are of one mixture of places, and each has a bound that needs no equal votes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcore.common.checks import require_int, require_not_negative
from robustcore.common.progress import Bar, Show, sample_bar
from robustcore.common.table import ABSTAIN
from robustcore.smoothing.certificates import Certificates
from robustcore.smoothing.inputs import MAX_SAMPLES, require_enough, require_level, require_sizes
from robustcore.smoothing.result import Result, equal_shares
from robustcore.smoothing.sampler import Origin, Sampler, origin
from robustcore.smoothing.theory.bounds import clopper_pearson_lower, smallest_certifiable_n
from robustcore.smoothing.theory.distributions import Distribution
from robustcore.smoothing.theory.grids import less_variation
from robustcore.smoothing.theory.inversion import least_probability
from robustcore.smoothing.theory.spending import (
    MAX_SIZE,
    Looks,
    crossing_counts,
    plan_looks,
    separate_counts,
)

# Below, a look costs more than the samples it may save; a test of one radius is often done earlier.
FIRST_LOOK, FIRST_LOOK_OF_TEST = 64, 16
PHI_OF_1 = 0.8413447460685429  # P(z < 1) of a standard normal z


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StoppedCertificates(Certificates):
    """Certificates of images that took as many samples as they needed, ``n`` at most."""

    samples: Tensor
    """int64 ``[B]``: samples of the estimation that were drawn."""
    radius_tolerance: float | None
    """An image was stopped once its radius could not grow by more, in pixel units; None: by a tenth
    of sigma or of what it had reached."""

    @property
    def drawn(self) -> Tensor:
        return self.samples

    def top_k_radius(self, labels: Any, k: int) -> Tensor:
        """Not for images that were stopped by their votes: the bounds are for one fixed n."""
        raise TypeError("early_stop: has no top-k certificate; certify without it")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RadiusTests(Result):
    """Answers for B images to: is the smoothed classifier constant within ``radius``?

    ``prediction`` is the class where the answer is yes, else ABSTAIN; each yes is wrong with
    probability at most ``alpha`` over the noise. ``n`` is the most samples an image could take.
    """

    radius: float
    """In the norm of the noise and in pixel units."""
    p_radius: float
    """Probability that the class has to exceed for this radius."""
    refuted: Tensor
    """bool ``[B]``: shown, at level alpha, that the selected class does not exceed it. Neither
    certified nor refuted is undecided after ``n`` samples."""
    samples: Tensor
    """int64 ``[B]``: samples of the test that were drawn: its stopping time."""
    counts0: Tensor
    """int64 ``[B, K]``: votes of the selection."""
    n0: int
    noise: Distribution

    @property
    def drawn(self) -> Tensor:
        return self.samples

    def _row(self, b: int) -> tuple[int, int]:
        return int(self.prediction[b]), int(self.samples[b])

    @property
    def sound(self) -> bool:
        """Whether the answers hold in floating point, as those of :class:`Certificates`."""
        return self.noise.sound

    @property
    def certified(self) -> Tensor:
        """bool ``[B]``."""
        return self.prediction != ABSTAIN


def plan_certify(n: int, alpha: float, whole: int = 1) -> Looks:
    """Looks of an estimation of up to ``n`` samples, all of which must be able to certify."""
    looks = plan_looks(n, alpha, FIRST_LOOK, whole)
    if looks.levels()[-1] ** (1.0 / n) < 0.5:
        raise ValueError(f"n: got {n}, too few to stop early at alpha={alpha}; want twice as many")
    return looks


@dataclass(frozen=True)
class EarlyStop:
    """Certificates from looks on the way; see ``Smooth.certify(early_stop=True)``.

    At look j a Clopper-Pearson bound at that look's own share of alpha: all of them hold together
    with probability ``1 - alpha`` (union bound), so the largest does at any stopping rule. Stopping
    needs no confidence for the certificate's sake; it uses upper bounds at the same levels.

    Without a tolerance, what is worth going on for is a tenth of sigma or of the radius so far. A
    share of the radius, because one of nearly unanimous votes grows with the logarithm of n, and
    not with the accuracy of an estimate: half as many samples cost it about 5 %, whatever n is.
    For other noise and norms, the radius at probability Phi(1) is in the place of sigma, as it is
    for Gaussian noise in l2.
    """

    noise: Distribution
    shape: tuple[int, ...]
    n0: int
    looks: Looks
    tolerance: float | None

    @classmethod
    def plan(
        cls, noise: Distribution, shape: tuple[int, ...], n0: Any, n: Any, alpha: Any,
        tolerance: Any, whole: int = 1,
    ) -> EarlyStop:  # fmt: skip
        """ValueError or TypeError unless these can certify. Looks are multiples of ``whole``."""
        n0, n, alpha = require_sizes(n0, n, alpha, noise)
        require_enough("certify", n, smallest_certifiable_n(alpha), alpha)
        looks = plan_certify(n, alpha, whole)
        if tolerance is not None:
            tolerance = require_not_negative("radius_tolerance", tolerance)
        return cls(noise, shape, n0, looks, tolerance)

    @property
    def most_samples(self) -> int:
        """Of one image, in one count."""
        return max(self.n0, self.looks.sizes[-1])

    def certify(self, sampler: Sampler, images: Tensor, progress: Show) -> StoppedCertificates:
        """Certificates of images ``[B, C, H, W]``."""
        started = time.perf_counter()
        n = self.looks.sizes[-1]
        lower, upper = np.zeros(len(images)), np.ones(len(images))
        with sample_bar(len(images) * (self.n0 + n), "certify", progress) as bar:
            run = _Run(sampler, images, self.n0, n, bar, self.noise.sound)
            for size, level in zip(self.looks.sizes, self.looks.levels(), strict=True):
                run.draw_up_to(size)
                self._look(run, size, level, lower, upper)
                if size < n and len(run.active) == 0:
                    break
        return self._certificates(run, lower, origin(sampler, started))

    def _look(self, run: _Run, size: int, level: float, lower: Any, upper: Any) -> None:
        """Tightens both bounds of the active images, and stops those that gain too little."""
        n, active, votes = self.looks.sizes[-1], run.active, run.votes
        bound = torch.from_numpy(clopper_pearson_lower(votes, size, level))
        ideal = less_variation(bound, self.noise.total_variation(self.shape))
        lower[active] = np.maximum(lower[active], ideal.numpy())
        upper[active] = np.minimum(
            upper[active], 1 - clopper_pearson_lower(size - votes, size, level)
        )
        # The bound that is reached if all further votes agree, above all at earlier looks.
        reach = clopper_pearson_lower(votes + n - size, n, self.looks.levels()[-1])
        reached = self._radius(lower[active])
        gain = self._radius(np.minimum(reach, upper[active])) - reached
        tenth = np.maximum(self._radius(np.array(PHI_OF_1)), reached) / 10
        run.keep(gain > (tenth if self.tolerance is None else self.tolerance))

    def _radius(self, p: Any) -> Any:
        """Radius for bounds of the class's probability, 0 where they certify nothing."""
        radius = self.noise.radius(torch.as_tensor(np.maximum(p, 0.5)), self.shape).numpy()
        return radius + 0.0  # -0 of a logarithm is 0

    def _certificates(self, run: _Run, lower: Any, made: Origin) -> StoppedCertificates:
        bound = torch.from_numpy(lower)
        return StoppedCertificates(
            prediction=torch.where(bound >= 0.5, run.choice, ABSTAIN),
            counts=run.counts,
            n=self.looks.sizes[-1],
            alpha=self.looks.spent[-1],
            sigma=self.noise.sigma,
            seed=made["seed"],
            image_offset=made["image_offset"],
            image_stride=made["image_stride"],
            seconds=equal_shares(made["seconds"], len(lower)),
            radius=torch.from_numpy(self._radius(lower)),
            p_lower=bound,
            counts0=run.counts0,
            n0=self.n0,
            noise=self.noise,
            shape=self.shape,
            samples=run.samples,
            radius_tolerance=self.tolerance,
        )


@dataclass(frozen=True)
class RadiusTest:
    """Answers to one question, until each image is decided; see ``Smooth.certify_at``."""

    radius: float
    noise: Distribution
    alpha: float
    p_radius: float
    n0: int
    looks: Looks
    accept: tuple[int, ...]
    """Votes for the class that certify, look by look."""
    refute: tuple[int, ...]
    """Other votes that refute, look by look."""

    @classmethod
    def plan(
        cls, noise: Distribution, shape: tuple[int, ...], radius: Any, alpha: Any, max_n: Any,
        n0: Any, whole: int = 1,
    ) -> RadiusTest:  # fmt: skip
        """ValueError or TypeError if no votes could pass it. Looks are multiples of ``whole``."""
        n0 = require_int("n0", n0, 1, MAX_SAMPLES)
        radius = require_not_negative("radius", radius)
        alpha = require_level(alpha, noise)
        max_n = require_int("max_n", max_n, 1, MAX_SIZE + 1)
        p_radius = least_probability(noise, radius, shape)
        looks = plan_looks(max_n, alpha, FIRST_LOOK_OF_TEST, whole)
        counts_of = separate_counts if noise.sound else crossing_counts
        # What the noise that is drawn needs.
        variation = noise.total_variation(shape)
        drawn = math.nextafter(p_radius + variation, math.inf) if variation else p_radius
        accept = counts_of(drawn, looks) if drawn < 1 else (max_n + 1,)
        if accept[-1] > max_n:
            bound = torch.tensor(max(0.5, clopper_pearson_lower(max_n, max_n, alpha)))
            raise ValueError(
                f"radius: got {radius}, which max_n={max_n} samples cannot certify at "
                f"alpha={alpha} even if all agree; want at most about "
                f"{float(noise.radius(bound.double(), shape)):.4g}, or more samples"
            )
        refute = counts_of(math.nextafter(1 - p_radius + variation, math.inf) + 1e-14, looks)
        return cls(radius, noise, alpha, p_radius, n0, looks, accept, refute)

    @property
    def max_n(self) -> int:
        """Samples of the test at most."""
        return self.looks.sizes[-1]

    @property
    def most_samples(self) -> int:
        """Of one image, in one count."""
        return max(self.n0, self.max_n)

    def answer(self, sampler: Sampler, images: Tensor, progress: Show) -> RadiusTests:
        """The answers for images ``[B, C, H, W]``."""
        started = time.perf_counter()
        certified = np.zeros(len(images), dtype=bool)
        refuted = np.zeros(len(images), dtype=bool)
        with sample_bar(len(images) * (self.n0 + self.max_n), "certify", progress) as bar:
            run = _Run(sampler, images, self.n0, self.max_n, bar, self.noise.sound)
            for size, accept, refute in zip(
                self.looks.sizes, self.accept, self.refute, strict=True
            ):
                run.draw_up_to(size)
                certified[run.active] = run.votes >= accept
                # A sample that voted for nobody is one that did not vote for the class.
                refuted[run.active] = size - run.votes >= refute
                run.keep(~(certified | refuted)[run.active])
                if len(run.active) == 0:
                    break
        made = origin(sampler, started)
        return RadiusTests(
            prediction=torch.where(torch.from_numpy(certified), run.choice, ABSTAIN),
            counts=run.counts,
            n=self.max_n,
            alpha=self.alpha,
            sigma=self.noise.sigma,
            noise=self.noise,
            seed=made["seed"],
            image_offset=made["image_offset"],
            image_stride=made["image_stride"],
            seconds=equal_shares(made["seconds"], len(images)),
            radius=self.radius,
            p_radius=self.p_radius,
            refuted=torch.from_numpy(refuted),
            samples=run.samples,
            counts0=run.counts0,
            n0=self.n0,
        )


class _Run:
    """The votes of a batch of images of which fewer and fewer are still sampled."""

    def __init__(
        self, sampler: Sampler, images: Tensor, n0: int, most: int, bar: Bar, whole: bool
    ) -> None:
        self._whole = whole
        self._sampler, self._images, self._n0, self._most = sampler, images, n0, most
        self._bar = bar
        self.counts0 = sampler.count(images, 0, n0, bar).cpu()
        self.choice = self.counts0.argmax(1)
        self.counts = torch.zeros_like(self.counts0)
        self.samples = torch.zeros(len(images), dtype=torch.int64)
        self.active = np.arange(len(images))
        self._size = 0

    def draw_up_to(self, size: int) -> None:
        """Samples of the active images until each has ``size`` of them."""
        if len(self.active) == 0:
            return
        index = torch.from_numpy(self.active)
        everyone = len(index) == len(self._images)
        images = self._images if everyone else self._images[index.to(self._images.device)]
        new = self._sampler.count(
            images,
            self._n0 + self._size,
            size - self._size,
            self._bar,
            None if everyone else self.active.tolist(),
            self._whole,
        )
        self.counts[index] += new.cpu()
        self.samples[index] = size
        self._size = size

    @property
    def votes(self) -> Any:
        """Votes of the active images for the class that the selection chose, as an array."""
        index = torch.from_numpy(self.active)
        return self.counts[index].gather(1, self.choice[index, None]).squeeze(1).numpy()

    def keep(self, undecided: Any) -> None:
        """Stops the active images that are not ``undecided``."""
        stopped = len(self.active) - int(np.count_nonzero(undecided))
        if self._bar.total is not None:  # a bar that is not shown has none
            self._bar.total -= stopped * (self._most - self._size)
        self.active = self.active[undecided]
