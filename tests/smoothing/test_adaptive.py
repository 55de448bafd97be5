"""AdaptiveMix and great_score: the worst case by search, and simulated coverage."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustcore.smoothing import ABSTAIN, AdaptiveMix, Laplace, Smooth, great_score
from smoothing.models import HalfSpace


def halfspace():
    weight = torch.tensor([0.6, 0.8])
    return HalfSpace(weight, -0.1), weight.double()


def mix(least=0.75, **options):
    base, _ = halfspace()
    smooth = Smooth(base, 2, 0.25, seed=0, input_dims=1)
    return AdaptiveMix(lambda x: torch.stack([9 - x[:, 0], x[:, 0]], 1), smooth, least, **options)


def test_radius_is_that_of_the_worst_case():
    """g is exact here: Phi(margin / sigma). f is against it everywhere, as sure as it can be."""
    x = torch.tensor([[0.4, 0.4], [0.9, 0.1], [0.12, 0.1]])
    least, (base, _) = 0.75, halfspace()
    result = mix(least).certify(x, 50, 20_000, 0.001)
    assert result.prediction.tolist() == [1, 1, ABSTAIN]
    for i in range(2):
        margin = float(base.margin(x[i : i + 1]))
        # The mix keeps class 1 while a p > (1 - a) + a (1 - p), which is p > 1 / (2 a).
        exact = margin - 0.25 * stats.norm.ppf(1 / (2 * least))
        assert 0.8 * exact < float(result.radius[i]) < exact
        p = stats.norm.cdf((margin - float(result.radius[i])) / 0.25)
        assert least * p > (1 - least) + least * (1 - p)
    assert (result.radius <= result.smooth.radius).all()


def test_the_bound_on_the_mix_by_brute_force():
    """Whatever f says and whatever a of at least ``least``: p_y above 1/(2 least) decides."""
    random = np.random.default_rng(0)
    for _ in range(2000):
        least = random.uniform(0.501, 0.999)
        p = random.dirichlet(np.ones(4))
        own = random.dirichlet(np.full(4, 0.05))
        a = random.uniform(least, 1)
        if p.max() > 1 / (2 * least):
            assert ((1 - a) * own + a * p).argmax() == p.argmax()


def test_probabilities():
    x = torch.rand(5, 2)
    sure = mix(0.6).probabilities(x, 400)
    assert sure.shape == (5, 2)
    torch.testing.assert_close(sure.sum(1), torch.ones(5).double())
    p = mix(0.6).smooth.predict(x, 400).counts.double() / 400
    own = (mix().standard(x).double() / 2).softmax(1)
    for mixing, a in [(None, 0.6), (lambda x: x[:, :1] * 0, 0.8), (lambda x: x[:, 0] * 0 + 50, 1)]:
        got = mix(0.6, mixing=mixing, temperature=2.0).probabilities(x, 400)
        torch.testing.assert_close(got, (1 - a) * own + a * p)


def test_great_score():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    score = great_score(p, torch.tensor([0, 0, 2]), 0.1)
    most = math.sqrt(math.pi / 2)
    assert score.score == pytest.approx(most * (0.5 + 0.1) / 3)
    assert score.lower == 0
    sure = great_score(torch.eye(2).repeat(500, 1), torch.tensor([0, 1]).repeat(500), 0.1)
    slack = math.sqrt(math.log(10) / 2000)
    assert sure.score == pytest.approx(most)
    assert sure.lower == pytest.approx(most * (1 - slack))


def test_great_score_covers():
    """Of samples whose terms are as spread as they can be, the bound is below the mean but for
    delta."""
    random, runs, wrong = np.random.default_rng(0), 3000, 0
    for _ in range(runs):
        labels = torch.from_numpy(random.binomial(1, 0.3, 100))
        p = torch.eye(2, dtype=torch.float64)[torch.ones(100, dtype=torch.int64)]
        wrong += great_score(p, labels, 0.2).lower > 0.3 * math.sqrt(math.pi / 2)
    assert stats.binomtest(wrong, runs, 0.2, alternative="greater").pvalue > 1e-6
    assert wrong > 0


def test_great_score_is_a_radius_of_the_smoothed_classifier():
    """E f(x + z) of a half-space is Phi: half the margin of it, scaled, is below the distance."""
    for distance in (0.05, 0.5, 1.0, 3.0):
        p = stats.norm.cdf(distance)
        probabilities = torch.tensor([[p, 1 - p]])
        assert great_score(probabilities, torch.tensor([0])).score <= distance * (1 + 1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(least=0.5), "least: got 0.5"),
        (dict(least=1.0), "least: got 1.0"),
        (dict(standard=None), "standard: got NoneType"),
        (dict(smooth=3), "smooth: got int"),
        (dict(smooth=Smooth(lambda x: x, 2, noise=Laplace(0.2))), "smooth: got Laplace"),
        (dict(mixing=3), "mixing: got int"),
        (dict(temperature=0), "temperature: got 0"),
    ],
)
def test_errors(change, message):
    good = dict(standard=lambda x: x, smooth=Smooth(lambda x: x, 2, 0.25), least=0.75)
    with pytest.raises((TypeError, ValueError), match=message):
        AdaptiveMix(**{**good, **change})


def test_more_errors():
    with pytest.raises(ValueError, match=r"mixing: gave \[5, 2\]"):
        mix(mixing=lambda x: x).probabilities(torch.rand(5, 2), 100)
    with pytest.raises(ValueError, match=r"x: got shape \[2\], want a batch"):
        mix().certify(torch.rand(2))
    with pytest.raises(ValueError, match=r"probabilities: want numbers in \[0, 1\]"):
        great_score(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))


def test_the_radius_is_not_rounded_up():
    from mpmath import mp, mpf

    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    made = mix(0.8).certify(x, n=1000)
    assert (made.radius > 0).sum() > 5
    assert "abstained" in repr(made)
    with mp.workprec(200):
        lost = mpf(0.25) * mp.sqrt(2) * mp.erfinv(2 / (2 * mpf(0.8)) - 1)
        for own, certified in zip(made.radius.tolist(), made.smooth.radius.tolist(), strict=True):
            assert own == 0 or own < mpf(certified) - lost
