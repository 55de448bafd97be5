"""ops.masked_mean: the mean of what is visible."""

import pytest
import torch

from masking.inputs import case
from robustcore import ops
from testing import assert_close, assert_same, check_gradients, relayouts


def test_the_mean_of_what_is_visible():
    x, mask = case(3, share=0.2)
    mask[1], mask[2] = 0, 1
    got = ops.masked_mean(x, mask)
    shown = [x[0, :, mask[0, 0] > 0].mean(1), 0 * x[1, :, 0, 0], x[2].mean((1, 2))]
    torch.testing.assert_close(got, torch.stack(shown), rtol=1e-6, atol=1e-6)
    assert_same(got[1], torch.zeros_like(got[1]))
    assert_same(got[2], x.mean((2, 3))[2])
    assert ops.masked_mean(x.half(), mask).isfinite().all()
    x.requires_grad_()
    check_gradients(lambda x: ops.masked_mean(x, mask), x)


def test_what_is_hidden_is_not_read():
    x, mask = case(share=0.3)
    want = ops.masked_mean(x, mask)
    for value in (torch.nan, torch.inf, 1e300):
        assert_same(ops.masked_mean(torch.where(mask > 0, x, value), mask), want)


def test_any_layout():
    x, mask = case(share=0.3)
    want = ops.masked_mean(x, mask)
    for laid in relayouts(x).values():
        assert_close(ops.masked_mean(laid, mask), want)
    for laid in relayouts(mask).values():
        assert_same(ops.masked_mean(x, laid), want)


def test_one_image_with_many_masks_and_vmap():
    x, mask = case(5, share=0.3)
    want = torch.cat([ops.masked_mean(x[:1], m[None]) for m in mask])
    assert_close(ops.masked_mean(x[:1], mask), want)
    mapped = torch.func.vmap(lambda m: ops.masked_mean(x[:1], m[None])[0])(mask)
    assert_close(mapped, want)


def test_bad_input():
    x, mask = case(dtype=torch.float32)
    with pytest.raises(TypeError, match="mask: got NoneType"):
        ops.masked_mean(x, None)
    with pytest.raises(ValueError, match="mask: got shape"):
        ops.masked_mean(x, mask[..., :3])
