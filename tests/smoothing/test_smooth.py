"""Smooth: what it computes, on which samples, and what it leaves alone."""

import warnings

import pytest
import torch
from scipy import stats
from torch import nn

from robustcore import ops
from robustcore.common.table import read_certificates
from robustcore.smoothing import (
    ABSTAIN,
    Certificates,
    Predictions,
    Smooth,
    clopper_pearson_lower,
    gaussian_radius,
)
from smoothing.models import Constant, HalfSpace, Pixels
from testing import assert_same


@pytest.fixture
def images():
    return torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise_calls(monkeypatch):
    """The (image, sample) pairs and the output's address of every call of the noise op."""
    calls, original = [], ops.gaussian_noise

    def spy(x, num_samples, sigma, *, image_offset, sample_offset, out, **kwargs):
        result = original(
            x,
            num_samples,
            sigma,
            image_offset=image_offset,
            sample_offset=sample_offset,
            out=out,
            **kwargs,
        )
        pairs = {
            (image_offset + b, sample_offset + s) for b in range(len(x)) for s in range(num_samples)
        }
        calls.append((pairs, out.untyped_storage().data_ptr()))
        return result

    monkeypatch.setattr(ops, "gaussian_noise", spy)
    return calls


def reference_counts(x, seed, sigma, first, n, classes, mean=None, std=None, image_offset=0):
    """Votes of Pixels, all samples of all images at once."""
    noisy = ops.gaussian_noise(
        x, n, sigma, seed=seed, image_offset=image_offset, sample_offset=first, mean=mean, std=std
    )
    votes = noisy.flatten(2)[:, :, :classes].argmax(2)
    return torch.stack([torch.bincount(row, minlength=classes) for row in votes])


def test_counts_bounds_and_radii_are_those_of_the_procedure(images):
    smooth = Smooth(Pixels(3), 3, 0.25, seed=7, mean=[0.1, 0.2], std=[0.5, 2.0])
    result = smooth.certify(images, n0=20, n=300, alpha=0.01, batch_size=64, image_offset=9)
    normalise = {"mean": [0.1, 0.2], "std": [0.5, 2.0], "image_offset": 9}
    assert_same(result.counts0, reference_counts(images, 7, 0.25, 0, 20, 3, **normalise))
    assert_same(result.counts, reference_counts(images, 7, 0.25, 20, 300, 3, **normalise))
    for b in range(len(images)):
        choice = int(result.counts0[b].argmax())
        p = clopper_pearson_lower(int(result.counts[b, choice]), 300, 0.01)
        assert float(result.p_lower[b]) == p
        assert int(result.prediction[b]) == (choice if p >= 0.5 else ABSTAIN)
        assert float(result.radius[b]) == (gaussian_radius(p, 0.25) if p >= 0.5 else 0.0)
    assert ABSTAIN in result.prediction.tolist()
    assert result.prediction.max() >= 0
    assert (result.n0, result.n, result.alpha, result.sigma) == (20, 300, 0.01, 0.25)
    assert (result.seed, result.image_offset, smooth.last_seed) == (7, 9, 7)


def test_a_single_image_gives_the_published_pair(images):
    smooth = Smooth(Pixels(3), 3, 0.25, seed=7)
    batch = smooth.certify(images[:1], n=500)
    pair = smooth.certify(images[0], n=500)
    assert isinstance(batch, Certificates)
    assert pair == (int(batch.prediction[0]), float(batch.radius[0]))
    assert [type(value) for value in pair] == [int, float]
    assert Smooth.ABSTAIN == ABSTAIN == -1
    batch = smooth.predict(images[:1], n=500)
    assert isinstance(batch, Predictions)
    label = smooth.predict(images[0], n=500)
    assert type(label) is int
    assert label == int(batch.prediction[0])


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64, 1000])
def test_results_depend_neither_on_the_batch_size_nor_on_the_company(images, batch_size):
    smooth = Smooth(Pixels(4), 4, 0.5, seed=3)
    whole = smooth.certify(images, n0=10, n=50, batch_size=333)
    again = smooth.certify(images, n0=10, n=50, batch_size=batch_size)
    alone = [
        smooth.certify(images[i : i + 1], n0=10, n=50, batch_size=batch_size, image_offset=i)
        for i in range(len(images))
    ]
    for field in ("counts0", "counts", "prediction", "p_lower", "radius"):
        assert_same(getattr(again, field), getattr(whole, field))
        assert_same(torch.cat([getattr(one, field) for one in alone]), getattr(whole, field))


