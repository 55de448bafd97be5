"""SmoothSegmentation: the published procedure step by step, SciPy and statsmodels, coverage."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from robustcore import ops
from robustcore.smoothing import ABSTAIN, SmoothSegmentation
from robustcore.smoothing.theory.many_tests import fewest_votes, smallest_n
from testing import assert_same


class Pointwise(nn.Module):
    """Logits that are pixels: class 0 or 1 by the first channel, class 2 never."""

    def __init__(self):
        super().__init__()
        self.eval()

    def forward(self, x):
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5, x[:, 0] - 9], 1)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def published(x, n0, n, sigma, tau, alpha, correction, seed):
    """SegCertify: all maps, the mode of a pixel, a binomial test each, statsmodels' correction."""
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    noisy = ops.gaussian_noise(x[None], n0 + n, sigma, seed=seed)[0]
    maps = Pointwise()(noisy).argmax(1).flatten(1).numpy()
    classes, p_values = [], []
    for pixel in maps.T:
        chosen = np.bincount(pixel[:n0], minlength=3).argmax()
        votes = int((pixel[n0:] == chosen).sum())
        classes.append(chosen)
        p_values.append(stats.binomtest(votes, n, tau, alternative="greater").pvalue)
    rejected = multitest.multipletests(p_values, alpha=alpha, method=correction)[0]
    return np.where(rejected, classes, ABSTAIN).reshape(x.shape[1:])


@pytest.mark.parametrize("correction", ["holm", "bonferroni"])
@pytest.mark.parametrize(("tau", "alpha"), [(0.75, 0.001), (0.5, 0.1), (0.9, 0.05)])
def test_is_the_published_procedure(tau, alpha, correction):
    x = images(1, 9, 11)
    smooth = SmoothSegmentation(Pointwise(), 3, 0.25, seed=5)
    result = smooth.certify(x, 7, 150, tau, alpha, correction, batch_size=40)
    expected = published(x, 7, 150, 0.25, tau, alpha, correction, 5)
    assert result.prediction.tolist() == expected.tolist()
    assert 0 < int((result.prediction == ABSTAIN).sum()) < 99
    assert result.radius == 0.25 * stats.norm.ppf(tau)
    assert int(result.counts.max()) <= 150


def test_batches_images_and_offsets_change_nothing():
    x = images(3, 1, 5, 6)
    smooth = SmoothSegmentation(Pointwise(), 3, 0.25, seed=5)
    whole = smooth.certify(x, n=80, batch_size=17)
    assert whole.prediction.shape == whole.counts.shape == (3, 5, 6)
    for i in range(3):
        one = smooth.certify(x[i], n=80, image_offset=i)
        assert_same(one.prediction, whole.prediction[i])
        assert_same(one.counts, whole.counts[i])
    assert_same(smooth.certify(x.numpy(), n=80).counts, whole.counts)


def test_what_a_model_may_return():
    x = images(1, 4, 5)
    wanted = SmoothSegmentation(Pointwise(), 3, 0.25, seed=1).certify(x).counts
    model = Pointwise()
    for wrapped, output in [
        (lambda b: {"out": model(b), "aux": b}, None),
        (lambda b: {"logits": model(b)}, None),
        (lambda b: (b, model(b)), lambda made: made[1]),
    ]:
        smooth = SmoothSegmentation(wrapped, 3, 0.25, seed=1, output=output)
        assert_same(smooth.certify(x).counts, wanted)
    points = SmoothSegmentation(
        lambda b: torch.stack([-b[:, 0], b[:, 0]], 1), 2, 0.1, seed=1, input_dims=2
    )
    assert points.certify(torch.rand(4, 3, 30)).prediction.shape == (4, 30)


def test_a_pixel_of_nan_abstains():
    def model(x):
        logits = Pointwise()(x)
        logits[:, 2, 0, 0] = float("nan")
        return logits

    result = SmoothSegmentation(model, 3, 0.05, seed=0).certify(torch.zeros(1, 2, 2))
    assert result.prediction.tolist() == [[ABSTAIN, 0], [0, 0]]
    assert result.counts[0, 0] == 0


@pytest.mark.parametrize("correction", ["holm", "bonferroni"])
def test_threshold_is_statsmodels(correction):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    random = np.random.default_rng(0)
    for _ in range(60):  # statsmodels takes a twentieth of a second each
        n, tests = int(random.integers(1, 60)), int(random.integers(1, 40))
        tau, alpha = random.uniform(0.5, 0.95), 10 ** random.uniform(-4, -0.3)
        p = random.choice([0.3, tau, 0.99], size=tests)
        votes = random.binomial(n, p)
        p_values = stats.binom.sf(votes - 1, n, tau)
        expected = multitest.multipletests(p_values, alpha=alpha, method=correction)[0]
        least = fewest_votes(np.bincount(votes, minlength=n + 1), tau, alpha, correction)
        assert (votes >= least).tolist() == expected.tolist()


