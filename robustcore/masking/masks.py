"""Symbolic masks: how each mask of a network comes from the one that it is given.

A mask lies beside a tensor: it has the tensor's dimensions, of size 1 where it is the same for all
(channels). One dimension is the batch's; ``times`` is how often a sample occurs there (windows that
were cut out of it). Equal masks are one object, and :meth:`Masks.inside` proves that one mask is
part of another by rules that hold whatever is visible, so it may miss that, but never errs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustcore.masking.windows import Window

Shape = tuple[int, ...]
_WINDOWS = ("pool", "seen")
_JOINS = ("both", "either", "majority")


@dataclass(eq=False)
class Mask:
    """One mask. ``kind`` and ``params`` say how it comes from ``parents``.

    ``shape``: its sizes for one sample (``times`` in the batch's dimension). ``axis``: which
    dimension is the batch's; ``inner``: there, each of the ``times`` has all samples, and not each
    sample all times.
    """

    name: str
    kind: str
    params: Any
    parents: tuple[Mask, ...]
    shape: Shape
    axis: int = 0
    inner: bool = False

    @property
    def times(self) -> int:
        return self.shape[self.axis]

    @property
    def place(self) -> tuple[int, int, bool]:
        """Where the samples of the batch are."""
        return self.axis, self.times, self.inner

    @property
    def is_image(self) -> bool:
        """Beside images ``[N, C, H, W]``, the same for all channels."""
        return len(self.shape) == 4 and self.axis == 0 and self.shape[1] == 1

    def varies(self, dimension: int) -> bool:
        return dimension != self.axis and self.shape[dimension] > 1

    def beside(self, other: Mask) -> bool:
        """Whether both have the samples of the batch in the same places."""
        return self.place == other.place

    def __str__(self) -> str:
        return self.name

    def describe(self) -> str:
        """How it is made, in words."""
        names = ", ".join(map(str, self.parents))
        if self.kind == "input":
            return "the mask that is given"
        if self.kind == "pool":
            return f"largest of {names} in windows of {self.params}"
        if self.kind == "seen":
            return f"1 where {names} is above 0 anywhere in windows of {self.params}"
        text = {
            "both": f"{names}: both",
            "either": f"{names}: any",
            "majority": f"{names}: more than half",
            "any": f"largest of {names} over dimensions {self.params}",
            "move": f"{names} rearranged as {list(self.shape)}",
            "resize": f"{names} resized to {list(self.shape[2:])}",
            "adaptive": f"1 where {names} is above 0 anywhere in adaptive windows of {self.params}",
            "repeat": f"{names}, each pixel {self.params} times in rows and columns",
            "spread": f"{names} written out to {list(self.shape[2:])}",
            "beside": f"the elements of {names} side by side",
            "transposed": f"1 where {names} reaches by a transposed window of {self.params}",
        }
        return text[self.kind]


class Masks:
    """The masks of one network for images of one size, each made once, parents before children."""

    def __init__(self, rows: int, columns: int) -> None:
        self.all: list[Mask] = []
        self.moved: dict[Any, list[Mask | None]] = {}  # what moving gave, by what was moved how
        self._known: dict[Any, Mask] = {}
        self._merged: dict[Mask, tuple[Mask, Window]] = {}
        self._inside: dict[tuple[Mask, Mask], bool] = {}
        self.given = self.make("input", None, (), (1, 1, rows, columns))

    def make(
        self,
        kind: str,
        params: Any,
        parents: Sequence[Mask],
        shape: Sequence[int],
        axis: int = 0,
        inner: bool | None = None,
    ) -> Mask:
        """The mask of that description; ``params`` has to be hashable. ``inner``: as the parents,
        unless said."""
        key = (kind, params, tuple(parents), tuple(shape))
        if key not in self._known:
            inner = any(p.inner for p in parents) if inner is None else inner
            name = f"m{len(self.all)}"
            mask = Mask(name, kind, params, tuple(parents), tuple(shape), axis, inner)
            self._known[key] = mask
            self.all.append(mask)
        return self._known[key]

    def pool(self, mask: Mask, window: Window, kind: str = "pool") -> Mask:
        """The mask of a window's output; ``kind="seen"``: 1 where it sees anything."""
        if window.is_identity:
            return mask
        base, whole = mask, window
        if kind == "pool" and window.is_interval and mask in self._merged:
            # Two intervals make one, so that different ways to the same mask end in one object.
            first = self._merged[mask]
            base, whole = first[0], first[1].then(window)
        key = (kind, whole, (base,))
        if key not in self._known:
            sides = [window.outputs(mask.shape[2 + d], d) for d in (0, 1)]
            result = self.make(kind, window, (mask,), (mask.times, 1, *sides))
            self._known[key] = result
            if kind == "pool" and window.is_interval:
                self._merged[result] = (base, whole)
        return self._known[key]

    def any(self, mask: Mask, dimensions: Sequence[int]) -> Mask:
        """The largest value over dimensions, which stay with size 1."""
        over = tuple(sorted(d for d in set(dimensions) if mask.varies(d)))
        if not over:
            return mask
        if mask.kind == "any":
            return self.any(mask.parents[0], (*mask.params, *over))
        if mask.kind == "both":
            # Of an outer product (queries by keys) one side stays.
            kept = [p for p in mask.parents if not all(p.varies(d) for d in over)]
            if kept and all(not p.varies(d) for p in kept for d in over):
                return self.all_of(kept)
        shape = [1 if d in over else size for d, size in enumerate(mask.shape)]
        return self.make("any", over, (mask,), shape, mask.axis)

    def alive(self, mask: Mask) -> Mask:
        """Which samples show anything."""
        return self.any(mask, range(len(mask.shape)))

    def both(self, a: Mask, b: Mask) -> Mask:
        """The intersection; one of the two if that is part of the other."""
        if not a.beside(b):
            raise ValueError("the batches lie in different dimensions")
        if self.inside(a, b):
            return a
        if self.inside(b, a):
            return b
        shape = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]
        return self.make("both", None, (a, b), shape, a.axis)

    def all_of(self, masks: Sequence[Mask]) -> Mask:
        result = masks[0]
        for mask in masks[1:]:
            result = self.both(result, mask)
        return result

    def either(self, masks: Sequence[Mask]) -> Mask:
        """The union."""
        largest = self._maximal(masks)
        return largest[0] if len(largest) == 1 else self._joined("either", largest)

    def majority(self, masks: Sequence[Mask]) -> Mask:
        """What more than half of the masks show; one of them if each is part of the next."""
        ordered: list[Mask] = []  # from the largest
        for mask in masks:
            at = next((i for i, m in enumerate(ordered) if self.inside(m, mask)), len(ordered))
            ordered.insert(at, mask)
        pairs = zip(ordered[1:], ordered, strict=False)
        if all(self.inside(small, large) for small, large in pairs):
            return ordered[len(ordered) // 2]
        return self._joined("majority", masks)

    def _joined(self, kind: str, masks: Sequence[Mask]) -> Mask:
        shape = [max(sizes) for sizes in zip(*(m.shape for m in masks), strict=True)]
        return self.make(kind, None, masks, shape, masks[0].axis)

    def _maximal(self, masks: Sequence[Mask]) -> list[Mask]:
        kept: list[Mask] = []
        for mask in masks:
            if not any(self.inside(mask, other) for other in kept):
                kept = [other for other in kept if not self.inside(other, mask)] + [mask]
        return kept

    def inside(self, a: Mask, b: Mask) -> bool:
        """Whether a shows nothing that b hides, whatever is visible."""
        if a is b:
            return True
        key = (a, b)
        if key not in self._inside:
            self._inside[key] = False  # while it is being proved
            self._inside[key] = len(a.shape) == len(b.shape) and self._proved(a, b)
        return self._inside[key]

    def _proved(self, a: Mask, b: Mask) -> bool:
        if b.kind in _WINDOWS and (self._wider_window(a, b) or self._centred(a, b)):
            return True
        if b.kind in _JOINS and self._part_of_all(a, b):
            return True
        if a.kind in _JOINS and self._all_parts(a, b):
            return True
        return self._of_dimensions(a, b) or self._moved_alike(a, b)

    def _window(self, mask: Mask) -> tuple[Mask, Window] | None:
        if mask in self._merged:
            return self._merged[mask]
        return self._last(mask)

    def _wider_window(self, a: Mask, b: Mask) -> bool:
        # The last step of each, and the merged steps of each.
        for of_a in (self._window(a), self._last(a)):
            for of_b in (self._window(b), self._last(b)):
                if of_a and of_b and of_b[1].covers(of_a[1]) and self.inside(of_a[0], of_b[0]):
                    return a.kind == b.kind or b.kind == "seen"
        return False

    def _last(self, mask: Mask) -> tuple[Mask, Window] | None:
        return (mask.parents[0], mask.params) if mask.kind in _WINDOWS else None

    def _centred(self, a: Mask, b: Mask) -> bool:
        if b.params.stride != (1, 1):
            return False
        return all(0 in b.params.offsets(d) for d in (0, 1)) and self.inside(a, b.parents[0])

    def _part_of_all(self, a: Mask, b: Mask) -> bool:
        inside = (self.inside(a, part) for part in b.parents)
        if b.kind == "majority":
            return sum(inside) > len(b.parents) // 2
        return all(inside) if b.kind == "both" else any(inside)

    def _all_parts(self, a: Mask, b: Mask) -> bool:
        inside = (self.inside(part, b) for part in a.parents)
        if a.kind == "majority":
            return sum(inside) >= len(a.parents) - len(a.parents) // 2
        return any(inside) if a.kind == "both" else all(inside)

    def _of_dimensions(self, a: Mask, b: Mask) -> bool:
        if a.kind == b.kind == "any" and set(a.params) <= set(b.params):
            return self.inside(a.parents[0], b.parents[0])
        return b.kind == "any" and a.kind != "any" and self.inside(a, b.parents[0])

    def _moved_alike(self, a: Mask, b: Mask) -> bool:
        alike = a.kind == b.kind == "move" and a.params == b.params and a.shape == b.shape
        return alike and self.inside(a.parents[0], b.parents[0])
