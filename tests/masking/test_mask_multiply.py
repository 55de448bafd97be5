"""ops.mask_multiply: x * mask that stops what is hidden, and the kernel behind it."""

import pytest
import torch

from masking.inputs import case
from robustcore import ops
from testing import assert_same, check_gradients, check_repeatable, relayouts

raw = torch.ops.robustcore
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def soft(x):
    """Weights in [0, 1], a third of them 0."""
    mask = torch.rand(len(x), 1, *x.shape[2:], generator=torch.Generator().manual_seed(1))
    mask = torch.where(mask < 0.33, 0, mask)
    return mask.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (1, 1, 1, 1), (2, 9, 1, 7), (1, 40, 14, 14)])
def test_is_the_product(shape, device):
    for dtype in (torch.float32, torch.float64):
        x, mask = case(*shape, share=0.4, dtype=dtype)
        for weights in (mask, soft(x)):
            got = ops.mask_multiply(x.to(device), weights.to(device))
            assert_same(got.cpu(), x * weights)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_gives_the_same_bits(dtype, device):
    x, _ = case(2, 20, 12, 10, dtype=dtype)
    x, mask = x.to(device), soft(x).to(device)
    want = ops.mask_multiply(x, mask)
    assert want.dtype == dtype
    for laid in relayouts(x).values():
        assert_same(ops.mask_multiply(laid, mask).contiguous(), want)
    for laid in relayouts(mask).values():
        assert_same(ops.mask_multiply(x, laid), want)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_is_hidden_is_not_read(value, device):
    x, mask = (t.to(device) for t in case(share=0.3, dtype=torch.float32))
    hidden = torch.where(mask > 0, x, value)
    assert_same(ops.mask_multiply(hidden, mask), ops.mask_multiply(x, mask))


def test_one_image_with_many_masks(device):
    x, mask = (t.to(device) for t in case(5, share=0.3))
    assert_same(ops.mask_multiply(x[:1], mask), x[:1] * mask)
    assert_same(ops.mask_multiply(x, mask[:1]), x * mask[:1])


def test_repeatable(device):
    x, mask = (t.to(device) for t in case(3, 40, 60, 70, dtype=torch.float32))
    check_repeatable(lambda: ops.mask_multiply(x, mask))


@pytest.mark.parametrize("shape", [(2, 2, 6, 5), (1, 9, 4, 3)])
@pytest.mark.parametrize("binary", [True, False])
def test_derivatives(shape, binary):
    x, mask = case(*shape, share=0.15)
    mask = mask if binary else soft(x)
    check_gradients(lambda x: ops.mask_multiply(x, mask), x.requires_grad_())
    many = mask.repeat(2, 1, 1, 1)[:2]
    check_gradients(lambda x: ops.mask_multiply(x, many), x.detach()[:1].requires_grad_())


def test_the_gradient_of_what_is_hidden_is_zero():
    x, mask = case(share=0.3)
    x = torch.where(mask > 0, x, torch.nan).requires_grad_()
    (g,) = torch.autograd.grad(ops.mask_multiply(x, mask).sum(), x)
    assert_same(g, mask.expand_as(x))


def test_opcheck_of_the_epilogue():
    x, mask = case(dtype=torch.float32)
    scale = torch.rand(4)
    for image in (x, x.contiguous(memory_format=torch.channels_last), x[:1]):
        torch.library.opcheck(raw.mask_epilogue.default, (image, mask, scale, None, True))
        torch.library.opcheck(raw.mask_epilogue.default, (image, None, None, scale, False))
    torch.library.opcheck(raw.mask_epilogue_.default, (x.clone(), mask, scale, scale, True))


def test_vmap():
    x, mask = case(3, 2, 6, 5)
    masks = torch.stack([mask, mask.flip(2)])
    got = torch.func.vmap(lambda m: ops.mask_multiply(x, m))(masks)
    assert_same(got, torch.stack([x * m for m in masks]))


def test_bad_input():
    x, mask = case(dtype=torch.float32)
    with pytest.raises(TypeError, match="x: got list"):
        ops.mask_multiply([1], mask)
    with pytest.raises(ValueError, match="mask: got shape"):
        ops.mask_multiply(x, mask[..., :3])
    with pytest.raises(ValueError, match="mask: requires a gradient"):
        ops.mask_multiply(x, mask.requires_grad_())
