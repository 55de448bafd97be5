"""What certification and prediction return."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustcore._build import __version__
from robustcore.common.checks import require_integers, require_radii
from robustcore.common.plots import save
from robustcore.common.table import (
    ABSTAIN,
    COLUMNS,
    certificate_cells,
    write_table,
)
from robustcore.smoothing.result import Result, equal_shares
from robustcore.smoothing.theory import top_k, votes
from robustcore.smoothing.theory.bounds import (
    accuracy_slack,
    clopper_pearson_lower,
    two_sided_p_value,
)
from robustcore.smoothing.theory.distributions import Distribution, Gaussian
from robustcore.smoothing.theory.grids import less_variation


class CertifiedClass(NamedTuple):
    """What is certified of one image."""

    prediction: int
    """The class, or ABSTAIN."""
    radius: float
    """In the norm of the noise and in pixel units; 0 where it abstains."""


@dataclass(frozen=True, eq=False, repr=False)
class Certificates(Result):
    """Certified classes and radii of B images, in the norm of the noise and in pixel units.

    The norm is l2 by default; see ``noise.norm``. Under deterministic noise ``alpha`` and ``n0``
    are 0, n is the number of samples an image has, nothing abstains (but an image whose samples all
    gave NaN) and each row is certain. Else each row holds with probability at least ``1 - alpha``
    over the noise.

    Without a grid that is a statement about real numbers: the rounding of image plus noise is not
    accounted for (Voracek and Hein, 2023, on what that costs). With ``grid=q`` it is proven for the
    arithmetic that runs, for every perturbed image whose pixels are multiples of 1/q: the smoothed
    classifier maps an integer, image plus rounded noise, to a class, and whatever is computed from
    that integer on is part of it. Assumed are that the words of the noise's stream are independent
    and uniform, and that a vote depends on its own sample and its place in the batch alone; then
    the classifier is the mixture over the places that the votes came from, in batches of one shape.
    Counted in are the noise's distance from its ideal (``total_variation``) and the rounding of
    bounds and radii.

    Source: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized
    smoothing", 2019; Voracek and Hein, "Sound randomized smoothing in floating-point arithmetics",
    2023; Hoeffding, 1956, for votes of different probabilities.
    """

    radius: Tensor
    """float64 ``[B]``: the smoothed classifier is constant within it; 0 where it abstains."""
    p_lower: Tensor
    """float64 ``[B]``: lower bound of the chosen class's probability; below 1/2 it abstains."""
    counts0: Tensor
    """int64 ``[B, K]``: votes of the selection."""
    n0: int
    noise: Distribution | None = None
    """What the classifier was smoothed by; None: Gaussian noise of ``sigma``."""
    shape: tuple[int, ...] = ()
    """Of one image, ``[C, H, W]``; the norms of some certificates depend on it."""

    @property
    def sound(self) -> bool:
        """Whether the certificates hold in floating point: noise on a grid, or none added."""
        return self.noise is not None and self.noise.sound

    @property
    def total_variation(self) -> float:
        """At most, between a sample that was drawn and an ideal one; ``p_lower`` is less by it."""
        return 0.0 if self.noise is None else self.noise.total_variation(self.shape)

    @classmethod
    def from_counts(
        cls,
        counts0: Tensor,
        counts: Tensor,
        *,
        n0: int,
        n: int,
        alpha: float,
        sigma: float,
        seed: int,
        image_offset: int = 0,
        image_stride: int = 1,
        seconds: float = 0.0,
        noise: Distribution | None = None,
        shape: tuple[int, ...] = (),
    ) -> Certificates:
        """Certificates from the votes of selection and estimation, int64 ``[B, K]`` on the CPU.

        The two must come from different samples. Ties of the selection go to the lowest class.
        ``seconds`` is the wall time of all images together. With ``noise`` of two views the votes
        are ``[B, 2, K]``, n of each view; the counts kept are their sums.
        """
        distribution = Gaussian(sigma) if noise is None else noise
        choice = (counts0 if counts0.dim() == 2 else counts0.sum(1)).argmax(1)
        if counts.dim() == 3:
            views = counts.shape[1]
            index = choice[:, None, None].expand(-1, views, 1)
            # Every view errs with its part of alpha.
            bounds = clopper_pearson_lower(counts.gather(2, index).squeeze(2), n, alpha / views)
            bounds = less_variation(bounds, distribution.total_variation(shape))
            p_lower, counts, counts0 = bounds.mean(1), counts.sum(1), counts0.sum(1)
            radius = distribution.radius(bounds, shape)
            certified = radius >= 0
        else:
            own = counts.gather(1, choice[:, None]).squeeze(1)
            p_lower = clopper_pearson_lower(own, n, alpha)
            p_lower = less_variation(p_lower, distribution.total_variation(shape))
            certified = p_lower >= 0.5
            radius = distribution.radius(p_lower.clamp(min=0.5), shape)
        return cls(
            prediction=torch.where(certified, choice, ABSTAIN),
            counts=counts,
            n=n,
            alpha=alpha,
            sigma=sigma,
            seed=seed,
            image_offset=image_offset,
            image_stride=image_stride,
            seconds=equal_shares(seconds, len(counts)),
            radius=torch.where(certified, radius, 0.0),
            p_lower=p_lower,
            counts0=counts0,
            n0=n0,
            noise=noise,
            shape=shape,
        )

    @classmethod
    def from_votes(
        cls,
        counts: Tensor,
        *,
        n: int,
        noise: Distribution,
        shape: tuple[int, ...],
        seed: int = 0,
        image_offset: int = 0,
        image_stride: int = 1,
        seconds: float = 0.0,
    ) -> Certificates:
        """Certificates from all votes under deterministic noise, int64 ``[B, K]`` on the CPU.

        ``n`` is the number of samples an image has. Ties go to the lowest class; without any vote
        an image abstains.
        """
        majority = votes.majority_certificate(counts)
        voted = counts.amax(1) > 0
        shares = counts.gather(1, majority.prediction[:, None]).squeeze(1).double() / n
        return cls(
            prediction=torch.where(voted, majority.prediction, ABSTAIN),
            counts=counts,
            n=n,
            alpha=0.0,
            sigma=noise.sigma,
            seed=seed,
            image_offset=image_offset,
            image_stride=image_stride,
            seconds=equal_shares(seconds, len(counts)),
            radius=torch.where(voted, noise.radius_of_votes(majority.votes, shape), 0.0),
            p_lower=shares,
            counts0=counts,
            n0=0,
            noise=noise,
            shape=shape,
        )

    def _row(self, b: int) -> CertifiedClass:
        return CertifiedClass(int(self.prediction[b]), float(self.radius[b]))

    @property
    def invalid(self) -> Tensor:
        several = self.noise is not None and self.noise.several_votes
        return torch.zeros_like(self.drawn) if several else super().invalid

    @property
    def drawn(self) -> Tensor:
        views = 1 if self.noise is None else len(self.noise.views(torch.empty(1, 1, 1, 2)))
        return super().drawn * views

    def top_k_radius(self, labels: Any, k: int) -> Tensor:
        """Radius within which a label stays among the k most likely (or most voted) classes.

        Under random noise all B results of one class count as one test each: a union bound over the
        K classes makes a row hold with probability at least ``1 - alpha``, for whatever label.

        Args:
            labels: B integers in [0, K), the true labels say.
            k: in [1, K).

        Returns:
            float64 ``[B]``, in the norm of the noise; 0 where nothing is certified.

        Raises ValueError or TypeError, naming the argument; TypeError for noise that has no top-k
        certificate. Source: Jia et al., "Certified robustness for top-k predictions against
        adversarial perturbations via randomized smoothing", 2020.
        """
        noise = Gaussian(self.sigma) if self.noise is None else self.noise
        known = self._labels(labels)
        if not noise.deterministic:
            return top_k.radius(noise, self.counts, known, k, self.n, self.alpha, self.shape)
        tolerated, _ = votes.top_k_certificate(self.counts, known, k, several=noise.several_votes)
        return noise.radius_of_votes(tolerated.clamp(min=0), self.shape)

    def certified_accuracy(self, labels: Any, radii: Any) -> Tensor:
        """Part of the images that are right and certified to at least each radius.

        Args:
            labels: B integers in [0, K).
            radii: a number or any shape of them, at least 0, in pixel units.

        Returns:
            float64, shaped as ``radii``; NaN if there is no image.

        Raises ValueError or TypeError, naming the argument. Source: Cohen et al., 2019, section 4.
        """
        wanted = require_radii(radii)
        correct = self._correct(labels)
        return ((self.radius >= wanted.unsqueeze(-1)) & correct).double().mean(-1)

    def certified_accuracy_lower(self, labels: Any, radii: Any, rho: float = 0.001) -> Tensor:
        """Lower bound of the true certified accuracy, valid with probability at least ``1 - rho``.

        :meth:`certified_accuracy` takes every certificate as right; each is wrong with probability
        up to ``alpha``, and none where ``alpha`` is 0. Arguments and returns as there; may be
        negative.
        Source: Cohen et al., 2019, appendix.
        """
        slack = accuracy_slack(self.alpha, max(1, len(self)), rho)
        return self.certified_accuracy(labels, radii) - slack

    def average_certified_radius(self, labels: Any) -> float:
        """Mean radius in pixel units, a wrong or abstained image counting 0; NaN if no image.

        Raises ValueError or TypeError, naming ``labels``. Source: Zhai et al., MACER, 2020.
        """
        return float((self.radius * self._correct(labels)).mean())

    def to_tsv(
        self, path: str | PathLike[str], labels: Any = None, *, overwrite: bool = False
    ) -> None:
        """Write the published table: ``idx label predict radius correct time``, one row an image.

        ``idx`` is of ``indices``. The radius has 3 significant digits, as published, but rounded
        down, so that the table's is certified too; ``radius`` has all. Without labels ``label`` and
        ``correct`` are ``nan``. What the certificates were made with is beside the table, in
        ``<name>.json``. The files appear whole or not at all.

        Raises FileExistsError if ``path`` exists, unless told to overwrite.
        """
        known = None if labels is None else self._labels(labels).tolist()
        rows = [
            certificate_cells(
                idx,
                None if known is None else known[b],
                int(self.prediction[b]),
                float(self.radius[b]),
                float(self.seconds[b]),
            )
            for b, idx in enumerate(self.indices.tolist())
        ]
        write_table(path, COLUMNS, rows, overwrite, self._settings())

    def _settings(self) -> dict[str, Any]:
        """What ``robustcore report`` needs to know, and who wants to make the table again."""
        gaussian = self.noise is None or isinstance(self.noise, Gaussian)
        plain = gaussian and self.noise in (None, Gaussian(self.sigma))
        return {
            "sigma": self.sigma if math.isfinite(self.sigma) else None,
            **({} if plain else {"noise": repr(self.noise)}),
            "N0": self.n0,
            "N": self.n,
            "alpha": self.alpha,
            "seed": self.seed,
            "versions": {"robustcore": __version__, "torch": torch.__version__},
        }

    def plot(
        self, path: str | PathLike[str], labels: Any = None, *, overwrite: bool = False
    ) -> None:
        """Draw certified accuracy against radius (without labels: the part that is certified).

        The suffix of ``path`` chooses the format (png, pdf, svg). Needs matplotlib.

        Raises FileExistsError if ``path`` exists, unless told to overwrite; ImportError without
        matplotlib.
        """
        from robustcore.smoothing import plots  # matplotlib is optional

        figure = plots.accuracy_figure([(self, None if labels is None else self._labels(labels))])
        save(figure, path, overwrite)

    def _correct(self, labels: Any) -> Tensor:
        return self.prediction == self._labels(labels)

    def _labels(self, labels: Any) -> Tensor:
        try:
            values = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
            values = values.detach().cpu()
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(f"labels: got {labels!r}, want integers") from None
        if len(self) == 0 and values.numel() == 0:
            return values.to(torch.int64).reshape(0)
        require_integers("labels", values)
        if values.shape != self.prediction.shape:
            got = list(values.shape)
            raise ValueError(f"labels: got shape {got}, want one label an image, [{len(self)}]")
        classes = self.counts.shape[1]
        if int(values.min()) < 0 or int(values.max()) >= classes:
            raise ValueError(
                f"labels: got {int(values.min())} to {int(values.max())}, want [0, {classes})"
            )
        return values.to(torch.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Predictions(Result):
    """Predicted classes of B images, each right with probability at least ``1 - alpha``.

    Source: Cohen, Rosenfeld and Kolter, 2019, PREDICT; Hung and Fithian, 2019.
    """

    p_value: Tensor
    """float64 ``[B]``: of the test that the two leading classes are equally likely."""

    def _row(self, b: int) -> int:
        return int(self.prediction[b])

    @classmethod
    def from_counts(
        cls,
        counts: Tensor,
        *,
        n: int,
        alpha: float,
        sigma: float,
        seed: int,
        image_offset: int = 0,
        image_stride: int = 1,
        seconds: float = 0.0,
    ) -> Predictions:
        """Predictions from votes, int64 ``[B, K]`` on the CPU; ties go to the lowest class."""
        votes, classes = counts.sort(dim=1, descending=True, stable=True)
        # Most samples must have voted: a test between two classes does not see those that did not.
        voted = 2 * counts.sum(1) >= n
        p_value = torch.from_numpy(
            two_sided_p_value(votes[:, 0].double().numpy(), votes[:, 1].double().numpy())
        )
        return cls(
            prediction=torch.where((p_value <= alpha) & voted, classes[:, 0], ABSTAIN),
            counts=counts,
            n=n,
            alpha=alpha,
            sigma=sigma,
            seed=seed,
            image_offset=image_offset,
            image_stride=image_stride,
            seconds=equal_shares(seconds, len(counts)),
            p_value=p_value,
        )
