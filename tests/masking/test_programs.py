"""Random small networks of all rules against what masks mean for them, written out plainly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking import nets
from masking.programs import JOINS, OPERATIONS, Network, Step, expected
from robustcore.masking import MaskedModel
from testing import assert_same


@st.composite
def programs(draw):
    """Steps whose sizes fit, up to six."""
    shapes, steps = [(10, 10)], []
    for name in draw(
        st.lists(st.sampled_from([*OPERATIONS, *JOINS, *JOINS]), min_size=2, max_size=6)
    ):
        at = draw(st.integers(0, len(shapes) - 1))
        if name in JOINS:
            peers = [i for i, shape in enumerate(shapes) if shape == shapes[at]]
            inputs = (at, draw(st.sampled_from(peers)))
        else:
            inputs = (len(shapes) - 1,) if draw(st.booleans()) else (at,)
        shape = after(name, shapes[inputs[0]])
        if min(shape) >= 3 and max(shape) <= 20:
            steps.append(Step(name, inputs))
            shapes.append(shape)
    return steps


def after(name, shape):
    h, w = shape
    if name == "conv 3, stride 2":
        return (h + 1) // 2, (w + 1) // 2
    if name == "max pool":
        return h // 2, w // 2
    if name == "adaptive pool":
        return 3, 3
    if name in ("nearest", "bilinear"):
        return 2 * h, 2 * w
    if name == "turn":
        return w, h
    less = {"cut": 1, "conv 2": 1}.get(name, 0)
    return h - less, w - less


def check(steps, maps, seed):
    net, x = Network(steps, maps, seed), nets.image(3, 10, seed)
    mask = nets.blocks(3, 10, 2, 0.4, seed)
    mask[2, :, 3:] = 0
    masked = MaskedModel(net)
    with torch.no_grad():
        got, want = masked(x, mask), expected(net, x, mask)
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
        assert_same(masked(torch.where(mask > 0, x, torch.nan), mask), got)
        torch.testing.assert_close(masked(x, mask[:1])[:1], want[:1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name):
    check([Step(name, (0,))], name not in ("excite",), 1)


@pytest.mark.parametrize("name", JOINS)
def test_a_join(name):
    check(
        [Step("conv 3", (0,)), Step("conv 5", (0,)), Step(name, (1, 2)), Step(name, (3, 0))],
        True,
        2,
    )


@settings(max_examples=20, deadline=None)
@given(programs(), st.booleans(), st.integers(0, 99))
def test_a_program(steps, maps, seed):
    check(steps, maps, seed)
