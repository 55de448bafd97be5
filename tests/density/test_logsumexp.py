"""ops.logsumexp: values, extremes, layouts, dtypes, derivatives, invariances, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from testing import (
    assert_close,
    assert_same,
    check_gradients,
    check_repeatable,
    relayouts,
    shapes,
)

pytestmark = pytest.mark.kernel

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LOW = [torch.float16, torch.bfloat16]
SHAPES = [
    (1, 1),
    (3, 1),
    (1, 7),
    (5, 10),
    (4, 32),
    (3, 33),
    (6, 100),
    (2, 1023),
    (2, 1025),
    (3, 5000),
]
INF, NAN = float("inf"), float("nan")
raw = torch.ops.robustcore


def normal(*shape, scale=3.0, seed=0, dtype=torch.float32):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def derivatives(fn, z, g, v):
    """fn's value, its gradient along g, and the gradient of that along v."""
    z, g = z.detach().clone().requires_grad_(), g.clone().requires_grad_()
    value = fn(z)
    (first,) = torch.autograd.grad(value, z, g, create_graph=True)
    second = torch.autograd.grad(first, (g, z), v)
    return value.detach(), first.detach(), *second


def reference(z, g, v):
    """The same in float64, from the formulas."""
    z, g, v = z.double(), g.double(), v.double()
    p = z.softmax(1)
    s = (p * v).sum(1)
    weight = g[:, None] * p
    return z.logsumexp(1), weight, s, weight * (v - s[:, None])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_reference(shape, dtype, device):
    z, g, v = (t.to(device, dtype) for t in (normal(*shape), normal(shape[0]), normal(*shape)))
    g_scale, v_scale = g.abs().max(), v.abs().max().clamp(min=1)
    scales = z.abs().max().clamp(min=1), g_scale, v_scale, g_scale * v_scale  # v - <p, v> cancels
    results = zip(derivatives(ops.logsumexp, z, g, v), reference(z, g, v), scales, strict=True)
    for got, want, scale in results:
        assert got.dtype == dtype
        assert_close(got / scale, want / scale)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("shape", SHAPES)
def test_low_precision(shape, dtype):
    # As near to float64 as eager to within a factor of two, and half an ulp where eager is exact.
    z, g, v = (normal(*s, dtype=dtype) for s in (shape, shape[:1], shape))
    wanted = reference(z, g, v)
    ours = derivatives(ops.logsumexp, z, g, v)
    eager = derivatives(lambda t: t.logsumexp(1), z, g, v)
    for got, other, want in zip(ours, eager, wanted, strict=True):
        ulp = torch.finfo(dtype).eps * want.abs().max()
        error, limit = ((t.double() - want).abs().max() for t in (got, other))
        assert error <= 2 * limit + ulp / 2


def test_extremes():
    rows = torch.tensor(
        [
            [-INF, -INF, -INF],
            [INF, 0.0, 1.0],
            [-INF, 2.0, -INF],
            [NAN, 0.0, 1.0],
            [1e4, 1e4, -1e4],
            [3e38, 3e38, -3e38],
            [-3e38, -3e38, -INF],
            [INF, INF, -INF],
        ],
        requires_grad=True,
    )
    lse = ops.logsumexp(rows)
    expected = torch.tensor([-INF, INF, 2.0, NAN, 1e4 + float(np.log(2)), 3e38, -3e38, INF])
    torch.testing.assert_close(lse, expected, equal_nan=True)
    (grad,) = torch.autograd.grad(lse.sum(), rows)
    assert (grad[0] == 0).all()
    torch.testing.assert_close(grad[1], torch.tensor([NAN, 0.0, 0.0]), equal_nan=True)
    assert grad[2].tolist() == [0, 1, 0]
    assert grad[3, 0].isnan()
    torch.testing.assert_close(grad[4], torch.tensor([0.5, 0.5, 0.0]), rtol=1e-3, atol=0)


