"""ops.count_votes: against argmax and bincount, ties, NaN, layouts, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from testing import assert_same, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def reference(logits):
    """Row by row, from the definition."""
    counts = torch.zeros(logits.shape[0], logits.shape[2], dtype=torch.int64)
    for image, rows in enumerate(logits.cpu().double().tolist()):
        for row in rows:
            if not any(v != v for v in row):
                counts[image, row.index(max(row))] += 1
    return counts


def logits(*shape, dtype=torch.float32, levels=None, seed=0):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if levels:
        t = (t * levels).round() / levels
    return t.to(dtype)


@pytest.mark.parametrize(
    "classes", [1, 2, 3, 8, 10, 15, 16, 17, 31, 32, 33, 40, 100, 257, 1000, 1025, 5000]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference(classes, dtype, device):
    t = logits(2, 37, classes, dtype=dtype, levels=2)  # few levels: many ties
    assert_same(ops.count_votes(t.to(device)).cpu(), reference(t))


@pytest.mark.parametrize("classes", [1, 7, 8, 9, 16, 17, 32, 33, 100])
def test_instruction_sets_agree(classes, simd):
    t = logits(3, 200, classes, levels=1)
    t[0, 5, classes // 2] = float("nan")
    simd()
    assert_same(ops.count_votes(t), reference(t))


@pytest.mark.parametrize("classes", [1, 10, 20, 70, 2000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(classes, dtype, device):
    inf, nan = float("inf"), float("nan")
    t = torch.zeros(1, 8, classes, dtype=dtype)
    t[0, 0, -1] = nan  # votes for nobody, wherever the NaN stands
    t[0, 1, 0] = nan
    t[0, 2] = -inf  # all alike: class 0
    t[0, 3] = inf
    t[0, 4, -1] = inf
    t[0, 5, 0], t[0, 5, -1] = -0.0, 0.0  # equal: class 0
    t[0, 6] = -torch.finfo(dtype).max
    t[0, 7, : classes // 2] = -inf
    got = ops.count_votes(t.to(device)).cpu()
    assert_same(got, reference(t))
    assert got.sum() == 6


def test_near_ties_in_float64():
    t = torch.ones(1, 1, 3, dtype=torch.float64)
    t[0, 0, 2] += 1e-15
    assert ops.count_votes(t).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout(dtype, device):
    t = logits(3, 50, 10, dtype=dtype).to(device)
    for laid in relayouts(t).values():
        assert_same(ops.count_votes(laid), ops.count_votes(t))
    one = t[:1, :1].expand(3, 50, 10)
    assert ops.count_votes(one).max(1).values.tolist() == [50, 50, 50]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 40), st.integers(1, 40), st.integers(0, 9))
def test_shapes(batch, samples, classes, seed):
    t = logits(batch, samples, classes, levels=1, seed=seed)
    assert_same(ops.count_votes(t), reference(t))


def test_many_rows_on_any_number_of_threads(device):
    t = logits(3, 5000, 10).to(device)
    expected = torch.stack([torch.bincount(v.argmax(1), minlength=10) for v in t])
    assert_same(ops.count_votes(t), expected)
    check_repeatable(lambda: ops.count_votes(t))


def test_out_is_overwritten(device):
    t = logits(2, 30, 10).to(device)
    out = torch.full((2, 10), 99, device=device)
    assert ops.count_votes(t, out=out) is out
    assert_same(out, ops.count_votes(t))
    empty = ops.count_votes(t[:, :0], out=out)
    assert (empty == 0).all()


def test_opcheck():
    t = logits(2, 5, 4)
    torch.library.opcheck(torch.ops.robustcore.count_votes.default, (t,))
    out = torch.zeros(2, 4, dtype=torch.int64)
    torch.library.opcheck(torch.ops.robustcore.count_votes_out.default, (t, out))


def test_vmap():
    t = logits(3, 2, 5, 4)
    for dim in range(4):
        mapped = torch.func.vmap(ops.count_votes, in_dims=dim)(t.movedim(0, dim))
        assert_same(mapped, torch.stack([ops.count_votes(v) for v in t]))


BAD = [
    (dict(logits=torch.rand(2, 3)), r"logits: got shape \[2, 3\], want \[B, S, K\]"),
    (dict(logits=torch.rand(2, 3, 0)), "logits: got no class"),
    (dict(logits=torch.zeros(1, 2, 3, dtype=torch.int64)), "logits: got torch.int64"),
    (dict(logits=[[1.0]]), "logits: got list"),
    (dict(out=torch.zeros(1, 3)), "out: got"),
    (dict(out=torch.zeros(2, 3, dtype=torch.int64)), r"out: got .* want .*\[1, 3\]"),
    (dict(out=torch.zeros(3, 1, dtype=torch.int64).t()[:, ::2]), "out: got"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.count_votes(**{"logits": torch.rand(1, 2, 3), **change})
