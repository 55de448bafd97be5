"""The passes of linear_logsumexp on the tensor cores, and when they are taken.

What the kernels compute, the shim proves (linear_logsumexp_cases.h); here matrices stand in for
them, and on a GPU the kernels themselves are held against chunks and against float64.
"""

from types import SimpleNamespace

import pytest
import torch

from robustcore import ops
from robustcore.ops.density import linear_fused
from testing import assert_same


class Matrices:
    """What the two kernels are to give, by whole matrices."""

    @staticmethod
    def logits(features, weight, minus_bias):
        z = features.double() @ weight.double().T
        return z if minus_bias is None else z - minus_bias

    def linear_logsumexp_online(self, features, weight, minus_bias, with_mean, blocks):
        assert blocks == linear_fused.BLOCKS_OF_PROCESSOR * 3
        z = self.logits(features, weight, minus_bias)
        mean = z.softmax(1) @ weight.double() if with_mean else z[:0, :0]
        return z.logsumexp(1).float(), mean.float()

    def linear_logsumexp_weights_(
        self, out, sums, features, weight, minus_bias, v_features, v_weight, minus_v_bias, shift,
        grad, dot, targets, grad_target, value, of_classes, curvature, add, blocks,
    ):  # fmt: skip
        p = (self.logits(features, weight, minus_bias) - shift.unsqueeze(1)).exp()
        p = p if grad is None else p * grad.unsqueeze(1)
        if curvature:
            u = torch.zeros_like(p) if minus_v_bias is None else -minus_v_bias.expand_as(p).double()
            if v_features is not None:
                u = u + v_features.double() @ weight.double().T
            if v_weight is not None:
                u = u + features.double() @ v_weight.double().T
            p = p * (u if dot is None else u - dot.unsqueeze(1))
        elif targets is not None:
            hit = targets.unsqueeze(1) == torch.arange(p.shape[1])
            p = p + hit * grad_target.unsqueeze(1)
        p = p.T if of_classes else p
        if sums is not None:
            sums.copy_(p.sum(1))
        if out is not None:
            assert out.shape[1] * out.element_size() % 16 == 0
            product = p @ value.double()
            out.copy_(out + product if add else product)


@pytest.fixture
def matrices(monkeypatch):
    monkeypatch.setattr(linear_fused, "raw", Matrices())
    monkeypatch.setattr(linear_fused, "obstacle", lambda *_: None)
    monkeypatch.setattr(linear_fused, "_processors", lambda _: 3)


def layer(n, d, k, dtype, device="cpu"):
    torch.manual_seed(0)
    inputs = [torch.randn(n, d), torch.randn(k, d) / d**0.5, torch.randn(k)]
    inputs = [t.to(device, dtype).requires_grad_() for t in inputs]
    targets = torch.randint(k, (n,))
    targets[0], targets[-1] = -100, k + 2  # one that counts for nothing, one that is no class
    return inputs, targets.to(device)


def derivatives(inputs, targets, of=(0, 1, 2), **options):
    """The results, first derivatives, and second ones along a cotangent of each of the first."""
    wanted = [inputs[i] for i in of]
    torch.manual_seed(1)
    results = ops.linear_logsumexp(*inputs, targets=targets, **options)
    results = results if targets is not None else (results,)
    ups = [torch.randn(results[0].shape).to(r).requires_grad_() for r in results]
    weighed = sum((u * r)[1:-1].sum() for u, r in zip(ups, results, strict=True))
    first = torch.autograd.grad(weighed, wanted, create_graph=True)
    along = [torch.randn(g.shape).to(g) for g in first]
    second = torch.autograd.grad(first, [*wanted, *ups], along)
    return [r[1:-1] for r in results], first, second


def check_near(got, want, tolerance):
    for these, those in zip(got, want, strict=True):
        for a, b in zip(these, those, strict=True):
            assert a.dtype == b.dtype or b.dtype == torch.float64
            error = (a.double() - b.double()).abs().max() / b.double().abs().max()
            assert error < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_targets", [True, False])
