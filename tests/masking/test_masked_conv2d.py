"""ops.masked_conv2d: against the published rule, derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from masking.inputs import case
from masking.reference import fill, times, window_max
from robustcore import ops
from testing import assert_close, assert_same, check_gradients


def arguments(conv):
    return (conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


SIDES = st.sampled_from([1, 2, 3, 4, 5])


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(SIDES, SIDES), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)), st.sampled_from([1, 2, 4]),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_equals_the_published_rule(kernel, stride, padding, dilation, groups, bias, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias, dtype=torch.float64)
    x, mask = case(h=16, w=15, share=0.08, seed=seed)
    y, out_mask = ops.masked_conv2d(x, mask, *arguments(conv))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    want_mask = window_max(mask, conv)
    want = times(conv(fill(x, mask, max(spans) + 1)), want_mask)
    assert_same(out_mask, want_mask)
    assert_close(y, want)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("kernel", [2, 3, (1, 4), (5, 3)])
def test_same_padding(kernel):
    conv = nn.Conv2d(4, 3, kernel, padding="same", dtype=torch.float64)
    x, mask = case()
    y, out_mask = ops.masked_conv2d(x, mask, *arguments(conv))
    assert_same(out_mask, window_max(mask, conv))
    assert_close(y, times(conv(fill(x, mask, 6)), out_mask))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_epilogue(relu, last):
    conv = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
    x, mask = case()
    if last:
        x, conv = (t.to(memory_format=torch.channels_last) for t in (x, conv))
    scale, shift = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    plain, out_mask = ops.masked_conv2d(x, mask, *arguments(conv), iters=2)
    y = conv(ops.neighbor_fill(x, mask, 2)) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    want = times(y.relu() if relu else y, out_mask)
    for tracked in (torch.enable_grad(), torch.no_grad()):
        with tracked:
            got, _ = ops.masked_conv2d(
                x, mask, *arguments(conv), scale=scale, shift=shift, relu=relu
            )
            assert_close(got.detach(), want.detach())
    assert (plain[(out_mask == 0).expand_as(plain)] == 0).all()


def test_a_partial_convolution():
    """As published but for the border: a window's share is of what lies in the image."""
    conv = nn.Conv2d(4, 5, 3, stride=2, dtype=torch.float64)  # no padding: exactly as published
    x, mask = case(share=0.5)
    y, out_mask = ops.masked_conv2d(x, mask, *arguments(conv), fill="partial")
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    seen = functional.conv2d(mask, ones, stride=2)
    b = conv.bias.view(-1, 1, 1)
    want = ((conv(x * mask) - b) * (9 / (seen + 1e-8)) + b) * seen.clamp(0, 1)
    torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-6)
    assert_same(out_mask, (seen > 0).double())
    padded = nn.Conv2d(4, 5, 3, padding=1, dtype=torch.float64)
    whole = torch.ones_like(mask)
    got, _ = ops.masked_conv2d(x, whole, *arguments(padded), fill="partial")
    assert_same(got, padded(x))
    none, _ = ops.masked_conv2d(x, 0 * whole, *arguments(padded), fill="partial")
    assert (none == 0).all()


@pytest.mark.parametrize("fill_mode", ["neighbor", "zero", "partial"])
def test_derivatives(fill_mode):
    x, mask = case(2, 2, 5, 4, share=0.3)
    w, b = torch.randn(4, 1, 3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    scale, shift = torch.rand(4, dtype=torch.float64) + 0.5, torch.randn(4, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, w, b, scale, shift)]

    def f(x, w, b, scale, shift):
        # detach: what is filled counts as given, so only its zeros are compared with differences.
        y, _ = ops.masked_conv2d(
            x, mask, w, b, 1, 1, 1, 2, fill=fill_mode, scale=scale, shift=shift, relu=False
        )
        return y

    if fill_mode == "neighbor":
        x = x.detach()
        check_gradients(lambda w, b, s, t: f(x, w, b, s, t), *inputs[1:])
    else:
        check_gradients(f, *inputs)


def test_derivatives_of_the_relu():
    x, mask = case(1, 3, 4, 4, share=0.6)
    x = (x + x.sign()).requires_grad_()  # away from the corner
    scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([0.1, 0.2, -0.1], dtype=torch.float64, requires_grad=True)
    eye = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)

    def f(x, scale, shift):
        return ops.masked_conv2d(x, mask, eye, scale=scale, shift=shift, relu=True)[0]

    check_gradients(f, x, scale, shift)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_low_precision(dtype):
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x, mask = case(dtype=torch.float32)
    want, _ = ops.masked_conv2d(x, mask, *arguments(conv), relu=True)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        got, out_mask = ops.masked_conv2d(x, mask.bool(), *arguments(conv), relu=True)
    assert got.dtype == dtype
    assert out_mask.dtype == torch.float32
    assert_close(got, want.detach())


def test_vmap():
    x, mask = case(2, 4, 6, 5)
    w = torch.randn(3, 5, 4, 3, 3, dtype=torch.float64)
    scale = torch.randn(3, 5, dtype=torch.float64)
    got = torch.func.vmap(lambda w, s: ops.masked_conv2d(x, mask, w, padding=1, scale=s)[0])(
        w, scale
    )
    want = [
        ops.masked_conv2d(x, mask, a, padding=1, scale=s)[0] for a, s in zip(w, scale, strict=True)
    ]
    assert_close(got, torch.stack(want))
