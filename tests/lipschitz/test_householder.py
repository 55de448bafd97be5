"""ops.householder: against its definitions of order 1 and 2, gradients, layouts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz import pair_maps
from lipschitz.pair_maps import DTYPES, MAPS, angles, images
from robustcore import ops
from testing import assert_close, check_gradients, check_repeatable

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("name", ["householder", "householder2"])
@pytest.mark.parametrize("shape", [(2, 6), (64, 8, 5), (3, 10, 7, 9), (1, 2, 2, 2, 2)])
def test_matches_the_reference(name, shape, device):
    pair_maps.check_the_reference(name, shape, device)


@pytest.mark.parametrize("name", ["householder", "householder2"])
def test_one_lipschitz(name):
    pair_maps.check_one_lipschitz(name)


@pytest.mark.parametrize("name", ["householder", "householder2"])
def test_gradients(name):
    x = images(3, 6, 2, 2).requires_grad_()
    check_gradients(MAPS[name][0], x, angles(name, 3).requires_grad_())


@pytest.mark.parametrize("name", ["householder", "householder2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_precision(name, dtype):
    pair_maps.check_low_precision(name, dtype)


@pytest.mark.parametrize("name", ["householder", "householder2"])
def test_special_points(name):
    pair_maps.check_special_points(name)


def test_a_right_angle_sorts_the_pairs():
    """So it is MaxMin with the places exchanged."""
    x = images(3, 4, 2, 2)
    folded = ops.householder(x, torch.full((2,), math.pi / 2, dtype=torch.float64))
    assert_close(folded, torch.cat(ops.maxmin(x).chunk(2, 1)[::-1], 1))


@pytest.mark.parametrize("name", ["householder", "householder2"])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.integers(1, 9), st.lists(st.integers(0, 5), max_size=3))
def test_shapes(name, n, pairs, rest):
    op, reference, *_ = MAPS[name]
    x, theta = images(n, 2 * pairs, *rest), angles(name, pairs)
    assert_close(op(x, theta), reference(x, theta))


@pytest.mark.parametrize("name", ["householder", "householder2"])
def test_vmap(name):
    pair_maps.check_vmap(MAPS[name][0], angles(name, 3))


def test_the_same_on_any_number_of_threads():
    x = images(3, 70, 40, 41, dtype=torch.float32)
    check_repeatable(lambda: ops.householder(x, angles("householder2", 35)))


@pytest.mark.parametrize(("index", "entries"), [(0, 4), (1, 15)])
def test_opcheck(index, entries):
    pair_maps.check_opcheck(index, entries)


@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"theta: got shape \[3\], want .*\[2\]"),
        (torch.zeros(2, 2), ValueError, r"theta: .* want .*\[3, 2\]"),
    ],
)
def test_bad_input(theta, error, message):
    with pytest.raises(error, match=message):
        ops.householder(torch.zeros(1, 4, 2, 2), theta)
