"""ops.mean_softmax: values, saturation, layouts, dtypes, derivatives, invariances, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from robustcore.ops.smoothing.mean_softmax import formula
from testing import assert_close, assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

SHAPES = [(1, 1, 1), (3, 2, 1), (2, 1, 5), (4, 5, 10), (2, 16, 33), (1, 3, 1024), (2, 3, 2500)]
raw = torch.ops.robustcore


def normal(*shape, scale=3.0, seed=0, dtype=torch.float32):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def derivatives(fn, z, first, second, v):
    """fn's values, its gradient along (first, second), and the gradients of that along v."""
    z, first, second = (t.detach().clone().requires_grad_() for t in (z, first, second))
    values = fn(z)
    (grad,) = torch.autograd.grad(values, z, (first, second), create_graph=True)
    return *values, grad, *torch.autograd.grad(grad, (first, second, z), v)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_formula(shape, scale, dtype, device):
    images, _, classes = shape
    inputs = (
        normal(*shape, scale=3 / scale), normal(images, classes, seed=1),
        normal(images, classes, seed=2), normal(*shape, seed=3),
    )  # fmt: skip
    inputs = [t.to(device, dtype) for t in inputs]
    got = derivatives(lambda z: ops.mean_softmax(z, scale), *inputs)
    want = derivatives(lambda z: formula(z, scale), *(t.double() for t in inputs))
    # v - <p, v> cancels, and each derivative brings a factor of `scale`.
    sizes = [10.0, 10.0, scale * 10, scale * 30, scale * 30, scale**2 * 100]
    for one, expected, size in zip(got, want, sizes, strict=True):
        assert one.dtype == dtype
        assert_close(one / size, expected / size)


@pytest.mark.parametrize("shift", [0.0, 1e3, -3e4])
@pytest.mark.parametrize("gap", [30.0, 100.0, 1e3, 1e30])
def test_sure_copies(gap, shift, device):
    """Copies as sure as can be of different classes: what float32 cannot hold as a probability."""
    z = torch.zeros(1, 3, 4, device=device)
    z[0, 0, 0] = z[0, 1, 0] = z[0, 2, 1] = gap
    z += shift
    inputs = [z, *(normal(1, 4, seed=i).to(device) for i in (1, 2)), normal(1, 3, 4, seed=3)]
    inputs[3] = inputs[3].to(device)
    got = derivatives(ops.mean_softmax, *inputs)
    want = derivatives(lambda z: formula(z, 1.0), *(t.double() for t in inputs))
    for one, expected in zip(got, want, strict=True):
        assert one.isfinite().all()
        if gap == 1e30:  # past float64 too: torch's weights of copies no longer add up to 1
            continue
        torch.testing.assert_close(one.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_certain_copy_keeps_its_digits(device):
    """1 - p is 2e-9 here, nothing beside 1 in float32, but -log p is not."""
    z = torch.tensor([[[20.0, 0.0]]], device=device)
    log_mean, mean_log = ops.mean_softmax(z)
    assert mean_log[0, 1] == pytest.approx(-20 - math.log1p(math.exp(-20)))
    assert log_mean[0, 1] == pytest.approx(-20, rel=1e-6)


def test_nan_and_infinity(device):
    z = normal(4, 3, 5).to(device)
    z[1, 2, 3] = math.nan
    z[2, 0, 1] = math.inf
    z[3, :, 2] = -math.inf  # a class that no copy can have
    for values in ops.mean_softmax(z):
        assert values[0].isfinite().all()
        assert values[1:3].isnan().all()
        assert values[3, 2] == -math.inf
        assert values[3, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype, device):
    z = normal(3, 4, 10, dtype=dtype).to(device).requires_grad_()
    log_mean, mean_log = ops.mean_softmax(z)
    assert log_mean.dtype == torch.float32
    exact = z.detach().float().requires_grad_()
    wanted = ops.mean_softmax(exact)
    assert_same(log_mean, wanted[0])
    (grad,) = torch.autograd.grad(log_mean.sum() + mean_log.square().sum(), z)
    (expected,) = torch.autograd.grad(wanted[0].sum() + wanted[1].square().sum(), exact)
    assert_same(grad, expected.to(dtype))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 40)), st.integers(0, 99))
