"""The perceptual distance: how far the features of two batches of images are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import (
    arithmetic,
    graph_wanted,
    needed,
    needs_grad,
    present,
    raw,
    register_loop,
)
from robustcore.ops.checks import check_device, check_floating, check_like

_distance = raw.perceptual_distance.default
_backward = raw.perceptual_distance_backward.default

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
        w = None if weights is None else weights[layer].to(arithmetic(f))
        pixels = _Columns.apply(f, r, w) if needs_grad(f, r, w) else _forward(f, r, w)
        parts.append(pixels.mean((1, 2)))
    return torch.stack(parts).sum(0)


def unit_features(f: Tensor) -> Tensor:
    """``f / (|f| + 1e-10)`` over the channels of ``[B, C, H, W]``, in torch's operations."""
    f = f.to(arithmetic(f))
    return f * _inverse(f)[0]


def _inverse(f: Tensor) -> tuple[Tensor, Tensor]:
    """``1 / (|f| + 1e-10)`` of columns, and that over ``|f|``; 0 where a column is."""
    square = f.square().sum(1, keepdim=True)
    there = square > 0
    length = torch.where(there, square, 1.0).sqrt()  # a root at 0 would have no derivative
    inverse = torch.where(there, 1 / (length + TINY), 0.0)
    return inverse, torch.where(there, inverse / length, 0.0)


def _forward(f: Tensor, r: Tensor, w: Tensor | None) -> Tensor:
    return _distance(f.contiguous(), r.contiguous(), None if w is None else w.contiguous())


class _Columns(torch.autograd.Function):
    """The distance ``[B, H, W]`` of every pixel of a layer."""

    generate_vmap_rule = True

    @staticmethod
    def forward(f, r, w):
        return _forward(f, r, w)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        f, r, w = ctx.saved_tensors
        of_f, of_r, of_w = needed(ctx, 3)
        # Kernels for second derivatives would be as many again, for what only penalties ask for;
        # and the weights are seldom learnt.
        if graph_wanted() or of_w:
            return _any_order(grad, f, r, w)
        dense = [None if t is None else t.contiguous() for t in (grad, f, r, w)]
        return *present(_backward(*dense, of_f, of_r), (of_f, of_r)), None


def _any_order(
    grad: Tensor, f: Tensor, r: Tensor, w: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients out of what can be differentiated again."""
    grad = grad.unsqueeze(1)
    wide_f, wide_r = f.to(grad.dtype), r.to(grad.dtype)
    of_f, of_r = _inverse(wide_f), _inverse(wide_r)
    gap = wide_f * of_f[0] - wide_r * of_r[0]
    pull = 2 * grad * gap if w is None else 2 * grad * w.view(1, -1, 1, 1) * gap

    def returned(t: Tensor, of: tuple[Tensor, Tensor], pull: Tensor) -> Tensor:
        along = (t * pull).sum(1, keepdim=True)
        return (of[0] * (pull - t * (of[1] * along))).to(f.dtype)

    of_w = None if w is None else (grad * gap.square()).sum((0, 2, 3))
    return returned(wide_f, of_f, pull), returned(wide_r, of_r, -pull), of_w


@torch.library.register_fake("robustcore::perceptual_distance")
def _(features, reference, weights):
    b, _, h, w = features.shape
    return features.new_empty([b, h, w], dtype=arithmetic(features))


@torch.library.register_fake("robustcore::perceptual_distance_backward")
def _(upstream, features, reference, weights, of_features, of_reference):
    return tuple(
        features.new_empty(features.shape if wanted else [0])
        for wanted in (of_features, of_reference)
    )


for _op in (_distance, _backward):
    register_loop(_op, Tensor.contiguous)


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
