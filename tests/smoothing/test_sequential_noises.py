"""Early stopping and tests of a radius for every noise whose radius is a function of p."""

import math
from fractions import Fraction

import pytest
import torch
from scipy import stats

from robustcore import smoothing as rs
from robustcore.smoothing import ABSTAIN, Smooth
from robustcore.smoothing.theory.inversion import least_probability
from smoothing.models import Pixels
from testing import assert_same

SHAPE = (2, 3, 4)
NOISES = [
    rs.Gaussian(0.5, "l1"), rs.Gaussian(0.5), rs.Gaussian(0.5, "linf"),
    rs.Uniform(0.8), rs.Uniform(0.8, "l2"), rs.Uniform(0.8, "linf"),
    rs.Laplace(0.4), rs.Laplace(0.4, "l2"), rs.Laplace(0.4, "linf"),
    rs.Splitting(0.9), rs.Splitting(0.9, norm="linf"),
    rs.PixelAblation(3), rs.PixelAblation(3, fill=0.5),
]  # fmt: skip


def radius_at(noise, p):
    return float(noise.radius(torch.tensor(p, dtype=torch.float64), SHAPE))


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_least_probability_is_the_inverse_rounded_up(noise):
    for p in (0.5001, 0.6, 0.75, 0.9, 0.99, 1 - 1e-6, 1 - 1e-9):
        radius = radius_at(noise, p)
        got = least_probability(noise, radius, SHAPE)
        assert radius_at(noise, min(got, 1.0)) >= radius
        assert got <= p * (1 + 3e-14)
        if not isinstance(noise, rs.PixelAblation):
            assert got >= p * (1 - 1e-13)
    assert least_probability(noise, 0.0, SHAPE) == pytest.approx(0.5, abs=1e-13)


def test_least_probability_against_closed_forms():
    for radius in (0.01, 0.3, 0.7):
        for noise, want in [
            (rs.Gaussian(0.5), stats.norm.cdf(radius / 0.5)),
            (rs.Gaussian(0.5, "linf"), stats.norm.cdf(radius * math.sqrt(24) / 0.5)),
            (rs.Laplace(0.4), 1 - math.exp(-radius / 0.4) / 2),
            (rs.Uniform(0.8), 0.5 + radius / 1.6),
            (rs.Splitting(0.9), 0.5 + radius / 1.8),
        ]:
            assert least_probability(noise, radius, SHAPE) == pytest.approx(want, rel=1e-13)
            assert least_probability(noise, radius, SHAPE) >= want
    # 1.5 - p < C(d - r, k) / C(d, k), d = 12 pixels: exact.
    for pixels in (1, 2):
        share = Fraction(math.comb(12 - pixels, 3), math.comb(12, 3))
        got = least_probability(rs.PixelAblation(3), pixels, SHAPE)
        assert 0 < Fraction(got) - (Fraction(3, 2) - share) < 1e-13
    for noise in (rs.Uniform(0.8), rs.Splitting(0.9)):
        assert least_probability(noise, 0.95, SHAPE) == math.inf


@pytest.fixture
def images():
    return torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_samples_are_those_of_a_run_of_fixed_size(images, noise):
    smooth = Smooth(Pixels(2), 2, noise=noise, seed=7)
    result = smooth.certify(images, 20, 2000, early_stop=True)
    fixed = smooth.certify(images, 20, 2000)
    certified = result.prediction != ABSTAIN
    assert certified.any()
    assert_same(result.radius, noise.radius(result.p_lower.clamp(min=0.5), SHAPE))
    assert (result.noise, result.shape) == (noise, SHAPE)
    assert int(result.samples.sum()) < 16 * 2000
    for b, samples in enumerate(result.samples.tolist()):
        if samples == 2000:
            assert_same(result.counts[b], fixed.counts[b])
    # A tenth of the radius, or of that at Phi(1), is what it may have cost.
    most = fixed.radius.clamp(min=radius_at(noise, float(stats.norm.cdf(1)))) / 10
    assert (fixed.radius - result.radius <= most + 1e-3 * radius_at(noise, 0.99)).all()
    exact = smooth.certify(images, 20, 2000, early_stop=True, radius_tolerance=0)
    assert (exact.radius >= result.radius).all()


