"""ops.attention against its formula in float64: derivatives, masks, shapes, dtypes, memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from robustcore.ops.autograd import raw
from testing import assert_close, assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [  # batch, N, M, D, E
    ((), 1, 1, 1, 1),
    ((2,), 3, 4, 5, 2),
    ((2, 3), 33, 65, 16, 16),
    ((1, 2), 70, 31, 40, 33),
    ((2, 1, 2), 5, 5, 3, 3),
]


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def inputs(batch, n, m, d, e, dtype=torch.float64):
    return [normal(*batch, *s, seed=i, dtype=dtype) for i, s in enumerate(((n, d), (m, d), (m, e)))]


def by_formula(q, k, v, scale=None, causal=False, mask=None):
    logits = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        mask = seen if mask is None else mask
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(
                ~mask, -math.inf
            )
        logits = logits + mask
    return logits.softmax(-1) @ v


def derivatives(op, tensors, **options):
    """The value, gradients, and a derivative of those along fixed cotangents."""
    q, k, v = (t.detach().requires_grad_() for t in tensors)
    y = op(q, k, v, **options)
    g = normal(*y.shape, seed=7).to(y).requires_grad_()
    grads = torch.autograd.grad(y, (q, k, v), g, create_graph=True)
    cotangents = [normal(*t.shape, seed=8 + i).to(t) for i, t in enumerate(grads)]
    second = torch.autograd.grad(grads, (g, q, k, v), cotangents)
    return [t.detach() for t in (y, *grads, *second)]


def options_of(kind, batch, n, m):
    if kind == "causal":
        return dict(causal=True)
    if kind == "bool":
        mask = normal(n, m, seed=3) > -0.5
        mask[..., 0] = True
        return dict(mask=mask)
    if kind == "floating":
        return dict(mask=normal(*[1] * len(batch), n, m, seed=3), scale=0.7)
    return {}


KINDS = ["plain", "causal", "bool", "floating"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_formula(shape, kind, dtype, device):
    batch, n, m, _, _ = shape
    options = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v
        for k, v in options_of(kind, batch, n, m).items()
    }
    tensors = [t.to(device) for t in inputs(*shape, dtype=dtype)]
    got = derivatives(ops.attention, tensors, **options)
    want = derivatives(by_formula, [t.double() for t in tensors], **options)
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6}.get(dtype, 0.03)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= tolerance * (b.norm() + (m == 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [((), 1, 1, 1, 1), ((2,), 3, 2, 3, 2), ((1, 2), 2, 3, 2, 1)])
def test_gradients(shape, kind, device):
    options = options_of(kind, *shape[:3])
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    tensors = [t.to(device).requires_grad_() for t in inputs(*shape)]
    check_gradients(lambda *t: ops.attention(*t, **options), *tensors)


def test_third_derivatives():
    tensors = [t.requires_grad_() for t in inputs((2,), 3, 4, 2, 3)]

    def second(q, k, v, **options):
        y = ops.attention(q, k, v, **options)
        grads = torch.autograd.grad(y.sin().sum(), (q, k, v), create_graph=True)
        total = sum((g * (i + 1)).sin().sum() for i, g in enumerate(grads))
        return torch.autograd.grad(total, (q, k, v), create_graph=True)

    for options in ({}, dict(causal=True), options_of("bool", (2,), 3, 4)):
        assert torch.autograd.gradcheck(lambda *t, o=options: second(*t, **o), tensors)
        # The double backward without a graph is the kernel's.
        y = ops.attention(*tensors, **options)
        grads = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
        total = sum((g * (i + 1)).sin().sum() for i, g in enumerate(grads))
        for a, b in zip(
            torch.autograd.grad(total, tensors), second(*tensors, **options), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_tokens_that_see_nothing(device):
    tensors = [t.to(device) for t in inputs((2,), 4, 5, 3, 2)]
    mask = torch.ones(4, 5, dtype=torch.bool, device=device)
    mask[1] = False
    got = derivatives(ops.attention, tensors, mask=mask)
    assert (got[0][:, 1] == 0).all()
    assert all(t.isfinite().all() for t in got)
    rest = [0, 2, 3]
    want = ops.attention(tensors[0][:, rest], *tensors[1:])
    torch.testing.assert_close(got[0][:, rest], want)
    assert (got[1][:, 1] == 0).all()


def test_large_logits():
    q, k, v = (t * s for t, s in zip(inputs((2,), 5, 9, 4, 3), (1e4, 1e4, 1), strict=True))
    assert_close(ops.attention(q, k, v), by_formula(q, k, v))


def test_any_layout_in():
    q, k, v = inputs((2, 3), 4, 5, 6, 4, dtype=torch.float32)
    want = ops.attention(q, k, v)
    for laid in relayouts(q).values():
        assert_same(ops.attention(laid, k, v), want)
    mask = normal(4, 5, dtype=torch.float32)
    want = ops.attention(q, k, v, mask=mask)
    for wide in (mask.expand(3, 4, 5), mask.expand(2, 3, 4, 5), mask.t().contiguous().t()):
        assert_same(ops.attention(q, k, v, mask=wide), want)
    shared = ops.attention(q, k[:, :1], v[:, :1])
    assert_same(shared, ops.attention(q, k[:, :1].expand_as(k), v[:, :1].expand_as(v)))


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, 4)] * 2, *[st.integers(1, 40)] * 2, st.integers(0, 20)))
def test_shapes(shape):
    b, n, m, d, e = shape
    q, k, v = inputs((b,), n, m, d, e, dtype=torch.float32)
    assert_close(ops.attention(q, k, v, scale=0.3), by_formula(q, k, v, 0.3), torch.float32)


def test_instruction_sets_agree(simd):
    def run():
        for shape in SHAPES:
            for kind in KINDS:
                tensors = inputs(*shape, dtype=torch.float32)
                yield from derivatives(ops.attention, tensors, **options_of(kind, *shape[:3]))

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_devices_agree_to_the_bit(shape, kind):
    options = options_of(kind, *shape[:3])
    cpu = derivatives(ops.attention, inputs(*shape, dtype=torch.float32), **options)
    options = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    tensors = [t.cuda() for t in inputs(*shape, dtype=torch.float32)]
    for a, b in zip(cpu, derivatives(ops.attention, tensors, **options), strict=True):
        assert_same(b.cpu(), a)


def test_repeatable_and_independent_of_the_batch():
    q, k, v = inputs((4, 3), 40, 40, 8, 8, dtype=torch.float32)
    check_repeatable(
        lambda: torch.cat([t.flatten() for t in derivatives(ops.attention, (q, k, v))])
    )
    parts = [ops.attention(*row) for row in zip(q, k, v, strict=True)]
    assert_same(torch.stack(parts), ops.attention(q, k, v))


def test_what_is_kept_grows_with_the_tokens():
    saved = []
    tensors = [t.requires_grad_() for t in inputs((1, 1), 300, 300, 4, 4, dtype=torch.float32)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.attention(*tensors)
        torch.autograd.grad(y.sum(), tensors, create_graph=True)
    assert max(t.numel() for t in saved) == 300 * 4


def test_opcheck(device):
    q, k, v = (t.to(device) for t in inputs((2, 2), 3, 4, 5, 2, dtype=torch.float32))
    mask = normal(2, 2, 3, 4, dtype=torch.float32).to(device)
    for extra in ((None, True, 0.5), (mask, False, 0.5)):
        out, lse = raw.attention(q, k, v, *extra)
        first = torch.ones_like(out), q, k, v, out, lse, *extra
        torch.library.opcheck(raw.attention.default, (q, k, v, *extra))
        torch.library.opcheck(raw.attention_backward.default, first)
        torch.library.opcheck(raw.attention_double_backward.default, (q, k, v, *first))


def test_torch_func():
    q, k, v = inputs((3, 2), 4, 5, 3, 2)
    fn = lambda q, k, v: ops.attention(q, k, v).sin().sum()  # noqa: E731
    want = lambda q, k, v: by_formula(q, k, v).sin().sum()  # noqa: E731
    each = torch.func.vmap(torch.func.grad(fn, argnums=(0, 1, 2)))
    wanted = torch.func.vmap(torch.func.grad(want, argnums=(0, 1, 2)))
    torch.testing.assert_close(each(q, k, v), wanted(q, k, v))
    hessian = torch.func.jacrev(torch.func.grad(fn))(q[0], k[0], v[0])
    torch.testing.assert_close(hessian, torch.func.jacrev(torch.func.grad(want))(q[0], k[0], v[0]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile():
    tensors = [t.requires_grad_() for t in inputs((2,), 5, 6, 3, 3, dtype=torch.float32)]
    compiled = torch.compile(lambda *t: ops.attention(*t).sin().sum(), fullgraph=True)
    got = torch.autograd.grad(compiled(*tensors), tensors)
    want = torch.autograd.grad(by_formula(*tensors).sin().sum(), tensors)
    torch.testing.assert_close(got, want)


Q = torch.zeros(2, 3, 4)
BAD = [
    (dict(q=torch.zeros(3)), r"q: got shape \[3\], want \[\*B, tokens, width\]"),
    (dict(q=Q.long()), r"q: got torch\.int64"),
    (dict(k=Q.double()), r"k: got torch\.float64, want torch\.float32 as q"),
    (dict(k=torch.zeros(2, 3, 5)), r"k: got shape \[2, 3, 5\], want \[\*B, M, 4\]"),
    (dict(k=torch.zeros(2, 0, 4)), "k: got .* M at least 1"),
    (dict(v=torch.zeros(2, 4, 4)), r"v: got shape \[2, 4, 4\], want \[\*B, 3, E\]"),
    (dict(v=torch.zeros(3, 3, 4)), r"v: got shape \[3, 3, 4\], want one that broadcasts"),
    (dict(causal=1), "causal: got int, want a bool"),
    (dict(scale="1"), "scale: got '1'"),
    (dict(mask=torch.zeros(2, 2)), r"mask: got shape \[2, 2\], want one that broadcasts to"),
    (dict(mask=torch.zeros(3, 3).long()), r"mask: got torch\.int64"),
    (dict(mask=torch.zeros(3, 3, requires_grad=True)), "mask: requires a gradient"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message):
    arguments = {"q": Q, "k": Q, "v": Q, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_raw_ops_check_what_they_are_given():
    q = torch.zeros(1, 1, 2, 3)
    with pytest.raises(ValueError, match="k: got float32 of shape"):
        raw.attention(q, q[..., :2], q, None, False, 1.0)
    with pytest.raises(ValueError, match="q: got float16, want float32 or float64"):
        raw.attention(q.half(), q.half(), q.half(), None, False, 1.0)
    with pytest.raises(ValueError, match="mask: got float32 of shape"):
        raw.attention(q, q, q, torch.zeros(1, 1, 2, 3), False, 1.0)
    with pytest.raises(ValueError, match="v_k: got"):
        raw.attention_double_backward(
            q, q[:, :, :1], q, q, q, q, q, q, torch.zeros(1, 1, 2), None, False, 1.0
        )
