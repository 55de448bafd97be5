"""The insertion and deletion game: a model's answers as the parts of an input come and go.

Source: Petsiuk, Das and Saenko, "RISE: randomized input sampling for explanation", 2018.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robustcore.common.progress import steps


def ranks(scores: Tensor, *, largest_first: bool = True) -> Tensor:
    """Each element's place in the order of its own sample, as ``scores`` ``[N, *D]``.

    Ties go by position.
    """
    order = scores.flatten(1).argsort(dim=1, descending=largest_first, stable=True)
    return order.argsort(dim=1).view(scores.shape)


def play(
    answer: Callable[[Tensor], Tensor],
    rank: Tensor,
    counts: Tensor,
    *,
    insert: bool,
    batch_size: int = 1,
    shown: bool = False,
) -> list[Tensor]:
    """What is answered to each number of elements that have come, or gone.

    Args:
        answer: of which elements are there, bool ``[N, *D]``, or a row a count for a batch of them.
        rank: ``[N, *D]`` of :func:`ranks`; N is 1 where ``batch_size`` is more.
        counts: int64 ``[T]``.
        insert: whether elements come in their order, or go.
        batch_size: counts in one call of ``answer``.
        shown: whether a bar counts the calls.
    """
    answers = []
    what = "insertion" if insert else "deletion"
    for i in steps(range(0, len(counts), batch_size), what, "batch", shown=shown):
        batch = counts[i : i + batch_size].to(rank.device)
        reached = rank < batch.view(-1, *[1] * (rank.dim() - 1))
        answers.append(answer(reached == insert))
    return answers
