"""Sequential sampling: error rates computed exactly and simulated, stopping times, savings."""

import math

import numpy as np
import pytest
import torch
from scipy import signal, stats
from torch import nn

from robustcore.smoothing import ABSTAIN, Certificates, Gaussian, Smooth, clopper_pearson_lower
from robustcore.smoothing.sequential import RadiusTest, plan_certify
from robustcore.smoothing.theory.spending import crossing_counts, plan_looks
from smoothing.models import HalfSpace, Pixels
from testing import assert_same


def crossing_probability(p, sizes, counts):
    """P(the number of successes reaches the count of some look), over all paths."""
    alive, size, crossed = np.ones(1), 0, 0.0
    for next_size, count in zip(sizes, counts, strict=True):
        step = stats.binom.pmf(np.arange(next_size - size + 1), next_size - size, p)
        # Directly where it is quick: the transform's error is absolute, near 1e-15.
        direct = len(alive) * len(step) < 10**7
        alive = np.convolve(alive, step) if direct else signal.fftconvolve(alive, step).clip(0)
        crossed += alive[count:].sum()
        alive, size = alive[:count], next_size
    assert abs(crossed + alive.sum() - 1) < 1e-9
    return crossed


def enumerated_crossing_probability(p, sizes, counts):
    """The same from all 2**n outcomes."""
    n = sizes[-1]
    outcomes = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    reached = [outcomes[:, :size].sum(1) >= c for size, c in zip(sizes, counts, strict=True)]
    ones = outcomes.sum(1)
    return float((p**ones * (1 - p) ** (n - ones))[np.any(reached, 0)].sum())


def test_the_oracle_is_right():
    for p in (0.2, 0.5, 0.9):
        arguments = p, (3, 7, 12), (3, 6, 9)
        expected = enumerated_crossing_probability(*arguments)
        assert crossing_probability(*arguments) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05, 0.5])
@pytest.mark.parametrize("n", [1, 15, 16, 23, 24, 96, 1000, 100_000, 10**8])
def test_looks_grow_to_n_and_spend_alpha(n, alpha):
    looks = plan_looks(n, alpha, 16)
    assert looks.sizes[-1] == n
    assert all(a < b for a, b in zip(looks.sizes, looks.sizes[1:], strict=False))
    assert len(looks.sizes) == 1 or 16 <= looks.sizes[0] < 24
    assert looks.spent[-1] == alpha
    assert 0.999999 * alpha < math.fsum(looks.levels()) <= alpha
    assert len(looks.sizes) == 1 or looks.levels()[-1] == pytest.approx(alpha / 2)


@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.05])
@pytest.mark.parametrize("n", [10, 100, 3000, 100_000])
@pytest.mark.parametrize("p0", [0.5, 0.6915, 0.8413, 0.99, 0.99999])
def test_a_test_errs_with_at_most_alpha_exactly(p0, n, alpha):
    looks = plan_looks(n, alpha, 16)
    counts = crossing_counts(p0, looks)
    rate = crossing_probability(p0, looks.sizes, counts)
    assert rate <= alpha + (1e-12 if n > 3000 else 0)
    # The worst case is p0 itself.
    for p in (0.3, 0.9 * p0, 0.999 * p0):
        assert crossing_probability(p, looks.sizes, counts) <= rate + 1e-12
    # Not by never certifying: what integer counts leave unspent is little.
    if n * (1 - p0) * p0 > 200 and alpha > 1e-6:
        assert rate > 0.8 * alpha


@pytest.mark.parametrize("p0", [0.5, 0.75, 0.95])
def test_one_success_less_at_any_look_would_err_more_than_allowed(p0):
    looks = plan_looks(1000, 0.01, 16)
    counts = list(crossing_counts(p0, looks))
    assert any(c <= size for c, size in zip(counts, looks.sizes, strict=True))
    for j, size in enumerate(looks.sizes):
        lowered = [*counts[:j], min(counts[j], size + 1) - 1]
        assert crossing_probability(p0, looks.sizes[: j + 1], lowered) > looks.spent[j]


@pytest.mark.parametrize(("n", "alpha"), [(200, 0.05), (3000, 0.001), (100_000, 0.001)])
def test_bounds_of_all_looks_hold_together_exactly(n, alpha):
    looks = plan_certify(n, alpha)
    bounds = [
        clopper_pearson_lower(np.arange(size + 1), size, level)
        for size, level in zip(looks.sizes, looks.levels(), strict=True)
    ]
    rates = []
    for p in (0.5, 0.6, 0.8, 0.9, 0.99, 0.999):
        # The first count whose bound is above p: a wrong certificate.
        counts = [int(np.searchsorted(bound, p, side="right")) for bound in bounds]
        rates.append(crossing_probability(p, looks.sizes, counts))
    assert max(rates) <= alpha
    assert max(rates) > alpha / 3


