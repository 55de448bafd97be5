"""ReLU within density.fast_double_backward: torch's derivatives, and no gradient of zeros."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustcore import density
from robustcore.ops.density.relu import relu
from testing import assert_same, check_gradients

FORMS = {
    "functional": functional.relu,
    "functional, in place": lambda x: functional.relu(x * 1, inplace=True),
    "torch": torch.relu,
    "torch, in place": lambda x: torch.relu_(x * 1),
    "method": lambda x: x.relu(),
    "method, in place": lambda x: (x * 1).relu_(),
    "module, in place": lambda x: nn.ReLU(inplace=True)(x * 1),
}


def within(fn):
    def run(x):
        with density.fast_double_backward():
            return fn(x)

    return run


def values(*shape):
    # Some of them 0, none so near that a finite difference could meet the kink.
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.where(x.abs() < 0.1, x + x.sign(), x).requires_grad_()


def derivatives(fn, x):
    y = fn(x)
    results = [y]
    for _ in range(3):
        (y,) = torch.autograd.grad((y * y).sin().sum(), x, create_graph=True)
        results.append(y)
    return [r.detach() for r in results]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_to_the_bit(form):
    x = values(4, 3, 5)
    x.data[0] = 0
    for got, want in zip(derivatives(within(FORMS[form]), x), derivatives(FORMS[form], x),
                         strict=True):  # fmt: skip
        assert_same(got, want)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    check_gradients(within(FORMS[form]), values(3, 4))


def test_nan_and_infinities():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0], requires_grad=True)
    results = []
    for fn in (within(torch.relu), torch.relu):
        y = fn(x)
        results.append((y.detach(), *torch.autograd.grad(y, x, torch.ones(5))))
    for got, want in zip(*results, strict=True):
        assert_same(got, want)


def test_layout_is_kept():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert within(torch.relu)(x).is_contiguous(memory_format=torch.channels_last)


def test_no_gradient_of_zeros():
    def calls(fn):
        x = values(4, 3).detach().requires_grad_()
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
        ) as profile:
            (g,) = torch.autograd.grad(fn(x * x).sin().sum(), x, create_graph=True)
            g.sin().sum().backward()
        return sum(e.count for e in profile.key_averages() if e.key == "aten::zeros_like")

    assert calls(torch.relu) == 1
    assert calls(within(torch.relu)) == 0


def test_in_place_is_in_place():
    x = torch.randn(5, requires_grad=True)
    with density.fast_double_backward():
        base = x * 1
        y = torch.relu_(base)
        assert y is base
        assert y.grad_fn.name() == "_ReLUInPlaceBackward"
        with pytest.raises(RuntimeError, match="leaf"):
            torch.relu_(x)
        squared = x.square()
        product = squared * squared
        torch.relu_(squared)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        product.sum().backward()


def test_torch_func():
    x = values(4, 3).detach()
    for fn in (torch.relu, lambda t: torch.relu_(t * 1)):
        for transform in (
            lambda f: torch.func.grad(lambda t: f(t).square().sum()),
            lambda f: torch.func.vmap(torch.func.grad(lambda t: f(t).square().sum())),
            lambda f: torch.func.jacrev(torch.func.grad(lambda t: f(t).pow(3).sum())),
        ):
            with density.fast_double_backward():
                got = transform(fn)(x)
            assert_same(got, transform(fn)(x))


def test_the_functions_are_ours():
    x = torch.randn(3, requires_grad=True)
    with density.fast_double_backward():
        assert torch.relu(x).grad_fn.name() == "_ReLUBackward"
        assert functional.relu(input=x, inplace=False).grad_fn.name() == "_ReLUBackward"
    assert torch.relu(x).grad_fn.name() == "ReluBackward0"
    assert relu(x).grad_fn.name() == "_ReLUBackward"
