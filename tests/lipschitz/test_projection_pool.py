"""ops.projection_pool: against its definition, gradients, layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz import pair_maps
from lipschitz.pair_maps import DTYPES, MAPS, angles, images
from robustcore import ops
from testing import assert_close, check_gradients, check_repeatable

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("shape", [(2, 6), (64, 8, 5), (3, 10, 7, 9), (1, 2, 2, 2, 2)])
def test_matches_the_reference(shape, device):
    pair_maps.check_the_reference("projection", shape, device)


def test_one_lipschitz():
    pair_maps.check_one_lipschitz("projection")


def test_gradients():
    x = images(3, 6, 2, 2).requires_grad_()
    check_gradients(MAPS["projection"][0], x, angles("projection", 3).requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_precision(dtype):
    pair_maps.check_low_precision("projection", dtype)


def test_special_points():
    pair_maps.check_special_points("projection")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.integers(1, 9), st.lists(st.integers(0, 5), max_size=3))
def test_shapes(n, pairs, rest):
    op, reference, *_ = MAPS["projection"]
    x, theta = images(n, 2 * pairs, *rest), angles("projection", pairs)
    assert_close(op(x, theta), reference(x, theta))


def test_vmap():
    pair_maps.check_vmap(MAPS["projection"][0], angles("projection", 3))


def test_the_same_on_any_number_of_threads():
    x = images(3, 70, 40, 41, dtype=torch.float32)
    check_repeatable(lambda: ops.projection_pool(x, angles("projection", 35)))


def test_opcheck():
    pair_maps.check_opcheck(2, 2)


@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [(torch.zeros(2).int(), TypeError, "theta: got torch.int32")],
)
def test_bad_input(theta, error, message):
    with pytest.raises(error, match=message):
        ops.projection_pool(torch.zeros(1, 4, 2, 2), theta)