def half_space(p, dimension=4):
    """A model and an image whose votes for class 1 have probability p at sigma = 1."""
    weight = torch.zeros(dimension)
    weight[0] = 1.0
    return HalfSpace(weight, float(stats.norm.ppf(p)) - 0.5), torch.full((1, 2, 2), 0.5)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.55, 0.7, 0.9, 0.99])
def test_simulated_certificates_err_at_most_alpha(p):
    model, image = half_space(p)
    x = image.expand(2000, -1, -1, -1)
    result = Smooth(model, 2, 1.0, seed=3).certify(
        x, n0=20, n=1000, alpha=0.1, batch_size=4000, early_stop=True
    )
    true = torch.where(result.prediction == 1, p, 1 - p)
    wrong = (result.prediction != ABSTAIN) & (result.p_lower > true)
    # 2000 independent images; the limit is passed with probability below 1e-6 at the allowed rate.
    assert int(wrong.sum()) <= stats.binom.isf(1e-6, 2000, 0.1)
    assert int(result.samples.min()) < 1000
    assert (result.counts.sum(1) == result.samples).all()


@pytest.mark.parametrize(
    ("p", "samples"),  # mean share of n that the default takes at most
    [(0.5, 0.25), (0.7, 0.7), (0.9, 0.7), (0.99, 0.7), (0.999, 0.7), (1 - 1e-12, 0.7)],
)
def test_what_the_default_tolerance_saves_and_costs(p, samples):
    model, image = half_space(p)
    x = image.expand(50, -1, -1, -1)
    fixed = Smooth(model, 2, 1.0, seed=3).certify(x, n=20_000, batch_size=20_000)
    stopped = Smooth(model, 2, 1.0, seed=3).certify(x, n=20_000, batch_size=20_000, early_stop=True)
    assert stopped.samples.double().mean() <= samples * 20_000
    assert (fixed.radius - stopped.radius <= 0.1 * fixed.radius.clamp(min=1)).all()


@pytest.mark.parametrize(("margin", "most"), [(-0.1, 0.2), (0.0, 1.0), (0.02, 1.0), (0.1, 0.25)])
@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0])
def test_simulated_tests_err_at_most_alpha_and_save(radius, margin, most):
    p0 = float(stats.norm.cdf(radius))
    model, image = half_space(p0 + margin)
    result = Smooth(model, 2, 1.0, seed=5).certify_at(
        image.expand(1000, -1, -1, -1), radius, 0.1, 3000, batch_size=8000
    )
    limit = stats.binom.isf(1e-6, 1000, 0.1)
    chosen = result.counts0.argmax(1) == 1
    if margin <= 0:
        assert int((result.certified & chosen).sum()) <= limit
    if margin >= 0:
        assert int((result.refuted & chosen).sum()) <= limit
    if abs(margin) >= 0.1:
        right = result.certified if margin > 0 else ~result.certified
        assert right[chosen].double().mean() > 0.89
    assert not (result.certified & result.refuted).any()
    decided = result.certified | result.refuted
    assert (result.samples[~decided] == 3000).all()
    assert result.samples.double().mean() <= most * 3000
    assert (result.counts.sum(1) == result.samples).all()


@pytest.fixture
def images():
    return torch.rand(24, 2, 3, 4, generator=torch.Generator().manual_seed(0))


def test_samples_are_those_of_a_run_of_fixed_size(images):
    smooth = Smooth(Pixels(3), 3, 0.25, seed=7)
    result = smooth.certify(images, 20, 3000, batch_size=256, image_offset=9, early_stop=True)
    assert isinstance(result, Certificates)
    assert len(set(result.samples.tolist())) > 3
    for b, samples in enumerate(result.samples.tolist()):
        fixed = smooth.certify(images[b : b + 1], 20, samples, 0.9, image_offset=9 + b)
        assert_same(result.counts0[b], fixed.counts0[0])
        assert_same(result.counts[b], fixed.counts[0])


@pytest.mark.parametrize("batch_size", [1, 97, 5000])
def test_neither_batches_nor_company_matter(images, batch_size):
    smooth = Smooth(Pixels(3), 3, 0.25, seed=7)

    def estimate(x, offset, batch_size):
        return smooth.certify(
            x, 20, 500, batch_size=batch_size, image_offset=offset, early_stop=True
        )

    def test(x, offset, batch_size):
        return smooth.certify_at(x, 0.1, 0.01, 500, batch_size=batch_size, image_offset=offset)

    for run, fields in (
        (estimate, ("prediction", "radius", "p_lower", "counts", "counts0", "samples")),
        (test, ("prediction", "refuted", "counts", "counts0", "samples")),
    ):
        whole = run(images, 0, 64)
        again = run(images, 0, batch_size)
        alone = [run(images[i : i + 1], i, batch_size) for i in range(0, 24, 5)]
        for field in fields:
            assert_same(getattr(again, field), getattr(whole, field))
            assert_same(
                torch.cat([getattr(one, field) for one in alone]), getattr(whole, field)[::5]
            )


