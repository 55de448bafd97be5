"""The search for points that prove large radii; nothing here has to be right.

A certificate of the margin f at x0 is ``d(eta) = min_x |x - x0|^2 / 2 + eta f(x)`` for any eta
>= 0, and any x bounds the minimum of a strongly convex function from below. All x of interest lie
in ``x0 - W^T c`` with W the first weight, so the search goes on in c, where a step takes one
product with ``W W^T`` and whatever the rest of the network does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.lipschitz.curvature.mlp import Mlp


class Margins(NamedTuple):
    """One margin a row: of a class over another at an image."""

    start: Tensor  # [R, hidden], what enters the first activation at the image
    rows: Tensor  # [R, last hidden], the difference of the last layer's rows
    offsets: Tensor  # [R], of its biases
    concave: Tensor  # [R], the Hessian is at least -concave
    convex: Tensor  # [R], and at most convex


class Points(NamedTuple):
    c: Tensor  # [R, hidden]
    eta: Tensor  # [R]


LIMIT = 0.99  # of the largest eta at which the inner problem is convex


def search(net: Mlp, gram: Tensor, margins: Margins, steps: int) -> Points:
    """The best of ``steps`` points: Barzilai-Borwein in c, Newton's method in eta."""
    start = margins.start
    c, z = torch.zeros_like(start), start
    f, g = value_and_gradient(net, margins, z)
    largest = LIMIT / margins.concave
    eta = (f / _dot(g, g @ gram).clamp(min=_TINY)).clamp(min=0).minimum(largest)
    best, found = torch.full_like(f, -torch.inf), Points(c, eta)
    before: tuple[Tensor, Tensor, Tensor] | None = None
    for step in range(steps):
        f, g = value_and_gradient(net, margins, z)
        residual = eta[:, None] * g - c  # minus the gradient, but for W^T
        moved = residual @ gram
        curved = 1 - eta * margins.concave
        length = torch.reciprocal(1 + eta * margins.convex)
        if before is not None:
            length = _barzilai_borwein(before, (c, z, g), eta, length, 1 / curved)
        distance = _dot(c, start - z)
        bound = distance / 2 + eta * f - _dot(residual, moved) / (2 * curved)
        better = bound > best
        best = torch.where(better, bound, best)
        found = Points(
            torch.where(better[:, None], c, found.c), torch.where(better, eta, found.eta)
        )
        before = c, z, g
        if step % 2:  # d'(eta) = f, d''(eta) is about -|f'|^2
            slope = _dot(g, (moved + start - z) / eta.clamp(min=_TINY)[:, None])
            eta = (eta + f / slope.clamp(min=_TINY)).clamp(min=0).minimum(largest)
        c, z = c + length[:, None] * residual, z - length[:, None] * moved
    return found


_TINY = 1e-12


def _barzilai_borwein(
    before: tuple[Tensor, Tensor, Tensor],
    now: tuple[Tensor, Tensor, Tensor],
    eta: Tensor,
    least: Tensor,
    most: Tensor,
) -> Tensor:
    """The length of the last step over the change of the gradient on it, in the metric of x."""
    (c0, z0, g0), (c1, z1, g1) = before, now
    step, metric = c1 - c0, z0 - z1
    change = _dot(step - eta[:, None] * (g1 - g0), metric)
    length = _dot(step, metric) / change.clamp(min=_TINY)
    return torch.where(change > _TINY, length, least).maximum(least).minimum(most)


def value_and_gradient(net: Mlp, margins: Margins, z: Tensor) -> tuple[Tensor, Tensor]:
    """The margins where ``z`` enters the first activation, and their gradients in it."""
    inputs, h = [z], net.activations[0](z)
    for weight, bias, activation in zip(
        net.weights[1:-1], net.biases[1:-1], net.activations[1:], strict=True
    ):
        inputs.append(h @ weight.T + bias)
        h = activation(inputs[-1])
    f = _dot(h, margins.rows) + margins.offsets
    g = margins.rows
    for k in reversed(range(len(inputs))):
        g = g * net.activations[k].slope(inputs[k])
        if k > 0:
            g = g @ net.weights[k]
    return f, g


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