@pytest.mark.parametrize("batch_size", [7, 50, 333])
def test_every_other_image_of_the_stream(images, batch_size, tmp_path):
    smooth = Smooth(Pixels(4), 4, 0.5, seed=3)
    whole = smooth.certify(images, n0=10, n=50, image_offset=9)
    some = smooth.certify(
        images[::2], n0=10, n=50, batch_size=batch_size, image_offset=9, image_stride=2
    )
    for field in ("counts0", "counts", "prediction", "p_lower", "radius"):
        assert_same(getattr(some, field), getattr(whole, field)[::2])
    assert (some.image_offset, some.image_stride) == (9, 2)
    some.to_tsv(tmp_path / "out.tsv")
    assert [row.idx for row in read_certificates(tmp_path / "out.tsv")] == [9, 11, 13]
    stopped, tested = (
        run(images[::2], image_stride=2)
        for run in (
            lambda x, **options: smooth.certify(x, n=3000, early_stop=True, **options),
            lambda x, **options: smooth.certify_at(x, 0.1, max_n=3000, **options),
        )
    )
    assert_same(stopped.counts, smooth.certify(images, n=3000, early_stop=True).counts[::2])
    assert_same(tested.counts, smooth.certify_at(images, 0.1, max_n=3000).counts[::2])
    assert stopped.image_stride == tested.image_stride == 2
    predicted = smooth.predict(images[::2], n=50, image_stride=2).counts
    assert_same(predicted, smooth.predict(images, n=50).counts[::2])


def test_selection_and_estimation_share_no_sample(images, noise_calls):
    Smooth(Pixels(2), 2, 0.25, seed=1).certify(images, n0=7, n=30, batch_size=16)
    seen = [pair for pairs, _ in noise_calls for pair in pairs]
    assert len(seen) == len(set(seen))
    assert set(seen) == {(b, s) for b in range(5) for s in range(37)}


def test_one_buffer_and_full_batches(images, noise_calls):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x.flatten(1)[:, :2]

    Smooth(model, 2, 0.25, seed=1).certify(images, n0=7, n=30, batch_size=16)
    assert sizes == [16, 16, 3] + [16] * 9 + [6]
    assert len({address for _, address in noise_calls}) == 1


def test_seeds(images):
    def counts(seed):
        smooth = Smooth(Pixels(3), 3, 0.5, seed=seed)
        result = smooth.certify(images, n0=10, n=200)
        assert result.seed == smooth.last_seed
        return result.seed, result.counts

    assert torch.equal(counts(5)[1], counts(5)[1])
    assert not torch.equal(counts(5)[1], counts(6)[1])
    first, second = counts(None), counts(None)
    assert first[0] != second[0]
    assert not torch.equal(first[1], second[1])
    # What was recorded repeats the run.
    assert torch.equal(counts(first[0])[1], first[1])
    assert counts(2**64 - 1)[0] == 2**64 - 1


def test_an_unseeded_smooth_draws_anew_at_every_call(images):
    smooth = Smooth(Pixels(3), 3, 0.5)
    assert smooth.last_seed is None
    first = smooth.certify(images, n=100)
    assert smooth.certify(images, n=100).seed != first.seed


def test_linear_classifier_within_its_closed_form():
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(200, 1, 4, 4, generator=generator)
    weight = torch.randn(16, generator=generator)
    sigma, n, alpha = 0.25, 2000, 0.01
    model = HalfSpace(weight, -float(weight.sum()) / 2)
    margin = model.margin(images)
    exact = margin.abs() / weight.double().norm()
    result = Smooth(model, 2, sigma, seed=11).certify(images, n0=100, n=n, alpha=alpha)
    right = (margin > 0).long()
    certified = result.prediction != ABSTAIN
    wrong = certified & ((result.prediction != right) | (result.radius > exact))
    # Each fails with probability alpha at most; as many failures have a chance below 1e-4.
    assert stats.binom.sf(int(wrong.sum()) - 1, len(images), alpha) > 1e-4
    # And they are as large as n samples allow: that of a count 4.5 deviations below its mean.
    p = torch.from_numpy(stats.norm.cdf(exact / sigma))
    low = (n * p - 4.5 * (n * p * (1 - p)).sqrt()).floor().clamp(min=0)
    least = gaussian_radius(clopper_pearson_lower(low, n, alpha).clamp(min=0.5), sigma)
    assert bool((result.radius >= least)[result.prediction == right].all())
    assert int((least > 0).sum()) > 100
    predicted = Smooth(model, 2, sigma, seed=12).predict(images, n=n, alpha=alpha).prediction
    wrong = (predicted != right) & (predicted != ABSTAIN)
    assert stats.binom.sf(int(wrong.sum()) - 1, len(images), alpha) > 1e-4
    assert bool((predicted == right)[exact > sigma].all())


