"""Batch normalisation of density.fast_double_backward: values, statistics, layouts, derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from robustcore import density
from robustcore.ops.density import batch_norm as topic
from testing import assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

raw = torch.ops.robustcore
EPS = 1e-2
SHAPES = [
    (5, 1),
    (7, 5),
    (300, 33),
    (3, 2, 5),
    (1, 3, 4, 4),  # one image: its pixels are the batch
    (6, 3, 1, 1),
    (5, 17, 2, 3),
    (4, 20, 33, 31),
    (3, 2, 50, 40),
    (70, 16, 31, 1),
    (2, 3, 3, 2, 5),
]
DTYPES = [torch.float32, torch.float64]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def ours(x, weight, bias, mean=None, var=None, momentum=0.1):
    with density.fast_double_backward():
        return functional.batch_norm(x, mean, var, weight, bias, True, momentum, EPS)


def torchs(x, weight, bias, mean=None, var=None, momentum=0.1):
    return functional.batch_norm(x, mean, var, weight, bias, True, momentum, EPS)


def arguments(shape, dtype=torch.float32, affine=True, offset=3.0):
    x = normal(*shape, dtype=dtype) + offset
    weight, bias = (normal(shape[1], seed=s, dtype=dtype) if affine else None for s in (1, 2))
    return x, weight, bias


def derivatives(fn, x, weight, bias, g, v):
    """fn's value, its gradients along g, and those of the one in x along v."""
    x = x.detach().requires_grad_()
    leaves = [x, *[t.detach().requires_grad_() for t in (weight, bias) if t is not None]]
    y = fn(x, *(leaves[1:] or (None, None)))
    g = g.detach().requires_grad_()
    first = torch.autograd.grad(y, leaves, g, create_graph=True)
    second = torch.autograd.grad(first[0], [g, *leaves[:2]], v)
    return [t.detach() for t in (y, *first, *second)]


def errors(results, reference):
    return [
        (got.double() - want).norm() / want.norm().clamp(min=1e-30)
        for got, want in zip(results, reference, strict=True)
    ]


def both_passes(x, grad, v, more, weight, mean, inverse):
    first = raw.batch_norm_backward(grad, x, weight, mean, inverse, more)
    twice = raw.batch_norm_double_backward(v, grad, x, weight, mean, inverse, *first[1:])
    return *first, *twice


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_matches_torch_in_float64(shape, dtype, affine, last):
    x, weight, bias = arguments(shape, dtype, affine)
    g, v = normal(*shape, seed=3, dtype=dtype), normal(*shape, seed=4, dtype=dtype)
    if last:
        x, g, v = (channels_last(t) for t in (x, g, v))
    got = derivatives(ours, x, weight, bias, g, v)
    double = [None if t is None else t.double() for t in (x, weight, bias, g, v)]
    want = derivatives(torchs, *double)
    theirs = errors(derivatives(torchs, x, weight, bias, g, v), want)
    # Where a channel has few values these cancel, for torch as for us.
    floor = 1e-12 if dtype == torch.float64 else 2e-6
    for error, other in zip(errors(got, want), theirs, strict=True):
        assert error <= floor + 2 * other


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_a_mean_far_from_zero(offset):
    x, weight, bias = arguments((8, 18, 16, 16), offset=offset)
    y, mean, inverse = raw.batch_norm(x, weight, bias, None, None, 0.1, EPS)
    wide = x.double()
    var, exact = torch.var_mean(wide, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(inverse.double(), (var + EPS).rsqrt(), rtol=1e-6, atol=0)
    want = torchs(wide, weight.double(), bias.double())
    torch.testing.assert_close(y.double(), want, rtol=0, atol=3e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 5), (4, 20, 3, 3), (4, 3, 7, 5)])
def test_running_statistics(momentum, dtype, shape):
    x, weight, bias = arguments(shape, dtype)
    running = []
    for fn in (ours, torchs):
        mean, var = normal(shape[1], seed=5, dtype=dtype), normal(shape[1], dtype=dtype).abs()
        fn(x.clone().requires_grad_(), weight, bias, mean, var, momentum)
        running.append((mean, var))
    for got, want in zip(*running, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 4, 5, 3), (6, 18, 5, 3)])
