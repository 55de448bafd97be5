"""SmoothRegression: a linear function, order statistics by simulation, NaN, infinite bounds."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from robustcore import ops
from robustcore.smoothing import SmoothRegression
from robustcore.smoothing.theory.many_tests import quantile_ranks
from testing import assert_same


class Linear(nn.Module):
    """``x @ weight``, in float64."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight.double()
        self.eval()

    def forward(self, x):
        return x.flatten(1).double() @ self.weight


def weights(outputs):
    return torch.randn(12, outputs, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("q", [0.5, 0.2])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_a_linear_function_is_tight(q, eps):
    """The q-quantile of w (x + sigma z) moves by eps |w|, and the interval is hardly longer."""
    x, weight, sigma = torch.rand(3, 2, 2), weights(4), 0.25
    smooth = SmoothRegression(Linear(weight), sigma, seed=1)
    result = smooth.certify(x, eps, n=40_000, alpha=0.01, q=q, batch_size=5000)
    norm = weight.norm(dim=0)
    exact = x.flatten().double() @ weight + sigma * norm * stats.norm.ppf(q)
    assert (result.lower <= exact - eps * norm).all()
    assert (result.upper >= exact + eps * norm).all()
    slack = 0.1 * sigma * norm if eps < 0.2 else 0.5 * sigma * norm  # rare quantiles are less sure
    assert (result.lower >= exact - eps * norm - slack).all()
    assert (result.upper <= exact + eps * norm + slack).all()
    assert ((result.value - exact).abs() < 0.05 * norm).all()


def test_intervals_are_order_statistics():
    x, weight = torch.rand(2, 3, 2, 2), weights(2)
    smooth = SmoothRegression(Linear(weight), 0.25, seed=1)
    result = smooth.certify(x, 0.05, n=500, alpha=0.1, batch_size=64, image_offset=3)
    noisy = ops.gaussian_noise(x, 500, 0.25, seed=1, image_offset=3)
    outputs = (noisy.flatten(2).double() @ weight).sort(1).values
    low, high = stats.norm.cdf([-0.2, 0.2])
    first, last = quantile_ranks(500, low, high, 0.1 / 4)
    torch.testing.assert_close(result.lower, outputs[:, first - 1])
    torch.testing.assert_close(result.upper, outputs[:, last - 1])
    one = smooth.certify(x[1], 0.05, n=500, alpha=0.1, image_offset=4)
    assert one.lower.shape == (2,)
    torch.testing.assert_close(one.lower, result.lower[1])


@pytest.mark.parametrize("atoms", [False, True])
def test_coverage(atoms):
    """The ranks err less than alpha says, and hardly less, for what is continuous or is not."""
    random, n, alpha, runs = np.random.default_rng(0), 200, 0.05, 20_000
    low, high = 0.3, 0.8
    first, last = quantile_ranks(n, low, high, alpha)
    draws = random.random((runs, n))
    if atoms:
        draws = np.floor(draws * 4) / 4  # the quantiles are 0.25 and 0.75
        low, high = 0.25, 0.75
    draws.sort(1)
    errors = [(draws[:, first - 1] > low).sum(), (draws[:, last - 1] < high).sum()]
    for wrong in errors:
        assert stats.binomtest(int(wrong), runs, alpha, alternative="greater").pvalue > 1e-6
        assert atoms or wrong > 0.3 * alpha * runs


def test_ranks_are_the_best_ones():
    for n in (5, 60, 1000):
        for low, high, alpha in [(0.1, 0.9, 0.01), (0.5, 0.5, 0.001), (0.02, 0.6, 0.2)]:
            first, last = quantile_ranks(n, low, high, alpha)
            assert first == 0 or stats.binom.cdf(first - 1, n, low) <= alpha
            assert stats.binom.cdf(first, n, low) > alpha
            assert last == n + 1 or stats.binom.sf(last - 1, n, high) <= alpha
            assert stats.binom.sf(last - 2, n, high) > alpha


def test_no_order_statistic_no_bound():
    result = SmoothRegression(Linear(weights(2)), 0.25, seed=1).certify(
        torch.rand(3, 2, 2), 1.0, 50
    )
    assert (result.lower == -math.inf).all()
    assert (result.upper == math.inf).all()
    assert result.value.isfinite().all()


def test_alpha_is_shared_over_outputs():
    x = torch.rand(3, 2, 2)
    narrow = SmoothRegression(Linear(weights(1)), 0.25, seed=1).certify(x, 0.1, 800, 0.1)
    wide = SmoothRegression(Linear(weights(1).repeat(1, 50)), 0.25, seed=1).certify(
        x, 0.1, 800, 0.1
    )
    assert wide.lower[0] < narrow.lower[0]
    assert wide.upper[0] > narrow.upper[0]


@pytest.mark.parametrize("share", [0.01, 0.7, 1.0])
def test_nan_counts_against_both_ends(share):
    """As if it were -infinity for the lower end, and infinity for the upper one."""
    n, x = 1000, torch.rand(3, 2, 2)

    def model(replace):
        def run(batch):
            made = Linear(weights(2))(batch)
            return torch.where(batch[:, :1, 0, 0] * 7919 % 1 < share, replace, made)

        return SmoothRegression(run, 0.25, seed=1).certify(x, 0.05, n)

    holes = model(math.nan)
    assert_same(holes.lower, model(-math.inf).lower)
    assert_same(holes.upper, model(math.inf).upper)
    assert bool(holes.lower.isinf().all()) == (share > 0.5)


def test_boxes_and_other_outputs():
    x = torch.rand(2, 3, 4, 4)
    smooth = SmoothRegression(
        lambda b: {"boxes": b[:, 0, :2].half()}, 0.25, seed=1, output=lambda made: made["boxes"]
    )
    result = smooth.certify(x, 0.01, n=200)
    assert result.lower.shape == (2, 2, 4)
    assert result.lower.dtype == torch.float16
    vectors = SmoothRegression(lambda b: b.sum(1), 0.25, seed=1, input_dims=1)
    assert vectors.certify(torch.rand(5, 7), 0.1, n=200).upper.shape == (5,)


def test_errors():
    smooth, x = SmoothRegression(Linear(weights(1)), 0.25), torch.rand(3, 2, 2)
    for bad, message in [
        (dict(eps=-1.0), "eps: got -1.0"),
        (dict(eps=0.1, q=1.0), "q: got 1.0"),
        (dict(eps=0.1, n=0), "n: got 0"),
        (dict(eps=0.1, alpha=1), "alpha: got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            smooth.certify(x, **bad)
    with pytest.raises(TypeError, match=r"model: gave torch\.int64, want a floating tensor"):
        SmoothRegression(lambda b: b.long(), 0.25).certify(x, 0.1)
    with pytest.raises(ValueError, match=r"model: gave shape \[3\], want \[100, ...\]"):
        SmoothRegression(lambda b: b[:3, 0, 0, 0], 0.25).certify(x, 0.1)


def test_on_a_grid_levels_are_wider():
    x, weight = (torch.rand(3, 2, 2) * 255).round() / 255, weights(2)
    result = SmoothRegression(Linear(weight), 0.25, grid=255, seed=1).certify(
        x, 0.05, 500, 0.1, batch_size=64
    )
    assert 0 < result.total_variation < 1e-6
    outputs = ops.lattice_noise(x[None], 500, 0.25, grid=255, seed=1)[0].flatten(1).double()
    outputs = (outputs @ weight).sort(0).values
    low, high = stats.norm.cdf([-0.2, 0.2])
    tv = result.total_variation
    first, last = quantile_ranks(500, low - tv, high + tv, 0.1 / 4)
    torch.testing.assert_close(result.lower, outputs[first - 1])
    torch.testing.assert_close(result.upper, outputs[last - 1])


@pytest.mark.parametrize("q", [1e-3, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0, 6.0])
def test_levels_are_rounded_outwards(q, ratio):
    from mpmath import mp, mpf

    low, high = SmoothRegression(torch.nn.Flatten(), 0.5)._levels(q, 0.5 * ratio, 0.0)
    with mp.workprec(200):
        z = mp.sqrt(2) * mp.erfinv(2 * mpf(q) - 1)
        assert low < mp.ncdf(z - mpf(ratio))
        assert mp.ncdf(z + mpf(ratio)) < high or high == 1
    assert low == pytest.approx(stats.norm.cdf(stats.norm.ppf(q) - ratio), rel=1e-9)
    assert high == pytest.approx(stats.norm.cdf(stats.norm.ppf(q) + ratio), rel=1e-9)