def test_layouts(shape, seed):
    z = normal(*shape, seed=seed)
    expected = raw.mean_softmax(z, 1.5)
    first, second, v = (normal(*s, seed=seed + 1) for s in (shape[::2], shape[::2], shape))
    back = raw.mean_softmax_backward(first, second, z, expected[0], expected[2], 1.5)
    twice = raw.mean_softmax_double_backward(v, first, second, z, expected[0], expected[2], 1.5)
    for name, laid in relayouts(z).items():
        got = raw.mean_softmax(laid, 1.5)
        saved = laid, got[0], got[2], 1.5
        again = raw.mean_softmax_double_backward(v, first, second, *saved)
        for a, b in zip((*got, *again), (*expected, *twice), strict=True):
            assert_same(a, b), name
        assert_same(raw.mean_softmax_backward(first, second, *saved), back)


def test_derivatives():
    z = normal(2, 3, 4, dtype=torch.float64).requires_grad_()
    check_gradients(lambda z: ops.mean_softmax(z, 1.3), z)
    far = z.detach().clone()
    far[0, :, 0] += 80  # the other means are too small for the short way
    check_gradients(lambda z: ops.mean_softmax(z, 1.3), far.requires_grad_())

    def third(fn):
        return torch.func.jacrev(torch.func.jacrev(torch.func.jacrev(fn)))(z.detach()[:1])

    ours = third(lambda z: ops.mean_softmax(z, 1.3)[0].sin().sum())
    torch.testing.assert_close(ours, third(lambda z: formula(z, 1.3)[0].sin().sum()))


def test_opcheck(device):
    z = normal(2, 3, 4).to(device)
    means = [normal(2, 4, seed=i).to(device) for i in (1, 2)]
    log_mean, _, rows = raw.mean_softmax(z, 1.5)
    torch.library.opcheck(raw.mean_softmax.default, (z, 1.5))
    saved = (z, log_mean, rows, 1.5)
    torch.library.opcheck(raw.mean_softmax_backward.default, (*means, *saved))
    torch.library.opcheck(raw.mean_softmax_double_backward.default, (z, *means, *saved))


def test_the_batch_and_the_threads_do_not_matter():
    z = normal(40, 8, 700)
    whole = ops.mean_softmax(z)
    for i in (0, 17, 39):
        for values, one in zip(whole, ops.mean_softmax(z[i : i + 1]), strict=True):
            assert_same(one, values[i : i + 1])

    def gradient():
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(ops.mean_softmax(leaf)[0].square().sum(), leaf)[0]

    check_repeatable(gradient)


@pytest.mark.filterwarnings("ignore")
def test_compiled():
    z = normal(3, 4, 10).requires_grad_()

    def fn(z):
        log_mean, mean_log = ops.mean_softmax(z, 2.0)
        return (log_mean * mean_log).sum()

    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    for f in (fn, compiled):
        (grad,) = torch.autograd.grad(f(z), z)
        (expected,) = torch.autograd.grad(sum((a * b).sum() for a, b in [formula(z, 2.0)]), z)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("logits", "scale", "message"),
    [
        (torch.rand(2, 3), 1.0, r"logits: got shape \[2, 3\], want \[B, m, K\]"),
        (torch.rand(2, 0, 3), 1.0, "logits: got shape .* at least one copy"),
        (torch.zeros(2, 3, 4).long(), 1.0, "logits: got torch.int64"),
        (torch.rand(2, 3, 4), 0.0, "scale: got 0"),
        (torch.rand(2, 3, 4), math.inf, "scale: got inf"),
        (torch.rand(2, 3, 4), "1", "scale: got '1'"),
    ],
)
def test_bad_input(logits, scale, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.mean_softmax(logits, scale)
