"""ops.mask_pool: the mask of a window's output."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from masking.inputs import case
from masking.reference import window_max
from robustcore import ops
from testing import assert_same, relayouts


def test_a_window_of_one_pixel_is_a_view():
    _, mask = case()
    view = ops.mask_pool(mask, (1, 1), (2, 3), ((0, 0), (0, 0)))
    assert_same(view, mask[:, :, ::2, ::3])
    assert view.untyped_storage().data_ptr() == mask.untyped_storage().data_ptr()


SMALL = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(SMALL, SMALL, st.tuples(st.integers(0, 3), st.integers(0, 3)), SMALL, st.integers(0, 99))
def test_the_largest_in_each_window(kernel, stride, padding, dilation, seed):
    conv = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    _, mask = case(seed=seed, share=0.1)
    pads = tuple((p, p) for p in padding)
    assert_same(ops.mask_pool(mask, kernel, stride, pads, dilation), window_max(mask, conv))


def test_padding_of_one_side():
    """As that of "same" before an even window."""
    _, mask = case()
    got = ops.mask_pool(mask, (2, 2), (1, 1), ((0, 1), (1, 0)))
    padded = torch.nn.functional.pad(mask, (1, 0, 0, 1))
    assert_same(got, torch.nn.functional.max_pool2d(padded, 2, 1))


def test_any_layout_and_values_between():
    soft = torch.rand(2, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    arguments = (3, 3), (2, 1), ((1, 1), (1, 1))
    want = torch.nn.functional.max_pool2d(soft, 3, (2, 1), 1)
    for laid in relayouts(soft).values():
        assert_same(ops.mask_pool(laid, *arguments), want)
    ceil = ops.mask_pool(soft, (3, 3), (2, 2), ((0, 0), (0, 0)), ceil_mode=True)
    assert_same(ceil, torch.nn.functional.max_pool2d(soft, 3, 2, ceil_mode=True))


def test_it_has_no_derivative():
    mask = torch.rand(1, 1, 4, 4).requires_grad_()
    assert not ops.mask_pool(mask, (3, 3), (1, 1), ((1, 1), (1, 1))).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mask=torch.zeros(1, 2, 4, 4)), r"mask: got shape \[1, 2, 4, 4\]"),
        (dict(kernel=(9, 9)), "kernel: "),
        (dict(pads=1), "pads: got 1"),
        (dict(stride=(0, 1)), "stride: got"),
    ],
)
def test_bad_input(change, message):
    good = {
        "mask": torch.zeros(1, 1, 4, 4), "kernel": (3, 3), "stride": (1, 1),
        "pads": ((1, 1), (1, 1)),
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=message):
        ops.mask_pool(**{**good, **change})
