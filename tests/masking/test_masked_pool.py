"""ops.masked_pool: against the published rule, what is hidden, derivatives."""

import pytest
import torch
from torch import nn

from masking.inputs import case
from masking.reference import times
from robustcore import ops
from testing import assert_close, assert_same, check_gradients, relayouts


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_equals_the_published_rule(kind):
    x, mask = case(share=0.2)
    pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True) if kind == "max" else nn.AvgPool2d(3, 2, 1, True)
    y, out_mask = ops.masked_pool(x, mask, 3, 2, 1, True, kind=kind)
    want_mask = (pool(mask) > 0).double()
    assert_same(out_mask, want_mask)
    assert_close(y, times(pool(times(x, mask)), want_mask))
    x.requires_grad_()
    check_gradients(lambda x: ops.masked_pool(x, mask, 2, kind="avg")[0], x)
    with pytest.raises(ValueError, match="kind: got 'sum'"):
        ops.masked_pool(x, mask, 2, kind="sum")


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_what_is_hidden_is_not_read(kind):
    x, mask = case(share=0.3)
    want, _ = ops.masked_pool(x, mask, 3, 2, 1, kind=kind)
    for value in (torch.nan, torch.inf, 1e300):
        got, _ = ops.masked_pool(torch.where(mask > 0, x, value), mask, 3, 2, 1, kind=kind)
        assert_same(got, want)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_any_layout_gives_the_same_values(kind, dtype):
    x, mask = case(share=0.3, dtype=dtype)
    want, want_mask = ops.masked_pool(x, mask, (2, 3), kind=kind)
    assert want.dtype == dtype
    for laid in relayouts(x).values():
        got, got_mask = ops.masked_pool(laid, mask, (2, 3), kind=kind)
        assert_close(got, want.double())  # torch's own pools round by the layout
        assert_same(got_mask, want_mask)


def test_one_image_with_many_masks():
    x, mask = case(5, share=0.3)
    got, _ = ops.masked_pool(x[:1], mask, 2)
    want, _ = ops.masked_pool(x[:1].expand(5, -1, -1, -1), mask, 2)
    assert_same(got, want)


def test_vmap():
    x, mask = case(2, share=0.3)
    masks = torch.stack([mask, mask.flip(2)])
    got = torch.func.vmap(lambda m: ops.masked_pool(x, m, 2)[0])(masks)
    assert_same(got, torch.stack([ops.masked_pool(x, m, 2)[0] for m in masks]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kernel_size=0), "kernel_size: got 0"),
        (dict(padding=2), r"padding: got \(2, 2\), want at most half of kernel_size \(3, 3\)"),
        (dict(stride=(1, 2, 3)), "stride: got"),
        (dict(x=torch.zeros(2, 0, 12, 11)), "x: got shape .* at least one channel"),
        (dict(ceil_mode=1), "ceil_mode: got 1"),
    ],
)
def test_bad_input(change, message):
    x, mask = case(dtype=torch.float32)
    with pytest.raises((TypeError, ValueError), match=message):
        ops.masked_pool(**{"x": x, "mask": mask, "kernel_size": 3, **change})
