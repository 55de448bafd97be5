"""Vote certificates against every adversary of small instances."""

import itertools
import math

import numpy as np
import pytest
import torch

from robustcore.smoothing.theory import votes

RNG = np.random.default_rng(0)


def winner(counts):
    return int(np.argmax(counts))


def reachable(ballots, classes, changed):
    """Counts after any `changed` voters vote anything."""
    for who in itertools.combinations(range(len(ballots)), changed):
        for new in itertools.product(range(classes), repeat=changed):
            after = list(ballots)
            for i, v in zip(who, new, strict=True):
                after[i] = v
            yield np.bincount(after, minlength=classes)


def all_ballots(voters, classes):
    return itertools.combinations_with_replacement(range(classes), voters)


@pytest.mark.parametrize(("voters", "classes"), [(5, 3), (6, 2), (4, 4)])
def test_majority_is_exact(voters, classes):
    for ballots in all_ballots(voters, classes):
        counts = np.bincount(ballots, minlength=classes)
        certificate = votes.majority_certificate([counts.tolist()])
        before = winner(counts)
        assert int(certificate.prediction) == before
        safe = int(certificate.votes)
        assert int(certificate.size) == safe
        for changed in range(min(safe, voters) + 1):
            assert all(winner(after) == before for after in reachable(ballots, classes, changed))
        if safe < voters:  # tight: one more breaks it
            assert any(winner(a) != before for a in reachable(ballots, classes, safe + 1))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_is_exact(k):
    voters, classes = 5, 4

    def stays(counts, label):
        order = np.argsort(-counts, kind="stable")
        return label in order[:k]

    for ballots in all_ballots(voters, classes):
        counts = np.bincount(ballots, minlength=classes)
        for label in range(classes):
            safe = int(votes.top_k_certificate([counts.tolist()], [label], k)[0])
            assert (safe >= 0) == stays(counts, label)
            for changed in range(min(safe, 2) + 1):
                assert all(stays(a, label) for a in reachable(ballots, classes, changed))
            if -1 <= safe < 2:
                assert any(not stays(a, label) for a in reachable(ballots, classes, safe + 1))


def test_top_1_is_the_majority():
    counts = torch.from_numpy(RNG.multinomial(100, [0.3, 0.3, 0.2, 0.2], size=200))
    majority = votes.majority_certificate(counts)
    for several in (False, True):
        safe, _ = votes.top_k_certificate(counts, majority.prediction, 1, several=several)
        assert torch.equal(safe, majority.votes)


def test_several_votes():
    # Three voters, each for any set of classes: enumerate what one changed voter can do.
    classes, k = 3, 2
    subsets = list(itertools.product((0, 1), repeat=classes))
    for ballots in itertools.combinations_with_replacement(subsets, 3):
        counts = np.sum(ballots, axis=0)
        for label in range(classes):
            safe = int(votes.top_k_certificate([counts.tolist()], [label], k, several=True)[0])
            if safe >= 1:
                for i, new in itertools.product(range(3), subsets):
                    after = counts - np.array(ballots[i]) + np.array(new)
                    assert label in np.argsort(-after, kind="stable")[:k]


@pytest.mark.parametrize(("learners", "shifts"), [(6, [0, 1]), (6, [0, 2, 3]), (5, [0, 1, 3])])
def test_finite_aggregation_against_all_poisonings(learners, shifts):
    classes = 3
    for _ in range(40):
        ballots = RNG.choice(classes, size=learners, p=[0.7, 0.2, 0.1])
        certificate = votes.finite_aggregation_certificate(ballots[None], classes, shifts)
        size, prediction = int(certificate.size), int(certificate.prediction)
        assert prediction == winner(np.bincount(ballots, minlength=classes))
        for poisoned in itertools.combinations(range(learners), min(size, learners)):
            reached = sorted({(h + s) % learners for h in poisoned for s in shifts})
            for new in itertools.product(range(classes), repeat=len(reached)):
                after = ballots.copy()
                after[reached] = new
                assert winner(np.bincount(after, minlength=classes)) == prediction


def slow_finite_aggregation(ballots, classes, shifts):
    """The published loop, point by point."""
    m = len(ballots)
    counts = np.bincount(ballots, minlength=classes)
    y, radius = winner(counts), math.inf
    for c in range(classes):
        if c == y:
            continue
        left = counts[y] - counts[c] - (c < y)
        costs = []
        for h in range(m):
            reached = [ballots[(h + s) % m] for s in shifts]
            costs.append(sum(1 + (v == y) - (v == c) for v in reached))
        removed = 0
        for cost in sorted(costs, reverse=True):
            left -= cost
            if left < 0:
                break
            removed += 1
        radius = min(radius, removed)
    return radius