@pytest.mark.parametrize("of", [(0, 1, 2), (0,), (1,), (2,), (0, 1)])
def test_passes_are_those_of_chunks(dtype, with_targets, of, matrices):
    inputs, targets = layer(7, 5, 11, dtype)
    targets = targets if with_targets else None
    got = derivatives(inputs, targets, of, fused=True)
    want = derivatives(inputs, targets, of, fused=False)
    check_near(got, want, 1e-5 if dtype == torch.float32 else 2**-6)


def test_without_a_bias(matrices):
    (x, w, _), _ = layer(7, 5, 11, torch.float32)
    got, want = (
        torch.autograd.grad(ops.linear_logsumexp(x, w, fused=f).sin().sum(), (x, w))
        for f in (True, False)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_nothing_to_multiply(shape, matrices):
    n, d, k = shape
    x, w = torch.ones(n, d, requires_grad=True), torch.ones(k, d, requires_grad=True)
    lse = ops.linear_logsumexp(x, w, fused=True)
    torch.testing.assert_close(lse, torch.full((n,), 3.0).log())
    lse.sum().backward()
    assert_same(w.grad, torch.zeros(k, d))


def test_what_is_missing_is_said():
    x, w = torch.ones(2, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match="fused: got True, but features are on cpu, want a GPU"):
        ops.linear_logsumexp(x, w, fused=True)
    with pytest.raises(TypeError, match="fused: got int, want None, True or False"):
        ops.linear_logsumexp(x, w, fused=1)


RAW = torch.ops.robustcore
X, W, LSE = torch.ones(2, 4), torch.ones(3, 4), torch.ones(2)
ONLINE = dict(features=X, weight=W, minus_bias=None, with_mean=True, blocks=2)
WEIGHTS = dict(
    out=None, sums=None, features=X, weight=W, minus_bias=None, v_features=None, v_weight=None,
    minus_v_bias=None, shift=LSE, grad=None, dot=None, targets=None, grad_target=None, value=None,
    of_classes=True, curvature=False, add=False, blocks=2,
)  # fmt: skip
BAD = [
    (ONLINE, {}, "features: got a tensor on the CPU"),  # what is right until then
    (WEIGHTS, {}, "features: got a tensor on the CPU"),
    (ONLINE, dict(features=X.double()), "features: got float64 of shape"),
    (ONLINE, dict(features=X[:0]), r"features, weight: got shapes \[0, 4\] and"),
    (ONLINE, dict(weight=W[:, :3]), r"weight: got float32 of shape \[3, 3\], want float32"),
    (ONLINE, dict(weight=torch.ones(3, 8)[:, ::2]), "weight: want contiguous rows"),
    (ONLINE, dict(features=X[:, :3], weight=W[:, :3]), "features: want contiguous rows"),
    (ONLINE, dict(minus_bias=torch.ones(2)), r"minus_bias: got float32 of shape \[2\]"),
    (ONLINE, dict(blocks=0), "blocks: got 0"),
    (WEIGHTS, dict(shift=LSE.double()), "shift: got float64"),
    (WEIGHTS, dict(targets=torch.ones(2, dtype=torch.int64)), "grad_target: wanted with targets"),
    (WEIGHTS, dict(value=X), "out: wanted with value"),
    (WEIGHTS, dict(value=X, out=X), r"out: got float32 of shape \[2, 4\], want a contiguous one"),
    (WEIGHTS, dict(v_weight=X), r"v_weight: got float32 of shape \[2, 4\]"),
    (WEIGHTS, dict(sums=torch.ones(3, 2)[:, 0]), "sums: has to be contiguous"),
]


@pytest.mark.parametrize(("arguments", "change", "message"), BAD)
def test_the_kernels_arguments_are_checked(arguments, change, message):
    op = RAW.linear_logsumexp_online if arguments is ONLINE else RAW.linear_logsumexp_weights_
    with pytest.raises(ValueError, match=message):
        op(**{**arguments, **change})


@pytest.mark.parametrize(
    ("dtype", "capability", "message"),
    [
        (torch.float64, (9, 0), "of torch.float64 and weight of torch.float32, want both"),
        (torch.float32, (7, 5), "compute capability 7.5, want 8.0 to 9.0"),
        (torch.float32, (12, 0), "compute capability 12.0"),
        (torch.float32, (8, 6), None),
    ],
)
def test_obstacles_of_a_gpu(dtype, capability, message, monkeypatch):
    monkeypatch.setattr(linear_fused, "_capability", lambda _: capability)
    on_gpu = [SimpleNamespace(device=torch.device("cuda"), dtype=t) for t in (dtype, torch.float32)]
    got = linear_fused.obstacle(*on_gpu)
    assert got is None if message is None else message in got


def test_the_table_decides(monkeypatch):
    assert linear_fused.FASTER_FROM == {}  # until a GPU has been measured
    monkeypatch.setattr(linear_fused, "obstacle", lambda *_: None)
    monkeypatch.setattr(linear_fused, "_capability", lambda _: (9, 0))
    x, w = torch.ones(2, 5, 4), torch.ones(30, 4)
    assert not linear_fused.chosen(None, x, w)
    assert linear_fused.chosen(True, x, w)
    table = {((9, 0), torch.float32): (10, 30, 4)}
    monkeypatch.setattr(linear_fused, "FASTER_FROM", table)
    assert linear_fused.chosen(None, x, w)
    assert not linear_fused.chosen(False, x, w)
    assert not linear_fused.chosen(None, x[:, :4], w)
    assert not linear_fused.chosen(None, x.bfloat16(), w.bfloat16())


# ---- on a GPU ------------------------------------------------------------------------------------


def kernels_run():
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] in (8, 9)


