"""Logits that are no numbers: counted, warned of once, an error where most are."""

import warnings

import pytest
import torch

from robustcore import smoothing as rs
from robustcore.smoothing import ABSTAIN, Smooth
from testing import assert_same


class Failing(torch.nn.Module):
    """Class 1 for every sample, but NaN where the first pixel is in a lower quantile."""

    def __init__(self, below):
        super().__init__()
        self.below = below
        self.eval()

    def forward(self, x):
        nan = x.flatten(1)[:, :1] < self.below
        return torch.tensor([0.0, 1.0]).expand(len(x), 2).masked_fill(nan, float("nan"))


X = torch.full((3, 1, 2, 2), 0.6)


def expected(n0, n):
    noisy = rs.Gaussian(1.0).sample(X, n0 + n, seed=3).flatten(2)[..., 0]
    return (noisy[:, n0:] < 0).sum(1)


def test_they_are_counted_and_spoken_of_once():
    smooth = Smooth(Failing(0.0), 2, 1.0, seed=3)
    with pytest.warns(UserWarning, match="gave NaN for .* of 600 samples.*bfloat16") as record:
        result = smooth.certify(X, n0=20, n=200)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert_same(result.invalid, expected(20, 200))
    assert_same(result.drawn, torch.full((3,), 200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictions = smooth.predict(X, n=200)
        assert_same(predictions.invalid, expected(0, 200))
        stopped = smooth.certify(X, n0=20, n=2000, early_stop=True)
        assert_same(stopped.invalid, stopped.samples - stopped.counts.sum(1))
        assert Smooth(Failing(-99.0), 2, 1.0).certify(X, n0=20, n=200).invalid.sum() == 0


@pytest.mark.parametrize(
    "noise",
    [
        rs.Gaussian(1.0),
        rs.Dual(rs.Gaussian(1.0)),
        rs.BandAblation(1),
        rs.Splitting(0.5, derandomized=True),
    ],
    ids=repr,
)
def test_where_most_are_it_is_an_error(noise):
    smooth = Smooth(lambda x: x.new_full((len(x), 2), float("nan")), 2, noise=noise, seed=1)
    calls = [lambda: smooth.certify(X, n=100)]
    if noise.sequential:
        calls += [lambda: smooth.predict(X, n=100), lambda: smooth.certify_at(X, 0.1, max_n=100)]
    for call in calls:
        with pytest.raises(ValueError, match=r"^base_classifier: gave NaN for (\d+) of \1 samples"):
            call()


@pytest.mark.parametrize(
    "noise", [rs.BandAblation(1, fill=0.5), rs.BandAblation(1, threshold=None, fill=0.5)], ids=repr
)
def test_bands_that_may_vote_several_times(noise):
    # The second image is NaN in the one band of two that keeps its first column.
    def model(x):
        nan = x.flatten(1)[:, :1] > 0.8
        return torch.tensor([2.0, 1.0]).expand(len(x), 2).masked_fill(nan, float("nan"))

    x = torch.zeros(4, 1, 1, 2)
    x[1, ..., 0] = 1.0
    with pytest.warns(UserWarning, match="gave NaN for 1 of 8 samples"):
        Smooth(model, 2, noise=noise).certify(x)


def test_an_image_without_a_vote_abstains_under_deterministic_noise():
    x = torch.zeros(3, 1, 2, 2)
    x[1] = 1.0

    def model(batch):
        nan = batch.flatten(1).mean(1, keepdim=True) > 0.6
        return torch.tensor([0.0, 1.0]).expand(len(batch), 2).masked_fill(nan, float("nan"))

    noise = rs.Splitting(0.1, derandomized=True)
    with pytest.warns(UserWarning, match="gave NaN"):
        result = Smooth(model, 2, noise=noise).certify(x)
    assert result.prediction.tolist() == [1, ABSTAIN, 1]
    assert result.radius[1] == 0
    assert result.invalid.tolist() == [0, result.n, 0]
    assert result.certified_accuracy([1, 0, 1], 0.0) == pytest.approx(2 / 3)


def test_predict_abstains_where_most_samples_of_an_image_have_no_vote():
    x = torch.ones(3, 1, 2, 2)
    x[0] = 0.0  # 90 % of its samples are below 0.32, and 0.3 % of the others'
    with pytest.warns(UserWarning, match="gave NaN"):
        result = Smooth(Failing(0.32), 2, 0.25, seed=3).predict(x, n=400)
    assert 340 < result.invalid[0] < 385
    assert result.p_value[0] < 0.001  # the test alone would answer
    assert result.prediction.tolist() == [ABSTAIN, 1, 1]


def test_float16_that_overflows_is_found():
    class Overflowing(torch.nn.Module):
        def forward(self, x):
            large = x.flatten(1)[:, :2].abs() + 60000
            return (large + large) - (large + large)  # inf - inf

    model = Overflowing().eval()
    with pytest.raises(ValueError, match="float16 overflows"):
        Smooth(model, 2, 1.0, dtype=torch.float16, seed=1).certify(X, n=100)
