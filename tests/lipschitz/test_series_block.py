"""The series as one kernel of a GPU: what is asked of it, and on a GPU its results.

Without one, its operation is done in torch here, so that everything around it runs; and by the
kernel itself, compiled for the CPU.
"""

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lipschitz.dense import skew_weight
from lipschitz.test_conv_exp import images, reference
from robustcore import ops
from robustcore.lipschitz import SOC
from robustcore.ops.lipschitz import series_block
from test_cuda_on_cpu import COMPILER, ROOT

LAST = torch.channels_last
EPS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def in_torch(x, filter, alpha, beta, gamma, delta, y, maps, backwards):
    assert all(t.is_contiguous(memory_format=LAST) for t in (x, filter, y))
    before, current, made = torch.zeros_like(x), x, []
    for a, b, c in zip(alpha, beta, gamma, strict=True):
        out = a * torch.conv2d(current, filter, padding=1) + b * x + c * before
        before, current = current, out
        made.append(out)
    if delta:
        first, *others = delta
        current = first * x + sum(d * out for d, out in zip(others, made, strict=True))
    y.copy_(current)
    if maps is not None and len(made) > 1:
        maps.copy_(torch.cat(made[-2::-1] if backwards else made[:-1]))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(series_block, "cannot", lambda *_: None)
    monkeypatch.setattr(series_block, "_block", in_torch)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    library = tmp_path_factory.mktemp("series_block") / "series_block.so"
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-DRC_CUDA_SHIM", "-shared", "-fPIC"]
    here = Path(__file__).parent / "series_block_library.cpp"
    sources = ["-x", "c++", ROOT / "csrc/lipschitz/series_block.cu", here]
    includes = ["-I", ROOT / "csrc", "-I", ROOT / "tests" / "shim"]
    build = [COMPILER, *flags, *includes, *sources, "-o", library, "-pthread"]
    subprocess.run(list(map(str, build)), check=True)
    return ctypes.CDLL(str(library)).run_series_block


def by_the_kernel(function, limit=227 << 10):
    """The operation as the GPU's source does it, with so much shared memory."""

    def block(x, filter, alpha, beta, gamma, delta, y, maps, backwards):
        (n, c, h, w), degree, numel = x.shape, len(alpha), x.numel()
        first = None
        if maps is not None and degree > 1:
            first = maps.data_ptr() + backwards * (degree - 2) * numel * x.element_size()
        floats = [(ctypes.c_float * len(v))(*v) for v in (alpha, beta, gamma, delta)]
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        failed = function(
            x.dtype == torch.bfloat16, long(n), c, h, w, degree, pointer(x.data_ptr()),
            pointer(filter.data_ptr()), pointer(y.data_ptr()), pointer(first),
            long(-numel if backwards else numel), bool(delta), *floats, long(limit),
        )  # fmt: skip
        assert not failed

    return block


def gradients(x, kernel, grad, wanted=("x", "kernel"), **options):
    """y and the gradients that are wanted."""
    x = x.clone().requires_grad_("x" in wanted)
    kernel = kernel.clone().requires_grad_("kernel" in wanted)
    y = ops.conv_exp(x, kernel, radius=1.3, check=False, **options)
    inputs = [t for t in (x, kernel) if t.requires_grad]
    return y.detach(), *torch.autograd.grad(y, inputs, grad)


def inputs(shape, dtype):
    kernel = skew_weight(shape[1], 3, dtype=torch.float64)
    x, grad = (images(*shape, dtype=torch.float64, seed=s) for s in (1, 2))
    return [t.to(dtype) for t in (x, kernel, grad)]


def expected(x, kernel, grad, **options):
    x, kernel, grad = (t.detach().double().cpu() for t in (x, kernel, grad))
    x, kernel = x.requires_grad_(), kernel.requires_grad_()
    y = reference(x, kernel, ops.exp_series(1.3, **options))
    return y.detach(), *torch.autograd.grad(y, (x, kernel), grad)


