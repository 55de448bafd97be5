"""Certificates of majority votes: integer counts, and how many votes an adversary can change.

Counts and votes are int64 tensors or nested lists; results are int64 tensors on the CPU. A tie goes
to the lower class, always. Nothing here is random or rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustcore.common.checks import require_flag, require_int

IntArray = npt.NDArray[np.int64]


class MajorityCertificate(NamedTuple):
    """Of B votes: int64 ``[B]`` each."""

    prediction: Tensor
    """The class with the most votes."""
    votes: Tensor
    """So many votes may change, each to any class, and the prediction stays."""
    size: Tensor
    """The largest perturbation that changes no more votes than that."""


def majority_certificate(
    counts: Any, influence: Sequence[int] | None = None
) -> MajorityCertificate:
    """The most voted class and what it withstands: ``floor((n1 - n2 - [c2 < c1]) / 2)`` votes.

    Args:
        counts: votes ``[B, K]``, K at least 2, integers of at least 0. A voter may have voted for
            several classes or none, as long as a changed one takes one vote from a class and gives
            one to another at most.
        influence: ``influence[m]`` is the most votes that a perturbation of size m changes;
            ``influence[0]`` is 0 and it never decreases. None: a perturbation of size m changes m.

    Returns:
        :class:`MajorityCertificate`; ``size`` is at most ``len(influence) - 1``. Exact: where every
        set of that many votes can be changed, one more breaks the prediction.

    Raises TypeError or ValueError, naming the argument. Not differentiable.
    Source: Levine and Feizi, "Deep partition aggregation", 2021.

    >>> majority_certificate(torch.tensor([[2, 40, 8]])).votes  # (40 - 8) / 2
    tensor([16])
    """
    n = _counts(counts)
    prediction = n.argmax(1)
    tolerated = _margins(n, prediction).min(1) // 2
    return MajorityCertificate(
        torch.from_numpy(prediction),
        torch.from_numpy(tolerated),
        torch.from_numpy(_sizes(tolerated, influence)),
    )


def top_k_certificate(
    counts: Any,
    labels: Any,
    k: int,
    influence: Sequence[int] | None = None,
    *,
    several: bool = False,
) -> tuple[Tensor, Tensor]:
    """The changed votes, and the perturbation, with which a label stays among the k most voted.

    Args:
        counts: votes ``[B, K]``, integers of at least 0.
        labels: B integers in [0, K).
        k: in [1, K).
        influence: as in :func:`majority_certificate`.
        several: whether one voter can vote for several classes, so that a changed one can serve all
            rivals at once.

    Returns:
        int64 ``[B]`` votes and ``[B]`` sizes; -1 where the label is not among the k now. The votes
        are exact: one more can push the label out, if any can.

    Raises TypeError or ValueError, naming the argument. Not differentiable.
    Source: Jia et al., 2020, and Levine and Feizi, 2021, for the two parts that it joins.
    """
    n = _counts(counts)
    classes = n.shape[1]
    k = require_int("k", k, 1, classes)
    require_flag("several", several)
    label = _classes("labels", labels, len(n), classes)
    # A rival passes when it gains and the label loses so much in all; the k weakest that must pass
    # are those with the smallest margins. A margin is what a rival may gain and stay behind.
    margins = np.sort(_margins(n, label), axis=1)[:, :k]
    own = n[np.arange(len(n)), label]
    if several:
        tolerated = np.where(margins[:, k - 1] < 0, -1, margins[:, k - 1] // 2)
    else:
        # m changed votes are best taken from the label, as far as it has them: k rivals then pass
        # if the votes given cover what is left of each margin. Bisect the largest m that fails.
        low, high = np.full(len(n), -1), n.sum(1) + k * (own + 2)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            lost = np.minimum(middle, own)
            needed = np.maximum(margins + 1 - lost[:, None], 0).sum(1)
            passes = needed <= middle
            high, low = np.where(passes, middle, high), np.where(passes, low, middle)
        tolerated = low
        # Votes are finite: if all of them do not push it out, nothing does.
        tolerated = np.minimum(tolerated, n.sum(1))
    sizes = np.where(tolerated < 0, -1, _sizes(np.maximum(tolerated, 0), influence))
    return torch.from_numpy(tolerated), torch.from_numpy(sizes)


def dpa_certificate(counts: Any) -> MajorityCertificate:
    """Poisoned training samples that a vote of partitions withstands (deep partition aggregation).

    Each learner is trained on its own part of the training set, so a sample added, removed or
    changed (in features that do not move it to another part) changes one vote.

    Args:
        counts: votes of the learners ``[B, K]``, integers of at least 0, at least K in each row.

    Returns:
        :class:`MajorityCertificate`, ``size`` in poisoned samples (insertions plus deletions).

    Raises TypeError or ValueError, naming the argument. Not differentiable.
    Source: Levine and Feizi, "Deep partition aggregation: provable defense against general
    poisoning attacks", 2021.
    """
    n = _counts(counts)
    if len(n) and int(n.sum(1).min()) < n.shape[1]:
        raise ValueError(
            f"counts: got {int(n.sum(1).min())} votes for {n.shape[1]} classes, want at least one "
            "vote a class"
        )
    return majority_certificate(n)


def finite_aggregation_certificate(
    votes: Any, num_classes: int, shifts: Any
) -> MajorityCertificate:
    """Poisoned training samples that finite aggregation withstands, for all test points at once.

    The training set is cut into M buckets; bucket h is part of what the learners ``(h + shift) mod
    M`` are trained on, for the d shifts.

    Args:
        votes: the class each of the M learners votes for, ``[B, M]``.
        num_classes: K, at least 2, at most M.
        shifts: d different integers in [0, M).

    Returns:
        :class:`MajorityCertificate`, ``size`` in poisoned samples; ``votes`` is the margin in
        learners, as in :func:`majority_certificate`. ``size`` is at least that of the union of the
        d learners each bucket reaches, and exact for d = 1, where it is :func:`dpa_certificate`.

    Raises TypeError or ValueError, naming the argument. Not differentiable. Source: Wang, Levine
    and Feizi, "Improved certified defenses against data poisoning with (deterministic) finite
    aggregation", 2022.
    """
    ballots = _integers("votes", votes, 2)
    learners = ballots.shape[1]
    if learners < 2:
        raise ValueError(f"votes: got {learners} a row, want one a class at least")
    num_classes = require_int("num_classes", num_classes, 2, learners + 1)
    if ballots.size and (ballots.min() < 0 or ballots.max() >= num_classes):
        raise ValueError(
            f"votes: got {ballots.min()} to {ballots.max()}, want classes in [0, {num_classes})"
        )
    steps = _integers("shifts", shifts, 1)
    inside = bool(len(steps)) and steps.min() >= 0 and steps.max() < learners
    if not inside or len(set(steps.tolist())) != len(steps):
        raise ValueError(f"shifts: got {shifts}, want different integers in [0, {learners})")
    chunk = max(1, 2**21 // learners)  # working sets that stay in the cache
    parts = [
        _finite_aggregation(ballots[i : i + chunk], num_classes, steps)
        for i in range(0, len(ballots), chunk)
    ] or [_finite_aggregation(ballots, num_classes, steps)]
    return MajorityCertificate(
        *(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    )


def _finite_aggregation(
    ballots: IntArray, classes: int, shifts: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    points, learners = ballots.shape
    d = len(shifts)
    # What a bucket's learners vote: reached[b, c, h] of the d learners of h vote for c.
    small = np.uint8 if 2 * d < 256 else np.int64
    one_hot = (ballots[:, None, :] == np.arange(classes)[:, None]).astype(small)
    counts = one_hot.sum(2, dtype=np.int64)
    twice = np.concatenate([one_hot, one_hot], axis=2)
    reached = np.zeros_like(one_hot)
    for shift in shifts.tolist():
        reached += twice[:, :, shift : shift + learners]
    prediction = counts.argmax(1)
    own = reached[np.arange(points), prediction]
    margin = _margins(counts, prediction)
    # Poisoning bucket h costs the margin over c so much; it is an integer in [0, 2 d], so counting
    # replaces the sort.
    cost = (own[:, None, :] + small(d)) - reached
    others = np.arange(classes)[None, :] != prediction[:, None]
    cost = cost[others].reshape(-1, learners)
    bins = 2 * d + 1
    rows = len(cost)
    index = cost.astype(np.int64)
    index += (np.arange(rows) * bins)[:, None]
    histogram = np.bincount(index.ravel(), minlength=rows * bins).reshape(rows, bins)
    left = margin.reshape(-1)
    size = np.zeros(rows, dtype=np.int64)
    open_ = np.ones(rows, dtype=bool)
    for value in range(2 * d, 0, -1):
        taken = np.where(open_, np.minimum(histogram[:, value], left // value), 0)
        left = left - taken * value
        size += taken
        open_ &= taken == histogram[:, value]
    size = np.where(open_, learners, size)
    return prediction, margin.min(1) // 2, size.reshape(points, classes - 1).min(1)


def message_ensemble_certificate(counts: Any, num_agents: int, k: int) -> MajorityCertificate:
    """Corrupted messages that an agent withstands which votes over ablated sets of messages.

    The agent receives ``num_agents - 1`` messages and votes once for every k of them; C corrupted
    ones reach all sets but ``comb(num_agents - 1 - C, k)``.

    Args:
        counts: votes ``[B, K]``, integers of at least 0, ``comb(num_agents - 1, k)`` in each row.
        num_agents: N, at least 2.
        k: messages kept in a set, in [1, N - 1].

    Returns:
        :class:`MajorityCertificate`, ``size`` in corrupted messages C, which stays below ``(N - 1)
        / 2``: with half of the messages corrupted nothing tells the honest ones.

    Raises TypeError or ValueError, naming the argument. Not differentiable. Source: Sun et al.,
    "Certifiably robust policy learning against adversarial multi-agent communication", 2023.
    """
    messages = require_int("num_agents", num_agents, 2) - 1
    k = require_int("k", k, 1, messages + 1)
    n = _counts(counts)
    if min(k, messages - k) > 62:  # more than 2**62 sets: no counts hold them
        raise ValueError(f"k: got {k} of {messages} messages, want sets that can be counted")
    sets = math.comb(messages, k)
    if len(n) and not bool((n.sum(1) == sets).all()):
        raise ValueError(
            f"counts: got rows of {int(n.sum(1).min())} to {int(n.sum(1).max())} votes, want "
            f"{sets}, one for every {k} of {messages} messages"
        )
    most = (messages - 1) // 2  # the largest C < messages / 2
    return majority_certificate(n, [sets - math.comb(messages - c, k) for c in range(most + 1)])


def axis_influence(length: int, size: int, stride: int) -> list[int]:
    """The most window positions along one axis that m neighbouring pixels meet, for m = 0, 1, ...

    Windows start at multiples of ``stride`` and wrap around; found by enumeration, since the closed
    form undercounts where the stride does not divide the length.
    """
    starts = np.arange(0, length, stride)
    covers = (np.arange(length)[None, :] - starts[:, None]) % length < size  # [positions, pixels]
    most = [0]
    met = np.zeros_like(covers[:, :length])
    for m in range(1, length + 1):
        # met[:, p]: whether the window meets pixels p .. p + m - 1
        met = met[:, : length - m + 1] | covers[:, m - 1 :]
        most.append(int(met.sum(0).max()))
    return most


def _sizes(tolerated: IntArray, influence: Sequence[int] | None) -> IntArray:
    if influence is None:
        return tolerated
    steps = _integers("influence", influence, 1)
    if len(steps) == 0 or steps[0] != 0 or np.any(np.diff(steps) < 0):
        raise ValueError(f"influence: got {influence}, want 0 first and then no decrease")
    sizes: IntArray = np.searchsorted(steps, tolerated, side="right").astype(np.int64) - 1
    return sizes


def _margins(n: IntArray, label: IntArray) -> IntArray:
    """n_y - n_c - [c < y] for the classes c other than the row's y, ``[B, K - 1]``."""
    classes = np.arange(n.shape[1])
    own = n[np.arange(len(n)), label]
    margins = own[:, None] - n - (classes < label[:, None])
    others: IntArray = margins[classes != label[:, None]].reshape(len(n), n.shape[1] - 1)
    return others


def _counts(counts: Any) -> IntArray:
    n = _integers("counts", counts, 2)
    if n.shape[1] < 2:
        raise ValueError(f"counts: got shape {list(n.shape)}, want [B, K] with K at least 2")
    if n.size and n.min() < 0:
        raise ValueError(f"counts: got {n.min()}, want integers of at least 0")
    limit = 2**62 // n.shape[1]  # the sums that certificates rest on stay in 64 bits
    if n.size and n.sum(1, dtype=np.float64).max() >= limit:
        raise ValueError(f"counts: got {n.max()}, want rows of less than {limit} votes")
    return n


def _classes(name: str, value: Any, rows: int, classes: int) -> IntArray:
    labels = _integers(name, value, 1)
    if len(labels) != rows:
        raise ValueError(f"{name}: got {len(labels)}, want one a row, {rows}")
    if rows and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"{name}: got {labels.min()} to {labels.max()}, want [0, {classes})")
    return labels


def _integers(name: str, value: Any, dims: int) -> IntArray:
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: got {value!r}, want integers") from None
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: got {array.dtype}, want integers")
    if array.ndim != dims:
        raise ValueError(f"{name}: got shape {list(array.shape)}, want {dims} dimensions")
    return array.astype(np.int64)