def test_a_stopped_radius_is_near_that_of_all_samples(images):
    smooth = Smooth(Pixels(2), 2, 0.25, seed=7)
    fixed = smooth.certify(images, n=20_000)
    exact = smooth.certify(images, n=20_000, early_stop=True, radius_tolerance=0)
    loose = smooth.certify(images, n=20_000, early_stop=True, radius_tolerance=0.05)
    certified = fixed.prediction != ABSTAIN
    assert certified.any()
    assert (exact.samples[certified & (exact.radius > 0)] == 20_000).all()
    assert (exact.radius[certified] > fixed.radius[certified] - 0.02).all()
    assert (loose.radius[certified] > fixed.radius[certified] - 0.05).all()
    assert loose.samples.sum() < 0.7 * fixed.counts.sum()
    assert loose.radius_tolerance == 0.05
    assert smooth.certify(images[:1], n=100, early_stop=True).radius_tolerance is None


def test_an_image_that_abstains_is_stopped_soon():
    model, image = half_space(0.5)
    far, near = half_space(0.45)[0], model
    for model, most in ((far, 2500), (near, 100_000)):
        smooth = Smooth(Selected(model), 2, 1.0, seed=1)
        result = smooth.certify(image[None], 10, 100_000, early_stop=True)
        assert result.prediction.tolist() == [ABSTAIN]
        assert int(result.samples) <= most


class Selected(nn.Module):
    """The model, with class 1 as the class that the first ten samples choose."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0
        self.eval()

    def forward(self, x):
        self.calls += 1
        logits = self.model(x)
        return logits.new_tensor([0.0, 1.0]).expand_as(logits) if self.calls == 1 else logits


def test_single_images(images):
    smooth = Smooth(Pixels(3), 3, 0.25, seed=7)
    batch = smooth.certify(images[:1], n=500, early_stop=True)
    pair = smooth.certify(images[0], n=500, early_stop=True)
    assert pair == (int(batch.prediction), float(batch.radius))
    batch = smooth.certify_at(images[:1], 0.1, max_n=500)
    pair = smooth.certify_at(images[0], 0.1, max_n=500)
    assert pair == (int(batch.prediction), int(batch.samples))
    assert [type(value) for value in pair] == [int, int]
    assert (batch.n, batch.alpha, batch.radius, batch.seed) == (500, 0.001, 0.1, 7)
    assert len(smooth.certify_at(images[:0], 0.1)) == 0
    assert len(smooth.certify(images[:0], early_stop=True)) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"radius": -0.1}, ValueError, "radius: got -0.1"),
        ({"radius": float("nan")}, ValueError, "radius: got nan"),
        ({"radius": "1"}, TypeError, "radius: got '1'"),
        ({"radius": 1.0, "max_n": 100}, ValueError, "even if all agree; want at most about 0.37"),
        ({"radius": 99.0}, ValueError, "even if all agree; want at most about 0.95"),
        ({"radius": 0.1, "max_n": 0}, ValueError, "max_n: got 0"),
        ({"radius": 0.1, "max_n": 10**8 + 1}, ValueError, "max_n: got 100000001"),
        ({"radius": 0.1, "alpha": 0}, ValueError, "alpha: got 0"),
        ({"radius": 0.1, "n0": 0}, ValueError, "n0: got 0"),
    ],
)
def test_bad_tests_are_refused(images, arguments, error, message):
    with pytest.raises(error, match=message):
        Smooth(Pixels(3), 3, 0.25).certify_at(images, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"early_stop": True, "radius_tolerance": -1}, ValueError, "radius_tolerance: got -1"),
        ({"early_stop": True, "radius_tolerance": "a"}, TypeError, "radius_tolerance: got 'a'"),
        ({"radius_tolerance": 0.1}, ValueError, "without early_stop"),
        ({"early_stop": True, "n": 9}, ValueError, "at least 10"),
        ({"early_stop": True, "n": 99, "alpha": 2e-30}, ValueError, "too few to stop early"),
    ],
)
def test_bad_early_stops_are_refused(images, arguments, error, message):
    with pytest.raises(error, match=message):
        Smooth(Pixels(3), 3, 0.25).certify(images, **arguments)


def test_the_tested_probability_is_not_below_that_of_the_radius():
    for radius, sigma in [(0.0, 1.0), (0.25, 0.25), (0.3, 0.12), (1.7, 0.5)]:
        p = RadiusTest.plan(Gaussian(sigma), (3, 4, 4), radius, 0.001, 10**6, 100).p_radius
        assert stats.norm.cdf(radius / sigma) < p <= stats.norm.cdf(radius / sigma) + 1e-13
