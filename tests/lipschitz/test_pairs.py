"""ops.maxmin, householder, projection_pool: against their definitions, gradients, layouts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from testing import assert_close, assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def images(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def maxmin_reference(x):
    a, b = x.chunk(2, dim=1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


def spread(t, x):
    return t.reshape(-1, *[1] * (x.dim() - 2)).to(x.dtype)


def householder_reference(x, theta):
    """Order 1 as published, order 2 with the arc tangent."""
    a, b = x.chunk(2, dim=1)
    if theta.dim() == 1:
        t = spread(theta, x)
        fold = a * (t / 2).sin() - b * (t / 2).cos() > 0
        pieces = [(~fold, a, b), (fold, a * t.cos() + b * t.sin(), a * t.sin() - b * t.cos())]
    else:
        t0, t1, t2 = (spread(t, x) for t in theta.clamp(0, 2 * math.pi))
        phi = (torch.atan2(b, a) - t0 / 2) % (2 * math.pi)
        ends = [t1 / 2, (t1 + t2) / 2, math.pi + t2 / 2]
        where = sum((phi >= end).int() for end in ends)
        both = t0 + t1
        pieces = [
            (where == 0, a, b),
            (where == 1, a * both.cos() + b * both.sin(), a * both.sin() - b * both.cos()),
            (where == 2, a * t2.cos() + b * t2.sin(), b * t2.cos() - a * t2.sin()),
            (where == 3, a * t0.cos() + b * t0.sin(), a * t0.sin() - b * t0.cos()),
        ]
    return torch.cat([sum(m * p[i] for m, *p in pieces) for i in range(2)], 1)


def projection_reference(x, theta):
    a, b = x.chunk(2, dim=1)
    t = spread(theta.clamp(0, math.pi), x)
    phi = torch.atan2(b, a) % (2 * math.pi)
    first, last = phi < (math.pi + t) / 2, phi >= (3 * math.pi - t) / 2
    sin, cos = (t / 2).sin(), (t / 2).cos()
    return torch.where(
        first, b * cos - a * sin, torch.where(last, -b * cos - a * sin, torch.hypot(a, b))
    )


# name: op, reference, the shape of theta for C pairs, its range
MAPS = {
    "householder": (ops.householder, householder_reference, lambda c: (c,), 6.3),
    "householder2": (ops.householder, householder_reference, lambda c: (3, c), 6.2),
    "projection": (ops.projection_pool, projection_reference, lambda c: (c,), 3.1),
}


def angles(name, channels, dtype=torch.float64, seed=4):
    shape = MAPS[name][2](channels)
    t = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (MAPS[name][3] * t).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 6), (3, 2, 5), (2, 6, 5, 7), (1, 4, 3, 3, 3), (5, 34, 9, 9)])
def test_maxmin_matches_the_reference(shape, dtype, device):
    x = images(*shape, dtype=dtype).to(device)
    for laid in relayouts(x).values():
        assert_same(ops.maxmin(laid), maxmin_reference(x))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pairs", [1, 7, 8, 15, 16, 17, 40])
def test_maxmin_on_every_instruction_set(last, pairs, simd):
    simd()
    x = images(3, 2 * pairs, 5, 3, dtype=torch.float32)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    grad = images(3, 2 * pairs, 5, 3, dtype=torch.float32, seed=2)
    (got,) = torch.autograd.grad(ops.maxmin(x), x, grad)
    (expected,) = torch.autograd.grad(maxmin_reference(x), x, grad)
    assert_same(ops.maxmin(x).detach(), maxmin_reference(x).detach())
    assert_same(got, expected)


def test_maxmin_special_values():
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([[1.0, nan, 2.0, inf, -inf, 0.0]])
    b = torch.tensor([[1.0, 3.0, nan, -inf, inf, -0.0]])
    x = torch.cat([a, b], 1).requires_grad_()
    y = ops.maxmin(x)
    # A NaN keeps its place, and so does the other member.
    expected = torch.tensor([[1.0, nan, 2.0, inf, inf, 0.0, 1.0, 3.0, nan, -inf, -inf, -0.0]])
    assert_same(y.detach(), expected)
    (grad,) = torch.autograd.grad(y, x, torch.arange(12.0)[None])
    assert_same(grad, torch.tensor([[0.0, 1, 2, 3, 10, 5, 6, 7, 8, 9, 4, 11]]))


def test_maxmin_keeps_one_bit_a_pair():
    x = images(4, 16, 8, 8, dtype=torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.maxmin(x)
    assert sum(t.nbytes for t in kept) == x.numel() // 2 / 8


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(2, 6), (64, 8, 5), (3, 10, 7, 9), (1, 2, 2, 2, 2)])
def test_maps_match_the_reference(name, shape, device):
    op, reference, *_ = MAPS[name]
    x = images(*shape).to(device).requires_grad_()
    theta = angles(name, shape[1] // 2).to(device).requires_grad_()
    y, expected = op(x, theta), reference(x, theta)
    assert_close(y, expected)
    grad = images(*y.shape, seed=5).to(device)
    for a, b in zip(
        *(torch.autograd.grad(t, (x, theta), grad) for t in (y, expected)), strict=True
    ):
        assert_close(a, b)
    for laid in relayouts(x.detach()).values():
        assert_same(op(laid, theta).detach(), y.detach())


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_one_lipschitz(name):
    op, _, _, limit = MAPS[name]
    theta = angles(name, 400)
    theta[..., :4] = torch.tensor([0.0, limit, math.pi / 2, math.pi], dtype=torch.float64)
    x = images(50, 800)
    # Far apart, and so near that a jump at a border would show.
    for y in (images(50, 800, seed=8), x + 1e-3 * images(50, 800, seed=9)):
        apart = (op(x, theta) - op(y, theta)).reshape(50, -1, 400).norm(dim=1)
        assert (apart <= (x - y).reshape(50, 2, 400).norm(dim=1) * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", [*MAPS, "maxmin"])
def test_gradients(name):
    x = images(3, 6, 2, 2).requires_grad_()
    if name == "maxmin":
        check_gradients(ops.maxmin, x)
    else:
        check_gradients(MAPS[name][0], x, angles(name, 3).requires_grad_())


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_in_low_precision(name, dtype):
    op, reference, *_ = MAPS[name]
    x, theta = images(4, 8, 6, 6, dtype=dtype), angles(name, 4)
    assert_close(op(x, theta), reference(x.double(), theta), dtype)


def test_special_points_of_the_maps():
    zero = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    for name in MAPS:
        op = MAPS[name][0]
        for t in (0.0, 1.0, math.pi):
            theta = torch.full(MAPS[name][2](1), t, dtype=torch.float64)
            y = op(zero, theta)
            assert (y == 0).all()
            assert torch.autograd.grad(y.sum(), zero)[0].isfinite().all()
    # theta = pi / 2 sorts the pairs, so this is MaxMin with the places exchanged.
    x = images(3, 4, 2, 2)
    folded = ops.householder(x, torch.full((2,), math.pi / 2, dtype=torch.float64))
    assert_close(folded, torch.cat(ops.maxmin(x).chunk(2, 1)[::-1], 1))


@pytest.mark.parametrize("name", [*MAPS, "maxmin"])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.integers(1, 9), st.lists(st.integers(0, 5), max_size=3))
def test_shapes(name, n, pairs, rest):
    x = images(n, 2 * pairs, *rest)
    if name == "maxmin":
        assert_same(ops.maxmin(x), maxmin_reference(x))
    else:
        theta = angles(name, pairs)
        assert_close(MAPS[name][0](x, theta), MAPS[name][1](x, theta))


@pytest.mark.parametrize("name", [*MAPS, "maxmin"])
def test_vmap(name):
    def fn(x, theta):
        return ops.maxmin(x) if name == "maxmin" else MAPS[name][0](x, theta)

    x = images(5, 2, 6, 3, 4)
    theta = angles("projection" if name == "maxmin" else name, 3)
    thetas = torch.stack([theta * f for f in (0.1, 0.3, 0.5, 0.7, 1.0)])
    each = torch.stack([fn(one, theta) for one in x])
    assert_close(torch.func.vmap(fn, (0, None))(x, theta), each)
    assert_close(torch.func.vmap(fn, (3, None))(x.movedim(0, 3), theta), each)
    pairs = torch.stack([fn(a, t) for a, t in zip(x, thetas, strict=True)])
    assert_close(torch.func.vmap(fn)(x, thetas), pairs)
    grads = torch.func.vmap(torch.func.grad(lambda a, t: fn(a, t).square().sum(), argnums=0))
    leaf = x.clone().requires_grad_()
    total = sum(fn(a, t).square().sum() for a, t in zip(leaf, thetas, strict=True))
    assert_close(grads(x, thetas), torch.autograd.grad(total, leaf)[0])


def test_the_same_on_any_number_of_threads():
    x = images(3, 70, 40, 41, dtype=torch.float32)
    check_repeatable(lambda: ops.maxmin(x))
    check_repeatable(lambda: ops.householder(x, angles("householder2", 35)))


def test_opcheck():
    namespace = torch.ops.robustcore
    for last in (False, True):
        x = images(2, 6, 3, 4)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(namespace.maxmin.default, (x, last))
        bits = namespace.maxmin(x, last)[1]
        torch.library.opcheck(namespace.maxmin_swap.default, (x, bits, last))
        for index, entries in enumerate((4, 15, 2)):
            table = torch.rand(entries, 3, dtype=torch.float64)
            torch.library.opcheck(namespace.pair_map.default, (x, table, index, last))
            grad = namespace.pair_map(x, table, index, last)
            torch.library.opcheck(
                namespace.pair_map_backward.default, (grad, x, table, index, last)
            )


X = torch.zeros(1, 4, 2, 2)
BAD = [
    (lambda: ops.maxmin(torch.zeros(1, 3)), ValueError, "x: got 3 channels, want an even number"),
    (lambda: ops.maxmin(torch.zeros(3)), ValueError, r"x: got shape \[3\], want \[N, C, \*D\]"),
    (lambda: ops.maxmin(X.int()), TypeError, "x: got torch.int32"),
    (lambda: ops.maxmin([1.0]), TypeError, "x: got list"),
    (
        lambda: ops.householder(X, torch.zeros(3)),
        ValueError,
        r"theta: got shape \[3\], want .*\[2\]",
    ),
    (lambda: ops.householder(X, torch.zeros(2, 2)), ValueError, r"theta: .* want .*\[3, 2\]"),
    (lambda: ops.projection_pool(X, torch.zeros(2).int()), TypeError, "theta: got torch.int32"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
