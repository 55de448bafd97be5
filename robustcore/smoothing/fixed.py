"""Certification and prediction from as many samples as were asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcore.common.checks import require_int
from robustcore.common.progress import Show, sample_bar
from robustcore.smoothing.certificates import Certificates, Predictions
from robustcore.smoothing.inputs import MAX_SAMPLES, require_enough, require_level, require_sizes
from robustcore.smoothing.sampler import Sampler, origin
from robustcore.smoothing.theory.bounds import smallest_certifiable_n, smallest_predictable_n
from robustcore.smoothing.theory.distributions import Distribution
from robustcore.smoothing.theory.dual import Dual


@dataclass(frozen=True)
class Estimation:
    """Certificates by ``n0`` samples that choose a class and ``n`` that bound its probability."""

    noise: Distribution
    n0: int
    n: int
    alpha: float

    @classmethod
    def plan(cls, noise: Distribution, n0: Any, n: Any, alpha: Any) -> Estimation:
        """ValueError or TypeError unless these can certify."""
        n0, n, alpha = require_sizes(n0, n, alpha, noise)
        require_enough("certify", n, smallest_certifiable_n(alpha / views(noise)), alpha)
        return cls(noise, n0, n, alpha)

    @property
    def most_samples(self) -> int:
        """Of one image, in one count."""
        return max(self.n0, self.n)

    def certify(self, sampler: Sampler, images: Tensor, progress: Show) -> Certificates:
        """Certificates of images ``[B, C, H, W]``, with one wait for the device."""
        started = time.perf_counter()
        total = len(images) * (self.n0 + self.n) * views(self.noise)
        with sample_bar(total, "certify", progress) as bar:
            selection = sampler.count(images, 0, self.n0, bar)
            estimation = sampler.count(images, self.n0, self.n, bar, whole=self.noise.sound)
        counts0, counts = torch.stack([selection, estimation]).cpu()
        return Certificates.from_counts(
            counts0,
            counts,
            n0=self.n0,
            n=self.n,
            alpha=self.alpha,
            sigma=self.noise.sigma,
            noise=self.noise,
            shape=tuple(images.shape[1:]),
            **origin(sampler, started),
        )


@dataclass(frozen=True)
class AllSamples:
    """Certificates under deterministic noise: every sample of every image is counted."""

    noise: Distribution
    most_samples: None = None  # all that there are

    def certify(self, sampler: Sampler, images: Tensor, progress: Show) -> Certificates:
        """Certificates of images ``[B, C, H, W]``, which are certain."""
        started = time.perf_counter()
        shape = tuple(images.shape[1:])
        n = self.noise.num_samples(shape)
        with sample_bar(len(images) * n, "certify", progress) as bar:
            counts = sampler.count(images, 0, n, bar).cpu()
        return Certificates.from_votes(
            counts, n=n, noise=self.noise, shape=shape, **origin(sampler, started)
        )


@dataclass(frozen=True)
class Prediction:
    """Classes by a test between the two that have most of ``n`` votes."""

    noise: Distribution
    most_samples: int
    alpha: float

    @classmethod
    def plan(cls, noise: Distribution, n: Any, alpha: Any) -> Prediction:
        """ValueError or TypeError unless these can predict."""
        if noise.deterministic or isinstance(noise, Dual):
            raise ValueError(f"noise: {noise} has no test for predict; certify predicts too")
        n = require_int("n", n, 1, MAX_SAMPLES)
        alpha = require_level(alpha)
        require_enough("predict", n, smallest_predictable_n(alpha), alpha)
        return cls(noise, n, alpha)

    def predict(self, sampler: Sampler, images: Tensor, progress: Show) -> Predictions:
        """Predictions of images ``[B, C, H, W]``."""
        started = time.perf_counter()
        n = self.most_samples
        with sample_bar(len(images) * n, "predict", progress) as bar:
            counts = sampler.count(images, 0, n, bar).cpu()
        return Predictions.from_counts(
            counts, n=n, alpha=self.alpha, sigma=self.noise.sigma, **origin(sampler, started)
        )


def views(noise: Distribution) -> int:
    """How many images the noise makes of one."""
    return 2 if isinstance(noise, Dual) else 1
