"""Regression: intervals that hold every output of a smoothed model within a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from robustcore.common.checks import require_int, require_not_negative, require_probability
from robustcore.common.progress import Show, sample_bar
from robustcore.smoothing.copies import FromCopies, SmoothedModel
from robustcore.smoothing.inputs import require_sizes
from robustcore.smoothing.theory.grids import DOWN
from robustcore.smoothing.theory.many_tests import quantile_ranks


@dataclass(frozen=True, eq=False, repr=False)
class RegressionIntervals(FromCopies):
    """Intervals of the q-quantile of every output, anywhere within ``eps`` of an image.

    All intervals of an image hold together with probability ``1 - alpha``. Shapes are without the
    first dimension for a single image. Source: Chiang et al., 2020.
    """

    lower: Tensor
    """``[B, *D]``, in the dtype and on the device of the outputs; -infinity where n is too small or
    too many outputs are NaN."""
    upper: Tensor
    """``[B, *D]``; infinity where there is no bound."""
    value: Tensor
    """``[B, *D]``: the q-quantile of the samples, which is no bound; NaN where it is one of NaN."""
    eps: float
    n: int
    alpha: float
    q: float

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({list(self.lower.shape)}, eps={self.eps}, q={self.q}, "
            f"sigma={self.sigma}, n={self.n}, alpha={self.alpha}, seed={self.seed})"
        )


class SmoothRegression(SmoothedModel):
    """A model smoothed by Gaussian noise: a quantile, the median say, of each of its outputs.

    Args:
        model: maps a batch ``[N, C, H, W]`` to outputs ``[N, *D]``, floating; a module is used in
            its own train/eval state. The boxes of a detector are outputs where they have fixed
            slots: ``output`` picks them.
        sigma: standard deviation of the noise, above 0, in the units of the images.
        grid: of the images and of the noise, 255 for 8-bit images: results then hold in floating
            point, see :class:`Gaussian`. None: in real numbers.
        seed: of the noise, in [0, 2**64); None: a fresh one a call, in the result.
        mean, std: per-channel normalisation after the noise, in the same pass.
        dtype, memory_format: of what the model receives.
        input_dims: how many trailing dimensions of x are one input: 3 for images, 1 for vectors.
        output: a function that picks a tensor ``[N, *D]`` out of what the model returns.

    Raises TypeError or ValueError, naming the argument. Source: Chiang, Curry, Abdelkader, Kumar,
    Dickerson and Goldstein, "Detection as regression: certified object detection with median
    smoothing", 2020.
    """

    def certify(
        self,
        x: Tensor | npt.NDArray[Any],
        eps: float,
        n: int = 10_000,
        alpha: float = 0.001,
        q: float = 0.5,
        batch_size: int = 100,
        *,
        image_offset: int = 0,
        progress: Show = False,
    ) -> RegressionIntervals:
        """Intervals that hold the smoothed outputs for every image within ``eps`` of x.

        The smoothed output is ``inf {y: P[f(x + noise) <= y] >= q}``. Within ``eps`` it stays
        between the quantiles ``Phi(Phi^-1(q) -+ eps / sigma)`` at x, and those lie within order
        statistics of n samples. alpha is shared: each end of each of D outputs errs with
        probability at most ``alpha / (2 D)``.

        Args:
            x: one image ``[C, H, W]`` or a batch ``[B, C, H, W]``, floating, in pixel units.
            eps: l2, in the units of the images, at least 0.
            n: samples of an image. All outputs of an image are kept, n times D of them.
            alpha: failure probability of one image, all its outputs together.
            q: the quantile, strictly between 0 and 1.
            batch_size: images in one call of the model.
            image_offset: x[b] is number ``image_offset + b`` of the noise stream.
            progress: as in :meth:`Smooth.certify`.

        Returns:
            :class:`RegressionIntervals`. An output that is NaN counts as -infinity for the lower
            end and as infinity for the upper one. An end is infinite where no order statistic of n
            samples is certain enough.

        Raises TypeError or ValueError, naming the argument. Not differentiable. Source: Chiang et
        al., 2020, whose code does not share alpha.
        """
        eps = require_not_negative("eps", eps)
        _, n, alpha = require_sizes(1, n, alpha, self.noise)
        q = require_probability("q", q)
        require_int("n", n, 1, 2**31)
        images, single, copies = self._start(x, batch_size, image_offset, n)
        ends = []
        with sample_bar(len(images) * n, "certify", progress) as bar:
            for image in range(len(images)):
                outputs: list[Tensor] = []
                copies.run(
                    image, 0, n, lambda made: outputs.append(made.clone()), bar,  # noqa: B023
                    whole=self.noise.sound,
                )  # fmt: skip
                low, high = self._levels(q, eps, copies.total_variation)
                ends.append(_ends(torch.cat(outputs), low, high, alpha, q))
        lower, upper, value = (
            parts[0] if single else torch.stack(parts) for parts in zip(*ends, strict=True)
        )
        return RegressionIntervals(
            lower=lower, upper=upper, value=value, eps=eps, n=n, alpha=alpha, q=q,
            **copies.origin(),
        )  # fmt: skip

    def _levels(self, q: float, eps: float, total_variation: float) -> tuple[float, float]:
        """The quantiles that the smoothed output stays between, of the noise that is drawn."""
        from scipy import special

        shift = eps / self.sigma
        low, above = special.ndtr(special.ndtri(q) - shift), special.ndtr(-special.ndtri(q) - shift)
        # Both a little further out than they come, as rounding may have moved them in.
        low, above = (max(float(p) * DOWN - total_variation, 0.0) for p in (low, above))
        return low, min(math.nextafter(1 - above, 2), 1.0)


def _ends(
    outputs: Tensor, low: float, high: float, alpha: float, q: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper ends ``[*D]`` of outputs ``[n, *D]``, and their q-quantile."""
    n = len(outputs)
    first, last = quantile_ranks(n, low, high, alpha / (2 * max(outputs[0].numel(), 1)))
    # sort puts NaN last, where they are what they count as for the upper end.
    ordered = outputs.sort(0).values
    lower = ordered.new_full(ordered.shape[1:], -math.inf)
    upper = -lower
    if first >= 1:
        # For the lower end they come before all others.
        at = first - 1 - outputs.isnan().sum(0)
        found = ordered.gather(0, at.clamp(min=0)[None])[0]
        lower = torch.where(at >= 0, found, lower)
    if last <= n:
        upper = ordered[last - 1].nan_to_num(math.inf, math.inf, -math.inf)
    return lower, upper, ordered[max(math.ceil(q * n) - 1, 0)]
