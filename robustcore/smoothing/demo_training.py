"""``robustcore demo --train METHOD``: how the published methods train a base classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore import ops
from robustcore.common.demo import line
from robustcore.smoothing import losses
from robustcore.smoothing.augment import noise_augment

METHODS = ("gaussian", "smooth-adv", "macer", "consistency")
COPIES = 8  # of an image in a step, but for Gaussian augmentation, which has one
ATTACK_RADIUS, ATTACK_STEPS = 0.5, 3  # of SmoothAdv, l2 in pixel units
# Weaker than for the papers' large networks (12 and 16, 10): at sigma 0.5 the papers' push this one
# below Gaussian augmentation, consistency to one class for all images.
MACER_COPIES, MACER_WEIGHT, MACER_BETA = 16, 4.0, 4.0
CONSISTENCY_WEIGHT = 3.0

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of(method: str, model: nn.Module, sigma: float, mean: float, std: float) -> Loss:
    """What a step of the method descends, of images ``[B, C, H, W]`` and labels ``[B]``."""
    form: dict[str, Any] = {"mean": mean, "std": std}

    def gaussian(x: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(noise_augment(x, sigma, **form)), labels)

    def smooth_adv(x: Tensor, labels: Tensor) -> Tensor:
        seed = _seed()
        found = attack(lambda x: losses.smooth_adv(_logits(model, x, sigma, seed, form), labels), x)
        return losses.smooth_adv(_logits(model, found, sigma, seed, form), labels)

    def macer(x: Tensor, labels: Tensor) -> Tensor:
        logits = _logits(model, x, sigma, _seed(), form, MACER_COPIES)
        return losses.macer(logits, labels, sigma, lam=MACER_WEIGHT, beta=MACER_BETA)

    def consistency(x: Tensor, labels: Tensor) -> Tensor:
        logits = _logits(model, x, sigma, _seed(), form)
        each = cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(COPIES))
        return each + losses.consistency(logits, lam=CONSISTENCY_WEIGHT)

    return {
        "gaussian": gaussian, "smooth-adv": smooth_adv, "macer": macer, "consistency": consistency
    }[method]  # fmt: skip


def attack(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Images ``[B, C, H, W]`` near x at which the loss is larger, by steps along its gradient."""
    moved = torch.zeros_like(x)
    step = 2 * ATTACK_RADIUS / ATTACK_STEPS
    for _ in range(ATTACK_STEPS):
        at = (x + moved).requires_grad_()
        (grad,) = torch.autograd.grad(loss(at), at)
        moved = moved + step * grad / (_norms(grad) + 1e-12)
        moved = moved * (ATTACK_RADIUS / _norms(moved).clamp(min=ATTACK_RADIUS))
    return x + moved


def table(radii: dict[tuple[str, float], float], sigmas: Sequence[float]) -> str:
    """Average certified radii, a row a method."""
    methods = list(dict.fromkeys(method for method, _ in radii))
    rows = [line("average certified radius, sigma", [f"{sigma:g}" for sigma in sigmas])]
    for method in methods:
        rows.append(line(method, [f"{radii[method, sigma]:.3f}" for sigma in sigmas]))
    return "\n".join(["", *rows, ""])


def _logits(
    model: nn.Module,
    x: Tensor,
    sigma: float,
    seed: int,
    form: dict[str, Any],
    copies: int = COPIES,
) -> Tensor:
    """``[B, m, K]`` of m noisy copies of each image, in one pass."""
    noisy = ops.gaussian_noise(x, copies, sigma, seed=seed, **form)
    logits: Tensor = model(noisy.flatten(0, 1)).unflatten(0, (-1, copies))
    return logits


def _seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


def _norms(t: Tensor) -> Tensor:
    """l2 norms of the images, ``[B, 1, 1, 1]``."""
    norms: Tensor = t.flatten(1).norm(dim=1)
    return norms.view(-1, *[1] * (t.dim() - 1))
