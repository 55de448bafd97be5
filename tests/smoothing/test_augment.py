"""noise_augment: one noisy copy each, repeatable, differentiable."""

import math

import pytest
import torch

from robustcore import ops
from robustcore.smoothing import (
    Gaussian,
    Laplace,
    PixelAblation,
    Splitting,
    Uniform,
    noise_augment,
)
from testing import assert_close, assert_same


@pytest.fixture
def images():
    return torch.rand(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_is_one_sample_of_the_stream(images):
    keys = {"seed": 4, "image_offset": 10, "mean": [0.1, 0.2, 0.3], "std": 0.5}
    got = noise_augment(images, 0.25, step=7, **keys)
    assert_same(got, ops.gaussian_noise(images, 10, 0.25, **keys)[:, 7])
    assert noise_augment(images, 0.25, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_steps_and_images_get_noise_of_their_own(images):
    same = images[:1].expand(6, -1, -1, -1)
    first = noise_augment(same, 1.0, seed=1)
    assert_same(noise_augment(same, 1.0, seed=1), first)
    assert len(torch.unique(first.flatten(1), dim=0)) == 6
    assert not torch.equal(noise_augment(same, 1.0, seed=1, step=1), first)


def test_the_default_seed_follows_torch(images):
    torch.manual_seed(3)
    first, second = noise_augment(images, 0.25), noise_augment(images, 0.25)
    torch.manual_seed(3)
    assert_same(noise_augment(images, 0.25), first)
    assert not torch.equal(first, second)


def test_sigma_one_an_image_and_a_map(images):
    levels = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    got = noise_augment(images, levels, seed=1)
    assert_same(got[::2], images[::2])
    assert_same(got[1::2], noise_augment(images, 1.0, seed=1)[1::2])
    mask = torch.zeros(5, 4)
    mask[:2] = 1.0
    got = noise_augment(images, mask, seed=1)
    assert_same(got[:, :, 2:], images[:, :, 2:])
    assert not torch.equal(got[:, :, :2], images[:, :, :2])


def test_layout_is_kept(images):
    channels_last = images.contiguous(memory_format=torch.channels_last)
    got = noise_augment(channels_last, 0.25, seed=1)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_same(got, noise_augment(images, 0.25, seed=1))
    vectors = noise_augment(images.flatten(1), 0.25, seed=1)
    assert vectors.shape == (6, 60)


def test_gradients(images):
    x = images.double().requires_grad_()
    std = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    noise_augment(x, 0.25, seed=1, std=std).sum().backward()
    assert_close(x.grad, (1 / std.detach()).view(3, 1, 1).expand_as(x))
    assert std.grad.shape == (3,)
    assert bool((std.grad != 0).all())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "noise",
    [0.25, Gaussian(0.25), Uniform(0.5), Laplace(0.5), Splitting(0.5), PixelAblation(3, fill=0.5)],
    ids=repr,
)
def test_compiled_without_a_break_with_a_fresh_seed(images, noise, backend):
    augment = torch.compile(
        lambda x: noise_augment(x, noise, mean=0.1, std=0.5), fullgraph=True, backend=backend
    )
    torch.manual_seed(3)
    first, second = augment(images), augment(images)
    torch.manual_seed(3)
    assert_same(augment(images), first)
    assert not torch.equal(first, second)
    # Images of a batch have noise of their own.
    same = augment(images[:1].expand(6, -1, -1, -1))
    assert len(torch.unique(same.flatten(1), dim=0)) == 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_noise_has_its_distribution_and_a_gradient():
    augment = torch.compile(lambda x: noise_augment(x, 0.5), fullgraph=True, backend="aot_eager")
    x = torch.zeros(40, 1000, requires_grad=True)
    noisy = augment(x)
    z = noisy.detach().flatten().double() / 0.5
    assert abs(float(z.mean())) < 5 / 200
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2) / 200
    noisy.sum().backward()
    assert_same(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"x": [0.5]}, TypeError, "x"),
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "x"),
        ({"sigma": -1.0}, ValueError, "sigma"),
        ({"sigma": math.nan}, ValueError, "sigma"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"step": -1}, ValueError, "step"),
        ({"step": 1.5}, TypeError, "step"),
        ({"mean": [0.1, 0.2]}, ValueError, "mean"),
    ],
)
def test_bad_input(images, changes, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        noise_augment(**{"x": images, "sigma": 0.25, **changes})
