"""ops.random_projection and its transpose: the matrix, its products, moments and derivatives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence import matrix
from robustcore import ops
from testing import TOLERANCE, assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

KINDS = ["rademacher", "normal"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SEED = 0x9E3779B97F4A7C15
BORDER = (3 << 32) - 45  # rows from here on go past a multiple of 2**32
ENTRIES = {"rademacher": matrix.signs, "normal": matrix.normals}


def project(x, k, kind="rademacher", **more):
    return ops.random_projection(x, k, kind=kind, **{"seed": SEED, **more})


def transposed(y, rows, kind="rademacher", **more):
    return ops.random_projection_transposed(y, rows, kind=kind, **{"seed": SEED, **more})


def entries(rows, k, kind, row_offset=0, dtype=torch.float64):
    """The op's own matrix, out of an identity."""
    return project(torch.eye(rows), k, kind, row_offset=row_offset, dtype=dtype)


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# ---- the matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row_offset", [0, 5, BORDER, (1 << 62) - 90])
@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_matrix(kind, row_offset, simd):
    simd()
    got = entries(90, 150, kind, row_offset)
    want = torch.from_numpy(ENTRIES[kind](SEED, row_offset, 90, 150))
    if kind == "rademacher":
        assert_same(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


GOLDEN = {  # rows 2**32 - 1 and 2**32 of seed 42, columns 126 to 129: they never change
    "rademacher": [[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, 1.0]],
    "normal": [
        [
            "0x1.0148d00000000p+0",
            "-0x1.4935ce0000000p-1",
            "0x1.1df1820000000p+1",
            "-0x1.ce68d80000000p+0",
        ],
        [
            "0x1.6b492c0000000p-2",
            "0x1.dac2440000000p-1",
            "-0x1.7c43e00000000p+0",
            "0x1.c610900000000p-1",
        ],
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_vectors(kind, device):
    x = torch.eye(2, device=device)
    got = ops.random_projection(x, 130, seed=42, row_offset=2**32 - 1, kind=kind)[:, 126:]
    want = [[float.fromhex(v) if isinstance(v, str) else v for v in row] for row in GOLDEN[kind]]
    assert_same(got.cpu(), torch.tensor(want))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_the_same_matrix(kind):
    whole = entries(300, 700, kind, row_offset=BORDER)
    assert_same(entries(37, 700, kind, row_offset=BORDER + 63), whole[63:100])
    assert_same(entries(300, 130, kind, row_offset=BORDER), whole[:, :130])
    wide = project(torch.eye(300, dtype=torch.float64), 130, kind, row_offset=BORDER)
    assert_same(wide, whole[:, :130])
    y = torch.eye(700, dtype=torch.float64)
    back = ops.random_projection_transposed(y, 300, seed=SEED, row_offset=BORDER, kind=kind)
    assert_same(back.T.contiguous(), whole)


def test_signs_are_balanced_and_independent():
    signs = entries(2000, 1000, "rademacher", dtype=torch.float32)
    assert (signs.abs() == 1).all()
    n = signs.numel()
    assert abs(float(signs.sum())) < 4.5 * math.sqrt(n)
    # Neighbours in a row, in a column, and in the next word and block.
    for a, b in ((signs[1:], signs[:-1]), *((signs[:, d:], signs[:, :-d]) for d in (1, 32, 128))):
        assert abs(float((a * b).sum())) < 4.5 * math.sqrt(a.numel())
    gram = signs.T @ signs / 2000
    assert float((gram - torch.eye(1000)).abs().max()) < 5.5 / math.sqrt(2000)


def test_normals_are_normal():
    from scipy.stats import kstest

    z = entries(1000, 500, "normal")
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-4
    gram = z.T @ z / 1000
    assert float((gram - torch.eye(500)).abs().max()) < 6 * math.sqrt(2 / 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_in_the_mean_and_its_variance(kind):
    k, trials = 16, 20_000
    x = normal(1, 12, dtype=torch.float64)
    # Twelve other rows of the matrix each time.
    matrices = transposed(torch.eye(k, dtype=torch.float64), 12 * trials, kind).view(k, trials, 12)
    projected = torch.einsum("d,ktd->tk", x[0], matrices)
    ratio = projected.square().sum(1) / k
    size = x[0].square().sum()
    variance = 2 * size**2 / k
    if kind == "rademacher":
        variance = 2 * (size**2 - x[0].pow(4).sum()) / k
    assert abs(ratio.mean() - size) < 4.5 * (variance / trials).sqrt()
    assert abs(ratio.var() / variance - 1) < 0.1


# ---- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("samples", "rows", "k"), [(1, 1, 1), (3, 130, 7), (33, 1025, 513), (2, 2500, 5), (40, 5, 1030)]
)
def test_against_the_materialised_matrix(samples, rows, k, kind, dtype, simd):
    simd()
    x = normal(samples, rows, dtype=dtype)
    want = x.double() @ entries(rows, k, kind, BORDER)
    got = project(x, k, kind, row_offset=BORDER)
    assert got.dtype == dtype
    size = want.abs().max()
    tolerance = max(TOLERANCE[dtype], 5e-6) if dtype != torch.float64 else TOLERANCE[dtype]
    torch.testing.assert_close(got.double() / size, want / size, rtol=0, atol=tolerance)
    wide = project(x, k, kind, row_offset=BORDER, dtype=torch.float64)
    torch.testing.assert_close(wide / size, want / size, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_each_instruction_set_and_of_any_batch(kind, simd, widest):
    x, y = normal(37, 3000), normal(5, 300)
    want, back = project(x, 700, kind), transposed(y, 1500, kind)
    simd()
    assert_same(project(x, 700, kind), want)
    assert_same(transposed(y, 1500, kind), back)
    for some in (slice(0, 1), slice(3, 5), slice(9, 37)):
        assert_same(project(x[some], 700, kind), want[some])
        assert_same(transposed(y[some], 1500, kind), back[some])


def test_more_tiles_and_segments_than_are_kept_at_a_time():
    # 65 tiles of 2 segments, and 150 segments of a tile: several rounds each.
    x = normal(65 * 32 - 5, 1030)
    got = project(x, 3)
    for n in (0, 900, len(x) - 1):
        assert_same(project(x[n : n + 1], 3)[0], got[n])
    long = normal(2, 150 * 1024 + 9)
    parts = [long[:, i : i + 1024].contiguous() for i in range(0, long.shape[1], 1024)]
    want = torch.zeros(2, 3)
    for i, part in enumerate(parts):
        want = want + project(part, 3, row_offset=1024 * i)
    assert_same(project(long, 3), want)  # the documented order of sums


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_one_by_one(kind):
    x = normal(4, 1000, dtype=torch.float64)
    parts = [(0, 1), (1, 300), (300, 1000)]
    total = sum(project(x[:, a:b], 50, kind, row_offset=a) for a, b in parts)
    torch.testing.assert_close(total, project(x, 50, kind), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dot_product_test(kind, device):
    x = normal(7, 1500, dtype=torch.float64).to(device)
    y = normal(7, 1300, dtype=torch.float64, seed=1).to(device)
    forward = (project(x, 1300, kind, row_offset=BORDER) * y).sum(1)
    adjoint = (transposed(y, 1500, kind, row_offset=BORDER) * x).sum(1)
    torch.testing.assert_close(forward, adjoint, rtol=1e-10, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 1100), st.integers(1, 600), st.sampled_from(KINDS))
def test_any_shape(samples, rows, k, kind):
    x = normal(samples, rows)
    got = project(x, k, kind)
    assert got.shape == (samples, k)
    want = x.double() @ entries(rows, k, kind)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout(dtype):
    x, y = normal(5, 70, dtype=dtype), normal(5, 30, dtype=dtype)
    for name, other in relayouts(x).items():
        assert_same(project(other, 9), project(x, 9)), name
    for name, other in relayouts(y).items():
        assert_same(transposed(other, 80), transposed(y, 80)), name
    assert_same(project(x[:1].expand(5, 70), 9), project(x[:1], 9).expand(5, 9).contiguous())


def test_the_same_on_any_number_of_threads():
    x, y = normal(40, 5000), normal(3, 600)
    check_repeatable(lambda: project(x, 600))
    check_repeatable(lambda: transposed(y, 5000))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_the_cpu(kind, dtype):
    x, y = normal(33, 5000, dtype=dtype), normal(33, 300, dtype=dtype)
    assert_same(project(x.cuda(), 600, kind).cpu(), project(x, 600, kind))
    assert_same(transposed(y.cuda(), 900, kind).cpu(), transposed(y, 900, kind))


# ---- derivatives and transforms ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, device):
    x = normal(2, 6, dtype=torch.float64).to(device).requires_grad_()
    check_gradients(lambda x: project(x, 5, kind).square(), x)
    check_gradients(lambda y: transposed(y, 4, kind).square(), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_transpose(dtype):
    x = normal(3, 50, dtype=dtype).requires_grad_()
    upstream = normal(3, 20, dtype=dtype, seed=1)
    (grad,) = torch.autograd.grad(project(x, 20), x, upstream)
    assert_same(grad, transposed(upstream, 50))


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_and_func(kind):
    x = normal(3, 2, 40)
    want = torch.stack([project(each, 9, kind) for each in x])
    assert_same(torch.func.vmap(lambda x: project(x, 9, kind))(x), want)
    assert_same(torch.func.vmap(lambda x: project(x, 9, kind), 2)(x.permute(1, 2, 0)), want)
    grads = torch.func.vmap(torch.func.grad(lambda x: project(x, 9, kind).square().sum()))(x)
    want = torch.stack([2 * transposed(project(each, 9, kind), 40, kind) for each in x])
    torch.testing.assert_close(grads, want, rtol=1e-5, atol=1e-4)


def test_opcheck():
    namespace = torch.ops.robustcore
    for normals in (False, True):
        for dtype in (torch.float64, torch.bfloat16):
            x = normal(3, 20, dtype=dtype)
            torch.library.opcheck(namespace.random_projection.default, (x, 7, 3, 5, normals))
            opcheck = namespace.random_projection_transposed.default
            torch.library.opcheck(opcheck, (x, 7, 3, 5, normals))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled():
    compiled = torch.compile(lambda x: project(x, 9).square().sum(), fullgraph=True)
    for samples in (4, 5, 6):  # the later ones with a symbolic size
        x = normal(samples, 30).requires_grad_()
        want = project(x, 9).square().sum()
        torch.testing.assert_close(compiled(x), want)
        got = torch.autograd.grad(compiled(x), x)[0]
        torch.testing.assert_close(got, torch.autograd.grad(want, x)[0])


def test_autocast_leaves_it_alone():
    x = normal(3, 50)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(project(x, 9), project(x, 9))
        assert project(x, 9).dtype == torch.float32


def test_memory_beyond_in_and_output():
    """Under 16 MiB, most of it the sums of segments."""
    x = torch.ones(1, 1).expand(32, 300_000)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profile:
        result = project(x, 512)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert result.numel() * 4 < peak < result.numel() * 4 + (9 << 20)


BAD = [
    (lambda: project(torch.zeros(3), 2), ValueError, r"x: got shape \[3\], want \[N, D\]"),
    (lambda: project(torch.zeros(3, 3).int(), 2), TypeError, "x: got torch.int32"),
    (lambda: project(torch.zeros(1, 1), 0), ValueError, "k: got 0"),
    (
        lambda: project(torch.zeros(1, 1), 2, row_offset=2**62 - 1 + 1),
        ValueError,
        "row_offset: got",
    ),
    (lambda: project(torch.zeros(1, 3), 2, row_offset=2**62 - 2), ValueError, "row_offset: got"),
    (lambda: project(torch.zeros(1, 1), 2, "sparse"), ValueError, "kind: got 'sparse'"),
    (lambda: project(torch.zeros(1, 1), 2, dtype=torch.int32), TypeError, "dtype: got"),
    (lambda: transposed(torch.zeros(1, 1), -1), ValueError, "rows: got -1"),
    (lambda: transposed(torch.zeros(1, 1, 1), 1), ValueError, r"y: got shape \[1, 1, 1\]"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_seeds_differ():
    first, second = (entries(20, 256, "rademacher", dtype=torch.float32) for _ in range(2))
    assert_same(first, second)
    other = project(torch.eye(20), 256, seed=SEED ^ 1)
    assert 0.4 < float((first == other).float().mean()) < 0.6
    assert np.array_equal(first.numpy(), matrix.signs(SEED, 0, 20, 256))
