"""The CPU kernel of a whole series (float32, 3 x 3): against float64, and its bits."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz.dense import skew_weight
from lipschitz.test_conv_exp import images, reference
from robustcore import ops
from robustcore.ops.lipschitz import recurrence
from testing import needs_vectors, relayouts

pytestmark = pytest.mark.kernel

pack = torch.ops.robustcore.conv_exp_pack.default
series_op = torch.ops.robustcore.conv_exp_series.default
backward_op = torch.ops.robustcore.conv_exp_series_backward.default
gradient_op = torch.ops.robustcore.conv_exp_series_gradient.default


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def numbers(series):
    return list(series.coefficients), series.first, series.step, series.carry


def run(x, kernel, grad, series, tile, keep=True):
    """y, the gradients of x and of the kernel."""
    x, packed, grad = channels_last(x), pack(kernel.contiguous(), tile), channels_last(grad)
    y, kept = series_op(x, packed, *numbers(series), tile, keep)
    grad_x, work = backward_op(grad, x, packed, kept if keep else None, *numbers(series), tile)
    return y, grad_x, gradient_op(work, x, series.degree, tile)


def expected(x, kernel, grad, series):
    x, kernel = x.double().requires_grad_(), kernel.double().requires_grad_()
    y = reference(x, kernel, series)
    return y.detach(), *torch.autograd.grad(y, (x, kernel), grad.double())


def relative_error(a, b):
    return float((a.double() - b).norm() / b.norm().clamp(min=1e-30))


@functools.cache  # for both tiles and all instruction sets
def case(shape, degree, method):
    """x, kernel, grad and series, and what float64 makes of them."""
    kernel = skew_weight(shape[1], 3, dtype=torch.float32)
    x, grad = (images(*shape, dtype=torch.float32, seed=s) for s in (1, 2))
    arguments = x, kernel, grad, ops.exp_series(1.3, degree=degree, method=method)
    return arguments, expected(*arguments)


SHAPES = [(3, 32, 8, 8), (5, 20, 7, 9), (2, 40, 5, 3), (64, 64, 4, 4), (1, 33, 1, 1), (2, 3, 33, 2)]


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("method", ["chebyshev", "taylor"])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape, degree, method, tile, vectors):
    (x, kernel, grad, series), wide = case(shape, degree, method)
    got = run(x, kernel, grad, series, tile)
    allowed = 1e-6 if tile == 2 else 3e-6
    for a, b in zip(got, wide, strict=True):
        assert relative_error(a, b) < allowed
    again = run(x, kernel, grad, series, tile, keep=False)  # recomputed: the same bits
    for a, b in zip(got, again, strict=True):
        assert torch.equal(a, b)


@needs_vectors
@pytest.mark.parametrize("channels", [32, 128])
def test_the_fine_tile_rounds_as_torch_does(channels):
    """The design's rule: at most twice eager's own error; the coarse tile is for training."""
    weight = images(channels, channels, 3, 3, dtype=torch.float32, seed=3) / channels**0.5
    kernel = 0.4 * ops.skew_kernel(weight).kernel  # of norm 1.2 or so
    x = images(4, channels, 8, 8, dtype=torch.float32)
    series = ops.exp_series(1.3, 1e-6)
    wide = reference(x.double(), kernel.double(), series)
    eager = relative_error(reference(x, kernel, series), wide)
    y, _ = series_op(channels_last(x), pack(kernel, 2), *numbers(series), 2, False)
    assert relative_error(y, wide) <= 2 * eager
    coarse, _ = series_op(channels_last(x), pack(kernel, 4), *numbers(series), 4, False)
    assert relative_error(coarse, wide) <= 10 * eager


@needs_vectors
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 9), st.integers(1, 70), st.integers(1, 10), st.integers(1, 10),
    st.integers(1, 5), st.sampled_from([2, 4]),
)  # fmt: skip
def test_shapes(n, c, h, w, degree, tile):
    kernel = skew_weight(c, 3, dtype=torch.float32) if c > 1 else torch.zeros(1, 1, 3, 3)
    x, grad = (images(n, c, h, w, dtype=torch.float32, seed=s) for s in (1, 2))
    series = ops.exp_series(1.2, degree=degree)
    got = run(x, kernel, grad, series, tile)
    assert got[0].shape == x.shape
    if n == 0:
        assert not got[2].any()
        return
    for a, b in zip(got, expected(x, kernel, grad, series), strict=True):
        assert relative_error(a, b) < 3e-6


@needs_vectors
@pytest.mark.parametrize("tile", [2, 4])
def test_bits_do_not_depend_on_threads_or_batch(tile):
    kernel = skew_weight(48, 3, dtype=torch.float32)
    x, grad = (images(37, 48, 6, 7, dtype=torch.float32, seed=s) for s in (1, 2))
    series = ops.exp_series(1.3, degree=4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(x, kernel, grad, series, tile)
        torch.set_num_threads(4)
        for a, b in zip(run(x, kernel, grad, series, tile), one, strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
    for part in (slice(0, 1), slice(3, 20)):
        y, grad_x, _ = run(x[part], kernel, grad[part], series, tile)
        assert torch.equal(y, one[0][part])
        assert torch.equal(grad_x, one[1][part])


def test_bits_do_not_depend_on_the_instruction_set(with_each_vectors):
    kernel = skew_weight(40, 3, dtype=torch.float32)
    x, grad = (images(5, 40, 6, 7, dtype=torch.float32, seed=s) for s in (1, 2))
    series = ops.exp_series(1.3, degree=4)
    results = with_each_vectors(lambda: [run(x, kernel, grad, series, t) for t in (2, 4)])
    for narrow, wide in zip(*results, strict=True):
        for a, b in zip(narrow[:2], wide[:2], strict=True):  # the kernel's sums are cut up by it
            assert torch.equal(a, b)
        assert relative_error(narrow[2], wide[2].double()) < 1e-6


@needs_vectors
@pytest.mark.parametrize("degree", [2, 9])  # training, with the coarse tile; certifying
def test_conv_exp_takes_it_in_any_layout(degree, monkeypatch):
    calls = []
    for name in ("_series", "_series_backward"):
        op = getattr(recurrence, name)
        monkeypatch.setattr(
            recurrence, name, lambda *a, op=op, name=name: (calls.append(name), op(*a))[1]
        )
    kernel = skew_weight(32, 3, dtype=torch.float32)
    x, grad = (images(3, 32, 8, 8, dtype=torch.float32, seed=s) for s in (1, 2))
    series = ops.exp_series(1.3, degree=degree)
    wanted = expected(x, kernel, grad, series)

    def check(x, kernel, grad):
        calls.clear()
        x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
        y = ops.conv_exp(x, kernel, radius=1.3, degree=degree)
        for a, b in zip(
            (y.detach(), *torch.autograd.grad(y, (x, kernel), grad)), wanted, strict=True
        ):
            assert relative_error(a, b) < 2e-6
        assert calls == ["_series", "_series_backward"]

    for laid in relayouts(x).values():
        check(laid, kernel, grad)
    for laid in relayouts(kernel).values():
        check(x, laid, grad)
    for laid in relayouts(grad).values():
        check(x, kernel, laid)
    x = x.requires_grad_()
    (only,) = torch.autograd.grad(ops.conv_exp(x, kernel, radius=1.3, degree=degree), x, grad)
    assert relative_error(only, wanted[1]) < 2e-6


def test_double_backward_of_float32():
    kernel = skew_weight(32, 3, dtype=torch.float32).requires_grad_()
    x = images(2, 32, 6, 6, dtype=torch.float32).requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x, kernel)]
    results = []
    for a, k in ((x, kernel), wide):
        y = ops.conv_exp(a, k, radius=1.3, degree=3)
        grads = torch.autograd.grad(y.square().sum(), (a, k), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), (a, k)))
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiles():
    kernel = skew_weight(32, 3, dtype=torch.float32).requires_grad_()
    x = images(2, 32, 8, 8, dtype=torch.float32).requires_grad_()

    def fn(x, kernel):
        return ops.conv_exp(x, kernel, radius=1.2, degree=3).square()

    y = torch.compile(fn, fullgraph=True, backend="aot_eager")(x, kernel)
    want = fn(x, kernel)
    assert torch.equal(y, want)
    for a, b in zip(
        torch.autograd.grad(y.sum(), (x, kernel)),
        torch.autograd.grad(want.sum(), (x, kernel)),
        strict=True,
    ):
        assert torch.equal(a, b)


@needs_vectors
def test_opcheck():
    x, grad = (channels_last(images(3, 24, 4, 5, dtype=torch.float32, seed=s)) for s in (1, 2))
    kernel = skew_weight(24, 3, dtype=torch.float32)
    torch.library.opcheck(pack, (kernel, 2))
    packed = pack(kernel, 2)
    series = ops.exp_series(1.2, degree=3)
    for keep in (False, True):
        torch.library.opcheck(series_op, (x, packed, *numbers(series), 2, keep))
    _, kept = series_op(x, packed, *numbers(series), 2, True)
    for given_kept in (None, kept):
        arguments = (grad, x, packed, given_kept, *numbers(series), 2)
        # Its work has a size of its own, which FakeTensors cannot be compared in.
        torch.library.opcheck(backward_op, arguments, test_utils="test_schema")
        _, work = backward_op(*arguments)
        torch.library.opcheck(gradient_op, (work, x, series.degree, 2))


@needs_vectors
def test_bad_input():
    x, kernel = channels_last(torch.zeros(1, 24, 4, 4)), torch.zeros(24, 24, 3, 3)
    packed = pack(kernel, 2)
    numbers = ([1.0, 1.0], 1.0, 1.0, 0.0)
    for call, message in [
        (lambda: pack(kernel[:, :, :, :1], 2), "kernel: got float32 .24, 24, 3, 1."),
        (lambda: pack(kernel.double(), 2), "kernel: got float64"),
        (lambda: pack(kernel, 3), "tile: got 3, want 2 or 4"),
        (lambda: series_op(x.double(), packed, *numbers, 2, False), "x: got float64"),
        (lambda: series_op(x.contiguous(), packed, *numbers, 2, False), "x: want channels_last"),
        (lambda: series_op(x, packed, *numbers, 4, False), "packed: got"),
        (lambda: series_op(x, packed, [1.0], *numbers[1:], 2, False), "coefficients: got 1"),
        (lambda: backward_op(x[:, :12], x, packed, None, *numbers, 2), "grad: got"),
        (lambda: backward_op(x, x, packed, x, *numbers, 2), "kept: got"),
        (lambda: gradient_op(packed, x, 1, 2), "work: got"),
        (lambda: gradient_op(packed, x, 0, 2), "degree: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
