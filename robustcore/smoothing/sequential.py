"""Sequential sampling: the same guarantee from as many samples as an image needs.

:func:`certify` estimates a radius and stops where more samples would not change much;
:func:`certify_at` tests one radius. Both look at the votes at sizes that grow by half
(:mod:`robustcore.smoothing.theory.spending`) and spend alpha over these looks, so an image may stop
at any of them. Samples are those of a run of fixed size, from the same stream, in the same order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from robustcore.common.checks import require_int, require_probability, require_real
from robustcore.common.progress import Bar, sample_bar
from robustcore.smoothing.certificates import ABSTAIN, Certificates, _Result, _shares
from robustcore.smoothing.theory.bounds import clopper_pearson_lower, gaussian_radius
from robustcore.smoothing.theory.spending import MAX_SIZE, Looks, crossing_counts, plan_looks

# Below, a look costs more than the samples it may save; a test of one radius is often done earlier.
FIRST_LOOK, FIRST_LOOK_OF_TEST = 64, 16


class Sampler(Protocol):
    """What draws samples and counts their votes; the one of ``Smooth``, or one across ranks."""

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
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StoppedCertificates(Certificates):
    """Certificates of images that took as many samples as they needed, ``n`` at most."""

    samples: Tensor
    """int64 ``[B]``: samples of the estimation that were drawn."""
    radius_tolerance: float | None
    """An image was stopped once its radius could not grow by more, in pixel units; None: by a tenth
    of sigma or of what it had reached."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RadiusTests(_Result):
    """Answers for B images to: is the smoothed classifier constant within ``radius``?

    ``prediction`` is the class where the answer is yes, else ABSTAIN; each yes is wrong with
    probability at most ``alpha`` over the noise. ``n`` is the most samples an image could take.
    """

    radius: float
    """l2, in pixel units."""
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

    @property
    def certified(self) -> Tensor:
        """bool ``[B]``."""
        return self.prediction != ABSTAIN


class RadiusTest(NamedTuple):
    """The plan of :func:`certify_at`."""

    radius: float
    sigma: float
    alpha: float
    p_radius: float
    looks: Looks
    accept: tuple[int, ...]
    """Votes for the class that certify, look by look."""
    refute: tuple[int, ...]
    """Other votes that refute, look by look."""

    @property
    def max_n(self) -> int:
        return self.looks.sizes[-1]


def require_tolerance(value: Any) -> float | None:
    if value is None:
        return None
    wanted = "a number of at least 0 in pixel units"
    tolerance = require_real("radius_tolerance", value, wanted)
    if tolerance < 0:
        raise ValueError(f"radius_tolerance: got {tolerance}, want {wanted}")
    return tolerance


def plan_certify(n: int, alpha: float) -> Looks:
    """Looks of an estimation of up to ``n`` samples, all of which must be able to certify."""
    looks = plan_looks(n, alpha, FIRST_LOOK)
    if looks.levels()[-1] ** (1.0 / n) < 0.5:
        raise ValueError(f"n: got {n}, too few to stop early at alpha={alpha}; want twice as many")
    return looks


def certify(
    sampler: Sampler,
    images: Tensor,
    n0: int,
    looks: Looks,
    sigma: float,
    tolerance: float | None,
    *,
    progress: bool | Callable[[int, int], Any] = False,
) -> StoppedCertificates:
    """Certificates from looks on the way; see ``Smooth.certify(early_stop=True)``.

    At look j a Clopper-Pearson bound at that look's own share of alpha: all of them hold together
    with probability ``1 - alpha`` (union bound), so the largest does at any stopping rule. Stopping
    needs no confidence for the certificate's sake; it uses upper bounds at the same levels.

    Without a tolerance, what is worth going on for is a tenth of sigma or of the radius so far. A
    share of the radius, because one of nearly unanimous votes grows with the logarithm of n, and
    not with the accuracy of an estimate: half as many samples cost it about 5 %, whatever n is.
    """
    started = time.perf_counter()
    n, alpha = looks.sizes[-1], looks.spent[-1]
    levels = looks.levels()
    with sample_bar(len(images) * (n0 + n), "certify", progress) as bar:
        run = _Run(sampler, images, n0, n, bar)
        p_lower = np.zeros(len(images))
        p_upper = np.ones(len(images))
        for size, level in zip(looks.sizes, levels, strict=True):
            run.draw_up_to(size)
            active, votes = run.active, run.votes
            p_lower[active] = np.maximum(p_lower[active], clopper_pearson_lower(votes, size, level))
            p_upper[active] = np.minimum(
                p_upper[active], 1 - clopper_pearson_lower(size - votes, size, level)
            )
            # The bound that is reached if all further votes agree, above all at earlier looks.
            reach = clopper_pearson_lower(votes + n - size, n, levels[-1])
            most = np.minimum(reach, p_upper[active])
            reached = _radius(p_lower[active], sigma)
            worth = np.maximum(sigma, reached) / 10 if tolerance is None else tolerance
            run.keep(_radius(most, sigma) - reached > worth)
            if size < n and len(run.active) == 0:
                break
    bound = torch.from_numpy(p_lower)
    certified = bound >= 0.5
    return StoppedCertificates(
        prediction=torch.where(certified, run.choice, ABSTAIN),
        counts=run.counts,
        n=n,
        alpha=alpha,
        sigma=sigma,
        seed=sampler.seed,
        image_offset=sampler.image_offset,
        image_stride=sampler.image_stride,
        seconds=_shares(time.perf_counter() - started, len(images)),
        radius=torch.from_numpy(_radius(p_lower, sigma)),
        p_lower=bound,
        counts0=run.counts0,
        n0=n0,
        samples=run.samples,
        radius_tolerance=tolerance,
    )


