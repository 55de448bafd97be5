"""ops.grad_norm: values, safety at zero, layouts, dtypes, derivatives, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from robustcore.ops.density.grad_norm import dual_direction, norm_curvature_any_order
from testing import (
    assert_close,
    assert_same,
    check_gradients,
    check_repeatable,
    relayouts,
    shapes,
)

pytestmark = pytest.mark.kernel

INF = float("inf")
P = [1.0, 1.5, 2.0, 3.0, 7.5, INF]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
raw = torch.ops.robustcore


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(g, p):
    return torch.linalg.vector_norm(g.double().flatten(1), p, dim=1)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 4, 5), (2, 1025), (1, 3, 40, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference(p, shape, dtype, device):
    g = normal(*shape, dtype=dtype).to(device).requires_grad_()
    norm = ops.grad_norm(g, p)
    assert norm.dtype == dtype
    assert_close(norm, reference(g, p))
    (dual,) = torch.autograd.grad(norm.sum(), g)
    wide = g.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(reference(wide, p).sum(), wide)
    assert_close(dual, want)


@pytest.mark.parametrize("p", P)
def test_nothing_overflows_or_vanishes(p):
    g = normal(1, 50)
    for scale in (1e-42, 1e-30, 1e-20, 1e18, 1e36):
        norm = ops.grad_norm(g * scale, p)
        torch.testing.assert_close(
            norm.double(), reference(g * scale, p), rtol=1e-5 if scale > 1e-40 else 0.1, atol=0
        )
        v = dual_direction(g * scale, p)
        if scale > 1e-40:
            torch.testing.assert_close(
                (v * (g * scale)).double().sum(1), norm.double(), rtol=1e-5, atol=0
            )


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_safe_in_every_derivative(p, dtype):
    g = normal(3, 6, dtype=dtype)
    g[1] = 0
    g[2, ::2] = 0
    g.requires_grad_()
    norm = ops.grad_norm(g, p)
    assert norm[1] == 0
    (first,) = torch.autograd.grad(norm.sum(), g, create_graph=True)
    assert (first[1] == 0).all()
    assert (first[2, ::2] == 0).all()
    (second,) = torch.autograd.grad((first * normal(3, 6, dtype=dtype)).sum(), g, create_graph=True)
    assert second.isfinite().all()
    assert (second[1] == 0).all()
    if p == 2:
        (third,) = torch.autograd.grad(second.square().sum(), g)
        assert third.isfinite().all()
        assert (third[1] == 0).all()


def test_ties_at_infinity_share():
    g = torch.tensor([[2.0, -2.0, 1.0, 0.0]], requires_grad=True)
    (dual,) = torch.autograd.grad(ops.grad_norm(g, INF).sum(), g)
    assert dual.tolist() == [[0.5, -0.5, 0, 0]]


@pytest.mark.parametrize("p", P)
def test_infinity_and_nan(p):
    g = torch.ones(3, 2000)
    g[0, 1500] = -INF
    g[1, 1500] = float("nan")
    norm = ops.grad_norm(g, p)
    assert norm[0] == INF
    assert norm[1].isnan()
    assert norm[2].isfinite()


@pytest.mark.parametrize("p", P)
def test_any_layout_in(p):
    g = normal(2, 3, 8, 6)
    expected = ops.grad_norm(g, p), dual_direction(g, p)
    for laid in relayouts(g).values():
        assert_same(ops.grad_norm(laid, p), expected[0])
        assert_same(dual_direction(laid, p), expected[1])


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), p=st.sampled_from(P), dtype=st.sampled_from(DTYPES))
def test_shapes(shape, p, dtype):
    g = normal(*shape, dtype=dtype)
    norm = ops.grad_norm(g, p)
    assert norm.shape == (shape[0],)
    if g.numel():
        assert_close(norm, reference(g.view(shape[0], -1), p), dtype)
    else:
        assert (norm == 0).all()


def test_instruction_sets_agree(simd):
    def run():
        for p in P:
            for shape in ((3, 5), (2, 3, 40, 30)):
                for dtype in DTYPES:
                    yield ops.grad_norm(normal(*shape, dtype=dtype), p)
                    yield dual_direction(normal(*shape, dtype=dtype), p)
                    yield from double_backward(normal(*shape), p, dtype)

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("p", P)
def test_devices_agree_to_the_bit(p):
    # Of a warp a row, of a block, and of several.
    for shape in ((3, 5), (2, 3, 40, 30), (400, 2, 1100), (2, 3, 224, 224), (3, 3, 101, 103)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            g = normal(*shape, dtype=dtype)
            assert_same(ops.grad_norm(g.cuda(), p).cpu(), ops.grad_norm(g, p))
            assert_same(dual_direction(g.cuda(), p).cpu(), dual_direction(g, p))
            for got, want in zip(
                double_backward(g.cuda(), p, dtype), double_backward(g, p, dtype), strict=True
            ):
                assert_same(got.cpu(), want)


@pytest.mark.parametrize("p", P)
def test_gradients(p, device):
    g = normal(3, 2, 4, dtype=torch.float64).to(device).requires_grad_()
    check_gradients(lambda g: ops.grad_norm(g, p), g)


def double_backward(g, p, dtype=torch.float32):
    """The fused second derivative, of cotangents and upstream that depend on the shape alone."""
    g = g.to(dtype)
    v = normal(*g.shape, seed=1, dtype=dtype).to(g.device)
    norm = raw.grad_norm(g, p)
    upstream = normal(len(g), seed=2, dtype=norm.dtype).to(g.device)
    return raw.grad_norm_double_backward(v, upstream, g, norm, p)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 4, 5), (2, 1025), (1, 3, 40, 40), (4,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_second_derivative_in_one_pass(p, shape, dtype, device):
    # Against the one that can be differentiated again, in float64.
    g = normal(*shape, dtype=dtype).to(device)
    g[0] = 0
    if len(shape) > 1 and shape[0] > 1:
        g[1].view(-1)[::2] = 0
    dot, curvature = double_backward(g, p, dtype)
    wide = g.double()
    v = normal(*shape, seed=1, dtype=dtype).to(device).double()
    upstream = normal(shape[0], seed=2, dtype=dot.dtype).to(device).double()
    want = norm_curvature_any_order(v, upstream, wide, p)
    assert_close(dot, want[0])
    assert_close(curvature, want[1])
    assert (curvature[0] == 0).all()


@pytest.mark.parametrize("p", P)
def test_the_second_derivative_of_any_layout(p):
    g = normal(2, 3, 8, 6)
    expected = double_backward(g, p)
    for laid in relayouts(g).values():
        for got, want in zip(double_backward(laid, p), expected, strict=True):
            assert_same(got, want)


@pytest.mark.parametrize("p", [2.0, 3.0])
def test_third_derivative(p):
    g = normal(2, 5, dtype=torch.float64).requires_grad_()

    def curvature(g):
        (w,) = torch.autograd.grad(ops.grad_norm(g, p).sum(), g, create_graph=True)
        return torch.autograd.grad(w.sin().sum(), g, create_graph=True)[0]

    assert torch.autograd.gradcheck(curvature, (g,))


def test_repeatable():
    g = normal(40, 3, 32, 32)
    check_repeatable(lambda: ops.grad_norm(g, 2.0))
    check_repeatable(lambda: dual_direction(g, INF))


def test_opcheck_and_vmap():
    g = normal(3, 2, 4)
    norm = ops.grad_norm(g, 2.0)
    torch.library.opcheck(raw.grad_norm.default, (g, 2.0))
    torch.library.opcheck(raw.grad_norm_backward.default, (norm, g, norm, 2.0))
    torch.library.opcheck(raw.grad_norm_double_backward.default, (g, norm, g, norm, 2.0))
    with pytest.raises(ValueError, match="v: got float32 of shape"):
        raw.grad_norm_double_backward(g[:2], norm, g, norm, 2.0)
    stack = normal(4, 3, 5)
    torch.testing.assert_close(
        torch.func.vmap(lambda g: ops.grad_norm(g, 1.0))(stack), stack.abs().sum(2)
    )
    each = torch.func.vmap(torch.func.grad(lambda g: ops.grad_norm(g).sum()))(stack)
    torch.testing.assert_close(each, stack / stack.norm(dim=2, keepdim=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(p=0.5), "p: got 0.5, want at least 1"),
        (dict(p=float("nan")), "p: got nan"),
        (dict(p="2"), "p: got '2'"),
        (dict(grad=np.zeros(3)), "grad: got ndarray"),
        (dict(grad=torch.tensor(1.0)), "grad: got a 0-d tensor"),
        (dict(grad=torch.zeros(2, 3, dtype=torch.int32)), "grad: got torch.int32"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.grad_norm(**{"grad": torch.zeros(2, 3), "p": 2.0, **change})
