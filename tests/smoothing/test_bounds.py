"""Bounds and radii: golden values, an independent definition, simulated coverage, bad input."""

import math

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy import special, stats

from robustcore.smoothing import clopper_pearson_lower, gaussian_radius
from robustcore.smoothing.theory import bounds

# n = 100 000, alpha = 0.001: votes, bound, quantile. 50490 is the fewest that certify.
GOLDEN = [
    (50490, 0.5000089487744035, 2.2431250944974313e-05),
    (90000, 0.8970364962238291, 1.2648446903374322),
    (99000, 0.9889893403774748, 2.289999955213766),
    (100000, 0.9999309248330094, 3.8114565633899145),
]


@pytest.mark.parametrize(("k", "p", "quantile"), GOLDEN)
def test_golden_values(k, p, quantile):
    bound = clopper_pearson_lower(k, 100_000, 0.001)
    assert isinstance(bound, float)
    assert bound == pytest.approx(p, rel=1e-14)
    assert gaussian_radius(bound, 1.0) == pytest.approx(quantile, rel=1e-9 if k == 50490 else 1e-13)
    assert gaussian_radius(bound, 0.25) == 0.25 * gaussian_radius(bound, 1.0)


def test_smallest_count_that_certifies():
    assert clopper_pearson_lower(50489, 100_000, 0.001) < 0.5
    assert clopper_pearson_lower(50490, 100_000, 0.001) > 0.5


@pytest.mark.parametrize("n", [1, 2, 10, 77])
@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05, 0.5, 0.9])
def test_bound_inverts_the_binomial_tail(n, alpha):
    k = np.arange(n + 1)
    bound = clopper_pearson_lower(k, n, alpha)
    # By definition the chance of k or more successes, were p the bound, is alpha.
    np.testing.assert_allclose(stats.binom.sf(k[1:] - 1, n, bound[1:]), alpha, rtol=1e-10)
    assert bound[0] == 0.0
    assert bound[n] == pytest.approx(alpha ** (1 / n), rel=1e-15)
    assert np.all(np.diff(bound) > 0)


@pytest.mark.parametrize("alpha", [1e-100, 1e-70, 1e-50, 1e-20])
def test_bound_at_the_smallest_levels(alpha):
    rng = np.random.default_rng(0)
    n = np.unique(rng.integers(1, 10 ** rng.integers(1, 7, 3000)))
    k = np.maximum(1, np.round(n * rng.random(len(n)) ** rng.choice([0.2, 1, 5], len(n))))
    bound = clopper_pearson_lower(k, n, alpha)
    assert np.isfinite(bound).all()
    # The tail as an incomplete beta function, which is another routine than its inverse.
    tail = special.betainc(k, n - k + 1, bound)
    np.testing.assert_allclose(tail, alpha, rtol=1e-5)
    assert (tail <= alpha * (1 + 1e-9)).all()


@pytest.mark.parametrize("alpha", [1e-101, 1e-170, 1e-300])
def test_levels_below_the_range_are_refused(alpha):
    with pytest.raises(ValueError, match=r"^alpha: got 1e-\d+, want numbers in \[1e-100, 1\)"):
        clopper_pearson_lower(torch.arange(5), 1000, alpha)


def test_messages_show_the_first_wrong_number_and_no_tensor():
    many = torch.arange(1000)
    for call, message in [
        (lambda: clopper_pearson_lower(many, 998, 0.1), "k: got 999 for n = 998, want integers in"),
        (lambda: clopper_pearson_lower(many - 1, many + 1, 0.1), "k: got -1 for n = 1, want"),
        (lambda: clopper_pearson_lower(0, many, 0.1), "n: got 0, want at least 1"),
        (lambda: clopper_pearson_lower(many + 0.5, 2000, 0.1), "k: got 0.5, want integers"),
        (lambda: gaussian_radius(many.double(), 1.0), r"p_lower: got 2, want numbers in \[0, 1\]"),
        (lambda: gaussian_radius(0.9, 5.0 - many), "sigma: got 0, want a finite number above 0"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}") as error:
            call()
        assert len(str(error.value)) < 80


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_coverage_by_simulation(p, alpha):
    runs, n = 200_000, 500
    k = np.random.default_rng(1).binomial(n, p, runs)
    wrong = int((clopper_pearson_lower(k, n, alpha) > p).sum())
    # As many failures or more would have a chance below 1e-4 if the bound failed with alpha.
    assert stats.binom.sf(wrong - 1, runs, alpha) > 1e-4


def test_answers_in_kind():
    expected = [clopper_pearson_lower(k, 10, 0.05) for k in (0, 5, 10)]
    array = clopper_pearson_lower(np.array([0, 5, 10]), 10, 0.05)
    assert isinstance(array, np.ndarray)
    assert array.tolist() == expected
    assert clopper_pearson_lower([0, 5, 10], 10, 0.05).tolist() == expected
    tensor = clopper_pearson_lower(torch.tensor([[0], [5], [10]]), torch.tensor([10, 20]), 0.05)
    assert tensor.dtype == torch.float64
    assert tensor.shape == (3, 2)
    assert tensor[:, 0].tolist() == expected
    assert clopper_pearson_lower(np.array([5.0]), 10, [0.05]).tolist() == [expected[1]]
    radius = gaussian_radius(torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.5, 1.0]))
    assert radius.dtype == torch.float64
    assert radius.tolist() == [gaussian_radius(0.9, 0.5), gaussian_radius(0.9, 1.0)]
    assert isinstance(gaussian_radius([0.9], 1.0), np.ndarray)


