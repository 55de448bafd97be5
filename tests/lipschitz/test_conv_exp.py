"""ops.conv_exp: against the exponential of the dense matrix, gradients, layouts, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz.dense import basis, convolution_matrix, skew_weight
from robustcore import ops
from testing import TOLERANCE, assert_close, check_gradients, relayouts

METHODS = ["chebyshev", "taylor"]


def exact(x, kernel):
    """exp of the dense matrix, applied to x."""
    x, kernel = x.double(), kernel.double()
    matrix = torch.linalg.matrix_exp(convolution_matrix(kernel, *x.shape[2:]))
    return (x.flatten(1) @ matrix.T).reshape(x.shape)


def images(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(x, kernel, series):
    """The recurrence in torch operations, in x's precision."""
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    after, current = None, series.coefficients[-1] * x
    for k in range(series.degree - 1, -1, -1):
        step = series.step if k else series.first
        u = series.coefficients[k] * x + step * torch.conv2d(current, kernel, padding=padding)
        if after is not None:
            u = u + series.carry * after
        after, current = current, u
    return current


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("contractive", [False, True])
@pytest.mark.parametrize("choice", [dict(tol=1e-3), dict(tol=1e-9), dict(degree=1), dict(degree=5)])
def test_error_and_norm_are_what_the_series_says(method, contractive, choice):
    kernel = skew_weight(3, 3, norm=1.4)
    matrix = convolution_matrix(kernel, 5, 4)
    radius = float(ops.conv_norm_bound(kernel))
    series = ops.exp_series(radius, **choice, method=method, contractive=contractive)
    got = ops.conv_exp(
        basis(3, 5, 4), kernel, radius=radius, **choice, method=method, contractive=contractive
    )
    got = got.flatten(1).T
    error = torch.linalg.matrix_norm(got - torch.linalg.matrix_exp(matrix), 2)
    assert error <= series.error + 1e-14
    if not contractive:
        assert error > series.error / 200  # the bound is not idle
    assert torch.linalg.matrix_norm(got, 2) <= series.lipschitz + 1e-14
    assert series.lipschitz == 1 if contractive else series.lipschitz > 1
    if "tol" in choice:
        assert series.error <= choice["tol"]
        lower = ops.exp_series(
            radius, degree=series.degree - 1, method=method, contractive=contractive
        )
        assert lower.error > choice["tol"]


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 3)])
def test_default_is_the_exponential(side, shape):
    kernel = skew_weight(4, side, norm=1.0)
    x = images(2, 4, *shape)
    assert_close(ops.conv_exp(x, kernel, radius=1.5), exact(x, kernel))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [1, 3])
