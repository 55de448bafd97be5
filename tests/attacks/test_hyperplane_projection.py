"""ops.hyperplane_projection: optimality against linear programs, closed forms, layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from robustcore import ops
from testing import assert_same, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

NORMS = ["linf", "l2", "l1"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
raw = torch.ops.robustcore


def uniform(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normal(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def smallest(x, w, b, norm):
    """The least norm of such a d by a linear program, None where there is no d."""
    n = len(x)
    if norm == "l1":  # d = p - q
        r = linprog([1] * 2 * n, A_eq=[[*w, *(-w)]], b_eq=[b - w @ x],
                    bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x])  # fmt: skip
    else:
        eye = torch.eye(n).tolist()
        rows = [[*e, -1] for e in eye] + [[*(-v for v in e), -1] for e in eye]
        r = linprog([0] * n + [1], A_ub=rows, b_ub=[0] * 2 * n, A_eq=[[*w, 0]], b_eq=[b - w @ x],
                    bounds=[(-v, 1 - v) for v in x] + [(0, None)])  # fmt: skip
    return r.fun if r.status == 0 else None


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    size=st.integers(1, 20),
    far=st.sampled_from([0.1, 1.0, 5.0]),
    corners=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_smaller_step_reaches_the_plane(norm, size, far, corners, seed):
    x, w = uniform(1, size, seed=seed).double(), normal(1, size, seed=seed).double()
    x = x.round() if corners else x
    b = (w * x).sum(1) + far * normal(1, seed=seed + 1).double()
    d = ops.hyperplane_projection(x, w, b, norm=norm)
    assert (x + d).min() >= -1e-12
    assert (x + d).max() <= 1 + 1e-12
    distance = (b - (w * x).sum(1)).item()
    room = torch.where(w * distance > 0, 1 - x, x)
    if (w.abs() * room).sum() <= abs(distance):  # the corner
        torch.testing.assert_close(d, room * w.sign() * (1 if distance > 0 else -1))
        return
    torch.testing.assert_close((w * (x + d)).sum(1), b, rtol=1e-9, atol=1e-9)
    if norm == "l2":  # KKT: inside the box d is along w
        inside = (d.abs() < room - 1e-9) & (w != 0)
        level = (d / w)[inside]
        assert level.numel() == 0 or level.max() - level.min() < 1e-9
        assert ((d / w).abs()[~inside & (w != 0)] <= level.abs().max() + 1e-9).all()
        return
    got = d.abs().sum() if norm == "l1" else d.abs().max()
    want = smallest(x[0].numpy(), w[0].numpy(), b.item(), norm)
    assert got.item() == pytest.approx(want, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_precision(norm, dtype, device):
    x, w = uniform(3, 3, 33, 32, dtype=dtype), normal(3, 3, 33, 32, dtype=dtype)
    b = (w.double() * x.double()).flatten(1).sum(1) + torch.tensor([0.7, -3.0, 20.0])
    b = b.to(torch.float64 if dtype == torch.float64 else torch.float32)
    got = ops.hyperplane_projection(x.to(device), w.to(device), b.to(device), norm=norm).cpu()
    assert got.dtype == dtype
    want = ops.hyperplane_projection(x.double(), w.double(), b.double(), norm=norm)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("norm", NORMS)
def test_planes_of_any_size(norm):
    x, w = uniform(1, 50), normal(1, 50)
    b = (w * x).sum(1) + 1
    want = ops.hyperplane_projection(x, w, b, norm=norm)
    for scale in (1e-30, 1e-20, 1e18, 1e30):
        got = ops.hyperplane_projection(x, w * scale, b * scale, norm=norm)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (ops.hyperplane_projection(x, 0 * w, b, norm=norm) == 0).all()
    w[0, 0] = float("inf")
    assert (ops.hyperplane_projection(x, w, b, norm=norm) == 0).all()


def cases(dtype=torch.float32):
    x, w = uniform(3, 3, 20, 19, dtype=dtype), normal(3, 3, 20, 19, dtype=dtype)
    for norm in NORMS:
        yield norm, x, w, normal(3, dtype=torch.promote_types(dtype, torch.float32))


def test_instruction_sets_agree(simd):
    def run():
        return [
            ops.hyperplane_projection(*images, norm=norm)
            for dtype in DTYPES
            for norm, *images in cases(dtype)
        ]

    expected = run()
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_agree_to_the_bit(dtype):
    for norm, x, w, b in cases(dtype):
        got = ops.hyperplane_projection(x.cuda(), w.cuda(), b.cuda(), norm=norm)
        assert_same(got.cpu(), ops.hyperplane_projection(x, w, b, norm=norm))


def test_layouts_batches_and_threads():
    for norm, x, w, b in cases():
        want = ops.hyperplane_projection(x, w, b, norm=norm)
        for name in relayouts(x):
            laid = relayouts(x)[name], relayouts(w)[name]
            assert_same(ops.hyperplane_projection(*laid, b, norm=norm), want)
        pick = [2, 0]
        got = ops.hyperplane_projection(x[pick], w[pick], b[pick], norm=norm)
        assert_same(got, want[pick])
        check_repeatable(lambda n=norm, i=(x, w, b): ops.hyperplane_projection(*i, norm=n))


def test_opcheck():
    for number, (_, x, w, b) in enumerate(cases()):
        torch.library.opcheck(
            raw.hyperplane_projection.default, (x[:2], w[:2], b[:2], number, 0.0, 1.0)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(norm="l0"), "norm: got 'l0', want one of linf, l2, l1"),
        (dict(b=torch.zeros(3)), r"b: got float32 of shape \[3\]"),
        (dict(w=torch.zeros(2, 4)), "w: got shape"),
        (dict(high=0.0), "high: got 0"),
    ],
)
def test_bad_input(change, message):
    call = dict(x=torch.zeros(2, 3), w=torch.ones(2, 3), b=torch.zeros(2), norm="l2")
    with pytest.raises((TypeError, ValueError), match=message):
        ops.hyperplane_projection(**{**call, **change})
