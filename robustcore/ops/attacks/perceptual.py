"""The perceptual distance: how far the features of two batches of images are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic
from robustcore.ops.checks import check_device, check_floating, check_like

TINY = 1e-10  # of the published denominator


def perceptual_distance(
    features: Sequence[Tensor], reference: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """``sum_l mean_hw sum_c w_lc (f - r)^2`` of features of unit length over the channels.

    With learned weights this is LPIPS; perceptual adversarial training takes weights of 1, and the
    square root. A column of zeros, which has no direction, is zero after division too, and its
    gradient is zero.

    Args:
        features: of L layers ``[B, C_l, H_l, W_l]``, floating, any strides.
        reference: the same of other images.
        weights: floating ``[C_l]`` for each layer, at least 0, not checked; None: ones.

    Returns:
        ``[B]``, at least 0, in float64 if the features are, else in float32.

    Raises TypeError or ValueError naming the argument. Differentiable to any order in features,
    reference and weights.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric",
    2018; Laidlaw, Singla and Feizi, "Perceptual adversarial robustness", 2021.

    >>> f = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)]
    >>> perceptual_distance(f, [torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)])  # (.6, .8) and (0, 1)
    tensor([0.4000])
    """
    _check(features, reference, weights)
    parts = []
    for layer, (f, r) in enumerate(zip(features, reference, strict=True)):
        square = (unit_features(f) - unit_features(r)).square()
        if weights is not None:
            square = square * weights[layer].to(square.dtype).view(1, -1, 1, 1)
        parts.append(square.sum(1).mean((1, 2)))
    return torch.stack(parts).sum(0)


def unit_features(f: Tensor) -> Tensor:
    """``f / (|f| + 1e-10)`` over the channels of ``[B, C, H, W]``."""
    f = f.to(arithmetic(f))
    square = f.square().sum(1, keepdim=True)
    there = square > 0
    length = torch.where(there, square, 1.0).sqrt()  # a root at 0 would have no derivative
    return f * torch.where(there, 1 / (length + TINY), 0.0)


def _check(features: Any, reference: Any, weights: Any) -> None:
    lists = {"features": features, "reference": reference}
    if weights is not None:
        lists["weights"] = weights
    for name, layers in lists.items():
        if isinstance(layers, Tensor) or not isinstance(layers, Sequence):
            raise TypeError(f"{name}: got {type(layers).__name__}, want a list of tensors")
        for layer in layers:
            check_floating(name, layer)
        if len(layers) != len(features) or not layers:
            want = len(features) or "at least one"
            raise ValueError(f"{name}: got {len(layers)} layers, want {want}")
    for f, r in zip(features, reference, strict=True):
        check_like("reference", r, f, "features")
        if f.dim() != 4 or f.shape != r.shape or len(f) != len(features[0]):
            got = list(f.shape) if f.dim() != 4 else list(r.shape)
            name = "features" if f.dim() != 4 or len(f) != len(features[0]) else "reference"
            want = f"{list(f.shape)}" if name == "reference" else "[B, C, H, W], one B for all"
            raise ValueError(f"{name}: got shape {got}, want {want}")
    for f, w in zip(features, weights or (), strict=False):
        check_device("weights", w, f, "features")
        if w.shape != (f.shape[1],):
            raise ValueError(f"weights: got shape {list(w.shape)}, want [{f.shape[1]}]")