def test_extremes_in_long_rows():
    # Segments meet: each case once within a segment and once across two.
    for first, second in [(0, 5), (0, 2000), (2000, 0)]:
        z = torch.full((4, 3000), -INF)
        z[1, [first, second]] = torch.tensor([INF, 7.0])
        z[2, [first, second]] = torch.tensor([-1e4, 1e4])
        z[3, [first, second]] = torch.tensor([NAN, 7.0])
        expected = torch.tensor([-INF, INF, 1e4, NAN])
        torch.testing.assert_close(ops.logsumexp(z), expected, equal_nan=True)


def test_float16_logits_that_overflow_exp():
    z = torch.tensor([[6e4, 6e4], [-6e4, -6e4]], dtype=torch.float16)
    torch.testing.assert_close(ops.logsumexp(z), z[:, 0])


def test_one_hot_saturation():
    z = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    (p,) = torch.autograd.grad(ops.logsumexp(z).sum(), z, create_graph=True)
    assert p.tolist() == [[1, 0, 0]]
    (h,) = torch.autograd.grad((p * torch.tensor([[1.0, 2.0, 3.0]])).sum(), z)
    assert (h == 0).all()


@pytest.mark.parametrize("shape", [(0, 5), (0, 1)])
def test_empty_batch(shape):
    z = torch.zeros(shape, requires_grad=True)
    lse = ops.logsumexp(z)
    assert lse.shape == (0,)
    (p,) = torch.autograd.grad(lse.sum(), z, create_graph=True)
    assert torch.autograd.grad(p.sum(), z)[0].shape == shape


def test_exp_is_exact_to_an_ulp():
    x = torch.cat([torch.linspace(-104, 89, 400_001), torch.tensor([0.0, -0.0, -INF, INF])])
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    got = raw.logsumexp_backward(one, x.unsqueeze(1), zero).squeeze(1)
    want = x.double().exp()
    normals = (want > 2.0**-126) & (want < 3.4e38)
    assert ((got.double() - want) / want)[normals].abs().max() < 2**-23
    assert (got[want < 2.0**-126].double() - want[want < 2.0**-126]).abs().max() <= 2.0**-149
    assert (got[want >= 3.41e38] == INF).all()
    assert (got[x == 0] == 1).all()
    assert (x == 0).sum() >= 2


def test_any_layout_in(device):
    z, g, v = normal(6, 40).to(device), normal(6).to(device), normal(6, 40, seed=1).to(device)
    expected = derivatives(ops.logsumexp, z, g, v)
    for laid in relayouts(z).values():
        for other in relayouts(v).values():
            lse = raw.logsumexp(laid)
            dot, curvature = raw.logsumexp_double_backward(other, g, laid, lse)
            results = lse, raw.logsumexp_backward(g, laid, lse), dot, curvature
            for got, want in zip(results, expected, strict=True):
                assert_same(got, want)
    row = z[:1].expand_as(z)
    assert_same(ops.logsumexp(row), ops.logsumexp(row.contiguous()))