def test_radius_follows_the_formula_everywhere():
    assert gaussian_radius(0.5, 2.0) == 0.0
    assert gaussian_radius(1.0, 0.25) == math.inf
    assert gaussian_radius(0.3, 0.25) == pytest.approx(-gaussian_radius(0.7, 0.25), rel=1e-13)


@pytest.mark.parametrize("q", [1e-3, 1e-6, 1e-9, 1e-12])
def test_radius_near_one(q):
    # 1 - q is rounded; the radius must be that of the number stored, from its own upper tail.
    p = 1.0 - q
    assert gaussian_radius(p, 1.0) == pytest.approx(stats.norm.isf(1.0 - p), rel=1e-14)


def test_p_values_are_those_of_the_binomial_test():
    first, second = np.meshgrid(np.arange(31), np.arange(31))
    first, second = first[first >= second], second[first >= second]
    expected = [
        stats.binomtest(int(a), int(a + b)).pvalue if a + b else 1.0
        for a, b in zip(first, second, strict=True)
    ]
    got = bounds.two_sided_p_value(first.astype(float), second.astype(float))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("alpha", [1e-12, 2.0**-10, 0.001, 0.05, 0.25, 0.5, 0.7])
def test_smallest_n(alpha):
    n = bounds.smallest_certifiable_n(alpha)
    assert clopper_pearson_lower(n, n, alpha) >= 0.5
    assert n == 1 or clopper_pearson_lower(n - 1, n - 1, alpha) < 0.5
    n = bounds.smallest_predictable_n(alpha)
    assert stats.binomtest(n, n).pvalue <= alpha
    assert n == 1 or stats.binomtest(n - 1, n - 1).pvalue > alpha


def test_smallest_n_at_the_default_level():
    assert bounds.smallest_certifiable_n(0.001) == 10
    assert bounds.smallest_predictable_n(0.001) == 11


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((-1, 10, 0.05), ValueError, "k"),
        ((11, 10, 0.05), ValueError, "k"),
        ((0.5, 10, 0.05), ValueError, "k"),
        ((math.nan, 10, 0.05), ValueError, "k"),
        ((torch.tensor([1.5]), 10, 0.05), ValueError, "k"),
        (("5", 10, 0.05), TypeError, "k"),
        ((True, 10, 0.05), TypeError, "k"),
        ((0, 0, 0.05), ValueError, "n"),
        ((5, 10.5, 0.05), ValueError, "n"),
        ((5, 10, 0.0), ValueError, "alpha"),
        ((5, 10, 1.0), ValueError, "alpha"),
        ((5, 10, math.nan), ValueError, "alpha"),
        ((5, 10, None), TypeError, "alpha"),
    ],
)
def test_bad_counts(arguments, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        clopper_pearson_lower(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((-0.1, 1.0), ValueError, "p_lower"),
        ((1.1, 1.0), ValueError, "p_lower"),
        ((math.nan, 1.0), ValueError, "p_lower"),
        ((torch.tensor([0.9]), 1.0), TypeError, "p_lower"),
        ((np.float32([0.9]), 1.0), TypeError, "p_lower"),
        ((0.9, 0.0), ValueError, "sigma"),
        ((0.9, math.inf), ValueError, "sigma"),
        ((0.9, "1"), TypeError, "sigma"),
    ],
)
def test_bad_radius_arguments(arguments, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        gaussian_radius(*arguments)


def tail(k, n, p):
    """P(Bin(n, p) >= k) to 40 digits, by the sum of its terms."""
    with mp.workdps(45):
        p = mp.mpf(p)
        if k == n:
            return p**n
        log_choices = mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1)
        term = mp.exp(log_choices + k * mp.log(p) + (n - k) * mp.log1p(-p))
        total = mp.mpf(0)
        while k <= n and term > total * mp.mpf(10) ** -40:
            total += term
            term *= p / (1 - p) * (n - k) / (k + 1)
            k += 1
        return total


@pytest.mark.parametrize(
    ("k", "n", "alpha"),
    [  # betaincinv alone exceeds the first by 3e-6 of alpha, the next ones by 4e-10 and 1e-10
        (561_736, 562_735, 3.0082573233144437e-10), (23_091, 121_927, 1.1315604566575459e-11),
        (11_520, 61_364, 4.1612777504716595e-12), (50_490, 100_000, 0.001),
        (99_000, 100_000, 0.001), (7, 10, 0.05), (10, 10, 0.001), (100_000, 100_000, 0.001),
    ],
)  # fmt: skip
def test_bounds_are_rounded_down(k, n, alpha):
    bound = clopper_pearson_lower(k, n, alpha)
    assert tail(k, n, bound) <= alpha * (1 + 2e-16)
    assert tail(k, n, bound * (1 + 1e-10)) > alpha
