"""The windows of convolutions and pools."""

from __future__ import annotations

from dataclasses import dataclass

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

    def padded(self, more: tuple[Pair, Pair]) -> Window:
        """With zeros that were put around the image before."""
        rows, columns = ((a + c, b + d) for (a, b), (c, d) in zip(self.pads, more, strict=True))
        return Window(self.kernel, self.stride, (rows, columns), self.dilation, self.ceil_mode)

    def outputs(self, size: int, dimension: int) -> int:
        """How many it gives of ``size`` pixels."""
        before, after = self.pads[dimension]
        room = size + before + after - self.span[dimension] - 1
        stride = self.stride[dimension]
        n = room // stride + 1
        # In ceil mode a last window may hang over, if it begins in the image or its padding before.
        over = self.ceil_mode and room % stride and n * stride < size + before
        return n + 1 if over else n

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