@settings(max_examples=40, deadline=None)
@given(shape=shapes(2, 2, 40), transpose=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_shapes(shape, transpose, dtype):
    z = normal(*shape, dtype=dtype)
    z = z.t() if transpose else z
    if z.shape[1] == 0:
        with pytest.raises(ValueError, match="at least one class"):
            ops.logsumexp(z)
    else:
        assert_close(ops.logsumexp(z), z.double().logsumexp(1), dtype)


def test_instruction_sets_agree(simd):
    def run():
        for shape in SHAPES:
            for dtype in DTYPES:
                z, g, v = normal(*shape, dtype=dtype), normal(shape[0], dtype=dtype), normal(*shape)
                yield from derivatives(ops.logsumexp, z, g, v.to(dtype))

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [*SHAPES, (3, 50_000), (2, 9001), (1200, 2100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_devices_agree_to_the_bit(shape, dtype):
    inputs = normal(*shape, dtype=dtype), normal(shape[0], dtype=dtype), normal(*shape, dtype=dtype)
    cpu = derivatives(ops.logsumexp, *inputs)
    gpu = derivatives(ops.logsumexp, *(t.cuda() for t in inputs))
    for a, b in zip(cpu, gpu, strict=True):
        assert_same(b.cpu(), a)


def test_repeatable_and_independent_of_the_batch():
    z = normal(500, 200)
    check_repeatable(lambda: ops.logsumexp(z))
    check_repeatable(lambda: derivatives(ops.logsumexp, z, normal(500), normal(500, 200))[3])
    parts = [ops.logsumexp(part) for part in z.split(7)]
    assert_same(torch.cat(parts), ops.logsumexp(z))


def test_gradients(device):
    z = normal(4, 6, dtype=torch.float64).to(device).requires_grad_()
    check_gradients(ops.logsumexp, z)


def test_third_and_fourth_derivatives():
    z = normal(2, 4, dtype=torch.float64).requires_grad_()
    weight = torch.arange(8.0, dtype=torch.float64).view(2, 4)

    def hessian_product(z):
        (p,) = torch.autograd.grad(ops.logsumexp(z).sum(), z, create_graph=True)
        return torch.autograd.grad((p * weight).sin().sum(), z, create_graph=True)[0]

    check_gradients(hessian_product, z)


def test_only_logits_and_the_result_are_kept():
    saved = []
    z = normal(64, 100).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.logsumexp(z)
    assert sorted(t.numel() for t in saved if t is not z and t.data_ptr() != z.data_ptr()) == [64]


def test_opcheck(device):
    z = normal(3, 5).to(device).requires_grad_()
    lse = raw.logsumexp(z.detach())
    g, v = normal(3).to(device), normal(3, 5).to(device)
    torch.library.opcheck(raw.logsumexp.default, (z.detach(),))
    torch.library.opcheck(raw.logsumexp_backward.default, (g, z.detach(), lse))
    torch.library.opcheck(raw.logsumexp_double_backward.default, (v, g, z.detach(), lse))


def test_torch_func():
    z, v = normal(3, 5, dtype=torch.float64), normal(3, 5, seed=1, dtype=torch.float64)
    f = lambda z: ops.logsumexp(z).sum()  # noqa: E731
    torch.testing.assert_close(torch.func.grad(f)(z), z.softmax(1))
    stack = torch.stack([z, v])
    expected = torch.stack([z.softmax(1), v.softmax(1)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(stack), expected)
    torch.testing.assert_close(
        torch.func.vmap(ops.logsumexp, in_dims=2)(stack.permute(1, 2, 0)), stack.logsumexp(2)
    )
    hessian = torch.func.jacrev(torch.func.jacrev(f))(z[:1])
    p = z[0].softmax(0)
    torch.testing.assert_close(hessian[0, :, 0, :], p.diag() - p.outer(p))


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")  # of torch's own jvp
def test_forward_mode_is_refused_not_wrong():
    z = normal(3, 5)
    for op in (ops.logsumexp, ops.grad_norm, lambda z: ops.linear_logsumexp(z, z)):
        with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
            torch.func.jvp(op, (z,), (z,))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile():
    compiled = torch.compile(lambda z: ops.logsumexp(2 * z).sin().sum(), fullgraph=True)
    for rows in (3, 4, 5):
        z = normal(rows, 6).requires_grad_()
        compiled(z).backward()
        want = z.detach().clone().requires_grad_()
        (2 * want).logsumexp(1).sin().sum().backward()
        torch.testing.assert_close(z.grad, want.grad)


def test_autocast_leaves_it_alone():
    z = normal(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(ops.logsumexp(z), ops.logsumexp(z.clone()))
        assert ops.logsumexp(z).dtype == torch.float32


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 3)), "logits: got ndarray"),
        (torch.zeros(2, 3, dtype=torch.int64), "logits: got torch.int64"),
        (torch.zeros(3), r"logits: got shape \[3\], want \[N, K\]"),
        (torch.zeros(2, 0), "at least one class"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.logsumexp(bad)


def test_raw_ops_check_what_they_are_given():
    z, lse, g = torch.zeros(2, 3), torch.zeros(2), torch.zeros(2)
    with pytest.raises(ValueError, match=r"grad: got .* want float32 of shape \[2\]"):
        raw.logsumexp_backward(torch.zeros(3), z, lse)
    with pytest.raises(ValueError, match="lse: got float64"):
        raw.logsumexp_backward(g, z, lse.double())
    with pytest.raises(ValueError, match=r"v: got .* want float32 of shape \[2, 3\]"):
        raw.logsumexp_double_backward(torch.zeros(2, 4), g, z, lse)
