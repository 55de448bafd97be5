"""density.fast_double_backward and the layers it puts in: the same derivatives as torch's own."""

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustcore import density
from robustcore.density.double_backward import LAYERS
from robustcore.ops import autograd
from robustcore.ops.density import batch_norm as batch_norm_topic
from robustcore.ops.density import conv3x3, relu

CONVOLUTIONS = {  # weight, keywords
    "1d": ((4, 3, 3), dict(padding=1)),
    "2d": ((4, 3, 3, 3), dict(stride=2, padding=(1, 0))),
    "2d, dilated": ((4, 3, 2, 2), dict(dilation=2)),
    "3d": ((2, 3, 2, 2, 2), {}),
    "groups": ((6, 1, 3, 3), dict(groups=3, padding=1)),
    "no batch": ((4, 3, 3, 3), {}),
    "same": ((4, 3, 3, 3), dict(padding="same")),
}


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def within(fn):
    def run(*arguments):
        with density.fast_double_backward():
            return fn(*arguments)

    return run


def any_order(fn, *inputs):
    """Values, first, second and third derivatives of something nonlinear in fn."""
    values = fn(*inputs)
    results = [values]
    for _ in range(3):
        values = torch.autograd.grad(
            values.sin().sum() if values.dim() else values, inputs, create_graph=True
        )
        results += values
        values = sum((v * (i + 1)).sin().sum() for i, v in enumerate(values))
    return [r.detach() for r in results]


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution(case, with_bias, device):
    weight, kwargs = CONVOLUTIONS[case]
    x = (2, 3, *[5] * (len(weight) - 2))[case == "no batch" :]
    inputs = tensors(x, weight, weight[:1])[: 2 + with_bias]
    inputs = [t.detach().to(device).requires_grad_() for t in inputs]
    name = f"conv{len(weight) - 2}d"
    fn = lambda *t: getattr(functional, name)(*t, **kwargs)  # noqa: E731
    for got, want in zip(any_order(within(fn), *inputs), any_order(fn, *inputs), strict=True):
        torch.testing.assert_close(got, want)


def batch_norm(x, weight=None, bias=None):
    return functional.batch_norm(x, None, None, weight, bias, training=True, eps=0.1)


