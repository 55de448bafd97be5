"""ops.attack_step and ops.project: optimality, closed forms, ball and box to the bit, layouts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.reference import EPS, check_inside, normal, norms, reference, uniform
from robustcore import ops
from testing import assert_same, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

NORMS = ["linf", "l2", "l1", "l0"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
raw = torch.ops.robustcore


# ---- projections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1e-3, 0.05, 0.5, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_projection(norm, dtype, spread, device):
    for shape in ((3, 3, 8, 8), (2, 3, 33, 32), (2, 1, 1, 1)):
        x0 = uniform(*shape, dtype=dtype)
        v, eps = x0 + spread * normal(*shape, dtype=dtype), min(EPS[norm], shape[2] * shape[3])
        got = ops.project(v.to(device), x0.to(device), norm, eps).cpu()
        check_inside(got, x0, norm, eps)
        torch.testing.assert_close(
            got.double(), reference(v, x0, norm, eps), rtol=0,
            atol=1e-9 if dtype == torch.float64 else 3e-6 * max(1, spread),
        )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    size=st.integers(1, 40),
    eps=st.floats(1e-3, 10),
    spread=st.sampled_from([1e-2, 1.0, 30.0]),
    corners=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_other_point_is_nearer(norm, size, eps, spread, corners, seed):
    """KKT as a variational inequality: <v - p, y - p> <= 0 for every y in ball and box."""
    x0 = uniform(1, size, seed=seed, dtype=torch.float64)
    x0 = x0.round() if corners else x0
    v = x0 + spread * normal(1, size, seed=seed, dtype=torch.float64)
    p = ops.project(v, x0, norm, eps)
    assert p.min() >= 0
    assert p.max() <= 1
    assert norms(p - x0, norm).item() <= eps * (1 + 1e-9)
    y = x0 + 3 * normal(50, size, seed=seed + 1, dtype=torch.float64)
    y = ops.project(y, x0.expand_as(y), norm, eps)
    y = torch.cat([y, x0, p + 1e-3 * (y - p)])
    assert ((v - p) * (y - p)).sum(1).max() <= 1e-8 * max(1, spread**2)


def test_pixels_that_gain_the_same_the_first_are_kept():
    x0 = torch.full((1, 2, 3, 4), 0.5)
    v = x0 + 0.25
    p = ops.project(v, x0, "l0", 5)
    changed = (p != x0).any(1).flatten()
    assert changed.tolist() == [True] * 5 + [False] * 7
    assert_same(ops.project(v, x0, "l0", 100), v)


def test_inside_stays_as_it_is():
    x0 = uniform(4, 3, 5, 5)
    v = (x0 + 1e-3 * normal(4, 3, 5, 5)).clamp(0, 1)
    for norm in ("l2", "l1"):
        assert_same(ops.project(v, x0, norm, 5.0), v)


# ---- ball and box to the bit ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [8 / 255, 0.3, 1e-3, 2.5])
def test_linf_holds_to_the_bit(eps, dtype):
    x0 = uniform(4, 3, 50, 50, dtype=torch.float64)
    x0[:, :, :4] *= 1e-6
    x0[:, :, 4] = 0
    x0 = x0.to(dtype)
    for sign in (1, -1):
        for step in (eps, 1e-3, 3.0):
            x = ops.attack_step(x0, sign * torch.ones_like(x0), x0, norm="linf", eps=eps,
                                step_size=step)  # fmt: skip
            check_inside(x, x0, "linf", eps)
            if dtype == torch.float32 and step == 3.0:  # and not an ulp less than could be
                want = (x0.double() + sign * eps).clamp(0, 1)
                assert (x.double() - want).abs().max() <= 1.2e-7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_stays_inside(norm, dtype):
    low, high = -2.1179039301310043, 2.64  # of normalised images: no value of a narrow dtype
    x0 = (low + (high - low) * uniform(3, 3, 20, 21)).to(dtype).clamp(-2.1, 2.6)
    x, previous = x0, x0
    for i in range(6):
        more = dict(momentum=0.75, previous=previous) if i and norm in ("linf", "l2") else {}
        step = ops.attack_step(x, normal(*x.shape, seed=i, dtype=dtype), x0, norm=norm,
                               eps=EPS[norm], step_size=EPS[norm] / 3, low=low, high=high, topk=0.3,
                               **more)  # fmt: skip
        assert step.dtype == dtype
        check_inside(step, x0, norm, EPS[norm], low, high)
        previous, x = x, step
    assert (x != x0).any()


# ---- steps ---------------------------------------------------------------------------------------


def reference_step(x, g, x0, norm, eps, step, topk, momentum=None, previous=None):
    x, g, x0 = x.double(), g.double(), x0.double()

    def column(v):
        return v.view(-1, *[1] * (x.dim() - 1))

    if norm == "linf":
        d = step * g.sign()
    elif norm == "l1":
        ascending = g.abs().flatten(1).sort(1).values
        n = ascending.shape[1]
        at = min(max(int((1 - topk) * n), 0), n - 1)
        sparse = g * (g.abs() >= column(ascending[:, at]))
        d = step * sparse.sign() / column((sparse != 0).flatten(1).sum(1))
    else:
        d = step * g / column(torch.linalg.vector_norm(g.flatten(1), 2 if norm == "l2" else 1, 1))

    def inside(v):
        if norm in ("linf", "l1", "l0"):
            return reference(v, x0, norm, eps)
        d = v - x0
        return (x0 + d * column((eps / norms(d, "l2")).clamp(max=1))).clamp(0, 1)

    z = inside(x + d)
    if momentum is None:
        return z
    return inside(x + momentum * (z - x) + (1 - momentum) * (x - previous.double()))


@pytest.mark.parametrize("swing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_steps(norm, dtype, swing, device):
    if swing and norm in ("l1", "l0"):
        pytest.skip("no momentum there")
    for shape in ((3, 3, 8, 8), (2, 3, 33, 32)):
        x0, g = uniform(*shape, dtype=dtype), normal(*shape, seed=3, dtype=dtype)
        x = ops.project(x0 + 0.1 * normal(*shape, dtype=dtype), x0, norm, EPS[norm])
        previous = ops.project(x0 + 0.1 * normal(*shape, seed=5, dtype=dtype), x0, norm, EPS[norm])
        more = dict(momentum=0.75, previous=previous) if swing else {}
        step = EPS[norm] / 3
        want = reference_step(x, g, x0, norm, EPS[norm], step, 0.2, **more)
        on = {name: t.to(device) if torch.is_tensor(t) else t for name, t in more.items()}
        got = ops.attack_step(x.to(device), g.to(device), x0.to(device), norm=norm, eps=EPS[norm],
                              step_size=step, topk=0.2, **on)  # fmt: skip
        torch.testing.assert_close(
            got.cpu().double(), want, rtol=0, atol=1e-9 if dtype == torch.float64 else 2e-6
        )


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_that_are_zero_tiny_or_not_finite(norm):
    x0 = uniform(1, 3, 8, 8).expand(6, 3, 8, 8).contiguous()
    g = normal(1, 3, 8, 8).expand(6, 3, 8, 8).clone()
    g[1] *= 1e-38
    g[2] *= 1e36
    g[3] = 0
    g[4, 0, 0, 0] = float("nan")
    g[5] = float("inf")
    x = ops.attack_step(x0, g, x0, norm=norm, eps=EPS[norm], step_size=0.1, topk=0.05)
    check_inside(x, x0, norm, EPS[norm])
    assert_same(x[3], x0[3])
    if norm != "l0":  # whose many small differences round
        torch.testing.assert_close(x[1], x[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(x[2], x[0], rtol=0, atol=1e-6)
    if norm in ("l2", "l0"):
        assert_same(x[4], x0[4])
        assert_same(x[5], x0[5])


def test_values_of_one_an_image():
    shape = (3, 3, 8, 8)
    x0, g, x = uniform(*shape), normal(*shape), uniform(*shape, seed=4)
    eps, step = torch.tensor([0.1, 0.3, 0.7]), torch.tensor([0.05, 0.1, 0.2])
    topk, momentum = torch.tensor([0.1, 0.5, 1.0]), torch.tensor([1.0, 0.75, 0.5])
    for norm in ("linf", "l2", "l1"):
        x = ops.project(x, x0, norm, eps)
        more = {} if norm == "l1" else dict(previous=x0)
        got = ops.attack_step(x, g, x0, norm=norm, eps=eps, step_size=step, topk=topk,
                              **more, **({"momentum": momentum} if more else {}))  # fmt: skip
        for i in range(3):
            one = {name: t[i : i + 1] for name, t in more.items()}
            if more:
                one["momentum"] = float(momentum[i])
            part = slice(i, i + 1)
            want = ops.attack_step(x[part], g[part], x0[part], norm=norm, eps=float(eps[i]),
                                   step_size=float(step[i]), topk=float(topk[i]),
                                   **one)  # fmt: skip
            assert_same(got[part], want)


# ---- linear models -------------------------------------------------------------------------------


def best_of_linear(w, x0, norm, eps):
    """The largest <w, x - x0> in ball and box, in closed form or by the water level."""
    w, x0 = w.double(), x0.double()
    room = torch.where(w > 0, 1 - x0, x0)
    if norm == "linf":
        return (w.abs() * room.clamp(max=eps)).sum(1)
    if norm == "l1":
        order = w.abs().sort(1, descending=True)
        room = room.gather(1, order.indices)
        left = (eps - (room.cumsum(1) - room)).clamp_min(0)
        return (order.values * torch.minimum(room, left)).sum(1)
    low, high = torch.zeros(len(w), 1).double(), torch.full((len(w), 1), 1e6).double()
    for _ in range(200):
        level = (low + high) / 2
        out = torch.minimum(level * w.abs(), room).norm(dim=1, keepdim=True) > eps
        low, high = torch.where(out, low, level), torch.where(out, level, high)
    return (w.abs() * torch.minimum(low * w.abs(), room)).sum(1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 4.0)])
def test_the_optimum_of_a_linear_model(norm, eps):
    """A step of linf reaches it; so does the projection of what lies far along the gradient."""
    w, x0 = normal(3, 60).double(), uniform(3, 60).double()
    points = [ops.project(x0 + 1e5 * w, x0, norm, eps)]
    if norm == "linf":
        points.append(ops.attack_step(x0, w, x0, norm=norm, eps=eps, step_size=eps))
    for x in points:
        got = (w * (x - x0)).sum(1)
        torch.testing.assert_close(got, best_of_linear(w, x0, norm, eps), rtol=1e-4, atol=0)


# ---- what every op has to pass -------------------------------------------------------------------


def calls(dtype=torch.float32):
    shape = (4, 3, 20, 19)
    x0, g = uniform(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    x = (x0 + 0.05 * normal(*shape, seed=7, dtype=dtype)).clamp(0, 1)
    for norm in NORMS:
        yield dict(x=x, x0=x0, norm=norm, eps=EPS[norm])
        more = dict(momentum=0.75, previous=x0) if norm in ("linf", "l2") else {}
        yield dict(x=x, grad=g, x0=x0, norm=norm, eps=EPS[norm], step_size=0.1, topk=0.1, **more)


def run(call):
    return ops.attack_step(**call) if "grad" in call else ops.project(**call)


def changed(call, fn):
    return {name: fn(v) if torch.is_tensor(v) else v for name, v in call.items()}


def test_instruction_sets_agree(simd):
    cases = [call for dtype in DTYPES for call in calls(dtype)]
    expected = [run(call) for call in cases]
    simd()
    for call, want in zip(cases, expected, strict=True):
        assert_same(run(call), want)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_agree_to_the_bit(dtype):
    for call in calls(dtype):
        assert_same(run(changed(call, torch.Tensor.cuda)).cpu(), run(call))


def test_any_layout_in():
    for call in calls():
        want = run(call)
        for name in relayouts(call["x"]):
            got = run(changed(call, lambda t, name=name: relayouts(t)[name]))
            assert_same(got, want)
            last = name == "channels last"
            assert got.is_contiguous(memory_format=torch.channels_last) == last


def test_an_image_does_not_see_its_batch():
    for call in calls():
        want = run(call)
        for pick in ([2], [3, 1], [0, 2, 2, 1, 3]):
            assert_same(run(changed(call, lambda t, pick=pick: t[pick])), want[pick])
        check_repeatable(lambda call=call: run(call))


def test_out_may_be_an_input():
    for call in calls():
        want = run(call)
        own = changed(call, torch.clone)
        names = [name for name in ("x", "previous") if name in call]
        for name in names:
            own = changed(call, torch.clone)
            assert run({**own, "out": own[name]}) is own[name]
            assert_same(own[name], want)
        last = torch.empty_like(want, memory_format=torch.channels_last)
        assert_same(run({**call, "out": last}), want)


def test_no_gradient_passes():
    for call in calls():
        own = changed(call, lambda t: t.clone().requires_grad_())
        assert not run(own).requires_grad


def test_empty_and_small():
    for shape in ((0, 3, 4, 4), (2, 0), (2, 3, 0, 4), (3,)):
        x = uniform(*shape)
        for norm in NORMS:
            assert ops.project(x, x, norm, 1.0).shape == x.shape
            assert ops.attack_step(x, x, x, norm=norm, eps=1.0, step_size=1.0).shape == x.shape


def test_opcheck_and_vmap():
    x0, g = uniform(2, 3, 4, 4), normal(2, 3, 4, 4)
    rows = uniform(2)
    for norm in range(4):
        numbers = (norm, False, 1.0, rows + 1, 0.1, None, 0.1, rows, 1.0, None, 0.0, 1.0)
        torch.library.opcheck(raw.attack_step.default, (x0, g, x0, None, *numbers))
    last = x0.contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(raw.attack_step.default, (last, None, x0, None, *numbers))
    stack = uniform(3, 2, 3, 4, 4)
    step = lambda x: ops.project(x + 0.3, x, "l2", 0.5)  # noqa: E731
    assert_same(torch.func.vmap(step)(stack), torch.stack([step(x) for x in stack]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(norm="l3"), "norm: got 'l3'"),
        (dict(norm=2), "norm: got int"),
        (dict(eps=0.0), "eps: got 0, want a finite number above 0"),
        (dict(eps=float("nan")), "eps: got nan"),
        (dict(norm="l0", eps=0.5), "eps: got 0.5 pixels, want at least 1"),
        (dict(eps=torch.ones(3)), r"eps: got shape \[3\], want \[2\]"),
        (dict(step_size=-1.0), "step_size: got -1"),
        (dict(topk=0.0), "topk: got 0, want a share"),
        (dict(low=1.0), "high: got 1, want a finite number above low"),
        (dict(momentum=0.75), "momentum: goes with previous"),
        (dict(norm="l1", momentum=0.75, previous=torch.zeros(2, 3)), "previous: there is no"),
        (dict(grad=torch.zeros(3, 3)), r"grad: got shape \[3, 3\]"),
        (dict(x0=torch.zeros(2, 3).double()), "x0: got torch.float64"),
        (dict(x=np.zeros(3)), "x: got ndarray"),
        (dict(out=torch.zeros(3, 2).t()), "out: has to be contiguous"),
    ],
)
def test_bad_input(change, message):
    call = dict(x=torch.zeros(2, 3), grad=torch.zeros(2, 3), x0=torch.zeros(2, 3), norm="linf",
                eps=0.1, step_size=0.1)  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=message):
        ops.attack_step(**{**call, **change})
