"""Noise on a grid: certificates that hold in floating point, by brute force."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from robustcore.ops.smoothing.lattice import lattice_table
from robustcore.smoothing import (
    ABSTAIN,
    Gaussian,
    Laplace,
    Smooth,
    Uniform,
    clopper_pearson_lower,
)
from robustcore.smoothing.theory.spending import Looks, crossing_counts, plan_looks, separate_counts

BLACK = torch.zeros(1, 1, 2, 2)
KINDS = {"gaussian": Gaussian, "uniform": Uniform, "laplace": Laplace}


def images(*shape, q=255, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, q + 1, shape, generator=generator) / q


# ---- the counterexample --------------------------------------------------------------------------


class LowBits(nn.Module):
    """Class 1 where all values near 0 are multiples of 2^-32: what 1/255 + noise leaves of them."""

    def forward(self, x):
        x = x.flatten(1)
        fine = (x * 2.0**32 != (x * 2.0**32).round()) & (x.abs() < 2.0**-10)
        one = (~fine.any(1)).float()
        return torch.stack([1 - one, one], 1)


@pytest.mark.parametrize(("sigma", "reach"), [(0.25, 0.675), (1.0, 2.70)])
@pytest.mark.parametrize("grid", [None, 255, (255, 3)])
def test_a_classifier_of_low_bits_defeats_real_numbers_and_not_a_grid(sigma, reach, grid):
    black = torch.zeros(3, 96, 96)
    other = torch.full_like(black, 1 / 255)
    distance = math.sqrt(black.numel()) / 255  # .652
    smooth = Smooth(LowBits().eval(), 2, sigma, grid=grid, seed=1)
    label, radius = smooth.certify(black, n0=20, n=2000, batch_size=200)
    there = smooth.predict(other, n=200, batch_size=200)
    if grid is None:
        assert label != ABSTAIN
        assert radius == pytest.approx(reach, abs=0.005)
        assert radius > distance
        assert there not in (ABSTAIN, label)
    else:
        assert label != ABSTAIN
        assert radius > distance
        assert there == label


# ---- brute force on lattices small enough to enumerate -------------------------------------------


def law(kind, level, grid):
    """P(N = n) for n = -K, ..., K: the noise that is drawn, out of its table."""
    table = lattice_table(kind, level, grid).thresholds.numpy().view(np.uint32).astype(object)
    up_to = [((int(a) << 64) | (int(b) << 32) | int(c)) / 2**95 for a, b, c in table] + [1.0]
    size = np.diff([0.0, *up_to])  # of |N|
    return np.concatenate([size[:0:-1] / 2, size[:1], size[1:] / 2])


ROUNDING = 1e-9  # more than that of the sums here, which would make a radius infinite


def worst_and_random_events(steps):
    """Sets of integers, as arrays of steps: half lines, intervals and random ones."""
    n = np.arange(-steps, steps + 1)
    yield from (n <= t for t in range(0, steps, max(1, steps // 12)))
    yield np.abs(n) <= steps // 3
    yield n % 2 == 0
    yield from np.random.default_rng(0).random((5, len(n))) < 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [15, (15, 4)])
def test_certificates_of_one_pixel_hold_at_every_step(kind, grid):
    level, (q, m) = 0.3, (grid if isinstance(grid, tuple) else (grid, 1))
    noise = KINDS[kind](level, grid=grid)
    p = law(kind, level, grid)
    steps = 3 * len(p) // 2
    loose = []
    for event in worst_and_random_events(steps):
        # P(x + N in the event) at every step of the lattice: all there is to know.
        at = np.convolve(event.astype(float), p[::-1], mode="valid")
        places = np.arange(0, len(at), m)  # the images are every m-th step
        for i in places[len(places) // 3 : 2 * len(places) // 3]:
            if at[i] <= 0.5 + ROUNDING:
                continue
            radius = float(noise.radius(torch.tensor(at[i] - ROUNDING).double(), (1,)))
            near = np.abs(places - i) / (q * m) <= radius
            assert at[places[near]].min() >= 0.5 - ROUNDING
            further = np.abs(places - i) / (q * m) <= radius + 2 / q
            loose.append(at[places[further]].min() > 0.5)
    # Half lines are the worst events: their radii end within two steps.
    assert not all(loose)
    assert len(loose) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_of_two_pixels_hold_at_every_step(kind):
    level, q = 0.4, 3
    noise = KINDS[kind](level, grid=q)
    p = law(kind, level, q)
    span = 3 * len(p)
    rows = np.stack(
        [np.r_[np.zeros(i), p, np.zeros(span - len(p) - i)] for i in range(span - len(p) + 1)]
    )
    rng = np.random.default_rng(1)
    row, column = np.mgrid[:span, :span]
    events = [row + 2 * column < t for t in (span, 3 * span // 2, 2 * span)]
    events += [rng.random((span, span)) < 0.8 for _ in range(3)]
    for event in events:
        at = rows @ event @ rows.T
        where = np.argwhere(at > 0.5 + ROUNDING)
        radii = noise.radius(torch.from_numpy(at[at > 0.5 + ROUNDING] - ROUNDING), (2,)).numpy()
        order = {"l1": 1, "l2": 2}[noise.norm]
        for (i, j), radius in list(zip(where, radii, strict=True))[:: max(1, len(where) // 30)]:
            gaps = np.stack(np.mgrid[: at.shape[0], : at.shape[1]], -1) - (i, j)
            near = np.linalg.norm(gaps / q, ord=order, axis=2) <= radius
            assert at[near].min() >= 0.5 - ROUNDING


# ---- votes of different probabilities ------------------------------------------------------------


def law_of_sum(probabilities):
    """P(S = k) of independent draws, one a probability."""
    mass = np.ones(1)
    for p in probabilities:
        mass = np.convolve(mass, [1 - p, p])
    return mass


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.24])
@pytest.mark.parametrize("n", [20, 300])
def test_bounds_hold_for_the_mean_of_unequal_votes(n, alpha):
    bound = clopper_pearson_lower(np.arange(n + 1), n, alpha)
    rng = np.random.default_rng(0)
    profiles = [rng.beta(a, b, n) for a, b in ((1, 1), (0.1, 0.1), (5, 1), (0.3, 0.05))]
    profiles += [np.where(np.arange(n) < n // 2, 1.0, 0.3), np.full(n, 0.9), np.full(n, 0.5)]
    rates = [law_of_sum(p)[bound > p.mean()].sum() for p in profiles]
    assert max(rates) <= alpha + 1e-12
    assert max(rates) > alpha / 5


def crossing_rate(probabilities, looks, counts):
    """P(the successes reach the count of some look), exactly."""
    alive, size, crossed = np.ones(1), 0, 0.0
    for next_size, count in zip(looks.sizes, counts, strict=True):
        for p in probabilities[size:next_size]:
            alive = np.convolve(alive, [1 - p, p])
        crossed += alive[count:].sum()
        alive, size = alive[:count], next_size
    return crossed


def test_looks_of_their_own_level_hold_where_exact_spending_does_not():
    n, alpha = 640, 0.001
    looks = plan_looks(n, alpha, 64, whole=64)
    mean = 0.9
    # The first batch always right, the others less: the mean of all is what is tested.
    unequal = np.full(n, (mean * n - 64) / (n - 64))
    unequal[:64] = 1.0
    assert unequal.mean() == pytest.approx(mean)
    assert crossing_rate(unequal, looks, crossing_counts(mean, looks)) > 10 * alpha
    # The same mixture at every look, as whole batches give it.
    rng = np.random.default_rng(0)
    for places in (rng.beta(0.5, 0.1, 64), np.r_[np.ones(32), np.full(32, 0.8)], np.full(64, 0.9)):
        counts = separate_counts(float(places.mean()), looks)
        assert crossing_rate(np.tile(places, n // 64), looks, counts) <= alpha


@pytest.mark.parametrize("p0", [0.5, 0.75, 0.999])
def test_separate_counts_are_the_smallest(p0):
    looks = plan_looks(5000, 0.01, 16, whole=100)
    assert all(size % 100 == 0 for size in looks.sizes)
    for size, level, count in zip(
        looks.sizes, looks.levels(), separate_counts(p0, looks), strict=True
    ):
        if count <= size:
            assert clopper_pearson_lower(count, size, level) > p0 - 1e-12
        assert clopper_pearson_lower(min(count, size + 1) - 1, size, level) < p0 + 1e-6
    assert separate_counts(0.999999, Looks((10,), (0.01,))) == (11,)


@pytest.mark.parametrize(("most", "whole", "sizes"), [
    (10_000, 1000, (1000, 2000, 4000, 6000, 10_000)), (1500, 1000, (1000, 1500)),
    (700, 1000, (700,)),
])  # fmt: skip
def test_looks_fall_on_whole_batches(most, whole, sizes):
    assert plan_looks(most, 0.001, 64, whole).sizes == sizes