def test_any_layout_in(shape):
    x, weight, bias = arguments(shape)
    g, v, more = (normal(*shape, seed=s) for s in (3, 4, 5))

    def run(x, g, v, more):
        y, mean, inverse = raw.batch_norm(x, weight, bias, None, None, 0.1, EPS)
        return y, mean, inverse, *both_passes(x, g, v, more, weight, mean, inverse)

    expected = {last: run(channels_last(x) if last else x, g, v, more) for last in (True, False)}
    for name, laid in relayouts(x).items():
        for others in zip(*(relayouts(t).values() for t in (g, v, more)), strict=True):
            for got, want in zip(
                run(laid, *others), expected[name == "channels last"], strict=True
            ):
                assert_same(got, want)
                if got.dim() > 1:
                    assert got.stride() == want.stride()
    for a, b in zip(*expected.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    last=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_shapes(shape, last, dtype):
    x, weight, bias = arguments(shape, dtype)
    x = channels_last(x) if last else x
    y, mean, inverse = raw.batch_norm(x, weight, bias, None, None, 0.1, EPS)
    wide = [t.double() for t in (x, weight, bias)]
    over = [0, *range(2, x.dim())]
    var, exact = torch.var_mean(wide[0], over, correction=0, keepdim=True)
    rows = [t.view(exact.shape) for t in wide[1:]]
    want = (wide[0] - exact) / (var + EPS).sqrt() * rows[0] + rows[1]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    g = normal(*shape, seed=3, dtype=dtype)
    d_x, d_weight, d_bias = raw.batch_norm_backward(g, x, weight, mean, inverse, None)
    h = (wide[0] - exact) / (var + EPS).sqrt()
    for got, terms, least in ((d_bias, g.double(), 1e-5), (d_weight, g * h, 1e-4)):
        rounding = least + 1e-8 * terms.abs().sum(over).max().item()  # where many terms cancel
        torch.testing.assert_close(got.double(), terms.sum(over), rtol=1e-5, atol=rounding)
    assert d_x.stride() == y.stride()


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 5), (3, 2, 4, 2), (2, 17, 2, 2), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients(shape, affine):
    inputs = [t.requires_grad_() for t in arguments(shape, torch.float64, affine) if t is not None]
    check_gradients(lambda x, w=None, b=None: ours(x, w, b), *inputs)


@pytest.mark.parametrize("last", [True, False])
def test_the_gradient_of_x_that_comes_from_the_double_backward(last):
    # It is added in the kernel: with the gradient of y, without one, and where x is used twice.
    x, weight, bias = arguments((3, 18, 4, 2), torch.float64)
    x = channels_last(x) if last else x
    results = []
    for fn in (ours, torchs):
        leaf = x.clone().requires_grad_()
        at = leaf * 1
        y = fn(at, weight.requires_grad_(), bias)
        (g,) = torch.autograd.grad(y.sin().sum(), at, create_graph=True)
        for loss in (g.square().sum() + y.cos().sum(), g.square().sum(), (g * at).sum()):
            results.append(torch.autograd.grad(loss, (leaf, weight), retain_graph=True))
    for ours_, theirs in zip(results[:3], results[3:], strict=True):
        for got, want in zip(ours_, theirs, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(20, 30, 16, 16), (20, 3, 64, 64), (3000, 40)])
@pytest.mark.parametrize("last", [True, False])
def test_repeatable(shape, last):
    x, weight, bias = arguments(shape)
    x = channels_last(x) if last else x
    g, v = normal(*shape, seed=3), normal(*shape, seed=4)
    for i in range(7):
        check_repeatable(lambda i=i: derivatives(ours, x, weight, bias, g, v)[i])


def test_instruction_sets_agree(simd):
    def run():
        for shape in SHAPES:
            for dtype in DTYPES:
                for last in (True, False):
                    x, weight, bias = arguments(shape, dtype)
                    g, v = (normal(*shape, seed=s, dtype=dtype) for s in (3, 4))
                    x = channels_last(x) if last else x
                    yield from derivatives(ours, x, weight, bias, g, v)

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


