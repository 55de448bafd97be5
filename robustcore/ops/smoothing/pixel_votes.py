"""Votes of pixels: how often each class is the arg-max at a pixel."""

import torch
from torch import Tensor

from robustcore.ops.autograd import fake_nothing, raw
from robustcore.ops.checks import check_floating, check_out, check_tensor

_add_pixel_votes = raw.add_pixel_votes.default


def add_pixel_votes(counts: Tensor, logits: Tensor, chosen: Tensor | None = None) -> None:
    """Adds to counters, in one pass over the logits, what N samples vote for at each pixel.

    A pixel's vote is the arg-max of its logits, the lowest index in a tie; a pixel with a NaN among
    them votes for nobody. No map of classes is made.

    Args:
        counts: contiguous int32, changed in place: ``[K, *D]``, the votes of every class; with
            ``chosen`` ``[*D]``, the votes of one class a pixel.
        logits: ``[N, K, *D]`` floating, any strides.
        chosen: contiguous int64 ``[*D]``: the class that is counted at each pixel; one that is
            none, ABSTAIN say, gets no vote.

    Raises TypeError or ValueError naming the argument. Not differentiable.
    Source: Fischer, Baader and Vechev, "Scalable certified segmentation via randomized smoothing",
    2021, whose code moves all maps of classes to the host.

    >>> counts = torch.zeros(2, 3, dtype=torch.int32)
    >>> add_pixel_votes(counts, torch.tensor([[[0.1, 0.9, 0.5], [0.8, 0.2, 0.5]]]))
    >>> counts.tolist()
    [[0, 1, 1], [1, 0, 0]]
    """
    check_floating("logits", logits)
    check_tensor("counts", counts)
    check_out("counts", counts, logits, "logits")
    if chosen is not None:
        check_tensor("chosen", chosen)
        check_out("chosen", chosen, logits, "logits")
    _add_pixel_votes(counts, logits, chosen)


torch.library.register_fake("robustcore::add_pixel_votes", fake_nothing)
