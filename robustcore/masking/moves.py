"""Masks that follow tensors through what only moves elements: views, permutations, cuts, joins.

The operation is run on numbers: each element of a mask gets its own, so what comes out says where
each came from. Elements that come from no pixel (class tokens, padding) are always visible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.common.graph import BATCH
from robustcore.masking.masks import Mask, Masks

VISIBLE = -1


class Index(NamedTuple):
    """Where a moved mask's elements come from: ``sources`` of one sample's elements of the base, or
    VISIBLE; ``[times, *rest]``, the batch's dimension first. Equal if the numbers are."""

    numbers: bytes
    shape: tuple[int, ...]
    axis: int
    inner: bool

    def tensor(self) -> Tensor:
        flat = torch.frombuffer(bytearray(self.numbers), dtype=torch.int32)
        return flat.reshape(self.shape).long()


def numbered(mask: Mask) -> tuple[Mask, Tensor]:
    """The mask that elements come from, and their numbers ``[B * times, ...]`` beside a tensor."""
    if mask.kind == "move":
        base, numbers = mask.parents[0], mask.params.tensor()
    else:
        base = mask
        first = mask.shape[: mask.axis] + mask.shape[mask.axis + 1 :]
        numbers = torch.arange(_count(mask)).reshape(mask.times, *first)
    samples = torch.arange(BATCH).reshape(-1, *[1] * numbers.dim()) * _count(base)
    numbers = torch.where(numbers < 0, VISIBLE, numbers + samples)
    numbers = (numbers.transpose(0, 1) if mask.inner else numbers).flatten(0, 1)
    return base, numbers.movedim(0, mask.axis)


def _count(mask: Mask) -> int:
    return torch.Size(mask.shape).numel()


def moved(masks: Masks, base: Mask, numbers: Tensor) -> Mask | None:
    """The mask of what :func:`numbered` says, moved; None if all of it is visible.

    Raises ValueError if samples were mixed.
    """
    for d in range(numbers.dim()):
        if numbers.shape[d] > 1 and _is_repeated(numbers, d):
            numbers = numbers.narrow(d, 0, 1)
    if bool((numbers < 0).all()):
        return None
    count = _count(base)
    for axis in range(numbers.dim()):
        if numbers.shape[axis] % BATCH:
            continue
        for inner in (False, True):
            apart = samples_apart(numbers, axis, inner)
            sample = torch.arange(BATCH).reshape(-1, *[1] * (apart.dim() - 1))
            if bool(((apart < 0) | (apart // count == sample)).all()):
                return _mask(masks, *_narrowed(base, apart[0]), axis, inner)
    raise ValueError("samples are mixed")


def _is_repeated(numbers: Tensor, d: int) -> bool:
    """Whether all along a dimension are the same; most that are not differ at once."""
    if numbers.stride(d) == 0:
        return True
    first = numbers.narrow(d, 0, 1)
    return torch.equal(first, numbers.narrow(d, 1, 1)) and torch.equal(
        first.expand_as(numbers), numbers
    )


def side_by_side(masks: Masks, parts: Sequence[tuple[Mask, Tensor]]) -> tuple[Mask, list[Tensor]]:
    """One mask that all of :func:`numbered`'s elements come from, and their numbers in it."""
    bases = list(dict.fromkeys(base for base, _ in parts))
    if len(bases) == 1:
        return bases[0], [numbers for _, numbers in parts]
    total = sum(map(_count, bases))
    base = masks.make("beside", None, bases, (1, total), inner=False)
    begin = dict(zip(bases, accumulate(map(_count, bases), initial=0), strict=False))
    return base, [
        torch.where(n < 0, VISIBLE, n // _count(own) * total + n % _count(own) + begin[own])
        for own, n in parts
    ]


def _narrowed(base: Mask, index: Tensor) -> tuple[Mask, Tensor]:
    """Of masks side by side, the one that all elements come from, where it is one."""
    begin = 0
    for part in base.parents if base.kind == "beside" else ():
        inside = (index >= begin) & (index < begin + _count(part))
        if bool((inside | (index < 0)).all()):
            return _narrowed(part, torch.where(inside, index - begin, VISIBLE))
        begin += _count(part)
    return base, index


def samples_apart(numbers: Tensor, axis: int, inner: bool) -> Tensor:
    """Numbers beside a tensor as ``[B, times, *rest]``."""
    numbers = numbers.movedim(axis, 0)
    first = len(numbers) // BATCH
    if inner:
        return numbers.reshape(first, BATCH, *numbers.shape[1:]).transpose(0, 1)
    return numbers.reshape(BATCH, first, *numbers.shape[1:])


def _mask(masks: Masks, base: Mask, index: Tensor, axis: int, inner: bool) -> Mask:
    shape = list(index.shape[1:])
    shape.insert(axis, index.shape[0])
    if axis == base.axis and tuple(shape) == base.shape and inner == base.inner:
        same = index.flatten() == torch.arange(_count(base))
        if bool(same.all()):
            return base
    numbers = index.contiguous().int().numpy().tobytes()
    params = Index(numbers, tuple(index.shape), axis, inner)
    return masks.make("move", params, (base,), shape, axis, inner)


def move(
    masks: Masks, mask: Mask, sizes: Sequence[int], operation: Callable[[Tensor], Any]
) -> list[Mask | None]:
    """The masks of what an operation makes of a tensor of ``sizes``: one, or one a result."""
    if mask.kind == "both":
        sides = [move(masks, part, sizes, operation) for part in mask.parents]
        return [_met(masks, a, b) for a, b in zip(*sides, strict=True)]
    base, numbers = numbered(mask)
    results = operation(numbers.expand(*sizes))
    if isinstance(results, Tensor):
        results = [results]
    return [moved(masks, base, r) for r in results]


def _met(masks: Masks, a: Mask | None, b: Mask | None) -> Mask | None:
    if a is None or b is None:
        return a or b
    return masks.both(a, b)


def regroup(mask: Mask, sizes: Sequence[int], to: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A reshape as an operation on numbers that leaves dimensions where a mask is the same alone.

    Dimensions are taken in the smallest groups that make up one another; only a group in which the
    mask varies is looked at element by element.
    """
    parts = groups(sizes, to)

    def operation(numbers: Tensor) -> Tensor:
        kept = tuple(
            slice(None) if mask.varies(d) or d == mask.axis else slice(0, 1)
            for d in range(numbers.dim())
        )
        small = numbers[kept]
        shape: list[int] = []
        wide: list[int] = []
        for before, after in parts:
            if all(small.shape[d] == 1 for d in before):
                wide += [1] * len(before)
                shape += [1] * len(after)
            else:
                wide += [sizes[d] for d in before]
                shape += [to[d] for d in after]
        return small.expand(*wide).reshape(shape)

    return operation


def groups(sizes: Sequence[int], to: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The dimensions of a tensor and of the same tensor reshaped, in the smallest groups that make
    up one another."""
    found = []
    i = j = 0
    while i < len(sizes) or j < len(to):
        before, after, left, right = [], [], 1, 1
        if i < len(sizes):
            before.append(i)
            left, i = sizes[i], i + 1
        if j < len(to):
            after.append(j)
            right, j = to[j], j + 1
        while left != right:
            if left < right:
                before.append(i)
                left, i = left * sizes[i], i + 1
            else:
                after.append(j)
                right, j = right * to[j], j + 1
        found.append((before, after))
    return found