def test_what_is_kept():
    # x, its statistics, and of the backward pass the two sums: nothing else the size of x.
    x, weight, bias = arguments((4, 18, 8, 8))
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ours(x, weight.requires_grad_(), bias)
        g = torch.ones_like(y).requires_grad_()
        torch.autograd.grad(y, x, g, create_graph=True)
    large = {t.data_ptr() for t in saved if t.numel() == x.numel()}
    assert large == {x.data_ptr(), g.data_ptr()}


def test_opcheck():
    x, weight, bias = arguments((3, 4, 5, 2))
    _, mean, inverse = raw.batch_norm(x, weight, bias, None, None, 0.1, EPS)
    g, v = normal(*x.shape, seed=3), normal(*x.shape, seed=4)
    _, d_weight, d_bias = raw.batch_norm_backward(g, x, weight, mean, inverse, None)
    for laid in (x, channels_last(x), x.transpose(0, 3).contiguous().transpose(0, 3)):
        for running in ((None, None), (torch.zeros(4), torch.ones(4))):
            torch.library.opcheck(raw.batch_norm.default, (laid, weight, bias, *running, 0.1, EPS))
        torch.library.opcheck(
            raw.batch_norm_backward.default, (g, laid, weight, mean, inverse, None)
        )
        torch.library.opcheck(
            raw.batch_norm_double_backward.default,
            (v, g, laid, weight, mean, inverse, d_weight, d_bias),
        )


def test_vmap_and_torch_func():
    x = normal(3, 4, 5, 6, 2, dtype=torch.float64)
    weight, bias = (normal(5, seed=s, dtype=torch.float64) for s in (1, 2))
    for x_dim, laid in ((0, x), (2, x.movedim(0, 2)), (4, x.movedim(0, 4))):
        for argument in (0, 1, (0, 1)):
            results = []
            for fn in (ours, torchs):
                f = lambda x, w, fn=fn: fn(x, w, bias).pow(3).sum()  # noqa: E731
                gradient = torch.func.grad(f, argnums=argument)
                results.append(torch.func.vmap(gradient, in_dims=(x_dim, None))(laid, weight))
            torch.testing.assert_close(*results)
    hessians = [
        torch.func.jacrev(torch.func.grad(lambda t, fn=fn: fn(t, weight, bias).pow(3).sum()))(x[0])
        for fn in (ours, torchs)
    ]
    torch.testing.assert_close(*hessians)