def assert_near(got, want, dtype):
    for a, b in zip(got, want, strict=True):
        assert (a.double().cpu() - b).norm() <= EPS[dtype] * b.norm()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", ["chebyshev", "taylor"])
@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("wanted", ["x kernel", "x", "kernel"])
def test_gradients(wanted, degree, method, recompute, as_on_a_gpu):
    given = inputs((2, 32, 5, 4), torch.float64)
    options = {"degree": degree, "method": method}
    got = gradients(*given, wanted.split(), fused=True, recompute=recompute, **options)
    y, *both = expected(*given, **options)
    want = [g for g, name in zip(both, ("x", "kernel"), strict=True) if name in wanted]
    assert_near(got, (y, *want), torch.float64)


def test_double_backward(as_on_a_gpu):
    x, kernel, _ = inputs((1, 32, 2, 3), torch.float64)
    along = torch.randn_like(x)

    def slope(fused):
        leaf = x.clone().requires_grad_()
        y = ops.conv_exp(leaf, kernel, radius=1.3, degree=2, fused=fused)
        (g,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad((g * along).sum(), leaf)[0]

    torch.testing.assert_close(slope(True), slope(False))


@pytest.mark.parametrize("recompute", [False, True])
def test_soc(recompute, as_on_a_gpu):
    torch.manual_seed(0)
    plain = SOC(32, 32, recompute=recompute)
    layer = SOC(32, 32, recompute=recompute, fused=True)
    layer.load_state_dict(plain.state_dict())
    results = []
    for each in (plain, layer):
        x = images(2, 32, 6, 5, dtype=torch.float32).requires_grad_()
        y = each(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, each.weight.grad, each.eval()(x).detach()])
        assert each.lipschitz_bound() == 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_fused_is_part_of_what_eval_keeps(as_on_a_gpu, monkeypatch):
    layer, x = SOC(32, 32).eval(), images(1, 32, 4, 4, dtype=torch.float32)
    layer(x)
    calls = []
    monkeypatch.setattr(series_block, "_block", lambda *a: calls.append(in_torch(*a)))
    layer.fused = True
    layer(x)
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "limit"), [((3, 32, 5, 6), 227 << 10), ((1, 32, 12, 7), 30_000)])
def test_the_kernel_trains(shape, limit, dtype, compiled, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(series_block, "_block", by_the_kernel(compiled, limit))
    given = inputs(shape, dtype)
    for options in ({"degree": 3}, {"degree": 1}, {"degree": 2, "method": "taylor"}):
        want = expected(*given, **options)
        for recompute in (False, True):
            got = gradients(*given, fused=True, recompute=recompute, **options)
            assert_near(got, want, dtype)


# ---- Where it runs -------------------------------------------------------------------------------


def test_refusals_name_the_reason():
    x, kernel, _ = inputs((1, 32, 4, 4), torch.float32)
    with pytest.raises(ValueError, match="fused: got True, but x is on cpu"):
        ops.conv_exp(x, kernel, radius=1.0, degree=2, fused=True)
    with pytest.raises(TypeError, match="fused: got 'yes'"):
        ops.conv_exp(x, kernel, radius=1.0, degree=2, fused="yes")
    with pytest.raises(ValueError, match="fused: got True, but kernel_size is 1"):
        SOC(32, 32, 1, fused=True)
    with pytest.raises(ValueError, match="fused: got True, but x is on cpu"):
        SOC(32, 32, fused=True)(x)


def on_a_gpu(channels=64, side=16, dtype=torch.float32):
    size = torch.empty(0, dtype=dtype).element_size()
    return SimpleNamespace(
        device=torch.device("cuda:0"), dtype=dtype, shape=(8, channels, side, side),
        element_size=lambda: size,
    )  # fmt: skip


@pytest.mark.parametrize(("given", "sides", "capability", "why"), [
    (on_a_gpu(dtype=torch.float16), (3, 3), (9, 0), "x is torch.float16"),
    (on_a_gpu(), (5, 5), (9, 0), "want 3 x 3"),
    (on_a_gpu(channels=48), (3, 3), (9, 0), "there are 48 channels"),
    (on_a_gpu(), (3, 3), (7, 5), "compute capability is below 8.0"),
])  # fmt: skip
def test_obstacles(given, sides, capability, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    series = ops.exp_series(1.0, degree=4)
    reason = series_block.cannot(given, torch.empty(1, 1, *sides), series)
    assert why in reason


def test_a_table_decides_and_is_empty(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(series_block, "cannot", lambda *_: None)
    x, filter, series = on_a_gpu(), torch.empty(64, 64, 3, 3), ops.exp_series(1.0, degree=4)
    assert not series_block.FASTER
    assert not series_block.chosen(x, filter, series)
    measured = series_block.Case((9, 0), torch.float32, 64, 16, 16)
    monkeypatch.setattr(series_block, "FASTER", frozenset({measured}))
    assert series_block.chosen(x, filter, series)
    assert not series_block.chosen(on_a_gpu(side=8), filter, series)
    assert not series_block.chosen(x, filter, series._replace(fused=False))


# ---- On a GPU ------------------------------------------------------------------------------------

SHAPES = [(5, 32, 32, 32), (3, 64, 16, 16), (9, 128, 8, 8), (2, 64, 7, 13), (1, 32, 1, 5)]


def fused_on_gpu(shape, dtype, **options):
    given = [t.cuda() for t in inputs(shape, dtype)]
    return given, gradients(*given, fused=True, **options)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("degree", [1, 4, 8])
def test_on_a_gpu(degree, shape, dtype):
    torch.backends.cudnn.allow_tf32 = False  # of the filter's gradient, which is cuDNN's
    for recompute in (False, True):
        given, got = fused_on_gpu(shape, dtype, degree=degree, recompute=recompute)
        assert_near(got, expected(*given, degree=degree), dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_batch_does_not_matter(dtype):
    x, kernel, _ = (t.cuda() for t in inputs((300, 128, 8, 8), dtype))
    whole = ops.conv_exp(x, kernel, radius=1.3, degree=5, fused=True)
    parts = [ops.conv_exp(p, kernel, radius=1.3, degree=5, fused=True) for p in x.split(7)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.cuda
def test_on_a_gpu_in_a_graph():
    x, kernel, _ = (t.cuda() for t in inputs((2, 64, 16, 16), torch.float32))

    def run():
        return ops.conv_exp(x, kernel, radius=1.3, degree=5, fused=True)

    want, graph = run(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    got.zero_()
    graph.replay()
    assert torch.equal(got, want)


@pytest.mark.cuda
def test_on_a_gpu_offset_and_strided_images():
    x, kernel, _ = (t.cuda() for t in inputs((3, 32, 9, 8), torch.float32))
    flat = torch.zeros(x.numel() + 1, device="cuda")
    moved = flat[1:].view(3, 9, 8, 32).permute(0, 3, 1, 2)
    moved.copy_(x)
    options = {"radius": 1.3, "degree": 3, "fused": True}
    want = ops.conv_exp(x, kernel, **options)
    assert torch.equal(ops.conv_exp(moved, kernel, **options), want)
    assert torch.equal(ops.conv_exp(x.expand(3, 32, 9, 8).contiguous(), kernel, **options), want)


@pytest.mark.cuda
def test_on_a_gpu_maps_that_do_not_fit():
    x, kernel, _ = (t.cuda() for t in inputs((1, 128, 64, 64), torch.float32))
    with pytest.raises(ValueError, match="exceed the GPU's shared memory"):
        ops.conv_exp(x, kernel, radius=1.3, degree=12, fused=True)
