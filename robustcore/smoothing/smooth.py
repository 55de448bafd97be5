"""The smoothed classifier: certification and prediction by Monte Carlo sampling."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustcore.common.checks import require_flag, require_int, require_positive, require_seed
from robustcore.common.cuda_graph import Graphs
from robustcore.common.normalize import Normalization
from robustcore.common.progress import Show
from robustcore.common.table import ABSTAIN
from robustcore.smoothing.certificates import Certificates, CertifiedClass, Predictions
from robustcore.smoothing.fixed import AllSamples, Estimation, Prediction
from robustcore.smoothing.graph_loop import GraphLoop
from robustcore.smoothing.inputs import (
    MAX_IMAGES,
    dtype_for,
    place_of,
    require_batch,
    require_form,
    speak_of_nan,
    warn_if_training,
)
from robustcore.smoothing.outputs import Output, require_output
from robustcore.smoothing.sampler import SECOND_VIEW, LocalSampler, Sampler
from robustcore.smoothing.sequential import EarlyStop, RadiusTest, RadiusTests
from robustcore.smoothing.theory.distributions import Distribution, Gaussian
from robustcore.smoothing.theory.dual import Dual
from robustcore.smoothing.theory.grids import Grid


class Smooth:
    """A base classifier smoothed by noise: its most likely class under the noise.

    Args:
        base_classifier: maps a batch ``[N, C, H, W]`` to logits ``[N, num_classes]``; a module is
            used in its own train/eval state, which stays as it is (call ``.eval()`` on it). For
            noise with two views (``Dual``), one for both or a pair. See also ``output``.
        num_classes: K, at least 2, below 2**24.
        sigma: standard deviation of Gaussian noise, above 0, in the units of the images: pixels in
            [0, 1], not normalised ones and not 0 to 255.
        grid: of the images and of that noise, 255 for 8-bit images: certificates then hold in
            floating point, see :class:`Certificates` and :class:`Gaussian`. None: in real numbers.
        noise: another distribution instead of sigma, see
            :mod:`robustcore.smoothing.theory.distributions`: it decides the norm of the
            certificates, and has its own grid. Where it is deterministic, all its samples are
            counted, results are certain, and n0, n, alpha and seed mean nothing.
        seed: of the noise, in [0, 2**64). Runs of one seed are equal to the bit. With None every
            call draws a fresh one from the operating system: the guarantee is against an adversary
            who did not know the noise. The seed used is in the results and in ``last_seed``.
        mean, std: per-channel normalisation, applied after the noise in the same pass: a float or
            C of them. With them the base classifier receives what it was trained on and needs no
            normalising layer.
        dtype: of what the base classifier receives, by default that of the images (but float64
            images reach a float32 module as float32). For bfloat16 and float16 it runs under
            autocast, so float32 parameters work.
        memory_format: of what the base classifier receives; ``torch.channels_last`` is the faster
            one for most convolutional networks.
        cuda_graph: on a GPU, whether full batches of one image are replays of a CUDA graph, with
            the same results: noise, base classifier and votes are captured once and cost the host
            one launch from then on. None: where the base classifier is a module in eval mode
            without forward hooks, not compiled; if it cannot be captured, because it waits for the
            device, say, a warning tells so and sampling goes on without. True: always, and an
            error where it cannot be (hooks then run at the capture alone). False: never. The graph
            and its memory (a batch, the activations) are kept for the next call, and captured
            again when anything but the values of the module's tensors has changed, the seed too.
        input_dims: how many trailing dimensions of x are one input: 3 for images ``[C, H, W]``, 1
            for vectors ``[D]``, 2 for signals ``[C, T]``, 4 for volumes ``[C, D, H, W]``, at most
            5. The first of them is the channel of mean and std. Below, read "images" so.
        output: where the logits are in what the base classifier returns. ``"logits"``: the tensor
            itself, what it calls ``logits`` (a dict, an output of Hugging Face), or the only tensor
            ``[N, num_classes]`` in it. ``"binary"``: one logit a row, ``[N]`` or ``[N, 1]``, of two
            classes; class 1 where it is above 0. Or a function of what it returns.

    Raises TypeError or ValueError, naming the argument. Source: Cohen, Rosenfeld and Kolter, 2019.
    """

    ABSTAIN = ABSTAIN

    def __init__(
        self,
        base_classifier: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
        num_classes: int,
        sigma: float | None = None,
        *,
        grid: Grid = None,
        noise: Distribution | None = None,
        seed: int | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        cuda_graph: bool | None = None,
        input_dims: int = 3,
        output: Output = "logits",
    ) -> None:
        if (sigma is None) == (noise is None):
            raise TypeError(f"sigma, noise: got {sigma!r} and {noise!r}, want exactly one of them")
        if noise is not None and not isinstance(noise, Distribution):
            raise TypeError(f"noise: got {noise!r}, want a distribution, Gaussian(0.25) say")
        if noise is not None and grid is not None:
            raise TypeError(f"grid: got {grid!r} and {noise!r}, want it as the noise's own")
        models: list[Any] = [base_classifier]
        if isinstance(base_classifier, (tuple, list)) and isinstance(noise, Dual):
            models = list(base_classifier)
        if not all(map(callable, models)) or not 1 <= len(models) <= 2:
            raise TypeError(
                f"base_classifier: got {base_classifier!r}, want a module or a function"
            )
        require_form(dtype, memory_format)
        if cuda_graph is not None:
            require_flag("cuda_graph", cuda_graph)
        self.base_classifier = base_classifier
        self.num_classes = require_int("num_classes", num_classes, 2, 2**24)
        if noise is None:
            noise = Gaussian(require_positive("sigma", sigma), grid=grid)
        self.noise = noise
        self.sigma = self.noise.sigma
        self.input_dims = require_int("input_dims", input_dims, 1, 6)
        if memory_format == torch.channels_last and self.input_dims != 3:
            raise ValueError(f"memory_format: got {memory_format}, which is for input_dims=3")
        self.output = require_output(output, self.num_classes)
        self._models = models
        self._spoke_of_nan = False
        self._graphs: Graphs[GraphLoop] = Graphs(cuda_graph)
        self.seed = None if seed is None else require_seed(seed)
        self.dtype = dtype
        self.memory_format = memory_format
        self.last_seed: int | None = None
        self.normalization = Normalization(mean, std)

    def certify(
        self,
        x: Tensor | npt.NDArray[Any],
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        batch_size: int = 1000,
        *,
        image_offset: int = 0,
        image_stride: int = 1,
        progress: Show = False,
        early_stop: bool = False,
        radius_tolerance: float | None = None,
    ) -> CertifiedClass | Certificates:
        """Classes and the radii within which the smoothed classifier keeps them.

        Each image's certificate holds with probability at least ``1 - alpha`` over the noise.
        ``n0`` samples choose the class, ``n`` other ones bound its probability from below.

        Args:
            x: one image ``[C, H, W]`` or a batch ``[B, C, H, W]``, a floating tensor or NumPy
                array, in pixel units.
            n0: samples of the selection, at least 1: indices [0, n0) of the noise stream.
            n: samples of the estimation, indices [n0, n0 + n).
            alpha: failure probability of one certificate, strictly between 0 and 1.
            batch_size: images in one call of the base classifier; those of several x are mixed.
                Results do not depend on it, as far as the base classifier's logits do not; but on a
                grid an early stop looks at whole batches, and smaller ones stop earlier.
            image_offset, image_stride: x[b] is number ``image_offset + b * image_stride`` of the
                noise stream, so the parts of a data set give the results of the whole. A single
                image is number 0 by default, and with one given seed all such images meet the same
                noise: their certificates hold one by one, but err together.
            progress: show a progress bar (on a GPU it counts the work queued); or a function, which
                is called with the number of samples done and that of all.
            early_stop: look at the votes of an image on the way, and stop it once it is certain to
                abstain or its radius cannot grow by more than ``radius_tolerance``. alpha is spent
                over the looks, so the guarantee is the same and a radius at ``n`` samples slightly
                smaller; see :mod:`robustcore.smoothing.sequential`. Without, all images take
                ``n``, as in published tables.
            radius_tolerance: in the norm of the noise and in pixel units, at least 0; by default a
                tenth of sigma (for other noise, of the radius at a probability of 0.84) or of the
                radius reached, whichever is larger. 0 stops only images that will abstain.

        Returns:
            ``(prediction, radius)`` for one image, ABSTAIN and 0.0 where it abstains;
            :class:`Certificates` for a batch, whose rows are such pairs (with ``early_stop`` one
            that has ``samples``, the number drawn for each image). Radii are in the norm of the
            noise (l2 for Gaussian noise) and in pixel units.

        Raises TypeError or ValueError, naming the argument, before any sampling; and ValueError at
        the first logits that are not ``[N, num_classes]``, or where more than half of the samples
        gave NaN. Warns of fewer, once, of images outside [0, 1] and of a base classifier in
        training mode. Not differentiable. Source: Cohen et al., 2019, CERTIFY.
        """
        plan: Any
        require_flag("early_stop", early_stop)
        images, single = self._images(x)
        if early_stop:
            self._require_one_bound("early_stop")
            shape = tuple(images.shape[1:])
            whole = self._whole(batch_size)
            plan = EarlyStop.plan(self.noise, shape, n0, n, alpha, radius_tolerance, whole)
        elif radius_tolerance is not None:
            raise ValueError(f"radius_tolerance: got {radius_tolerance} without early_stop=True")
        elif self.noise.deterministic:
            plan = AllSamples(self.noise)
        else:
            plan = Estimation.plan(self.noise, n0, n, alpha)
        sampler = self._start(images, batch_size, image_offset, image_stride, plan.most_samples)
        result: Certificates = plan.certify(sampler, images, progress)
        return self._answer(result, single, sampler)  # type: ignore[no-any-return]

    def certify_at(
        self,
        x: Tensor | npt.NDArray[Any],
        radius: float,
        alpha: float = 0.001,
        max_n: int = 100_000,
        n0: int = 100,
        batch_size: int = 1000,
        *,
        image_offset: int = 0,
        image_stride: int = 1,
        progress: Show = False,
    ) -> tuple[int, int] | RadiusTests:
        """Whether the smoothed classifier is constant within ``radius``, by a sequential test.

        One question instead of an estimate: far from the boundary tens of samples answer it. A
        certificate is wrong with probability at most ``alpha`` over the noise, whenever it is
        given: the test is exact, for all looks at the votes together (on a grid, for each look).

        Args:
            x: one image ``[C, H, W]`` or a batch ``[B, C, H, W]``, a floating tensor or NumPy
                array, in pixel units.
            radius: in the norm of the noise and in pixel units, at least 0.
            alpha: failure probability of one certificate, strictly between 0 and 1; refutations
                have one of their own, as large.
            max_n: samples of the test at most, in [1, 10**8]; an image that took them all without
                an answer is undecided, and abstains.
            n0: samples of the selection, at least 1: indices [0, n0) of the noise stream. The test
                goes on from there.
            batch_size, image_offset, image_stride, progress: as in :meth:`certify`.

        Returns:
            ``(class or ABSTAIN, samples of the test)`` for one image,
            :class:`~robustcore.smoothing.RadiusTests` for a batch.

        Raises and warns as :meth:`certify`, and ValueError if ``max_n`` unanimous votes would not
        do for ``radius``, or for deterministic noise and noise of two views. Not differentiable.
        Source: Voracek, "Treatment of statistical estimation problems in randomized smoothing for
        adversarial robustness", NeurIPS 2024, for the question; Lan and DeMets, 1983.
        """
        self._require_one_bound("certify_at")
        images, single = self._images(x)
        shape = tuple(images.shape[1:])
        whole = self._whole(batch_size)
        test = RadiusTest.plan(self.noise, shape, radius, alpha, max_n, n0, whole)
        sampler = self._start(images, batch_size, image_offset, image_stride, test.most_samples)
        result = test.answer(sampler, images, progress)
        return self._answer(result, single, sampler)  # type: ignore[no-any-return]

    def predict(
        self,
        x: Tensor | npt.NDArray[Any],
        n: int = 100_000,
        alpha: float = 0.001,
        batch_size: int = 1000,
        *,
        image_offset: int = 0,
        image_stride: int = 1,
        progress: Show = False,
    ) -> int | Predictions:
        """The smoothed classifier's classes, each right with probability at least ``1 - alpha``.

        Abstains where the two-sided binomial test between the two most frequent classes does not
        reach ``alpha``. The arguments are those of :meth:`certify`; the samples are [0, n).

        Returns:
            The class or ABSTAIN for one image, :class:`Predictions` for a batch.

        Raises and warns as :meth:`certify`; ValueError for deterministic noise and for noise of two
        views, whose :meth:`certify` gives the prediction. Not differentiable.
        Source: Cohen et al., 2019, PREDICT.
        """
        plan = Prediction.plan(self.noise, n, alpha)
        images, single = self._images(x)
        sampler = self._start(images, batch_size, image_offset, image_stride, plan.most_samples)
        result = plan.predict(sampler, images, progress)
        return self._answer(result, single, sampler)  # type: ignore[no-any-return]

    def _require_one_bound(self, what: str) -> None:
        if not self.noise.sequential:
            raise ValueError(
                f"noise: got {self.noise}, but {what} is for random noise whose radius is a "
                "function of one probability"
            )

    def _whole(self, batch_size: Any) -> int:
        """Samples that the looks of a sequential run are multiples of."""
        return require_int("batch_size", batch_size, 1) if self.noise.sound else 1

    def _images(self, x: Any) -> tuple[Tensor, bool]:
        """x as a batch, where the base classifier can have it, and whether it was one image."""
        images, single = require_batch(x, self.input_dims)
        if isinstance(x, np.ndarray):  # which no GPU has
            images = images.to(place_of(self._models) or images.device)
        return images, single

    def _start(
        self,
        images: Tensor,
        batch_size: Any,
        image_offset: Any,
        image_stride: Any,
        most_samples: int | None,
    ) -> Sampler:
        """What samples the images, after the last of the checks.

        ``most_samples`` of an image in one count; None: all that deterministic noise has.
        """
        batch_size = require_int("batch_size", batch_size, 1)
        limit = SECOND_VIEW if isinstance(self.noise, Dual) else MAX_IMAGES
        stride = require_int("image_stride", image_stride, 1, limit)
        most = limit - max(len(images) - 1, 0) * stride
        if most <= 0:
            raise ValueError(
                f"image_stride: got {stride} for {len(images)} images, want indices below 2**48"
            )
        offset = require_int("image_offset", image_offset, 0, most)
        mean, std = self.normalization.on(images)
        self.noise.check(images, mean is not None or std is not None)
        self._graphs.require(images.device, self.noise.offsets_on_device)
        for model in self._models:
            warn_if_training(model)
        self.last_seed = self._draw_seed() if self.seed is None else self.seed
        if most_samples is None:
            most_samples = self.noise.num_samples(images.shape[1:])
        rows = max(1, min(batch_size, len(images) * most_samples))
        return LocalSampler(
            self._models,
            self.num_classes,
            self.noise,
            images,
            rows,
            dtype=self.dtype or dtype_for(self._models, images),
            memory_format=self.memory_format,
            image_offset=offset,
            image_stride=stride,
            seed=self.last_seed,
            normalization=(mean, std),
            graphs=self._graphs,
            output=self.output,
        )

    def _answer(self, result: Any, single: bool, sampler: Sampler) -> Any:
        """The result, or its only row for a single image, once NaNs are spoken of."""
        invalid = int(sampler.invalid()) if self.noise.several_votes else int(result.invalid.sum())
        if invalid and speak_of_nan(invalid, int(result.drawn.sum()), self._spoke_of_nan):
            self._spoke_of_nan = True
        return result[0] if single else result

    def _draw_seed(self) -> int:
        return secrets.randbits(64)