def test_finite_aggregation_is_the_published_loop():
    shifts = [0, 3, 4, 9, 20]
    ballots = RNG.choice(4, size=(60, 50), p=[0.6, 0.2, 0.1, 0.1])
    got = votes.finite_aggregation_certificate(torch.from_numpy(ballots), 4, shifts)
    assert got.size.tolist() == [slow_finite_aggregation(b, 4, shifts) for b in ballots]
    assert len(set(got.size.tolist())) > 2
    one = votes.finite_aggregation_certificate(ballots, 4, [0])
    counts = np.stack([np.bincount(b, minlength=4) for b in ballots])
    assert torch.equal(one.size, votes.dpa_certificate(counts).size)


@pytest.mark.parametrize(("agents", "k"), [(6, 1), (6, 2), (7, 2), (8, 3)])
def test_message_ensemble_against_all_corruptions(agents, k):
    messages, classes = agents - 1, 2
    sets = list(itertools.combinations(range(messages), k))
    for _ in range(30):
        ballots = (RNG.random(len(sets)) < 0.15).astype(int)
        counts = np.bincount(ballots, minlength=classes)
        got = votes.message_ensemble_certificate([counts.tolist()], agents, k)
        size = int(got.size)
        assert 2 * size < messages
        for corrupted in itertools.combinations(range(messages), size):
            after = [
                1 - winner(counts) if set(s) & set(corrupted) else v
                for s, v in zip(sets, ballots, strict=True)
            ]
            assert winner(np.bincount(after, minlength=classes)) == winner(counts)


def test_unanimous_messages():
    # Of five messages two can be corrupted, however the votes stand: half less.
    assert int(votes.message_ensemble_certificate([[5, 0]], 6, 1).size) == 2
    assert int(votes.message_ensemble_certificate([[10, 0]], 6, 2).size) == 1


@pytest.mark.parametrize(
    ("length", "size", "stride"), [(12, 3, 1), (12, 5, 2), (13, 4, 3), (9, 9, 4)]
)
def test_influence_is_what_enumeration_finds(length, size, stride):
    got = votes.axis_influence(length, size, stride)
    for m in range(length + 1):
        most = 0
        for first in range(length - m + 1):
            patch = set(range(first, first + m))
            windows = [{(s + i) % length for i in range(size)} for s in range(0, length, stride)]
            most = max(most, sum(bool(w & patch) for w in windows))
        assert got[m] == most


def test_influence_exceeds_the_published_closed_form():
    # W = 224, patch 32, band 19, stride 10: the closed form says ceil((32 + 19 - 1) / 10) = 5.
    assert votes.axis_influence(224, 19, 10)[32] == 6
    assert votes.axis_influence(224, 19, 1)[32] == 32 + 19 - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: votes.majority_certificate([[3, -1]]), "counts: got -1"),
        (lambda: votes.majority_certificate([[3.5, 1.0]]), "counts: got float64"),
        (lambda: votes.majority_certificate([[3]]), r"counts: got shape \[1, 1\]"),
        (lambda: votes.majority_certificate([3, 4]), r"counts: got shape \[2\]"),
        (lambda: votes.majority_certificate([[3, 4]], [1, 2]), "influence: got"),
        (lambda: votes.majority_certificate([[3, 4]], [0, 2, 1]), "influence: got"),
        (lambda: votes.dpa_certificate([[1, 1, 0]]), "counts: got 2 votes for 3 classes"),
        (lambda: votes.top_k_certificate([[3, 4]], [2], 1), "labels: got 2"),
        (lambda: votes.top_k_certificate([[3, 4]], [0, 1], 1), "labels: got 2, want one a row"),
        (lambda: votes.top_k_certificate([[3, 4]], [0], 2), "k: got 2"),
        (lambda: votes.finite_aggregation_certificate([[0, 1]], 3, [0]), "num_classes: got 3"),
        (lambda: votes.finite_aggregation_certificate([[0, 5]], 2, [0]), "votes: got 0 to 5"),
        (lambda: votes.finite_aggregation_certificate([[0, 1]], 2, [0, 0]), "shifts: got"),
        (lambda: votes.finite_aggregation_certificate([[0, 1]], 2, [2]), "shifts: got"),
        (lambda: votes.message_ensemble_certificate([[3, 1]], 4, 2), "counts: got rows of 4"),
        (lambda: votes.message_ensemble_certificate([[3, 0]], 4, 4), "k: got 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_no_rows():
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert len(votes.majority_certificate(empty).size) == 0
    assert len(votes.finite_aggregation_certificate(empty, 3, [0]).size) == 0