def test_smallest_n():
    for tests, tau, alpha in [(1, 0.5, 0.001), (32768, 0.75, 0.001), (7, 0.99, 0.4), (1, 0.5, 0.5)]:
        n = smallest_n(tests, tau, alpha)
        assert tau**n <= alpha / tests
        assert n == 1 or tau ** (n - 1) > alpha / tests


@pytest.mark.parametrize("correction", ["holm", "bonferroni"])
def test_coverage(correction):
    """Tests at the edge of the null, dependent and not, err together less than alpha says."""
    random, n, tests, tau, alpha = np.random.default_rng(1), 80, 12, 0.75, 0.2
    runs, wrong = 4000, {"independent": 0, "equal": 0, "mixed": 0}
    for _ in range(runs):
        own, one = random.binomial(n, tau, tests), random.binomial(n, tau)
        sure = random.binomial(n, 0.999, tests)
        for kind, votes, null in [
            ("independent", own, np.ones(tests, bool)),
            ("equal", np.full(tests, one), np.ones(tests, bool)),
            ("mixed", np.where(np.arange(tests) < 6, own, sure), np.arange(tests) < 6),
        ]:
            least = fewest_votes(np.bincount(votes, minlength=n + 1), tau, alpha, correction)
            wrong[kind] += bool((votes[null] >= least).any())
    for kind, errors in wrong.items():
        assert stats.binomtest(errors, runs, alpha, alternative="greater").pvalue > 1e-6, kind
    assert wrong["independent"] > 0.3 * alpha * runs  # and not by far


def test_the_radius_holds():
    """No perturbation of that length, here the worst one, changes a certified pixel."""
    x = images(1, 8, 8)
    smooth = SmoothSegmentation(Pointwise(), 3, 0.25, seed=2)
    result = smooth.certify(x, n=400, tau=0.8)
    # The exact smoothed classifier: class 1 where the pixel is above 1/2.
    exact = (x[0] > 0.5).long()
    certified = result.prediction != ABSTAIN
    assert certified.sum() > 20
    assert torch.equal(result.prediction[certified], exact[certified])
    assert float((x[0] - 0.5).abs()[certified].min()) >= result.radius


def test_errors():
    smooth = SmoothSegmentation(Pointwise(), 3, 0.25)
    x = images(1, 4, 4)
    with pytest.raises(ValueError, match=r"n: got 20, too few .* at alpha=0.001 .* at least 25"):
        smooth.certify(x, n=20)
    with pytest.raises(ValueError, match="n: got 30, too few to certify one of 16 pixels"):
        smooth.certify(x, n=30)
    with pytest.raises(ValueError, match=r"tau: got 0.4, want a number in \[1/2, 1\)"):
        smooth.certify(x, tau=0.4)
    with pytest.raises(ValueError, match="correction: got 'kfwer', want one of holm, bonferroni"):
        smooth.certify(x, correction="kfwer")
    with pytest.raises(ValueError, match=r"model: gave shape \[10, 3, 4, 4\], want logits"):
        SmoothSegmentation(Pointwise(), 4, 0.25).certify(x)
    with pytest.raises(TypeError, match="model: gave list"):
        SmoothSegmentation(lambda b: [b], 3, 0.25).certify(x)
    with pytest.raises(ValueError, match=r"x: got shape .* want at least one image"):
        smooth.certify(x[None][:0])
    with pytest.warns(UserWarning, match="model is in training mode"):
        SmoothSegmentation(Pointwise().train(), 3, 0.25).certify(x)


def test_on_a_grid():
    """The lattice's samples, tested at tau and the variation; whole batches, whatever n is."""
    x, batches = (images(2, 1, 5, 6) * 255).round() / 255, set()

    def model(batch):
        batches.add(len(batch))
        return Pointwise()(batch)

    smooth = SmoothSegmentation(model, 3, 0.25, grid=255, seed=5)
    result = smooth.certify(x, 40, 90, 0.8, 0.01, batch_size=40)
    assert batches == {40}
    assert 0 < result.total_variation < 1e-6
    assert result.radius <= 0.25 * stats.norm.ppf(0.8)
    noisy = ops.lattice_noise(x, 130, 0.25, grid=255, seed=5)
    votes = Pointwise()(noisy.flatten(0, 1)).argmax(1).view(2, 130, 5, 6)
    chosen = votes[:, :40].mode(1).values
    assert_same(result.counts, (votes[:, 40:] == chosen[:, None]).sum(1).int())
    with pytest.raises(ValueError, match=r"x: got 0\.\d+ at"):
        smooth.certify(images(1, 4, 4))
    with pytest.raises(ValueError, match=r"alpha: got 0\.5"):
        smooth.certify(x, alpha=0.5)