def test_unanimous_votes(images):
    result = Smooth(Constant([0.0, 2.0, 1.0]), 3, 0.5).certify(images, n=10, n0=1)
    assert result.prediction.tolist() == [1] * 5
    assert result.radius.tolist() == [gaussian_radius(0.001**0.1, 0.5)] * 5
    result = Smooth(Constant([1.0, 1.0, 0.0]), 3, 0.5).predict(images, n=11)
    assert result.prediction.tolist() == [0] * 5  # ties to the lowest index
    assert result.p_value.tolist() == [2 / 2**11] * 5


def test_abstains_where_classes_are_even():
    # Two equal pixels: the classes are equally likely.
    smooth = Smooth(Pixels(2), 2, 0.25, seed=0)
    even = torch.full((1, 1, 1, 2), 0.5)
    assert smooth.certify(even[0], n=1000) == (ABSTAIN, 0.0)
    assert smooth.predict(even[0], n=1000) == ABSTAIN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_the_model_receives(images, dtype, memory_format):
    seen = []

    def model(x):
        seen.append((x.dtype, x.is_contiguous(memory_format=memory_format), x.shape))
        # float32 weights: they work with half precision because of autocast.
        weight = torch.eye(3, 24, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        return nn.functional.linear(x.flatten(1), weight)

    smooth = Smooth(model, 3, 0.5, seed=0, dtype=dtype, memory_format=memory_format)
    result = smooth.certify(images, n=40, n0=5, batch_size=64)
    assert set(seen) <= {(dtype, True, (size, 2, 3, 4)) for size in (64, 25, 8)}
    exact = reference_counts(images, 0, 0.5, 5, 40, 3)
    # Rounding to 8 bits may turn a vote where two pixels are nearly equal.
    assert (result.counts - exact).abs().max() <= (2 if dtype.itemsize == 2 else 0)


def test_leaves_the_world_as_it_was(images):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(24), nn.Linear(24, 3)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept, random_state = images.clone(), torch.get_rng_state()
    states = []
    model.register_forward_hook(
        lambda *_: states.append((torch.is_inference_mode_enabled(), model.training))
    )
    images.requires_grad_(True)
    smooth = Smooth(model, 3, 0.25)
    results = smooth.certify(images, n=100), smooth.predict(images, n=100)
    assert set(states) == {(True, False)}
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(images, kept)
    assert images.grad is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert not any(result.counts.is_inference() for result in results)


def test_a_model_in_training_mode_is_warned_of_once_and_left_so(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).eval()
    model[1].train()  # one part of it is enough
    with pytest.warns(UserWarning, match="training mode") as caught:
        Smooth(model, 3, 0.25).certify(images, n=100, batch_size=10)
    assert [warning.filename for warning in caught] == [__file__]
    assert not model.training
    assert model[1].training


def test_images_outside_the_unit_range_are_warned_of(images):
    with pytest.warns(UserWarning, match=r"from -?\d.* to 255, outside \[0, 1\]") as caught:
        Smooth(Pixels(2), 2, 0.25).predict(images / images.max() * 255, n=100)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=r"to 1, outside \[0, 1\]"):
        Smooth(Pixels(2), 2, 0.25).predict(2 * images.round() - 1, n=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Smooth(Pixels(2), 2, 0.25).predict(images.round(), n=100)


def test_any_layout_of_images_and_no_images(images):
    smooth = Smooth(Pixels(3), 3, 0.5, seed=1)
    expected = smooth.certify(images, n=100).counts
    wide = torch.zeros(5, 2, 3, 8)
    wide[..., ::2] = images
    channels_last = images.contiguous(memory_format=torch.channels_last)
    for other in (wide[..., ::2], channels_last, images.double()):
        assert_same(smooth.certify(other, n=100).counts, expected)
    empty = smooth.certify(images[:0], n=100)
    assert len(empty) == 0
    assert empty.counts.shape == (0, 3)
    assert len(smooth.predict(images[:0], n=100)) == 0


def test_progress_counts_every_sample(images, capsys):
    Smooth(Pixels(2), 2, 0.25).certify(images, n=100, n0=10, progress=True)
    assert "550/550" in capsys.readouterr().err
    Smooth(Pixels(2), 2, 0.25).certify(images, n=100, n0=10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("early_stop", [False, True])
def test_progress_tells_a_function(images, early_stop, capsys):
    told = []
    Smooth(Pixels(2), 2, 0.25, seed=1).certify(
        images, n=3000, n0=10, progress=lambda *a: told.append(a), early_stop=early_stop
    )
    done, total = zip(*told, strict=True)
    assert list(done) == sorted(set(done))
    assert total[0] == 5 * 3010
    # Stopped images need no more of theirs.
    assert (done[-1] == total[-1] < total[0]) if early_stop else (done[-1] == total[-1] == total[0])
    assert capsys.readouterr().err == ""
