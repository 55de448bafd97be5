"""Crop selection: a classifier of the crop that the content chooses, whatever its position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import require_callable, require_flag, require_floating
from robustcore.ops.checks import pair

CHUNK = 64  # crops of equal energy that are compared at a time


class CropSelection(nn.Module):
    """A classifier of one crop of each image, chosen by a rule that moves with the content.

    The crop is that of the largest energy, the sum of the squared differences to the pixels right
    and below; of several such crops it is the last in the order of their pixels. An image shifted
    by whole pixels gives the same crop, shifted: for circular shifts always, to the bit; for a
    camera that moves, where the chosen crop stays inside the image.

    Args:
        model: maps crops ``[N, C, h, w]`` to what it returns, logits say.
        size: of a crop, h and w or one for both, at most that of the images.
        circular: whether crops go around the image's borders.

    A module; a call maps images ``[N, C, H, W]`` to the model's output of their crops. Raises
    TypeError or ValueError, naming the argument. Differentiable through the crops; not through the
    choice. Source: Shifman and Weiss, "Lost in translation: modern neural networks still struggle
    with small realistic image transformations", 2024, for crops chosen by content.
    """

    def __init__(
        self, model: Callable[[Tensor], Any], size: int | tuple[int, int], *, circular: bool = True
    ) -> None:
        super().__init__()
        require_callable("model", model)
        self.model, self.size = model, pair("size", size)
        self.circular = require_flag("circular", circular)

    def forward(self, x: Tensor) -> Any:
        """The model's output of each image's crop; see the class."""
        return self.model(self.crop(x))

    def crop(self, x: Tensor) -> Tensor:
        """The crops ``[N, C, h, w]`` of images ``[N, C, H, W]``."""
        if require_floating("x", x).dim() != 4:
            raise ValueError(f"x: got shape {list(x.shape)}, want [N, C, H, W]")
        (h, w), (height, width) = self.size, x.shape[2:]
        if x.shape[1] < 1 or h > height or w > width:
            raise ValueError(f"x: got images of {height} x {width}, want at least {h} x {w}")
        energy = self._energy(x.detach())
        crops = []
        for image, sums in zip(x, energy, strict=True):
            most = sums.amax()
            rows, columns = (sums == most).nonzero(as_tuple=True)
            best = self._cut(image, rows[:1], columns[:1])
            # An image without energy in any direction is of one colour, and so are all its crops.
            plain = most == 0 and min(self.size) > 1
            for i in range(1, 0 if plain else len(rows), CHUNK):
                here = slice(i, i + CHUNK)
                best = _last(torch.cat([best, self._cut(image, rows[here], columns[here])]))
            crops.append(best[0])
        return torch.stack(crops) if crops else x[:, :, :h, :w]

    def _energy(self, x: Tensor) -> Tensor:
        """Of the crop that begins at each pixel, ``[N, H, W]`` or as many as there are inside."""
        (h, w), (height, width) = self.size, x.shape[2:]
        x = x.double()
        right, below = x.roll(-1, 3) - x, x.roll(-1, 2) - x
        # Inside a crop: its last column has no pixel to the right, its last row none below. The
        # sums are of one order everywhere, so that equal crops have equal ones, to the bit.
        across = _sum(_sum(_over_channels(right * right), w - 1, 2), h, 1)
        down = _sum(_sum(_over_channels(below * below), w, 2), h - 1, 1)
        energy = (across + down).nan_to_num(torch.inf)
        return energy if self.circular else energy[:, : height - h + 1, : width - w + 1]

    def _cut(self, image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Crops ``[P, C, h, w]`` of an image ``[C, H, W]`` that begin at these pixels."""
        (h, w), (height, width) = self.size, image.shape[1:]
        r = (rows[:, None] + torch.arange(h, device=image.device)) % height
        c = (columns[:, None] + torch.arange(w, device=image.device)) % width
        return image[:, r[:, :, None], c[:, None, :]].movedim(0, 1)


def _sum(values: Tensor, length: int, dim: int) -> Tensor:
    """Of so many neighbours from each one on, around the border, added in their order."""
    total = torch.zeros_like(values)
    for i in range(length):
        total = total + values.roll(-i, dim)
    return total


def _over_channels(values: Tensor) -> Tensor:
    """The sum ``[N, H, W]`` over channels; torch's own may add in another order at a row's end."""
    total = torch.zeros_like(values[:, 0])
    for channel in values.unbind(1):
        total = total + channel
    return total


def _last(candidates: Tensor) -> Tensor:
    """The last of some crops, in the order of their pixels, ``[1, C, h, w]``."""
    rows = candidates.detach().flatten(1)
    _, inverse = rows.unique(dim=0, return_inverse=True)  # sorted
    return candidates[int(inverse.argmax())][None]
