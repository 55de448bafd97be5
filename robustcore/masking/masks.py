"""Symbolic masks: how each mask of a network comes from the one that it is given.

Nothing here touches a tensor. Equal masks are one object, and :meth:`Masks.inside` proves that one
mask is part of another by rules that hold for every image size, so it may miss that, but never
errs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pool; ``pads`` are (before, after) of rows and of columns."""

    kernel: Pair
    stride: Pair = (1, 1)
    pads: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def span(self) -> Pair:
        """From the first to the last pixel of a window."""
        rows, columns = (d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))
        return rows, columns

    @property
    def keeps_size(self) -> bool:
        """Whether the output is as large as the input."""
        return self.stride == (1, 1) and all(
            sum(pad) == span for pad, span in zip(self.pads, self.span, strict=True)
        )

    @property
    def is_identity(self) -> bool:
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.keeps_size

    @property
    def is_interval(self) -> bool:
        """Keeps the size, has no gaps and covers its centre: two such windows compose to one."""
        return self.keeps_size and all(
            d == 1 or k == 1 for d, k in zip(self.dilation, self.kernel, strict=True)
        )

    @property
    def reflected(self) -> Window:
        """Of a window that keeps the size: which outputs read an input, as a window of its own."""
        (a, b), (c, d) = self.pads
        return Window(self.kernel, pads=((b, a), (d, c)), dilation=self.dilation)

    @property
    def reach(self) -> int:
        """How far from the pixel at ``stride * output`` a window reads."""
        return max(
            max(before, span - before)
            for (before, _), span in zip(self.pads, self.span, strict=True)
        )

    def offsets(self, dimension: int) -> set[int]:
        """What output 0 reads, relative to input 0."""
        before = self.pads[dimension][0]
        step = self.dilation[dimension]
        return {step * tap - before for tap in range(self.kernel[dimension])}

    def covers(self, other: Window) -> bool:
        """Whether it reads all that ``other`` does."""
        return (
            self.stride == other.stride
            and self.ceil_mode == other.ceil_mode
            and all(other.offsets(d) <= self.offsets(d) for d in (0, 1))
        )

    def then(self, after: Window) -> Window:
        """This window and then another, both intervals."""
        kernel = (self.kernel[0] + after.kernel[0] - 1, self.kernel[1] + after.kernel[1] - 1)
        (a, b), (c, d) = self.pads
        (e, f), (g, h) = after.pads
        return Window(kernel, pads=((a + e, b + f), (c + g, d + h)))

    def __str__(self) -> str:
        def side(pair: Pair) -> str:
            return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"

        text = f"{side(self.kernel)}"
        if self.stride != (1, 1):
            text += f", stride {side(self.stride)}"
        if self.dilation != (1, 1):
            text += f", dilation {side(self.dilation)}"
        return text + ", ceil" * self.ceil_mode


def dilate(iters: int) -> Window:
    """What ``iters`` iterations of the fill reach."""
    return Window((2 * iters + 1,) * 2, pads=((iters, iters),) * 2)


@dataclass(eq=False)
class Mask:
    """One mask. ``kind`` and ``params`` say how it comes from ``parents``."""

    name: str
    kind: str
    params: Any
    parents: tuple[Mask, ...]

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
            "alive": f"1 for samples of which {names} shows anything",
            "resize": f"{names} resized ({self.params})",
            "adaptive": f"1 where {names} is above 0 anywhere in adaptive windows of {self.params}",
            "transposed": f"1 where any input of a transposed {self.params} is in {names}",
        }
        return text[self.kind]