def test_vmap_of_running_statistics():
    x = normal(3, 4, 5, 6)
    mean, var = torch.zeros(3, 5), torch.ones(5, 3)
    op = lambda x, m, v: raw.batch_norm(x, None, None, m, v, 0.1, EPS)[0]  # noqa: E731
    y = torch.func.vmap(op, in_dims=(0, 0, 1))(x, mean, var)
    for i in range(3):
        m, v = torch.zeros(5), torch.ones(5)
        torch.testing.assert_close(y[i], functional.batch_norm(x[i], m, v, training=True, eps=EPS))
        torch.testing.assert_close(mean[i], m)
        torch.testing.assert_close(var[:, i], v)
    with pytest.raises(RuntimeError, match="one set for many batches"):
        torch.func.vmap(op, in_dims=(0, None, None))(x, torch.zeros(5), torch.ones(5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_takes_torchs_own():
    x, weight, bias = arguments((4, 3, 5, 5))
    compiled = torch.compile(lambda x: ours(x, weight, bias).sin().sum(), fullgraph=True)
    grads = []
    for fn in (compiled, lambda x: torchs(x, weight, bias).sin().sum()):
        leaf = x.clone().requires_grad_()
        fn(leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_empty_is_torchs():
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    y = ours(x, None, None)
    assert y.shape == x.shape
    assert y.grad_fn.name() != "_BatchNormBackward"
    with pytest.raises(ValueError, match=r"x: got shape \[0, 3, 4, 4\], want at least one value"):
        raw.batch_norm(x.detach(), None, None, None, None, 0.1, EPS)


def test_other_dtypes_and_mixed_ones_are_not_the_kernels(monkeypatch):
    monkeypatch.setattr(topic, "_batch_norm", None)
    for dtype in (torch.bfloat16, torch.float16):
        x = normal(4, 3, 5, dtype=dtype).requires_grad_()
        (g,) = torch.autograd.grad(ours(x, None, None).sum(), x, create_graph=True)
        assert g.dtype == dtype
    x = normal(4, 3, 5, dtype=torch.bfloat16).requires_grad_()
    mixed = ours(x, torch.ones(3), torch.zeros(3))
    assert mixed.grad_fn.name() != "_BatchNormBackward"


def test_raw_ops_check_what_they_are_given():
    x, weight, _ = arguments((4, 3, 5))
    good = x, weight, None, None, None, 0.1, EPS
    for at, bad, message in [
        (0, torch.zeros(3), r"x: got shape \[3\], want \[N, C, \*D\]"),
        (0, x.half(), "x: got float16, want float32 or float64"),
        (1, torch.zeros(4), r"weight: got float32 of shape \[4\], want float32 of shape \[3\]"),
        (2, torch.zeros(3).double(), "bias: got float64"),
        (3, torch.zeros(6)[::2], "running_mean: has to be contiguous"),
        (4, torch.zeros(2), "running_var: got float32 of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            raw.batch_norm(*good[:at], bad, *good[at + 1 :])
    mean = torch.zeros(3)
    with pytest.raises(ValueError, match=r"grad: got float32 of shape \[4, 3\], want float32 of"):
        raw.batch_norm_backward(x[..., 0], x, weight, mean, mean, None)
    with pytest.raises(ValueError, match="more: got float64"):
        raw.batch_norm_backward(x, x, weight, mean, mean, x.double())
    with pytest.raises(ValueError, match="v: got float64"):
        raw.batch_norm_double_backward(x.double(), x, x, weight, mean, mean, mean, mean)
    with pytest.raises(ValueError, match="d_bias: got"):
        raw.batch_norm_double_backward(x, x, x, weight, mean, mean, mean, torch.zeros(4))


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [*SHAPES, (70, 2, 182, 182)])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
def test_cuda_gives_the_bits_of_the_cpu(shape, last, offset):
    weight, mean, inverse = (normal(shape[1], seed=s) for s in (4, 5, 6))
    large = [normal(*shape, seed=s) for s in range(4)]
    large = [channels_last(t) if last else t for t in large]
    want = both_passes(*large, weight, mean, inverse)

    def moved(t):  # offset: off the alignment of 16 bytes
        buffer = torch.empty(t.numel() + offset, device="cuda")[offset:]
        return torch.as_strided(buffer, t.shape, t.stride(), offset).copy_(t)

    got = both_passes(*map(moved, large), *(t.cuda() for t in (weight, mean, inverse)))
    for a, b in zip(got, want, strict=True):
        assert_same(a.cpu(), b)
        assert a.stride() == b.stride()


@pytest.mark.cuda
@pytest.mark.parametrize("last", [True, False])
def test_derivatives_on_cuda(last, monkeypatch):
    calls = []
    for name in ("_batch_norm_backward", "_batch_norm_double_backward"):
        kernel = getattr(topic, name)
        spy = lambda *a, kernel=kernel, name=name: calls.append(name) or kernel(*a)  # noqa: E731
        monkeypatch.setattr(topic, name, spy)
    shape = (4, 20, 33, 31)
    x, weight, bias = arguments(shape)
    g, v = normal(*shape, seed=3), normal(*shape, seed=4)
    tensors = [t.cuda() for t in (channels_last(x) if last else x, weight, bias, g, v)]
    got = derivatives(ours, *tensors)
    assert calls == ["_batch_norm_backward", "_batch_norm_double_backward"]
    want = derivatives(torchs, *[t.double() for t in tensors])
    for error in errors(got, want):
        assert error <= 1e-5


@pytest.mark.cuda
def test_cuda_takes_float32():
    x = torch.zeros(4, 3, device="cuda").double()
    with pytest.raises(ValueError, match="x: got float64, want float32 on CUDA"):
        raw.batch_norm_backward(x, x, None, x[0], x[0], None)


@pytest.mark.cuda
def test_cuda_captures_both_passes():
    tensors = [normal(4, 20, 33, 31, seed=s).cuda() for s in range(4)]
    tensors += [normal(20, seed=s).cuda() for s in (4, 5, 6)]
    want = both_passes(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both_passes(*tensors)
    graph.replay()
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)