def first_pixel(noise, p):
    """A model and an image whose votes for class 1 have probability p under additive noise."""
    law = {
        rs.Gaussian: lambda: stats.norm(scale=noise.sigma),
        rs.Laplace: lambda: stats.laplace(scale=noise.scale),
        rs.Uniform: lambda: stats.uniform(-noise.scale, 2 * noise.scale),
    }[type(noise)]()
    threshold = 0.5 - float(law.ppf(p))

    def model(x):
        margin = x.flatten(1)[:, 0].double() - threshold
        return torch.stack([-margin, margin], 1)

    return model, torch.full((1, *SHAPE), 0.5, dtype=torch.float64)


@pytest.mark.parametrize("noise", NOISES[:9:2], ids=repr)
@pytest.mark.parametrize("p", [0.55, 0.9])
def test_simulated_certificates_err_at_most_alpha(noise, p):
    model, image = first_pixel(noise, p)
    result = Smooth(model, 2, noise=noise, seed=3).certify(
        image.expand(1000, -1, -1, -1), n0=20, n=500, alpha=0.1, batch_size=4000, early_stop=True
    )
    true = torch.where(result.prediction == 1, p, 1 - p).double().clamp(min=0.5)
    wrong = (result.prediction != ABSTAIN) & (result.radius > noise.radius(true, SHAPE))
    # Independent images; the limit is passed with probability below 1e-6 at the allowed rate.
    assert int(wrong.sum()) <= stats.binom.isf(1e-6, 1000, 0.1)
    assert int(result.samples.min()) < 500


@pytest.mark.parametrize("noise", NOISES[:9:2], ids=repr)
@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.1])
def test_simulated_tests_err_at_most_alpha(noise, margin):
    radius = radius_at(noise, 0.8)
    model, image = first_pixel(noise, 0.8 + margin)
    result = Smooth(model, 2, noise=noise, seed=5).certify_at(
        image.expand(600, -1, -1, -1), radius, 0.1, 1000, batch_size=8000
    )
    limit = stats.binom.isf(1e-6, 600, 0.1)
    chosen = result.counts0.argmax(1) == 1
    if margin <= 0:
        assert int((result.certified & chosen).sum()) <= limit
    if margin >= 0:
        assert int((result.refuted & chosen).sum()) <= limit
    if margin:
        right = result.certified if margin > 0 else ~result.certified
        assert right[chosen].double().mean() > 0.89


@pytest.mark.parametrize("pixels", [1, 2])
def test_ablation_is_tested_by_pixels(pixels):
    def first_is_kept(x):
        kept = x.flatten(1)[:, 0] != 0.5
        return torch.stack([~kept, kept], 1).double()

    smooth = Smooth(first_is_kept, 2, noise=rs.PixelAblation(1, fill=0.5), seed=1)
    x = torch.zeros(300, 1, 4, 5)  # class 0, kept pixel 0 in 1 of 20
    result = smooth.certify_at(x, pixels, 0.05, 2000)
    # 1.5 - .95 < (20 - r) / 20 for r < 9.
    assert result.certified.all()
    assert result.samples.double().mean() < 200
    assert (result.noise, result.radius) == (rs.PixelAblation(1, fill=0.5), pixels)
    assert smooth.certify_at(x, 9, 0.05, 2000).certified.double().mean() < 0.1
    with pytest.raises(ValueError, match=r"^radius: got 11.* want at most about 9"):
        smooth.certify_at(x, 11, 0.05, 2000)


@pytest.mark.parametrize(
    "noise", [rs.Splitting(0.5, derandomized=True), rs.BandAblation(2), rs.Dual(rs.Gaussian(0.5))]
)
def test_noise_without_one_probability_is_refused(images, noise):
    smooth = Smooth(Pixels(2), 2, noise=noise)
    for call in (
        lambda: smooth.certify(images, early_stop=True),
        lambda: smooth.certify_at(images, 0.1),
    ):
        with pytest.raises(ValueError, match=r"^noise: got .*is for random noise whose radius is"):
            call()
