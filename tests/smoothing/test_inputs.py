"""Inputs that are no images, what the base classifier receives of them, and what it returns."""

import warnings
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from robustcore import ops
from robustcore import smoothing as rs
from robustcore.smoothing import Gaussian, Smooth
from robustcore.smoothing.inputs import warn_if_training
from smoothing.models import Pixels
from testing import assert_same

CALL = dict(n0=20, n=200)
SHAPES = {1: (6,), 2: (2, 5), 3: (3, 4, 2), 4: (2, 3, 2, 2), 5: (1, 2, 2, 3, 2)}


def inputs(dims, batch=4):
    return torch.rand(batch, *SHAPES[dims], generator=torch.Generator().manual_seed(dims))


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_trailing_dimensions_are_one_input(dims, batch_size):
    x = inputs(dims)
    smooth = Smooth(Pixels(3), 3, 0.5, seed=1, input_dims=dims)
    got = smooth.certify(x, **CALL, batch_size=batch_size)
    noisy = ops.gaussian_noise(x, 220, 0.5, seed=1)
    assert noisy.shape == (4, 220, *SHAPES[dims])
    votes = noisy.flatten(2)[..., :3]
    assert_same(got.counts0, ops.count_votes(votes[:, :20]))
    assert_same(got.counts, ops.count_votes(votes[:, 20:]))
    assert got.shape == SHAPES[dims]
    # One by one, each at its place in the noise stream.
    for i in range(4):
        one = smooth.certify(x[i], **CALL, image_offset=i)
        assert one == (int(got.prediction[i]), float(got.radius[i]))
    assert smooth.predict(x, n=200).prediction.shape == (4,)


def test_a_batch_of_signals_is_not_read_as_one_image():
    x = torch.rand(6, 1, 32)
    assert len(Smooth(Pixels(3), 3, 0.5, input_dims=2).certify(x, **CALL)) == 6
    with pytest.raises(ValueError, match=r"^x: got shape \[6, 1, 8, 8\], want \[C, T\] or"):
        Smooth(Pixels(3), 3, 0.5, input_dims=2).certify(torch.rand(6, 1, 8, 8), **CALL)
    with pytest.raises(
        ValueError, match=r"^x: got shape \[6, 9\], want \[C, H, W\] or .*input_dims"
    ):
        Smooth(Pixels(3), 3, 0.5).certify(torch.rand(6, 9), **CALL)


@pytest.mark.parametrize("dims", SHAPES)
def test_normalisation_is_by_the_first_of_them(dims):
    x, received = inputs(dims), []

    def model(batch):
        received.append(batch.clone())
        return batch.flatten(1)[:, :3]

    mean = torch.linspace(0.1, 0.5, SHAPES[dims][0])
    Smooth(model, 3, 0.5, seed=1, mean=mean, std=0.5, input_dims=dims).certify(
        x[0], n0=5, n=10, batch_size=5
    )
    assert_same(received[0], ops.gaussian_noise(x[:1], 5, 0.5, seed=1, mean=mean, std=0.5)[0])


@pytest.mark.parametrize("noise", [rs.Uniform(0.5), rs.Laplace(0.3), rs.Splitting(0.6)])
def test_other_noise_of_vectors(noise):
    x = inputs(1)
    got = Smooth(Pixels(3), 3, noise=noise, seed=1, input_dims=1).certify(x, **CALL)
    votes = noise.sample(x, 220, seed=1)[..., :3]
    assert_same(got.counts, ops.count_votes(votes[:, 20:]))


def test_noise_that_needs_pixels_says_so():
    for noise in (rs.PixelAblation(2), rs.BandAblation(2), rs.Dual(Gaussian(0.5))):
        with pytest.raises(ValueError, match=r"^x: got inputs \[6\], want channels and"):
            Smooth(Pixels(3), 3, noise=noise, input_dims=1).certify(inputs(1), **CALL)
    with pytest.raises(ValueError, match=r"^x: got inputs \[2, 5\], want images"):
        Smooth(Pixels(3), 3, noise=rs.BandAblation(2), input_dims=2).certify(inputs(2), **CALL)
    # Pixels of a signal or of a volume.
    for dims in (2, 4):
        smooth = Smooth(Pixels(3), 3, noise=rs.PixelAblation(2), input_dims=dims)
        result = smooth.certify(inputs(dims), **CALL)
        assert result.counts.sum() == 800
        assert result.top_k_radius([0, 1, 2, 0], 2).shape == (4,)


def test_values_outside_the_unit_interval_are_a_matter_of_images(recwarn):
    Smooth(Pixels(3), 3, 0.5, input_dims=1).certify(inputs(1) * 100 - 50, **CALL)
    assert not recwarn
    with pytest.warns(UserWarning, match="outside"):
        Smooth(Pixels(3), 3, 0.5).certify(inputs(3) * 100, **CALL)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        np.asfortranarray,
        lambda a: np.flip(a, -1).copy()[..., ::-1],  # negative strides
        lambda a: a.astype(">f4"),
        lambda a: (a.setflags(write=False), a)[1],
    ],
)
def test_numpy_arrays_are_taken_as_they_are(change):
    x = inputs(3)
    smooth = Smooth(Pixels(3), 3, 0.5, seed=1)
    want = smooth.certify(x, **CALL)
    array = change(x.numpy().copy())
    got = smooth.certify(array, **CALL)
    assert_same(got.counts, want.counts)
    assert smooth.certify(array[1], **CALL, image_offset=1)[0] == int(want.prediction[1])
    with pytest.raises(TypeError, match=r"^x: got torch.uint8"):
        smooth.certify((array * 255).astype(np.uint8), **CALL)
    with pytest.raises(TypeError, match=r"^x: got an array of object"):
        smooth.certify(array.astype(object), **CALL)


