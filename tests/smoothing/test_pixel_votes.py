"""ops.add_pixel_votes: against a loop over pixels, ties, NaN, layouts, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from smoothing.inputs import DTYPES
from testing import assert_same, check_repeatable, relayouts

pytestmark = pytest.mark.kernel


def reference(logits):
    """Votes of every class, pixel by pixel, from the definition."""
    samples, classes = logits.shape[:2]
    counts = torch.zeros(classes, math.prod(logits.shape[2:]), dtype=torch.int32)
    for sample in logits.cpu().double().reshape(samples, *counts.shape):
        for pixel, row in enumerate(sample.T.tolist()):
            if not any(v != v for v in row):
                counts[row.index(max(row)), pixel] += 1
    return counts.view(classes, *logits.shape[2:])


def votes(logits):
    counts = torch.zeros(logits.shape[1:], dtype=torch.int32, device=logits.device)
    ops.add_pixel_votes(counts, logits)
    return counts


def votes_of(logits, chosen):
    counts = torch.zeros(logits.shape[2:], dtype=torch.int32, device=logits.device)
    ops.add_pixel_votes(counts, logits, chosen)
    return counts


def make(*shape, dtype=torch.float32, seed=0):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    t = t.round()  # few levels: many ties
    t.flatten()[:: max(t.numel() // 5, 1)] = float("nan")
    return t.to(dtype)


@pytest.mark.parametrize("classes", [1, 2, 19, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference(classes, dtype, device):
    t = make(3, classes, 5, 7, dtype=dtype)
    expected = reference(t)
    assert_same(votes(t.to(device)).cpu(), expected)
    chosen = torch.arange(35).view(5, 7) % (classes + 1) - 1
    wanted = expected.gather(0, chosen.clamp(min=0)[None])[0] * (chosen >= 0)
    assert_same(votes_of(t.to(device), chosen.to(device)).cpu(), wanted.int())


@pytest.mark.parametrize("pixels", [1, 511, 512, 513, 1500])
def test_instruction_sets_agree(pixels, simd):
    t = make(2, 5, pixels)
    simd()
    assert_same(votes(t), reference(t))


def test_special_values(device):
    inf, nan = float("inf"), float("nan")
    rows = [[-inf, -inf], [inf, nan], [nan, 1.0], [-0.0, 0.0], [-inf, -1e38], [inf, inf]]
    t = torch.tensor(rows, device=device).T[None]
    assert votes(t).tolist() == [[1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0]]


def test_near_ties_in_float64(device):
    t = torch.ones(1, 3, 1, dtype=torch.float64, device=device)
    t[0, 2] += 1e-15
    assert votes(t).tolist() == [[0], [0], [1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout(dtype, device):
    t = make(3, 4, 6, 5, dtype=dtype).to(device)
    for laid in relayouts(t).values():
        assert_same(votes(laid), votes(t))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 4), st.integers(1, 6), st.lists(st.integers(0, 6), max_size=3), st.integers(0, 9)
)
def test_shapes(samples, classes, pixels, seed):
    t = make(samples, classes, *pixels, seed=seed) if samples else torch.zeros(0, classes, *pixels)
    assert_same(votes(t), reference(t))


def test_adds_on_any_number_of_threads():
    t = make(4, 6, 50, 70)
    check_repeatable(lambda: votes(t))
    counts = votes(t)
    ops.add_pixel_votes(counts, t)
    assert_same(counts, 2 * votes(t))


def test_opcheck():
    t, op = make(2, 4, 5), torch.ops.robustcore.add_pixel_votes.default
    torch.library.opcheck(op, (torch.zeros(4, 5, dtype=torch.int32), t, None))
    chosen = torch.zeros(5, dtype=torch.int64)
    torch.library.opcheck(op, (torch.zeros(5, dtype=torch.int32), t, chosen))


BAD = [
    (dict(logits=torch.rand(3)), r"logits: got shape \[3\], want \[N, K, \*D\]"),
    (dict(logits=torch.rand(2, 0, 4)), "logits: got no class"),
    (dict(logits=torch.zeros(2, 3, 4).int()), "logits: got torch.int32"),
    (dict(counts=torch.zeros(3, 4)), r"counts: got float32 .* want a contiguous int32 .*\[3, 4\]"),
    (dict(counts=torch.zeros(3, 5).int()), "counts: got"),
    (dict(counts=torch.zeros(4, 3).int().T), "counts: got"),
    (dict(chosen=torch.zeros(4).int()), "chosen: got int32"),
    (dict(chosen=torch.zeros(4).long()), r"counts: got .*\[3, 4\], want .*\[4\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message):
    good = {"counts": torch.zeros(3, 4).int(), "logits": torch.rand(2, 3, 4)}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.add_pixel_votes(**{**good, **change})