def test_low_precision_is_as_good_as_torch(dtype, side, device):
    kernel = skew_weight(8, side, dtype=dtype)
    x = images(4, 8, 6, 5, dtype=dtype)
    series = ops.exp_series(1.5, degree=4)
    wide = reference(x.double(), kernel.double(), series)
    got = ops.conv_exp(x.to(device), kernel.to(device), radius=1.5, degree=4).cpu()
    eager = reference(x, kernel, series)
    assert got.dtype == dtype
    allowed = 2 * (eager.double() - wide).abs().max() + TOLERANCE[dtype]
    assert (got.double() - wide).abs().max() <= allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("degree", [1, 2, 3, 6])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_the_polynomial(method, degree, recompute):
    x = images(2, 3, 4, 3).requires_grad_()
    kernel = skew_weight(3, 3).requires_grad_()
    series = ops.exp_series(1.2, degree=degree, method=method)
    grad = images(2, 3, 4, 3, seed=2)
    kwargs = dict(radius=1.2, degree=degree, method=method, recompute=recompute)
    y = ops.conv_exp(x, kernel, **kwargs)
    expected_y = reference(x, kernel, series)
    assert_close(y, expected_y)
    expected = torch.autograd.grad(expected_y, (x, kernel), grad)
    got = torch.autograd.grad(y, (x, kernel), grad)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)
    for wanted in ((x, kernel.detach()), (x.detach(), kernel)):
        (one,) = torch.autograd.grad(
            ops.conv_exp(*wanted, **kwargs), [t for t in wanted if t.requires_grad], grad
        )
        assert_close(one, expected[0] if wanted[0].requires_grad else expected[1])


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("choice", [dict(degree=3), dict(tol=1e-6)])
def test_finite_differences(side, choice):
    weight = images(2, 2, side, side, seed=3).requires_grad_()
    check_gradients(
        lambda x, w: ops.conv_exp(x, ops.skew_kernel(w).kernel, radius=2.0, **choice),
        images(2, 2, 3, 2).requires_grad_(), weight,
    )  # fmt: skip


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_any_layout(degree):
    kernel = skew_weight(4, 3, dtype=torch.float32)
    x, grad = images(3, 4, 5, 6, dtype=torch.float32), images(3, 4, 5, 6, seed=5).float()

    def run(x, kernel, grad):
        x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
        y = ops.conv_exp(x, kernel, radius=1.2, degree=degree)
        return y.detach(), *torch.autograd.grad(y, (x, kernel), grad)

    expected = run(x, kernel, grad)
    for laid in relayouts(x).values():
        for a, b in zip(run(laid, kernel, grad), expected, strict=True):
            assert_close(a, b)
    for laid in relayouts(kernel).values():
        assert_close(run(x, laid, grad)[0], expected[0])
    for laid in relayouts(grad).values():
        for a, b in zip(run(x, kernel, laid), expected, strict=True):
            assert_close(a, b)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6),
    st.sampled_from([1, 3, 5]), st.integers(1, 4),
)  # fmt: skip
def test_shapes(n, c, h, w, side, degree):
    generator = torch.Generator().manual_seed(7)
    m = torch.randn(c, c, side, side, generator=generator, dtype=torch.float64)
    kernel = ops.skew_kernel(m).kernel.requires_grad_()
    x = images(n, c, h, w).requires_grad_()
    series = ops.exp_series(2.0, degree=degree)
    y = ops.conv_exp(x, kernel, radius=2.0, degree=degree)
    expected = reference(x, kernel, series) if n else x
    assert_close(y, expected)
    if n:
        got = torch.autograd.grad(y.sum(), (x, kernel))
        for a, b in zip(got, torch.autograd.grad(expected.sum(), (x, kernel)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_what_backward_keeps():
    x = images(8, 16, 6, 6, dtype=torch.float32).requires_grad_()
    kernel = skew_weight(16, 3, dtype=torch.float32).requires_grad_()

    def kept(**kwargs):
        sizes = {}

        def pack(t):
            sizes[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            ops.conv_exp(x, kernel, radius=1.2, **kwargs)
        return (sum(sizes.values()) - kernel.numel()) / x.numel()

    assert kept(degree=5) == 5  # x and degree - 1 more
    assert kept(degree=5, recompute=True) == 1


def test_vmap_and_functional_gradients():
    kernel = skew_weight(3, 3)
    x = images(4, 2, 3, 5, 5)

    def fn(x, kernel):
        return ops.conv_exp(x, kernel, radius=1.2, degree=3)

    each = torch.stack([fn(one, kernel) for one in x])
    assert_close(torch.func.vmap(fn, (0, None))(x, kernel), each)
    assert_close(torch.func.vmap(fn, (2, None))(x.movedim(0, 2), kernel), each)
    kernels = torch.stack([kernel, -kernel, kernel / 2, 0 * kernel])
    assert_close(
        torch.func.vmap(fn)(x, kernels),
        torch.stack([fn(*one) for one in zip(x, kernels, strict=True)]),
    )
    leaf = x[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(fn(leaf, kernel).square().sum(), leaf)
    assert_close(torch.func.grad(lambda x: fn(x, kernel).square().sum())(x[0]), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiles():
    kernel = skew_weight(4, 3, dtype=torch.float32).requires_grad_()
    x = images(2, 4, 6, 6, dtype=torch.float32).requires_grad_()

    def fn(x, kernel):
        return ops.maxmin(ops.conv_exp(x, kernel, radius=1.2, degree=4)).square()

    expected = fn(x, kernel)
    got = torch.compile(fn, fullgraph=True, backend="aot_eager")(x, kernel)
    assert_close(got, expected)
    grads = [torch.autograd.grad(y.sum(), (x, kernel)) for y in (got, expected)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)


def test_autocast_runs_in_the_lower_precision():
    kernel = skew_weight(4, 3, dtype=torch.float32)
    x = images(2, 4, 5, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.conv_exp(x, kernel, radius=1.2, degree=4)
    assert y.dtype == torch.bfloat16
    assert_close(y, exact(x, kernel))


def test_opcheck():
    z, a, b, total = (images(2, 3, 4, 4, seed=s) for s in range(4))
    update = torch.ops.robustcore.conv_exp_update.default
    out = torch.empty_like(z)
    arguments = (0.5, 2.0, -1.0, 3.0, 0.25)
    torch.library.opcheck(update, (z, a, b, total, *arguments, out, torch.empty_like(z)))
    torch.library.opcheck(update, (z, None, b, None, *arguments, out, None))
    total_out = torch.empty_like(z)
    update(z, a, b, total, *arguments, out, total_out)
    expected = 0.5 * z + 2 * a - b
    assert_close(out, expected)
    assert_close(total_out, 3 * total + 0.25 * expected)
    update(z, a, b, z, *arguments, z, z)  # in place


X, K = torch.zeros(1, 2, 3, 3), torch.zeros(2, 2, 3, 3)
BAD = [
    (dict(kernel=torch.ones(2, 2, 3, 3)), ValueError, "kernel: is not skew"),
    (dict(kernel=torch.zeros(2, 2, 2, 3)), ValueError, "kernel: got .* want .* odd"),
    (dict(kernel=torch.zeros(2, 3, 3, 3)), ValueError, r"kernel: got shape \[2, 3, 3, 3\]"),
    (dict(kernel=K.double()), TypeError, "kernel: got torch.float64"),
    (dict(kernel=None), TypeError, "kernel: got NoneType"),
    (dict(x=torch.zeros(1, 3, 3, 3)), ValueError, "x: got 3 channels, want the kernel's 2"),
    (dict(x=torch.zeros(2, 3, 3)), ValueError, r"x: got shape \[2, 3, 3\]"),
    (dict(x=X.int(), kernel=K.int()), TypeError, "x: got torch.int32"),
    (dict(radius=-1.0), ValueError, "radius: got -1.0"),
    (dict(radius=float("nan")), ValueError, "radius: got nan"),
    (dict(radius=torch.ones(())), TypeError, "radius: got Tensor"),
    (dict(tol=1e-3, degree=2), ValueError, "tol, degree: got"),
    (dict(tol=0.0), ValueError, "tol: got 0.0"),
    (dict(degree=-1), ValueError, "degree: got -1"),
    (dict(method="pade"), ValueError, "method: got 'pade'"),
    (dict(radius=699.0, tol=1e-6), ValueError, "tol: no degree up to 500"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        ops.conv_exp(**{"x": X, "kernel": K, "radius": 1.0, **change})


def test_radius_is_not_optional():
    with pytest.raises(TypeError, match="radius"):
        ops.conv_exp(X, K)
