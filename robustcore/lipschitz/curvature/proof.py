"""What a point proves: the bound of the dual function there, with every rounding error counted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.lipschitz.curvature.mlp import Activation, Mlp

_EPS = torch.finfo(torch.float64).eps
_ULPS = 8  # of the exponentials and logarithms, and what is made of them


class Approximate(NamedTuple):
    """A float64 tensor and how far each element may be from the exact one."""

    value: Tensor
    error: Tensor

    def times(self, weight: Tensor, bias: Tensor | None = None) -> Approximate:
        """``self @ weight + bias`` of an exact weight and bias."""
        value, size = self.value @ weight, self.value.abs() @ weight.abs()
        if bias is not None:
            value, size = value + bias, size + bias.abs()
        rounding = (len(weight) + 4) * _EPS * size
        # The error's own product is rounded too.
        return Approximate(value, self.error @ weight.abs() * (1 + 1e-9) + rounding)

    def through(self, activation: Activation) -> tuple[Approximate, Approximate]:
        """The activation of self, and its slope."""
        value, slope = activation(self.value), activation.slope(self.value)
        bend = max(map(abs, activation.bend))
        return (
            Approximate(
                value, self.error * activation.max_slope + _ULPS * _EPS * (value.abs() + 1)
            ),
            Approximate(slope, self.error * bend + _ULPS * _EPS),
        )

    def scaled(self, other: Approximate) -> Approximate:
        """The product, element by element."""
        value = self.value * other.value
        error = (
            self.error * other.value.abs()
            + other.error * self.value.abs()
            + self.error * other.error
        )
        return Approximate(value, error * (1 + 1e-9) + _EPS * value.abs())


def proven_radii(
    net: Mlp,
    images: Tensor,  # [R, D]
    points: Tensor,  # [R, D], any
    eta: Tensor,  # [R], any
    rows: Tensor,  # [R, last hidden]
    offsets: Tensor,  # [R]
    concave: Tensor,  # [R], the margins' Hessian is at least -concave
    slack: Tensor,  # [R], how far the network is from its smooth form
) -> Tensor:
    """Radii within which the margins are positive; 0 where the point proves nothing.

    For eta >= 0 with ``mu = 1 - eta concave > 0``, ``phi(u) = |u - x0|^2 / 2 + eta f(u)`` is
    mu-strongly convex, so ``phi(u) >= phi(x) - |phi'(x)|^2 / (2 mu)`` for all u. Where f(u) <=
    slack that is a bound of ``|u - x0|^2 / 2 + eta slack``.
    """
    eta = eta.clamp(min=0)
    f, gradient = margins(net, points, rows, offsets)
    moved = points - images
    slope = eta[:, None] * gradient.value + moved
    error = eta[:, None] * gradient.error + 4 * _EPS * (
        moved.abs() + eta[:, None] * gradient.value.abs()
    )
    # Relative errors of sums of squares, quotients and roots: D terms and a few operations.
    relative = (images.shape[1] + 64) * _EPS
    steep = (torch.linalg.vector_norm(slope, dim=1) + torch.linalg.vector_norm(error, dim=1)) ** 2
    mu = 1 - eta * concave * (1 + 4 * _EPS) - 4 * _EPS
    gain = eta * (f.value - f.error - slack)
    bound = (
        moved.square().sum(1) / 2 * (1 - relative)
        + gain - 4 * _EPS * gain.abs()
        - steep / (2 * mu) * (1 + relative)
    )  # fmt: skip
    proven = (mu > 0) & (bound > 0) & bound.isfinite()
    return torch.where(proven, (2 * bound * (1 - relative)).clamp(min=0).sqrt(), 0.0)


def margins(net: Mlp, x: Tensor, rows: Tensor, offsets: Tensor) -> tuple[Approximate, Approximate]:
    """The margins [R] at exactly x, and their gradients [R, D]."""
    h, slopes = Approximate(x, torch.zeros_like(x)), []
    for weight, bias, activation in zip(
        net.weights[:-1], net.biases[:-1], net.activations, strict=True
    ):
        h, slope = h.times(weight.T, bias).through(activation)
        slopes.append(slope)
    size = (h.value.abs() * rows.abs()).sum(1) + offsets.abs()
    f = Approximate(
        (h.value * rows).sum(1) + offsets,
        (h.error * rows.abs()).sum(1) * (1 + 1e-9) + (rows.shape[1] + 8) * _EPS * size,
    )
    gradient = Approximate(rows, _EPS * rows.abs())  # rows are differences, rounded
    for weight, slope in zip(reversed(net.weights[:-1]), reversed(slopes), strict=True):
        gradient = gradient.scaled(slope).times(weight)
    return f, gradient


def distance_from_smooth(net: Mlp, rows: Tensor) -> Tensor:
    """[P]: how much the jumps of torch's softplus at its threshold can move the margins."""
    moved = net.weights[0].new_zeros(1)
    for k, activation in enumerate(net.activations):
        entering = moved * activation.max_slope
        left = entering + activation.jump
        if k + 1 < len(net.activations):
            moved = left.expand(net.weights[k + 1].shape[1]) @ net.weights[k + 1].abs().T
        else:
            moved = rows.abs() @ left.expand(rows.shape[1])
    return moved * (1 + 1e-9)