class Masks:
    """The masks of one network, each made once. ``parents`` are always listed before children."""

    def __init__(self) -> None:
        self.all: list[Mask] = []
        self._known: dict[Any, Mask] = {}
        self._merged: dict[Mask, tuple[Mask, Window]] = {}
        self._inside: dict[tuple[Mask, Mask], bool] = {}
        self.given = self._make("input", None, ())

    def _make(self, kind: str, params: Any, parents: Sequence[Mask]) -> Mask:
        key = (kind, params, tuple(parents))
        if key not in self._known:
            mask = Mask(f"m{len(self.all)}", kind, params, tuple(parents))
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
            result = self._make(kind, window, (mask,))
            self._known[key] = result
            if kind == "pool" and window.is_interval:
                self._merged[result] = (base, whole)
        return self._known[key]

    def derived(self, kind: str, mask: Mask, params: Any = None) -> Mask:
        """alive, resize, adaptive or transposed."""
        if kind == "alive" and mask.kind == "alive":
            return mask
        return self._make(kind, params, (mask,))

    def both(self, a: Mask, b: Mask) -> Mask:
        """The intersection; one of the two if that is part of the other."""
        if self.inside(a, b):
            return a
        return b if self.inside(b, a) else self._make("both", None, (a, b))

    def either(self, masks: Sequence[Mask]) -> Mask:
        """The union."""
        largest = self._maximal(masks)
        return largest[0] if len(largest) == 1 else self._make("either", None, largest)

    def majority(self, masks: Sequence[Mask]) -> Mask:
        """What more than half of the masks show; one of them if each is part of the next."""
        ordered: list[Mask] = []  # from the largest
        for mask in masks:
            at = next((i for i, m in enumerate(ordered) if self.inside(m, mask)), len(ordered))
            ordered.insert(at, mask)
        pairs = zip(ordered[1:], ordered, strict=False)
        if all(self.inside(small, large) for small, large in pairs):
            return ordered[len(ordered) // 2]
        return self._make("majority", None, masks)

    def _maximal(self, masks: Sequence[Mask]) -> list[Mask]:
        kept: list[Mask] = []
        for mask in masks:
            if not any(self.inside(mask, other) for other in kept):
                kept = [other for other in kept if not self.inside(other, mask)] + [mask]
        return kept

    def inside(self, a: Mask, b: Mask) -> bool:
        """Whether a shows nothing that b hides, on every image of every size."""
        if a is b:
            return True
        key = (a, b)
        if key not in self._inside:
            self._inside[key] = False  # while it is being proved
            self._inside[key] = any(rule(a, b) for rule in self._rules())
        return self._inside[key]

    def _rules(self) -> list[Callable[[Mask, Mask], bool]]:
        return [self._wider_window, self._centred, self._part_of_all, self._all_parts]

    def _window(self, mask: Mask) -> tuple[Mask, Window] | None:
        if mask in self._merged:
            return self._merged[mask]
        return (mask.parents[0], mask.params) if mask.kind in ("pool", "seen") else None

    def _wider_window(self, a: Mask, b: Mask) -> bool:
        # The last step of each, and the merged steps of each.
        for of_a in (self._window(a), self._last(a)):
            for of_b in (self._window(b), self._last(b)):
                if of_a and of_b and of_b[1].covers(of_a[1]) and self.inside(of_a[0], of_b[0]):
                    return a.kind == b.kind or b.kind == "seen"
        return False

    def _last(self, mask: Mask) -> tuple[Mask, Window] | None:
        return (mask.parents[0], mask.params) if mask.kind in ("pool", "seen") else None

    def _centred(self, a: Mask, b: Mask) -> bool:
        if b.kind not in ("pool", "seen") or b.params.stride != (1, 1):
            return False
        return all(0 in b.params.offsets(d) for d in (0, 1)) and self.inside(a, b.parents[0])

    def _part_of_all(self, a: Mask, b: Mask) -> bool:
        votes = sum(self.inside(a, part) for part in b.parents)
        needed = {"both": len(b.parents), "either": 1, "majority": len(b.parents) // 2 + 1}
        return b.kind in needed and votes >= needed[b.kind]

    def _all_parts(self, a: Mask, b: Mask) -> bool:
        votes = sum(self.inside(part, b) for part in a.parents)
        n = len(a.parents)
        needed = {"both": 1, "either": n, "majority": n - n // 2}
        return a.kind in needed and votes >= needed[a.kind]