def plan_test(radius: Any, sigma: float, alpha: Any, max_n: Any) -> RadiusTest:
    """The test of one radius; raises ValueError if no votes could pass it."""
    from scipy import special

    wanted = "a number of at least 0 in pixel units"
    radius = require_real("radius", radius, wanted)
    if radius < 0:
        raise ValueError(f"radius: got {radius}, want {wanted}")
    alpha = require_probability("alpha", alpha)
    max_n = require_int("max_n", max_n, 1, MAX_SIZE + 1)
    # Rounded up by more than the error of the normal distribution function and of the division.
    p_radius = math.nextafter(float(special.ndtr(radius / sigma)) * (1 + 1e-14), math.inf)
    looks = plan_looks(max_n, alpha, FIRST_LOOK_OF_TEST)
    accept = crossing_counts(p_radius, looks) if p_radius < 1 else (max_n + 1,)
    if accept[-1] > max_n:
        most = gaussian_radius(max(0.5, clopper_pearson_lower(max_n, max_n, alpha)), sigma)
        raise ValueError(
            f"radius: got {radius}, which max_n={max_n} samples cannot certify at alpha={alpha} "
            f"even if all agree; want at most about {most:.4g}, or more samples"
        )
    refute = crossing_counts(math.nextafter(1 - p_radius, math.inf) + 1e-14, looks)
    return RadiusTest(radius, sigma, alpha, p_radius, looks, accept, refute)


def certify_at(
    sampler: Sampler,
    images: Tensor,
    n0: int,
    test: RadiusTest,
    *,
    progress: bool | Callable[[int, int], Any] = False,
) -> RadiusTests:
    """Runs the test on each image until it is decided; see ``Smooth.certify_at``."""
    started = time.perf_counter()
    most = len(images) * (n0 + test.max_n)
    with sample_bar(most, "certify", progress) as bar:
        run = _Run(sampler, images, n0, test.max_n, bar)
        certified = np.zeros(len(images), dtype=bool)
        refuted = np.zeros(len(images), dtype=bool)
        for size, accept, refute in zip(test.looks.sizes, test.accept, test.refute, strict=True):
            run.draw_up_to(size)
            certified[run.active] = run.votes >= accept
            # A sample that voted for nobody is one that did not vote for the class.
            refuted[run.active] = size - run.votes >= refute
            run.keep(~(certified | refuted)[run.active])
            if len(run.active) == 0:
                break
    return RadiusTests(
        prediction=torch.where(torch.from_numpy(certified), run.choice, ABSTAIN),
        counts=run.counts,
        n=test.max_n,
        alpha=test.alpha,
        sigma=test.sigma,
        seed=sampler.seed,
        image_offset=sampler.image_offset,
        image_stride=sampler.image_stride,
        seconds=_shares(time.perf_counter() - started, len(images)),
        radius=test.radius,
        p_radius=test.p_radius,
        refuted=torch.from_numpy(refuted),
        samples=run.samples,
        counts0=run.counts0,
        n0=n0,
    )


class _Run:
    """The votes of a batch of images of which fewer and fewer are still sampled."""

    def __init__(self, sampler: Sampler, images: Tensor, n0: int, most: int, bar: Bar) -> None:
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


def _radius(p: Any, sigma: float) -> Any:
    """Radius for bounds of the class's probability, 0 where they certify nothing."""
    return gaussian_radius(np.maximum(p, 0.5), sigma)
