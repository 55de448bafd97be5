"""ops.gaussian_noise: derivatives, what is kept for them, torch.func and torch.compile."""

import pytest
import torch

from robustcore import ops
from smoothing.inputs import SEED, images
from testing import assert_same, check_gradients

pytestmark = pytest.mark.kernel


def double(*shape, seed=0, low=0.0):
    return (images(*shape, seed=seed).double() + low).requires_grad_()


def test_gradients(device):
    x, sigma = double(2, 3, 2, 2), double(2, 1, 2, 2, seed=1)
    mean, std = double(3, seed=2), double(3, seed=3, low=0.5)
    x, sigma, mean, std = (t.detach().to(device).requires_grad_() for t in (x, sigma, mean, std))

    def noise(x, sigma, mean, std):
        return ops.gaussian_noise(x, 3, sigma, seed=SEED, mean=mean, std=std, sample_offset=4)

    check_gradients(noise, x, sigma, mean, std)
    # Each alone, since backward computes only what is asked for.
    check_gradients(lambda x: noise(x, 0.3, None, None), x)
    check_gradients(lambda x: noise(x, 0.3, 0.5, [0.2, 0.3, 0.4]), x)
    check_gradients(lambda sigma: noise(x.detach(), sigma, None, None), sigma)
    check_gradients(lambda mean: noise(x.detach(), 0.3, mean, std.detach()), mean)
    check_gradients(lambda std: noise(x.detach(), 0.3, None, std), std)
    per_image = torch.tensor([0.2, 0.4], dtype=torch.float64, device=device, requires_grad=True)
    check_gradients(lambda s: noise(x.detach(), s, 0.1, std.detach()), per_image)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_forward_mode_is_refused_not_ignored():
    x = images(1, 3, 4, 4)
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        torch.func.jvp(lambda x: ops.gaussian_noise(x, 2, 0.1, seed=SEED), (x,), (x,))


def test_channels_last_gradient():
    x = double(2, 3, 2, 2)
    check_gradients(
        lambda x: ops.gaussian_noise(x, 2, 0.3, seed=SEED, memory_format=torch.channels_last), x
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_eager(dtype):
    x = images(2, 3, 6, 6, dtype=dtype).requires_grad_()
    sigma = torch.tensor([0.3, 0.6], requires_grad=True)
    weight = torch.randn(2, 90, 3, 6, 6).to(dtype)
    ops.gaussian_noise(x, 90, sigma, seed=SEED, std=0.5).mul(weight).sum().backward()
    z = ops.gaussian_noise(torch.zeros(2, 3, 6, 6), 90, 1.0, seed=SEED).double()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(
        x.grad.double(),
        weight.double().sum(1) / 0.5,
        rtol=1e-2,
        atol=1e-4 if dtype == torch.float32 else 0.2,
    )
    expected = (weight.double() * z).flatten(1).sum(1) / 0.5
    torch.testing.assert_close(sigma.grad.double(), expected, rtol=1e-4, atol=1e-2)


def test_expanded_gradient_is_not_materialised():
    x = images(1, 8).requires_grad_()
    ops.gaussian_noise(x, 1000, 0.5, seed=SEED).sum().backward()
    assert_same(x.grad, torch.full((1, 8), 1000.0))


def test_nothing_is_saved_but_inputs():
    x = images(1, 3, 8, 8).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.gaussian_noise(x, 100, 0.5, seed=SEED, mean=0.5, std=0.5)
    assert sum(t.numel() for t in saved) <= x.numel() + 2


def test_func_transforms():
    x, sigma = images(4, 2, 3, 3), torch.tensor(0.5)

    def loss(x, sigma):
        return ops.gaussian_noise(x, 5, sigma, seed=SEED).square().sum()

    gx, gs = torch.func.grad(loss, argnums=(0, 1))(x, sigma)
    leaf, level = x.clone().requires_grad_(), sigma.clone().requires_grad_()
    loss(leaf, level).backward()
    assert_same(gx, leaf.grad)
    assert_same(gs, level.grad)
    batch = torch.stack([x, x + 1])
    mapped = torch.func.vmap(lambda x: ops.gaussian_noise(x, 5, 0.5, seed=SEED))(batch)
    assert_same(mapped, torch.stack([ops.gaussian_noise(v, 5, 0.5, seed=SEED) for v in batch]))
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(batch, sigma)
    expected = torch.stack([torch.func.grad(loss)(v, sigma) for v in batch])
    torch.testing.assert_close(per_sample, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile():
    def loss(x, sigma, samples, offset):
        out = ops.gaussian_noise(
            2 * x,
            samples,
            sigma,
            seed=SEED,
            sample_offset=offset,
            memory_format=torch.channels_last,
        )
        return out.relu().sum()

    compiled = torch.compile(loss, fullgraph=True)
    for samples, offset in [(3, 0), (3, 1), (5, 2)]:  # the integers become symbolic
        x, sigma = images(2, 3, 8, 8).requires_grad_(), torch.tensor([0.1, 0.2], requires_grad=True)
        y = compiled(x, sigma, samples, offset)
        y.backward()
        leaf, level = x.detach().clone().requires_grad_(), sigma.detach().clone().requires_grad_()
        expected = loss(leaf, level, samples, offset)
        expected.backward()
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(x.grad, leaf.grad)
        torch.testing.assert_close(sigma.grad, level.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile_with_a_buffer():
    def votes(x, buffer, offset):
        ops.gaussian_noise(x, 4, 0.3, seed=SEED, sample_offset=offset, out=buffer)
        return ops.count_votes(buffer.flatten(2))

    x, buffer, offset = images(2, 3, 4, 4), torch.empty(2, 4, 3, 4, 4), torch.tensor(3)
    got = torch.compile(votes, fullgraph=True)(x, buffer, offset)
    expected = ops.gaussian_noise(x, 4, 0.3, seed=SEED, sample_offset=3)
    assert_same(buffer, expected)
    assert_same(got, ops.count_votes(expected.flatten(2)))
