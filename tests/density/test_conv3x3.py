"""The 3 x 3 convolutions of fast_double_backward: against float64, their bits, who takes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from robustcore import _C, density
from robustcore.ops.density import conv3x3 as topic
from testing import assert_same, check_repeatable, needs_vectors, relayouts

pytestmark = pytest.mark.kernel

conv3x3 = torch.ops.robustcore.conv3x3.default
weight_gradient = torch.ops.robustcore.conv3x3_weight_gradient.default


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def relative_error(got, want):
    return float((got.double() - want).norm() / want.norm().clamp(min=1e-30))


def check(x, weight, bias, grad, padding):
    """All three passes against float64."""
    y = conv3x3(x, weight, bias, *padding, False)
    grad_x = conv3x3(grad, weight, None, *[2 - p for p in padding], True)
    grad_weight = weight_gradient(grad, x, *padding)
    inputs = [t.double().requires_grad_() for t in (x, weight)]
    want = functional.conv2d(*inputs, bias.double(), padding=padding)
    assert y.shape == want.shape
    for got, expected in zip(
        (y, grad_x, grad_weight),
        (want.detach(), *torch.autograd.grad(want, inputs, grad.double())),
        strict=True,
    ):
        assert relative_error(got, expected) < 3e-6


CASES = [  # images, in, out, height, width
    (2, 16, 32, 8, 8), (3, 17, 33, 7, 9), (1, 48, 20, 5, 5), (2, 40, 70, 4, 4), (5, 3, 1, 2, 2),
    (33, 32, 32, 6, 6), (2, 64, 128, 16, 16), (32, 160, 96, 4, 4), (7, 20, 24, 1, 3),
    (1, 33, 16, 33, 31), (40, 24, 24, 3, 2), (2, 1, 5, 40, 3),
]  # fmt: skip


@pytest.mark.parametrize("last", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, last, vectors):
    n, channels, out, height, width = case
    x, weight, bias, grad = tensors(
        (n, channels, height, width), (out, channels, 3, 3), out, (n, out, height, width)
    )
    formats = [torch.channels_last if f else torch.contiguous_format for f in last]
    x, grad = (t.contiguous(memory_format=f) for t, f in zip((x, grad), formats, strict=True))
    check(x, weight, bias, grad, (1, 1))


@needs_vectors
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3, *[st.integers(1, 13)] * 2),
    padding=st.tuples(*[st.integers(0, 2)] * 2),
)
def test_any_sizes_and_padding(sizes, padding):
    n, channels, out, height, width = sizes
    n = min(n, 9)
    height, width = max(height, 3 - 2 * padding[0]), max(width, 3 - 2 * padding[1])
    shape = (n, out, height + 2 * padding[0] - 2, width + 2 * padding[1] - 2)
    check(*tensors((n, channels, height, width), (out, channels, 3, 3), out, shape), padding)


@pytest.mark.parametrize("case", [(37, 32, 48, 8, 8), (5, 64, 16, 20, 20), (16, 96, 96, 4, 4)])
def test_bits(case, vectors):
    # Of any number of threads; of an image whatever comes with it; of both layouts.
    n, channels, out, height, width = case
    x, weight, grad = tensors(
        (n, channels, height, width), (out, channels, 3, 3), (n, out, height, width)
    )
    check_repeatable(lambda: conv3x3(x, weight, None, 1, 1, False))
    check_repeatable(lambda: weight_gradient(grad, x, 1, 1))
    y = conv3x3(x, weight, None, 1, 1, False)
    assert_same(y[3:4], conv3x3(x[3:4].contiguous(), weight, None, 1, 1, False))
    last = x.contiguous(memory_format=torch.channels_last)
    y_last = conv3x3(last, weight, None, 1, 1, False)
    assert y_last.is_contiguous(memory_format=torch.channels_last)
    assert_same(y_last, y)
    assert_same(weight_gradient(grad, last, 1, 1), weight_gradient(grad, x, 1, 1))


def test_instruction_sets_agree(with_each_vectors):
    x, weight, grad = tensors((6, 40, 9, 9), (40, 40, 3, 3), (6, 40, 9, 9))
    narrow, wide = with_each_vectors(
        lambda: (conv3x3(x, weight, None, 1, 1, False), weight_gradient(grad, x, 1, 1))
    )
    assert_same(narrow[0], wide[0])
    # Sums over the batch are cut up by the width of a vector.
    torch.testing.assert_close(narrow[1], wide[1])


def second_order(fn, *inputs):
    """The gradients of a penalty on the input's gradient, and a value of third order."""
    x, *others = (t.detach().requires_grad_() for t in inputs)
    y = fn(x, *others)
    (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    firsts = torch.autograd.grad(g.square().sum() + y.cos().sum(), (x, *others), create_graph=True)
    (third,) = torch.autograd.grad(sum(f.square().sum() for f in firsts), others[0])
    return [y.detach(), *[f.detach() for f in firsts], third]


@pytest.mark.parametrize("padding", [0, 1, (2, 1), 3])
def test_a_layer_to_third_order(padding, vectors):
    inputs = tensors((4, 16, 8, 8), (20, 16, 3, 3), 20)

    def fn(x, weight, bias):
        return functional.conv2d(x * 0.1, weight * 0.1, bias, padding=padding)

    want = second_order(fn, *[t.double() for t in inputs])
    with density.fast_double_backward():
        got = second_order(fn, *inputs)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 3e-6


@needs_vectors
def test_strides_of_sizes_of_1(vectors):
    # Channels last to torch, whatever the stride of the width is.
    x = tensors((2, 64, 16))[0].transpose(1, 2).unsqueeze(3)
    weight, bias, grad = tensors((16, 16, 3, 3), 16, (2, 16, 64, 1))
    check(x, weight, bias, grad.contiguous(memory_format=torch.channels_last), (1, 1))


@needs_vectors  # torch's own convolutions differ more from one layout to another
@pytest.mark.parametrize("layout", relayouts(torch.zeros(2, 16, 8, 8)))
def test_any_layout(layout):
    x, weight = tensors((2, 16, 8, 8), (16, 16, 3, 3))

    def gradients(x, weight):
        with density.fast_double_backward():
            return second_order(lambda x, w: functional.conv2d(x, w, padding=1), x, weight)

    want = gradients(x, weight)
    for a, b in zip(gradients(relayouts(x)[layout], weight), want, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients(x, relayouts(weight)[layout]), want, strict=True):
        torch.testing.assert_close(a, b)


def test_who_takes_it(monkeypatch):
    taken = []
    monkeypatch.setattr(topic, "_conv3x3", lambda *a: taken.append(a[0].shape) or conv3x3(*a))

    def run(x, weight, **kwargs):
        taken.clear()
        with density.fast_double_backward():
            functional.conv2d(x.requires_grad_(), weight, **kwargs)
        return bool(taken)

    has = _C.build_info()["simd"] != "baseline"
    x, weight = tensors((2, 16, 8, 8), (16, 16, 3, 3))
    assert run(x, weight, padding=1) == has
    assert run(x, weight) == has
    assert not run(x, weight, padding=3)
    assert not run(x, weight, stride=2)
    assert not run(x, weight, dilation=2)
    assert not run(x, weight[:, :8], groups=2)
    assert not run(x, weight[:, :, :1], padding=1)
    assert not run(x[:, :3], weight[:, :3], padding=1)
    assert not run(x[:, :, :2, :2], weight, padding=1)  # little to do
    assert not run(x[:0], weight, padding=1)
    assert not run(x.detach().double(), weight.double(), padding=1)
    assert not run(x.detach().bfloat16(), weight.bfloat16(), padding=1)


def test_vmap():
    x, weight = tensors((3, 2, 16, 8, 8), (3, 16, 16, 3, 3))
    weight *= 0.1

    def fn(x, weight):
        return functional.conv2d(x, weight, padding=1).sin().sum()

    def penalty(x, weight):
        return torch.func.grad(lambda w: torch.func.grad(fn)(x, w).square().sum())(weight)

    with density.fast_double_backward():
        got = torch.func.vmap(penalty)(x, weight), torch.func.vmap(penalty, (0, None))(x, weight[0])
    want = [torch.stack([penalty(a, b) for a, b in zip(x, w, strict=True)])
            for w in (weight, weight[:1].expand_as(weight))]  # fmt: skip
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_vectors
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    x, weight, bias = tensors((2, 16, 5, 6), (20, 16, 3, 3), 20)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(conv3x3, (x, weight, bias, 1, 1, False), test_utils=tests)
    y = conv3x3(x, weight, bias, 1, 0, False)
    torch.library.opcheck(conv3x3, (y, weight, None, 1, 2, True), test_utils=tests)
    torch.library.opcheck(weight_gradient, (y, x, 1, 0), test_utils=tests)


@needs_vectors
def test_errors():
    x, weight, bias = tensors((2, 16, 5, 6), (20, 16, 3, 3), 20)
    grad = conv3x3(x, weight, bias, 1, 1, False)
    for match, arguments in {
        "x: got shape": (x[0], weight, None, 1, 1, False),
        "x: got float64": (x.double(), weight, None, 1, 1, False),
        "x: want it contiguous or channels_last": (x[..., ::2], weight, None, 1, 1, False),
        "x: got shape .* does not fit": (x[..., :2].contiguous(), weight, None, 1, 0, False),
        "weight: got float32 of shape .20, 16, 3, 3., want .* 20 channels": (
            grad, weight, None, 1, 1, False),
        "bias: got float32 of shape .16": (x, weight, bias[:16], 1, 1, False),
        "padding: got .-1, 1": (x, weight, None, -1, 1, False),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=match):
            conv3x3(*arguments)
    with pytest.raises(ValueError, match=r"grad: got shape .2, 20, 5, 5.* want .2, \*, 5, 6"):
        weight_gradient(grad[..., :5].contiguous(), x, 1, 1)