SHAPES = [(7, 5, 11), (300, 200, 1000), (129, 64, 3001), (3000, 136, 257)]


@pytest.mark.cuda
@pytest.mark.skipif(not kernels_run(), reason="needs a GPU of compute capability 8.0 to 9.0")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_targets", [True, False])
def test_on_a_gpu(shape, dtype, with_targets):
    inputs, targets = layer(*shape, dtype, "cuda")
    targets = targets if with_targets else None
    got = derivatives(inputs, targets, fused=True)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    tolerance = 1e-4 if dtype == torch.float32 else 2**-5
    check_near(got, derivatives(inputs, targets, fused=False), tolerance)
    if dtype == torch.float32:  # the cotangents of others are rounded, which these are not
        check_near(got, derivatives(wide, targets), tolerance)
    lse = ops.linear_logsumexp(*inputs, fused=True, dtype=torch.float32)
    want = ops.linear_logsumexp(*wide)
    torch.testing.assert_close(lse.double(), want, rtol=2e-6, atol=2e-5)
    again = derivatives(inputs, targets, fused=True)
    for these, those in zip(got, again, strict=True):
        for a, b in zip(these, those, strict=True):
            assert_same(a.detach(), b.detach())


@pytest.mark.cuda
@pytest.mark.skipif(not kernels_run(), reason="needs a GPU of compute capability 8.0 to 9.0")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_on_a_gpu(dtype):
    (x, w, b), _ = layer(6, 16, 300, dtype, "cuda")
    with torch.no_grad():
        b[3:290] = -float("inf")
        x *= 50
        x[1] = float("nan")
    for bias in (b, torch.full_like(b, -float("inf"))):
        got = ops.linear_logsumexp(x, w, bias, fused=True)
        want = ops.linear_logsumexp(x, w, bias, fused=False)
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.skipif(not kernels_run(), reason="needs a GPU of compute capability 8.0 to 9.0")
def test_memory_on_a_gpu():
    (x, w, b), _ = layer(512, 64, 100_000, torch.bfloat16, "cuda")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(ops.linear_logsumexp(x, w, b, fused=True).sum(), (x, w, b))
    peak = torch.cuda.max_memory_allocated() - before
    gradients = 2 * sum(t.numel() * t.element_size() for t in (x, w, b))
    assert peak < 4 * 256 * processors * 128 + gradients + 2**23
    assert peak < 2 * 512 * 100_000


@pytest.mark.cuda
@pytest.mark.skipif(not kernels_run(), reason="needs a GPU of compute capability 8.0 to 9.0")
def test_captured_in_a_graph():
    (x, w, b), _ = layer(300, 64, 5000, torch.bfloat16, "cuda")

    def gradients():
        return torch.autograd.grad(ops.linear_logsumexp(x, w, b, fused=True).sum(), (x, w, b))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients()  # what a first call loads is no part of a graph
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    with torch.no_grad():
        x.copy_(-x)
    graph.replay()
    for got, want in zip(captured, gradients(), strict=True):
        assert_same(got, want)
