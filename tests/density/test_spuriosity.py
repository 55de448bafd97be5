"""Spuriosity rankings: scores and gaps by hand, and a head that unlearns a spurious feature."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from robustcore.density.groups import (
    least_spurious,
    retrain_head,
    spuriosity_ranking,
    spurious_gap,
)


def data(n=400, seed=0):
    """Class y: feature 0 is its core; features 1 and 2 are spurious, high in most of class 1."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    spurious = torch.rand(n, generator=generator) < torch.where(y == 1, 0.8, 0.2)
    features = torch.randn(n, 4, generator=generator)
    features[:, 0] += 0.8 * (2 * y - 1)
    features[:, 1:3] = 0.02 * features[:, 1:3] + spurious[:, None]
    return features, y, spurious


def test_scores_are_mean_z_scores_within_the_class():
    features, y, _ = data()
    ranking = spuriosity_ranking(features, y, {1: [1, 2]})
    own = features[y == 1].double()
    z = (own - own.mean(0)) / own.std(0, correction=0)
    torch.testing.assert_close(ranking.scores[y == 1], z[:, 1:3].mean(1))
    assert ranking.scores[y == 0].isnan().all()
    assert list(ranking.order) == [1]
    order = ranking.order[1]
    assert sorted(order.tolist()) == (y == 1).nonzero().flatten().tolist()
    assert (ranking.scores[order].diff() <= 0).all()


def test_a_feature_without_variation_says_nothing():
    features, y, _ = data()
    features[:, 3] = 7
    ranking = spuriosity_ranking(features, y, {1: [1, 3]})
    alone = spuriosity_ranking(features, y, {1: [1]})
    torch.testing.assert_close(2 * ranking.scores[y == 1], alone.scores[y == 1])
    assert torch.equal(ranking.order[1], alone.order[1])


def test_the_gap_by_hand():
    features, y, _ = data(12)
    ranking = spuriosity_ranking(features, y, {0: [1], 1: [1]})
    predicted = y.clone()
    predicted[ranking.order[0][-2:]] = 1  # the two least spurious of class 0 are wrong
    predicted[ranking.order[1][0]] = 0  # and the most spurious of class 1
    got = spurious_gap(predicted, y, ranking, k=2)
    assert got.classes == {0: 1.0, 1: -0.5}
    assert got.mean == 0.25
    assert spurious_gap(predicted, y, ranking, k=3).classes[0] == pytest.approx(2 / 3)


def test_least_spurious():
    features, y, spurious = data()
    ranking = spuriosity_ranking(features, y, {0: [1, 2], 1: [1, 2]})
    chosen = least_spurious(ranking, 30)
    assert len(chosen) == 60
    assert (y[chosen] == 0).sum() == 30
    assert spurious[chosen].float().mean() < 0.05 < spurious.float().mean()


def test_a_head_retrained_on_the_least_spurious_closes_the_gap():
    features, y, _ = data(2000)
    everything = torch.arange(len(y))
    plain = retrain_head(features, y, everything)
    ranking = spuriosity_ranking(features, y, {0: [1, 2], 1: [1, 2]})
    fresh = retrain_head(features, y, least_spurious(ranking, 150), ridge=1e-2)
    gap = {}
    for name, head in (("plain", plain), ("fresh", fresh)):
        gap[name] = spurious_gap(head(features).argmax(1), y, ranking, k=100)
    # Without the spurious feature class 1 loses, and class 0 gains.
    assert gap["plain"].classes[1] > 0.1 > -0.1 > gap["plain"].classes[0]
    assert all(abs(gap["fresh"].classes[c]) < abs(gap["plain"].classes[c]) / 2 for c in (0, 1))


def test_the_head_is_at_the_minimum():
    features, y, _ = data()
    state = torch.get_rng_state()
    head = retrain_head(features.double(), y, torch.arange(100), num_classes=3, ridge=1e-2)
    assert torch.equal(torch.get_rng_state(), state)
    assert head.weight.shape == (3, 4)
    assert head.weight.dtype == torch.float64
    loss = cross_entropy(head(features[:100].double()), y[:100])
    loss = loss + 1e-2 / 2 * head.weight.square().sum()
    (grad,) = torch.autograd.grad(loss, head.weight)
    assert grad.abs().max() < 1e-7
    assert retrain_head(features, y, torch.arange(100)).weight.dtype == torch.float32


def ranked():
    features, y, _ = data(12)
    return spuriosity_ranking(features, y, {0: [1]}), y


BAD = [
    (lambda: spuriosity_ranking(*data()[:2], {1: [4]}), "spurious_features: got 4"),
    (lambda: spuriosity_ranking(*data()[:2], {1: []}), "spurious_features: got no features"),
    (lambda: spuriosity_ranking(*data()[:2], {2: [0]}), "spurious_features: got class 2"),
    (lambda: spurious_gap(ranked()[1], ranked()[1], ranked()[0], 4), "k: got 4, want at most 3"),
    (lambda: spurious_gap(ranked()[1][:3], ranked()[1], ranked()[0]), "predicted: got shape"),
    (lambda: least_spurious(ranked()[0], 7), "k: got 7, want at most 6"),
    (lambda: retrain_head(*data()[:2], torch.tensor([400])), "chosen: got 400 to 400"),
    (lambda: retrain_head(*data()[:2], torch.tensor([1]), num_classes=1), "num_classes: got 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
