"""Mixes of an accurate and a smoothed classifier, and a score of a classifier's robustness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcore.common.checks import (
    require_callable,
    require_classes,
    require_floating,
    require_logits,
    require_positive,
    require_probability,
    require_real,
)
from robustcore.common.table import ABSTAIN
from robustcore.smoothing.certificates import Certificates
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.theory.bounds import gaussian_radius
from robustcore.smoothing.theory.distributions import Gaussian
from robustcore.smoothing.theory.grids import DOWN


@dataclass(frozen=True, eq=False, repr=False)
class MixCertificates:
    """Classes of a mix, and the radii within which it keeps them."""

    prediction: Tensor
    """int64 ``[B]``: the class, or ABSTAIN."""
    radius: Tensor
    """float64 ``[B]``: l2, in the units of the images; 0 where it abstains."""
    smooth: Certificates
    """Of the smoothed classifier alone: its radii are larger."""

    def __repr__(self) -> str:
        abstained = int((self.prediction == ABSTAIN).sum())
        name = f"{type(self).__name__}({len(self.prediction)} images, {abstained} abstained"
        return f"{name}, smooth={self.smooth!r})"


class AdaptiveMix:
    """A mix of an accurate classifier f and a smoothed one g: ``(1 - a) softmax(f / T) + a p``.

    p are the probabilities of the smoothed classifier's classes. The weight a is at least ``least``
    whatever f and the mixing network say, and above 1/2, so the mix is of p's class wherever that
    one leads by more than ``(1 - a) / a``.

    Args:
        standard: maps images ``[N, C, H, W]`` to logits ``[N, K]``.
        smooth: a :class:`Smooth` by Gaussian noise, in l2.
        least: the least weight a, strictly between 1/2 and 1.
        mixing: maps images to numbers ``[N]`` or ``[N, 1]``; ``a = least + (1 - least)
            sigmoid(mixing(x))``. None: a is ``least``.
        temperature: T, above 0.

    Raises TypeError or ValueError, naming the argument. Source: Bai et al., "Improving the
    accuracy-robustness trade-off of classifiers via adaptive smoothing", 2024.
    """

    def __init__(
        self,
        standard: Callable[[Tensor], Tensor],
        smooth: Smooth,
        least: float,
        *,
        mixing: Callable[[Tensor], Tensor] | None = None,
        temperature: float = 1.0,
    ) -> None:
        require_callable("standard", standard)
        if not isinstance(smooth, Smooth):
            raise TypeError(f"smooth: got {type(smooth).__name__}, want a Smooth")
        if not isinstance(smooth.noise, Gaussian) or smooth.noise.norm != "l2":
            raise ValueError(f"smooth: got {smooth.noise}, want Gaussian noise in l2")
        if mixing is not None:
            require_callable("mixing", mixing)
        wanted = "a number strictly between 1/2 and 1"
        if not 0.5 < require_real("least", least, wanted) < 1:
            raise ValueError(f"least: got {least}, want {wanted}")
        self.standard, self.smooth, self.least = standard, smooth, float(least)
        self.mixing, self.temperature = mixing, require_positive("temperature", temperature)

    def probabilities(self, x: Tensor, n: int = 1000, **options: Any) -> Tensor:
        """The mix of images ``[B, C, H, W]``, ``[B, K]``, with the votes of n samples as p.

        An estimate: the certificate is of the mix with the exact p. ``options`` are those of
        :meth:`Smooth.predict`. Raises as that does. Not differentiable.
        """
        if require_floating("x", x).dim() != self.smooth.input_dims + 1:
            raise ValueError(f"x: got shape {list(x.shape)}, want a batch")
        votes = self.smooth.predict(x, n, **options).counts  # type: ignore[union-attr]
        with torch.inference_mode():
            p = votes.to(x.device, torch.float64) / n
            own = require_logits("standard", self.standard(x), len(x)).double()
            own = (own / self.temperature).softmax(1)
            weight = self._weight(x)[:, None]
            return (1 - weight) * own + weight * p

    def certify(
        self,
        x: Tensor,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        **options: Any,
    ) -> MixCertificates:
        """Certificates of images ``[B, C, H, W]``; arguments and options of :meth:`Smooth.certify`.

        Each holds with probability ``1 - alpha``, and for every mixing network: the radius is
        ``sigma (Phi^-1(p_lower) - Phi^-1(1 / (2 least)))``. Raises as :meth:`Smooth.certify`.
        Not differentiable.
        """
        if require_floating("x", x).dim() != self.smooth.input_dims + 1:
            raise ValueError(f"x: got shape {list(x.shape)}, want a batch")
        certificates = self.smooth.certify(x, n0, n, alpha, **options)
        assert isinstance(certificates, Certificates)  # of a batch
        # Rounded up, and the difference down: a radius is never above the theorem's.
        lost = gaussian_radius(1 / (2 * self.least), self.smooth.sigma) / DOWN
        radius = torch.nextafter(certificates.radius - lost, torch.tensor(-torch.inf).double())
        certified = (certificates.prediction != ABSTAIN) & (radius > 0)
        return MixCertificates(
            prediction=torch.where(certified, certificates.prediction, ABSTAIN),
            radius=torch.where(certified, radius, 0.0),
            smooth=certificates,
        )

    def _weight(self, x: Tensor) -> Tensor:
        """a of each image, float64 ``[B]``."""
        if self.mixing is None:
            return torch.full((len(x),), self.least, dtype=torch.float64, device=x.device)
        made = self.mixing(x)
        if not isinstance(made, Tensor) or made.shape not in ((len(x),), (len(x), 1)):
            got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"mixing: gave {got}, want one number an image, [{len(x)}]")
        share = made.reshape(len(x)).double().sigmoid()
        return self.least + (1 - self.least) * share


@dataclass(frozen=True)
class GreatScore:
    """A mean of scaled margins and its lower bound."""

    score: float
    lower: float
    """At most the expected score, with probability ``1 - delta`` over the samples."""
    samples: int
    delta: float


def great_score(probabilities: Tensor, labels: Tensor, delta: float = 0.05) -> GreatScore:
    """GREAT score: the mean over generated samples of ``sqrt(pi / 2) max(p_y - max p_other, 0)``.

    The factor is that of the smoothed classifier ``E f(x + z)``, z from N(0, I), whose
    probabilities have Lipschitz constant ``sqrt(2 / pi)``: for its probabilities each term is an l2
    radius. For those of f itself, which the paper takes, it is a score to compare models by and no
    certificate.

    Args:
        probabilities: ``[N, K]``, floating, in [0, 1]; of N samples of a generative model.
        labels: int64 ``[N]``: the classes that the samples were generated for.
        delta: failure probability of the bound, strictly between 0 and 1.

    Returns:
        :class:`GreatScore`; its bound is Hoeffding's, of terms in [0, sqrt(pi / 2)], as the samples
        are independent. Raises TypeError or ValueError, naming the argument. Not differentiable.
        Source: Li et al., "GREAT score: global robustness evaluation of adversarial perturbation
        using generative models", 2024.
    """
    delta = require_probability("delta", delta)
    p = require_floating("probabilities", probabilities).detach().double()
    if p.dim() != 2 or len(p) == 0 or p.shape[1] < 2:
        raise ValueError(f"probabilities: got shape {list(p.shape)}, want [N, K], K at least 2")
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("probabilities: want numbers in [0, 1]; softmax turns logits into them")
    labels = require_classes("labels", labels, len(p), p.shape[1])
    own = p.gather(1, labels.to(p.device)[:, None]).squeeze(1)
    others = p.scatter(1, labels.to(p.device)[:, None], -1.0).amax(1)
    most = math.sqrt(math.pi / 2)
    score = most * float((own - others).clamp(min=0).mean())
    lower = score - most * math.sqrt(math.log(1 / delta) / (2 * len(p)))
    return GreatScore(score, max(lower, 0.0), len(p), delta)
