"""Base classifiers that remove the noise before they classify: denoised and diffusion smoothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_callable,
    require_flag,
    require_floating,
    require_positive,
    require_values,
)


class Denoised(nn.Module):
    """A base classifier made of a denoiser and a classifier that has never seen noise.

    Args:
        denoiser: maps noisy images ``[N, C, H, W]``, as they are smoothed, to clean ones.
        classifier: maps those to logits ``[N, K]``.

    A module of the two; a call maps noisy images to logits. ``.eval()`` reaches both where they are
    modules. Raises TypeError, naming the argument.
    Source: Salman et al., "Denoised smoothing: a provable defense for pretrained classifiers",
    2020.
    """

    def __init__(
        self, denoiser: Callable[[Tensor], Tensor], classifier: Callable[[Tensor], Any]
    ) -> None:
        super().__init__()
        require_callable("denoiser", denoiser)
        require_callable("classifier", classifier)
        self.denoiser, self.classifier = denoiser, classifier

    def forward(self, x: Tensor) -> Any:
        """Logits of noisy images; see the class."""
        require_floating("x", x)
        return self.classifier(self.denoiser(x))


class Diffusion(Denoised):
    """A base classifier that denoises by one step of a diffusion model.

    ``Smooth`` adds the noise, of ``sigma`` in pixels in [0, 1], and nothing here adds any. The
    model lives on [-1, 1], where the same noise is twice as large: t is the step whose
    ``(1 - abar_t) / abar_t`` is nearest to ``(2 sigma)^2`` in the logarithm, and a noisy image x is
    ``sqrt(abar_t) (2 x - 1)`` to the model. One call of it gives the clean image, back in [0, 1].

    Args:
        eps_model: maps ``(x_t, t)``, images ``[N, C, H, W]`` and steps int64 ``[N]``, to the noise
            ``[N, C, H, W]``; of 2 C channels the last C, learnt variances, are left out, and of an
            object ``sample`` is taken, as diffusers returns it.
        alphas_cumprod: abar of every step, falling, strictly between 0 and 1.
        classifier: maps images in [0, 1] to logits; resizing and normalising are its own.
        sigma: of the noise that ``Smooth`` adds, above 0.
        clip: whether the denoised image is cut to [0, 1].

    Raises TypeError or ValueError, naming the argument; ValueError for a sigma more than twice
    beyond the schedule's ends. Source: Carlini et al., "(Certified!!) adversarial robustness for
    free!", 2023.
    """

    def __init__(
        self,
        eps_model: Callable[[Tensor, Tensor], Any],
        alphas_cumprod: Sequence[float] | Tensor,
        classifier: Callable[[Tensor], Any],
        sigma: float,
        *,
        clip: bool = True,
    ) -> None:
        denoiser = _OneStep(eps_model, alphas_cumprod, sigma, require_flag("clip", clip))
        super().__init__(denoiser, classifier)
        self.sigma, self.step, self.alpha_cumprod = sigma, denoiser.step, denoiser.alpha_cumprod


class _OneStep(nn.Module):
    """The denoiser of :class:`Diffusion`."""

    def __init__(self, eps_model: Any, alphas_cumprod: Any, sigma: Any, clip: bool) -> None:
        super().__init__()
        require_callable("eps_model", eps_model)
        schedule = _schedule(alphas_cumprod)
        sigma = require_positive("sigma", sigma)
        self.eps_model, self.clip = eps_model, clip
        noise = ((1 - schedule) / schedule).sqrt() / 2  # of each step, in pixels in [0, 1]
        if not float(noise[0]) / 2 <= sigma <= float(noise[-1]) * 2:
            raise ValueError(
                f"sigma: got {sigma}, want one of the schedule's, {float(noise[0]):.3g} to "
                f"{float(noise[-1]):.3g}"
            )
        self.step = int((noise.log() - math.log(sigma)).abs().argmin())
        self.alpha_cumprod = float(schedule[self.step])

    def forward(self, x: Tensor) -> Tensor:
        signal, noise = self.alpha_cumprod**0.5, (1 - self.alpha_cumprod) ** 0.5
        noisy = signal * (2 * x - 1)
        steps = torch.full((len(x),), self.step, dtype=torch.int64, device=x.device)
        made = self.eps_model(noisy, steps)
        eps = getattr(made, "sample", made)
        channels = x.shape[1]
        sizes = [list(x.shape), [len(x), 2 * channels, *x.shape[2:]]]
        if not isinstance(eps, Tensor) or list(eps.shape) not in sizes:
            got = list(eps.shape) if isinstance(eps, Tensor) else type(eps).__name__
            raise ValueError(f"eps_model: gave {got} for {sizes[0]}, want the same shape")
        clean: Tensor = (noisy - noise * eps[:, :channels]) / signal
        return ((clean.clamp(-1, 1) if self.clip else clean) + 1) / 2


def _schedule(alphas_cumprod: Any) -> Tensor:
    """The schedule as float64 on the CPU."""
    want = "numbers strictly between 0 and 1 that fall from step to step"
    if isinstance(alphas_cumprod, Tensor):
        require_values("alphas_cumprod", alphas_cumprod)
    try:
        schedule = torch.as_tensor(alphas_cumprod).detach()
        if schedule.dtype == torch.bool or schedule.is_complex() or schedule.is_meta:
            raise TypeError
        schedule = schedule.to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        got = type(alphas_cumprod).__name__
        raise TypeError(f"alphas_cumprod: got a {got}, want {want}") from None
    if schedule.dim() != 1 or len(schedule) < 1:
        raise ValueError(f"alphas_cumprod: got shape {list(schedule.shape)}, want {want}")
    falls = bool((schedule[1:] < schedule[:-1]).all())
    if not falls or not bool(((schedule > 0) & (schedule < 1)).all()):
        raise ValueError(f"alphas_cumprod: want {want}")
    return schedule
