"""What an op on pairs of channels is to give, and the checks that all of them have to pass."""

import math

import torch

from robustcore import ops
from testing import assert_close, assert_same, relayouts

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


def check_the_reference(name, shape, device):
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


def check_one_lipschitz(name):
    op, _, _, limit = MAPS[name]
    theta = angles(name, 400)
    theta[..., :4] = torch.tensor([0.0, limit, math.pi / 2, math.pi], dtype=torch.float64)
    x = images(50, 800)
    # Far apart, and so near that a jump at a border would show.
    for y in (images(50, 800, seed=8), x + 1e-3 * images(50, 800, seed=9)):
        apart = (op(x, theta) - op(y, theta)).reshape(50, -1, 400).norm(dim=1)
        assert (apart <= (x - y).reshape(50, 2, 400).norm(dim=1) * (1 + 1e-9)).all()


def check_low_precision(name, dtype):
    op, reference, *_ = MAPS[name]
    x, theta = images(4, 8, 6, 6, dtype=dtype), angles(name, 4)
    assert_close(op(x, theta), reference(x.double(), theta), dtype)


def check_special_points(name):
    op, _, shape, _ = MAPS[name]
    zero = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    for t in (0.0, 1.0, math.pi):
        theta = torch.full(shape(1), t, dtype=torch.float64)
        y = op(zero, theta)
        assert (y == 0).all()
        assert torch.autograd.grad(y.sum(), zero)[0].isfinite().all()


def check_vmap(fn, theta):
    """fn of (x, theta), theta of three pairs."""
    x = images(5, 2, 6, 3, 4)
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


def check_opcheck(index, entries):
    """The kernel of the map of that number, whose table has so many entries a pair."""
    namespace = torch.ops.robustcore
    for last in (False, True):
        x = images(2, 6, 3, 4)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        table = torch.rand(entries, 3, dtype=torch.float64)
        torch.library.opcheck(namespace.pair_map.default, (x, table, index, last))
        grad = namespace.pair_map(x, table, index, last)
        torch.library.opcheck(namespace.pair_map_backward.default, (grad, x, table, index, last))
