"""Fills and epilogues."""

import itertools

import torch

from robustcore import ops
from sizes.size import BF16, F32, raw, size_of


def fills(at):
    sizes = [  # images, channels, side, masks, iterations
        (64, 64, 56, 64, 1), (64, 512, 14, 64, 1), (1, 3, 224, 32, 6), (64, 3, 224, 64, 6),
        (600, 64, 56, 600, 1),
    ]  # fmt: skip
    for (images, channels, side, number, iters), last, dtype in itertools.product(
        sizes, (False, True), (F32, BF16)
    ):
        x = at.randn(*at(images, channels, side, side), dtype=dtype, last=last)
        count = len(x) if number == images else at(number)[0]
        mask = (torch.rand(count, 1, *x.shape[2:], device=at.device) < 0.53).float()
        label = f"[{images}, {channels}, {side}, {side}], {number} masks, {iters} iterations, "
        label += f"{'channels last' if last else 'contiguous'}, {str(dtype).split('.')[1]}"
        moved = size_of(x) + size_of(x) * count // len(x)
        fn = lambda x=x, m=mask, i=iters: ops.neighbor_fill(x, m, i)  # noqa: E731
        yield "neighbor_fill", label, moved, fn, "copy"
        if iters == 1 and images != 600:
            scale = torch.rand(x.shape[1], device=at.device)
            fn = lambda x=x, m=mask, s=scale: raw.mask_epilogue_(x, m, s, s, True)  # noqa: E731
            yield "mask_epilogue_", label.replace(", 1 iterations", ""), moved, fn, "copy"


GROUPS = (fills,)
