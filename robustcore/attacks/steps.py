"""The arithmetic of steps, projections and random points, each image by itself.

Written in torch's operations; sums of squares are taken of values scaled by their largest, so tiny
gradients do not vanish, and a gradient of 0 gives no step.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from robustcore import ops

HALVINGS = 40  # of a bracket, to the last bits of float32


def column(values: Tensor, like: Tensor) -> Tensor:
    """``[R]`` beside ``[R, ...]``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def attack_step(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    step_size: float | Tensor,
    momentum: float | None = None,
    previous: Tensor | None = None,
    topk: float | Tensor = 0.2,
) -> Tensor:
    """A step along the steepest direction of the norm, back into the ball around x0 and [0, 1].

    With ``momentum`` m it is followed by ``P(x + m (z - x) + (1 - m) (x - previous))``.
    """
    moved = x + _row(step_size, x).to(x.dtype) * _direction(grad, norm, topk)
    z = within(moved, x0, norm, eps)
    if momentum is None or previous is None:
        return z
    return within(x + momentum * (z - x) + (1 - momentum) * (x - previous), x0, norm, eps)


def within(x: Tensor, x0: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Back into ball and box: in l2 scaled, then clipped; else the nearest point."""
    radius = _row(eps, x)
    if norm == "linf":
        # In float64, and rounded towards x0, so that the ball holds to the bit.
        centre = x0.double()
        low = _rounded(centre - radius, x0, up=True)
        high = _rounded(centre + radius, x0, up=False)
        return torch.minimum(torch.maximum(x, low), high).clamp(0, 1)
    difference, radius = x - x0, radius.to(x.dtype)
    if norm == "l2":
        length = _length(difference)
        factor = (radius / length.clamp_min(torch.finfo(x.dtype).tiny)).clamp(max=1)
        return (x0 + difference * factor).clamp(0, 1)
    clipped = x.clamp(0, 1) - x0
    if norm == "l1":
        over = clipped.abs().flatten(1).sum(1) > radius.flatten()
        if not bool(over.any()):
            return x0 + clipped
        return torch.where(column(over, x), _onto_l1(difference, x0, radius), x0 + clipped)
    gain = (difference.square() - (difference - clipped).square()).sum(1)
    return x0 + clipped * _most(gain, radius).unsqueeze(1)


def hyperplane_projection(x: Tensor, w: Tensor, offset: Tensor, *, norm: str) -> Tensor:
    """The smallest d ``[R, ...]`` with ``<w, x + d> = offset`` and x + d in [0, 1].

    Where the box does not reach the hyperplane, as near to it as the box allows. One number a row
    decides: how far every element goes, until it meets the box.
    """
    missing = offset - (w * x).flatten(1).sum(1)
    w = torch.where(column(missing < 0, w), -w, w)
    size, missing = w.abs(), missing.abs()
    room = torch.where(w > 0, 1 - x, x)
    if norm == "l1":
        moved = _greedy(size.flatten(1), room.flatten(1), missing).view_as(x)
        return moved * w.sign()
    least = size.masked_fill(size == 0, torch.inf).flatten(1).amin(1)
    high = torch.ones_like(missing) if norm == "linf" else 1 / least.clamp_min(1e-30)
    low = torch.zeros_like(high)

    def moved_by(t: Tensor) -> Tensor:
        return torch.minimum(column(t, x) * (size if norm == "l2" else size.sign()), room)

    for i in range(HALVINGS):
        # The first halvings of the exponent: in l2 the bracket is wide.
        middle = (
            (low + high) / 2 if norm == "linf" or i > 20 else (low.clamp_min(1e-12) * high).sqrt()
        )
        above = (size * moved_by(middle)).flatten(1).sum(1) >= missing
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return moved_by(high) * w.sign()


def random_start(
    x0: Tensor, index: Tensor, restart: Tensor, *, norm: str, eps: float, seed: int
) -> Tensor:
    """A random point of ball and box: uniform in linf, on the sphere in l2, projected in l1.

    That of image ``index [R]`` and restart ``[R]``, whatever else is in the batch.
    """
    z = _normal(x0, index, restart, seed)
    if norm == "linf":
        return within(x0 + eps * (2 * torch.special.ndtr(z) - 1), x0, norm, eps)
    if norm == "l2":
        return within(x0 + eps * z / _length(z), x0, norm, eps)
    return within(x0 + z, x0, norm, eps)


def square_start(
    x0: Tensor, index: Tensor, restart: Tensor, *, norm: str, eps: float, seed: int
) -> Tensor:
    """Where Square begins: stripes of one sign a column and channel, of the ball's length."""
    z = _normal(x0[:, :, :1], index, restart, seed).sign().expand_as(x0)
    return within(x0 + z * _share(x0[0].numel(), norm, eps), x0, norm, eps)


def square_propose(
    best: Tensor,
    x0: Tensor,
    index: Tensor,
    restart: Tensor,
    age: Tensor,
    side: Tensor,
    *,
    norm: str,
    eps: float,
    seed: int,
) -> Tensor:
    """The best points with a random square of ``side [R]`` set anew, one sign a channel.

    In l2 and l1 the square takes up what is left of the ball. Squares are those of (seed, image,
    restart, age).
    """
    rows, channels, height, width = best.shape
    words = _words(index, restart, age, seed, channels + 2).to(best.device)
    top = _below(words[:, 0], height - side + 1)
    left = _below(words[:, 1], width - side + 1)
    y = torch.arange(height, device=best.device).view(1, 1, -1, 1)
    x = torch.arange(width, device=best.device).view(1, 1, 1, -1)
    top, left, side = (v.view(-1, 1, 1, 1) for v in (top, left, side))
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    sign = torch.where(words[:, 2:] % 2 == 0, 1.0, -1.0).to(best.dtype).view(rows, channels, 1, 1)
    if norm == "linf":
        return within(torch.where(inside, x0 + sign * eps, best), x0, norm, eps)
    rest = torch.where(inside, 0.0, best - x0)
    order = {"l2": 2.0, "l1": 1.0}[norm]
    kept = torch.linalg.vector_norm(rest.flatten(1), order, dim=1).pow(order)
    left_over = (eps**order - kept).clamp_min(0) / (side.flatten() ** 2 * channels)
    size = column(left_over.pow(1 / order), best)
    return within(x0 + torch.where(inside, sign * size, rest), x0, norm, eps)


def _direction(grad: Tensor, norm: str, topk: float | Tensor) -> Tensor:
    if norm == "linf":
        return grad.sign()
    if norm == "l2":
        return grad / _length(grad).clamp_min(torch.finfo(grad.dtype).tiny)
    size = grad.abs().flatten(1)
    if norm == "l0":
        return grad / column(size.sum(1).clamp_min(torch.finfo(grad.dtype).tiny), grad)
    count = size.shape[1]
    share = topk if isinstance(topk, Tensor) else size.new_full((len(size),), topk)
    resting = ((1 - share) * count).long().clamp(0, count - 1)
    least = size.sort(1).values.gather(1, resting.unsqueeze(1)).squeeze(1)
    sign = grad.sign() * (grad.abs() >= column(least, grad))
    return sign / column(sign.abs().flatten(1).sum(1).clamp_min(1), grad)


def _onto_l1(difference: Tensor, x0: Tensor, radius: Tensor) -> Tensor:
    """Of rows outside: the elements shrunk by one threshold, then clipped to the box."""
    size = difference.abs()
    room = torch.where(difference > 0, 1 - x0, x0)
    low, high = torch.zeros_like(radius), column(size.flatten(1).amax(1), size)

    def at(threshold: Tensor) -> Tensor:
        return torch.minimum((size - threshold).clamp_min(0), room)

    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = column(at(middle).flatten(1).sum(1), size) > radius
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return x0 + at(high) * difference.sign()


def _greedy(size: Tensor, room: Tensor, missing: Tensor) -> Tensor:
    """In l1 the elements of the largest weight go first, each as far as the box."""
    order = size.argsort(dim=1, descending=True, stable=True)
    weight, way = size.gather(1, order), room.gather(1, order)
    before = (weight * way).cumsum(1) - weight * way
    take = ((missing.unsqueeze(1) - before) / weight.clamp_min(1e-30)).clamp_min(0)
    return torch.zeros_like(size).scatter(1, order, torch.minimum(take, way))


def _most(gain: Tensor, count: Tensor) -> Tensor:
    """1 at the ``count`` pixels of largest gain, 0 elsewhere."""
    flat = gain.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter(
        1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    )
    return (rank < count.flatten()[:, None]).view_as(gain).to(gain.dtype)


def _length(x: Tensor) -> Tensor:
    """The l2 norm of each row beside it; neither overflows nor vanishes."""
    flat = x.flatten(1)
    largest = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return column((flat / largest).square().sum(1).sqrt() * largest.squeeze(1), x)


def _rounded(value: Tensor, like: Tensor, up: bool) -> Tensor:
    """A float64 bound in the dtype of the images, never beyond it."""
    near = value.to(like.dtype)
    over = near.double() < value if up else near.double() > value
    other = torch.nextafter(near, torch.full_like(near, torch.inf if up else -torch.inf))
    return torch.where(over, other, near)


def _row(value: float | Tensor, like: Tensor) -> Tensor:
    """A number, or one a row, beside the rows, in float64."""
    if isinstance(value, Tensor):
        return column(value.double(), like)
    return torch.full([1] * like.dim(), value, dtype=torch.float64, device=like.device)


def _share(elements: int, norm: str, eps: float) -> float:
    """What each of the elements has of a ball's radius."""
    return eps if norm == "linf" else eps / (math.sqrt(elements) if norm == "l2" else elements)


def _normal(x0: Tensor, index: Tensor, restart: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of each (image, restart); rows that follow each other in one call."""
    images, restarts = index.cpu(), restart.cpu()
    cut = (images[1:] != images[:-1] + 1) | (restarts[1:] != restarts[:-1])
    bounds = [0, *(cut.nonzero().flatten() + 1).tolist(), len(x0)]
    zeros = torch.zeros_like(x0)
    parts = [
        ops.gaussian_noise(
            zeros[a:b],
            1,
            1.0,
            seed=seed,
            image_offset=int(images[a]),
            sample_offset=int(restarts[a]),
        ).squeeze(1)
        for a, b in pairwise(bounds)
    ]
    return torch.cat(parts)


def _words(index: Tensor, restart: Tensor, age: Tensor, seed: int, count: int) -> Tensor:
    """Random integers ``[R, count]``, a hash of (seed, image, restart, age)."""
    word = torch.arange(count, device=index.device)
    state = index * 0x9E3779B1 + restart * 0x85EBCA77 + age * 0xC2B2AE3D + (seed & 0x7FFFFFFF)
    state = state.unsqueeze(1) * 0x27D4EB2F + word * 0x165667B1
    for shift, factor in ((30, 0xBF58476D), (27, 0x94D049BB), (31, 0x2545F491)):
        state = (state ^ (state >> shift & (1 << (64 - shift)) - 1)) * factor
    return state >> 17 & 0x7FFFFFFF


def _below(word: Tensor, bound: Tensor) -> Tensor:
    """A random integer in [0, bound)."""
    return word % bound.clamp_min(1)