def batch_norm_by_hand(x, weight=None, bias=None):
    # torch's own is right to the second derivative. In the third its double backward takes the
    # saved statistics, which have no graph, for constants: pytorch/pytorch#186256.
    over = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    y = (x - mean) / (var + 0.1).sqrt()
    return y if weight is None else y * weight.view_as(mean) + bias.view_as(mean)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (3, 2, 4, 2), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(shape, affine, device):
    inputs = tensors(shape, shape[1:2], shape[1:2])
    inputs[1].data[0] = 0  # as a residual block's last scale begins
    inputs = [t.detach().to(device).requires_grad_() for t in inputs[: 3 if affine else 1]]
    results = any_order(within(batch_norm), *inputs), any_order(batch_norm_by_hand, *inputs)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (3, 2, 4, 2), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_by_running_statistics(shape, affine, device):
    *inputs, mean, var = tensors(shape, *[shape[1:2]] * 4)
    inputs = [t.detach().to(device).requires_grad_() for t in inputs[: 3 if affine else 1]]
    mean, var = mean.detach().to(device), var.detach().square().to(device)
    rows = [1, -1, *[1] * (len(shape) - 2)]

    def layer(x, *numbers):
        return functional.batch_norm(x, mean, var, *numbers, eps=0.1)

    def by_hand(x, *numbers):
        y = (x - mean.view(rows)) / (var + 0.1).sqrt().view(rows)
        return y * numbers[0].view(rows) + numbers[1].view(rows) if numbers else y

    for got, want in zip(any_order(within(layer), *inputs), any_order(by_hand, *inputs),
                         strict=True):  # fmt: skip
        torch.testing.assert_close(got, want)
    # The last derivative without a graph, of the gradient in x alone.
    results = []
    for call in (within(layer), by_hand):
        (g,) = torch.autograd.grad(call(*inputs).sin().sum(), inputs[0], create_graph=True)
        results.append(torch.autograd.grad(g.sin().sum(), inputs, materialize_grads=True))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_vmap_of_batch_norm_by_running_statistics():
    x, weight, mean = tensors((3, 4, 5, 2), (5,), (5,))
    mean = mean.detach()

    def loss(x, weight):
        return functional.batch_norm(x, mean, mean.square(), weight).pow(3).sum()

    run = torch.func.vmap(torch.func.grad(loss, (0, 1)), in_dims=(0, None))
    batch = x.detach(), weight.detach()
    for got, want in zip(within(run)(*batch), run(*batch), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_batch_norm_in_few_passes(affine, channels_last, native, device, monkeypatch):
    if not native:  # as on other devices
        for name in ("_forward_is_ours", "_backward_is_ours"):
            monkeypatch.setattr(batch_norm_topic, name, lambda x: False)
    # The last derivative without a graph: another way than the one that can go on.
    inputs = tensors((3, 4, 5, 2), (4,), (4,))
    inputs[1].data[0] = 0
    inputs = [t.detach().to(device) for t in inputs[: 3 if affine else 1]]
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    inputs = [t.requires_grad_() for t in inputs]
    results = []
    for call in (within(batch_norm), batch_norm):
        (g,) = torch.autograd.grad(call(*inputs).sin().sum(), inputs[0], create_graph=True)
        results.append(torch.autograd.grad(g.sin().sum(), inputs, materialize_grads=True))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.GELU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(32, affine=False), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_a_penalty_and_its_buffers(training):
    model = network().double().train(training)
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    plain, leaf = copy.deepcopy(model), x.clone().requires_grad_()
    density.marginal_density_penalty(plain, leaf, logits=plain(leaf)).backward()
    within_model, leaf = copy.deepcopy(model), x.clone().requires_grad_()
    with density.fast_double_backward():
        logits = within_model(leaf)
    density.marginal_density_penalty(within_model, leaf, logits=logits).backward()
    density.marginal_density_penalty(model, x).backward()  # enters it by itself
    for other in (within_model, model):
        for got, want in zip(other.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got.grad, want.grad)
        for got, want in zip(other.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(got, want)


def test_what_is_put_in_and_what_is_not(monkeypatch):
    calls = []

    def spied(layer):
        return lambda *arguments: calls.append(layer) or layer(*arguments)

    for module, name in (
        (conv3x3, "convolution"), (batch_norm_topic, "batch_norm"),
        (batch_norm_topic, "batch_norm_by"), (relu, "relu"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, spied(getattr(module, name)))
    model, x = network(), torch.rand(5, 3, 8, 8)
    with density.fast_double_backward():
        want = model(x).detach()
        assert len(calls) == 6
        with torch.no_grad():
            model(x)
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        model.eval()
        assert len(calls) == 6
        model(x)
        assert len(calls) == 12
    torch.testing.assert_close(model.train()(x).detach(), want)
    assert len(calls) == 12
    assert set(LAYERS) == {
        functional.conv1d, functional.conv2d, functional.conv3d, functional.batch_norm,
        functional.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_,
        functional.scaled_dot_product_attention,
    }  # fmt: skip


def test_errors_are_torchs():
    with density.fast_double_backward():
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            functional.batch_norm(torch.zeros(1, 3, requires_grad=True), None, None, training=True)
        with pytest.raises(RuntimeError, match="channels"):
            functional.conv2d(torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("private", [True, False])
def test_gradients_nobody_asked_for(private, monkeypatch):
    # Weights' gradients are not computed for a gradient of the input; without torch's private
    # answer to whether they are asked for, they are, and the result is the same.
    if not private:
        monkeypatch.setattr(autograd, "_will_execute", None)
    asked = []
    backward = conv3x3._convolution_backward

    def spy(*arguments):
        asked.append(arguments[-1])
        return backward(*arguments)

    monkeypatch.setattr(conv3x3, "_convolution_backward", spy)
    x, weight = tensors((2, 3, 4, 4), (2, 3, 3, 3))
    with density.fast_double_backward():
        y = functional.conv2d(x * 1, weight)
    (got,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(functional.conv2d(x, weight).sum(), x)[0])
    assert asked == [[True, not private, False]]


def test_torch_func():
    (x, weight) = (t.detach() for t in tensors((2, 3, 4, 4), (2, 3, 3, 3)))

    def fn(x):
        return functional.conv2d(x, weight).sin().sum()

    with density.fast_double_backward():
        got = torch.func.grad(fn)(x)
    torch.testing.assert_close(got, torch.func.grad(fn)(x))


FAULTS = """
import resource, sys, torch
from robustcore import density
with density.fast_double_backward():
    pass
def take():
    return [torch.ones(1 << 20) for _ in range(10)]  # 40 MiB
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ,
    reason="needs glibc's own allocator",
)
def test_freed_memory_is_kept(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "GLIBC"))}
    run = subprocess.run(  # outside the checkout, whose robustcore may not be the one under test
        [sys.executable, "-c", FAULTS],
        capture_output=True, text=True, env=environment, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert int(run.stdout) < 3000  # of 10 240 pages of 4 KiB
