"""ops.maxmin: against its definition to the bit, gradients, layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz.pair_maps import DTYPES, angles, check_vmap, images, maxmin_reference
from robustcore import ops
from testing import assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 6), (3, 2, 5), (2, 6, 5, 7), (1, 4, 3, 3, 3), (5, 34, 9, 9)])
def test_matches_the_reference(shape, dtype, device):
    x = images(*shape, dtype=dtype).to(device)
    for laid in relayouts(x).values():
        assert_same(ops.maxmin(laid), maxmin_reference(x))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pairs", [1, 7, 8, 15, 16, 17, 40])
def test_on_every_instruction_set(last, pairs, simd):
    simd()
    x = images(3, 2 * pairs, 5, 3, dtype=torch.float32)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    grad = images(3, 2 * pairs, 5, 3, dtype=torch.float32, seed=2)
    (got,) = torch.autograd.grad(ops.maxmin(x), x, grad)
    (expected,) = torch.autograd.grad(maxmin_reference(x), x, grad)
    assert_same(ops.maxmin(x).detach(), maxmin_reference(x).detach())
    assert_same(got, expected)


def test_special_values():
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([[1.0, nan, 2.0, inf, -inf, 0.0]])
    b = torch.tensor([[1.0, 3.0, nan, -inf, inf, -0.0]])
    x = torch.cat([a, b], 1).requires_grad_()
    y = ops.maxmin(x)
    # A NaN keeps its place, and so does the other member.
    expected = torch.tensor([[1.0, nan, 2.0, inf, inf, 0.0, 1.0, 3.0, nan, -inf, -inf, -0.0]])
    assert_same(y.detach(), expected)
    (grad,) = torch.autograd.grad(y, x, torch.arange(12.0)[None])
    assert_same(grad, torch.tensor([[0.0, 1, 2, 3, 10, 5, 6, 7, 8, 9, 4, 11]]))


def test_keeps_one_bit_a_pair():
    x = images(4, 16, 8, 8, dtype=torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.maxmin(x)
    assert sum(t.nbytes for t in kept) == x.numel() // 2 / 8


def test_gradients():
    check_gradients(ops.maxmin, images(3, 6, 2, 2).requires_grad_())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.integers(1, 9), st.lists(st.integers(0, 5), max_size=3))
def test_shapes(n, pairs, rest):
    x = images(n, 2 * pairs, *rest)
    assert_same(ops.maxmin(x), maxmin_reference(x))


def test_vmap():
    check_vmap(lambda x, theta: ops.maxmin(x), angles("projection", 3))


def test_the_same_on_any_number_of_threads():
    x = images(3, 70, 40, 41, dtype=torch.float32)
    check_repeatable(lambda: ops.maxmin(x))


def test_opcheck():
    namespace = torch.ops.robustcore
    for last in (False, True):
        x = images(2, 6, 3, 4)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(namespace.maxmin.default, (x, last))
        bits = namespace.maxmin(x, last)[1]
        torch.library.opcheck(namespace.maxmin_swap.default, (x, bits, last))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 3), ValueError, "x: got 3 channels, want an even number"),
        (torch.zeros(3), ValueError, r"x: got shape \[3\], want \[N, C, \*D\]"),
        (torch.zeros(1, 4, 2, 2).int(), TypeError, "x: got torch.int32"),
        ([1.0], TypeError, "x: got list"),
    ],
)
def test_bad_input(x, error, message):
    with pytest.raises(error, match=message):
        ops.maxmin(x)
