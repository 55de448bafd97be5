"""Votes: how often each class is the arg-max."""

import torch
from torch import Tensor

from robustcore.ops.autograd import fake_nothing, raw, register_rows
from robustcore.ops.checks import check_floating, check_out, check_tensor

_votes = raw.count_votes.default


_votes_out = raw.count_votes_out.default


def count_votes(logits: Tensor, *, out: Tensor | None = None) -> Tensor:
    """How often each class is the arg-max, in one pass on the device.

    Args:
        logits: ``[B, S, K]`` floating, any strides. Ties go to the lowest index; a row with a NaN
            votes for nobody.
        out: contiguous int64 ``[B, K]``, overwritten, instead of a new tensor.

    Returns:
        int64 ``[B, K]``; rows sum to S less the rows with a NaN.

    Raises TypeError or ValueError naming the argument. Not differentiable.
    Source: Cohen, Rosenfeld, Kolter, 2019, whose code counts on the host.

    >>> count_votes(torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]]))
    tensor([[1, 2]])
    """
    check_floating("logits", logits)
    if logits.dim() != 3:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [B, S, K]")
    if out is not None:
        check_tensor("out", out)
        check_out("out", out, logits, "logits")
    if out is None:
        return _votes(logits)
    _votes_out(logits, out)
    return out


@torch.library.register_fake("robustcore::count_votes")
def _(logits):
    return logits.new_empty([logits.shape[0], logits.shape[2]], dtype=torch.int64)


torch.library.register_fake("robustcore::count_votes_out", fake_nothing)
register_rows(_votes, 1)