class Linear(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3, 24, dtype=dtype))
        self.received = set()
        self.eval()

    def forward(self, x):
        self.received.add(x.dtype)
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize(
    ("images", "parameters", "asked", "received"),
    [
        (torch.float64, torch.float32, None, torch.float32),
        (torch.float32, torch.float64, None, torch.float64),
        (torch.float64, torch.float64, None, torch.float64),
        (torch.float32, torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, torch.float32, None, torch.bfloat16),  # under autocast
        (torch.float64, torch.float64, torch.float64, torch.float64),
    ],
)
def test_a_module_receives_what_it_can_take(images, parameters, asked, received):
    model = Linear(parameters)
    result = Smooth(model, 3, 0.5, seed=1, dtype=asked).certify(inputs(3).to(images), **CALL)
    assert model.received == {received}
    assert int(result.counts.sum()) == 800


# ---- what it returns -----------------------------------------------------------------------------


def logits(x):
    return x.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("model", "output"),
    [
        (lambda x: {"logits": logits(x), "other": logits(x)}, "logits"),
        (lambda x: OrderedDict(loss=x.sum(), logits=logits(x)), "logits"),
        (lambda x: {"loss": x.sum(), "scores": logits(x)}, "logits"),
        (lambda x: SimpleNamespace(logits=logits(x)), "logits"),
        (lambda x: (logits(x), x), "logits"),
        (lambda x: [x.sum(), logits(x)], "logits"),
        (lambda x: (logits(x), -logits(x)), lambda made: made[0]),
        (lambda x: {"main": logits(x), "aux": -logits(x)}, lambda made: made["main"]),
    ],
)
def test_logits_are_found(model, output):
    x = inputs(3)
    want = Smooth(Pixels(3), 3, 0.5, seed=1).certify(x, **CALL)
    got = Smooth(model, 3, 0.5, seed=1, output=output).certify(x, **CALL)
    assert_same(got.counts, want.counts)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_is_binary(shape):
    def model(x):
        return (x.flatten(1)[:, 0] - 0.5).view(shape)

    x = inputs(3)
    got = Smooth(model, 2, 0.5, seed=1, output="binary").certify(x, **CALL)
    noisy = ops.gaussian_noise(x, 220, 0.5, seed=1).flatten(2)[:, 20:, 0]
    assert_same(got.counts[:, 1], (noisy - 0.5 > 0).sum(1))
    assert_same(got.counts.sum(1), torch.full((4,), 200))


def test_binary_is_of_two_classes():
    with pytest.raises(ValueError, match=r"^num_classes: got 3, want 2 with output='binary'"):
        Smooth(Pixels(3), 3, 0.5, output="binary")
    with pytest.raises(
        ValueError, match=r"^base_classifier: gave .* want floating logits \[100\] or"
    ):
        Smooth(Pixels(2), 2, 0.5, output="binary").certify(inputs(3)[0], n=100, batch_size=100)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "probabilities"}, ValueError, "output: got 'probabilities'"),
        ({"output": 3}, TypeError, "output: got 3 of type int"),
        ({"input_dims": 0}, ValueError, "input_dims: got 0"),
        ({"input_dims": 6}, ValueError, "input_dims: got 6"),
        (
            {"input_dims": 2, "memory_format": torch.channels_last},
            ValueError,
            "memory_format: got torch.channels_last, which is for input_dims=3",
        ),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Smooth(Pixels(3), 3, 0.5, **options)


# ---- training mode -------------------------------------------------------------------------------


def eval_block():
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, nn.Sequential, lambda m: torch.compile(m, backend="eager"),
     lambda m: nn.Sequential(nn.Sequential(m), nn.DataParallel(nn.Identity().eval()))],
)  # fmt: skip
def test_a_wrapper_in_training_mode_is_nothing_to_warn_of(wrap):
    wrapped = wrap(eval_block())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_training(wrapped)
    wrapped.train()
    with pytest.warns(UserWarning, match="in training mode"):
        warn_if_training(wrapped)


def test_a_module_of_ones_own_in_training_mode_is():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = eval_block()

        def forward(self, x):
            return nn.functional.dropout(self.inner(x), training=self.training)

    with pytest.warns(UserWarning, match="in training mode"):
        Smooth(Mine(), 3, 0.5).certify(inputs(3), **CALL)


@pytest.mark.parametrize("method", ["certify", "predict", "certify_at"])
def test_alpha_below_the_range_of_the_bounds_is_refused(method):
    smooth = Smooth(Pixels(3), 3, 0.5)
    more = {"radius": 0.1} if method == "certify_at" else {"n": 10_000}
    with pytest.raises(ValueError, match=r"^alpha: got 1e-170, want at least 1e-50"):
        getattr(smooth, method)(inputs(3), alpha=1e-170, **more)
    assert getattr(smooth, method)(inputs(3), alpha=1e-50, **more) is not None
