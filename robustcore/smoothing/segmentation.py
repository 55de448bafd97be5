"""Segmentation: the class of every pixel or point, certified all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import require_choice, require_int, require_real
from robustcore.common.progress import Bar, Show, sample_bar
from robustcore.common.table import ABSTAIN
from robustcore.smoothing.copies import Copies, FromCopies, Pick, SmoothedModel
from robustcore.smoothing.inputs import require_enough, require_sizes
from robustcore.smoothing.theory.grids import Grid
from robustcore.smoothing.theory.many_tests import CORRECTIONS, fewest_votes, smallest_n


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationCertificates(FromCopies):
    """Classes of pixels that hold within one radius, with probability ``1 - alpha`` an image.

    All certified pixels of an image hold together with that probability. Shapes are without the
    first dimension for a single image. Source: Fischer, Baader and Vechev, 2021.
    """

    prediction: Tensor
    """int64 ``[B, *D]``, on the device of the images: the class, or ABSTAIN."""
    radius: float
    """l2, in the units of the images: no certified pixel changes within it."""
    counts: Tensor
    """int32 ``[B, *D]``: of n samples, those that voted for the class that was tested."""
    n0: int
    n: int
    tau: float
    """A certified class has at least this probability at its pixel."""
    alpha: float
    correction: str

    def __repr__(self) -> str:
        abstained = float((self.prediction == ABSTAIN).double().mean())
        return (
            f"{type(self).__name__}({list(self.prediction.shape)}, {abstained:.1%} abstained, "
            f"radius={self.radius:.4g}, sigma={self.sigma}, tau={self.tau}, n={self.n}, "
            f"alpha={self.alpha}, seed={self.seed})"
        )


class SmoothSegmentation(SmoothedModel):
    """A segmentation model smoothed by Gaussian noise: each pixel's most likely class.

    Votes are counted where the model runs; no map of classes leaves the device, or is made.

    Args:
        model: maps a batch ``[N, C, H, W]`` to logits ``[N, num_classes, *D]``, D the pixels or
            points; a module is used in its own train/eval state. A dict's or an object's
            ``logits`` or ``out`` is found, as of Hugging Face and torchvision.
        num_classes: K, at least 2, below 2**24.
        sigma: standard deviation of the noise, above 0, in the units of the images.
        grid: of the images and of the noise, 255 for 8-bit images: results then hold in floating
            point, see :class:`Gaussian`. None: in real numbers.
        seed: of the noise, in [0, 2**64); None: a fresh one a call, in the result.
        mean, std: per-channel normalisation after the noise, in the same pass.
        dtype, memory_format: of what the model receives.
        input_dims: how many trailing dimensions of x are one input: 3 for images, 2 for point
            clouds ``[C, P]``.
        output: a function that picks the logits out of what the model returns.

    Raises TypeError or ValueError, naming the argument. Source: Fischer, Baader and Vechev,
    "Scalable certified segmentation via randomized smoothing", 2021.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        num_classes: int,
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
        super().__init__(
            model, sigma, grid=grid, seed=seed, mean=mean, std=std, dtype=dtype,
            memory_format=memory_format, input_dims=input_dims, output=output,
        )  # fmt: skip
        self.num_classes = require_int("num_classes", num_classes, 2, 2**24)

    def certify(
        self,
        x: Tensor | npt.NDArray[Any],
        n0: int = 10,
        n: int = 100,
        tau: float = 0.75,
        alpha: float = 0.001,
        correction: str = "holm",
        batch_size: int = 10,
        *,
        image_offset: int = 0,
        progress: Show = False,
    ) -> SegmentationCertificates:
        """Each pixel's class, or ABSTAIN, and the radius within which those certified stay.

        ``n0`` samples choose a pixel's class; ``n`` other ones test that its probability is above
        ``tau``. The tests of an image err all together with probability at most ``alpha``.

        Args:
            x: one image ``[C, H, W]`` or a batch ``[B, C, H, W]``, floating, in pixel units.
            n0, n: samples of the selection and of the tests, at least 1 each, below 2**31.
            tau: in [1/2, 1). The radius is ``sigma * Phi^-1(tau)``: more of it for more ABSTAIN.
            alpha: failure probability of one image, strictly between 0 and 1.
            correction: ``"holm"`` or ``"bonferroni"``; Holm's certifies whatever the other does.
            batch_size: images in one call of the model.
            image_offset: x[b] is number ``image_offset + b`` of the noise stream.
            progress: as in :meth:`Smooth.certify`.

        Returns:
            :class:`SegmentationCertificates`, of ``prediction`` ``[*D]`` for one image and
            ``[B, *D]`` for a batch. A pixel whose logits hold a NaN votes for nobody.

        Raises TypeError or ValueError, naming the argument: before any sampling, but for ``n`` too
        small for so many pixels and a wrong output of the model, which show at its first call.
        Not differentiable. Source: Fischer, Baader and Vechev, 2021, SegCertify.
        """
        n0, n, alpha = require_sizes(n0, n, alpha, self.noise)
        for name, value in (("n0", n0), ("n", n)):
            require_int(name, value, 1, 2**31)
        tau = require_real("tau", tau, "a number in [1/2, 1)")
        if not 0.5 <= tau < 1:
            raise ValueError(f"tau: got {tau}, want a number in [1/2, 1)")
        require_choice("correction", correction, CORRECTIONS)
        _require_enough(n, 1, tau, alpha)
        images, single, copies = self._start(x, batch_size, image_offset, max(n0, n))
        shape = images.shape[1:]
        level = tau + copies.total_variation  # of a probability under the noise that is drawn
        if not level < 1:
            raise ValueError(f"tau: got {tau}, want less for noise on a grid of {list(shape)}")
        maps, tested = [], []
        with sample_bar(len(images) * (n0 + n), "certify", progress) as bar:
            for image in range(len(images)):
                chosen, counts = self._count(copies, image, n0, n, level, alpha, bar)
                votes = counts.flatten().bincount(minlength=n + 1).cpu().numpy()
                enough = fewest_votes(votes, level, alpha, correction)
                maps.append(torch.where(counts >= enough, chosen, ABSTAIN))
                tested.append(counts)
        return SegmentationCertificates(
            prediction=maps[0] if single else torch.stack(maps),
            radius=float(self.noise.radius(torch.tensor(tau, dtype=torch.float64), shape)),
            counts=tested[0] if single else torch.stack(tested),
            n0=n0,
            n=n,
            tau=tau,
            alpha=alpha,
            correction=correction,
            **copies.origin(),
        )

    def _count(
        self, copies: Copies, image: int, n0: int, n: int, tau: float, alpha: float, bar: Bar
    ) -> tuple[Tensor, Tensor]:
        """The class chosen at each pixel and its votes among the n samples of the test."""
        votes: Tensor | None = None

        def select(logits: Tensor) -> None:
            nonlocal votes
            if votes is None:
                self._require_logits(logits)
                _require_enough(n, logits[0, 0].numel(), tau, alpha)
                votes = logits.new_zeros(logits.shape[1:], dtype=torch.int32)
            ops.add_pixel_votes(votes, logits)

        copies.run(image, 0, n0, select, bar)
        assert votes is not None
        chosen = _most_votes(votes)
        counts = votes.new_zeros(votes.shape[1:])

        def count(logits: Tensor) -> None:
            ops.add_pixel_votes(counts, logits, chosen)

        copies.run(image, n0, n, count, bar, whole=self.noise.sound)
        return chosen, counts

    def _require_logits(self, logits: Tensor) -> None:
        if logits.dim() < 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"model: gave shape {list(logits.shape)}, want logits [N, {self.num_classes}, *D], "
                "one channel a class"
            )


def _require_enough(n: int, pixels: int, tau: float, alpha: float) -> None:
    smallest = smallest_n(pixels, tau, alpha)
    require_enough(f"certify one of {pixels} pixels above tau={tau}", n, smallest, alpha)


def _most_votes(votes: Tensor) -> Tensor:
    """int64 ``[*D]``: the class with most of the votes ``[K, *D]``, the lowest in a tie."""
    classes = len(votes)
    # argmax may choose any of equal ones on a GPU, so the order of classes goes into the values.
    order = torch.arange(classes - 1, -1, -1, device=votes.device)
    order = order.view(-1, *[1] * (votes.dim() - 1))
    return classes - 1 - (votes.to(torch.int64) * classes + order).amax(0) % classes
