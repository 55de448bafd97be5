"""ops.neighbor_fill: against the chain of operations that defines it, layouts, derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking.reference import fill
from robustcore import ops
from testing import (
    TOLERANCE,
    assert_close,
    assert_same,
    check_gradients,
    check_repeatable,
    relayouts,
)

pytestmark = pytest.mark.kernel

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
raw = torch.ops.robustcore


def case(*shape, masks=None, binary=True, share=0.05, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    m = torch.rand(masks or shape[0], 1, *shape[2:], generator=generator, dtype=torch.float64)
    mask = (m < share).double() if binary else torch.where(m < 1 - share, 0, m)
    return x, mask.to(torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("iters", [0, 1, 2, 6, 8, 9, 20])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 3, 17, 11), (1, 40, 14, 14), (2, 9, 1, 7), (1, 1, 1, 1), (1, 2, 90, 300)]
)
def test_matches_the_definition(shape, binary, iters, device):
    for dtype in (torch.float32, torch.float64):
        x, mask = case(*shape, binary=binary, dtype=dtype)
        want = fill(x.double(), mask.double(), iters)
        got = ops.neighbor_fill(x.to(device), mask.to(device), iters)
        torch.testing.assert_close(got.double().cpu(), want, rtol=2e-5, atol=2e-5)
        if dtype == torch.float64:
            assert_close(got, want)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 3), st.integers(0, 12), st.integers(0, 20), st.integers(0, 20),
    st.integers(0, 10), st.booleans(), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_any_shape(n, c, h, w, iters, binary, last, seed):
    x, mask = case(n, c, h, w, binary=binary, dtype=torch.float64, seed=seed)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    got = ops.neighbor_fill(x, mask, iters)
    want = fill(x, mask, iters) if x.numel() else x
    assert_close(got, want)


@pytest.mark.parametrize("iters", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("binary", [True, False])
def test_low_precision_rounds_once(dtype, binary, iters, device):
    x, mask = case(2, 24, 13, 9, binary=binary, dtype=dtype, share=0.3)
    want = fill(x.double(), mask.double(), iters)
    got = ops.neighbor_fill(x.to(device), mask.to(device), iters)
    eager = fill(x, mask.to(dtype), iters).double()
    error = (got.double().cpu() - want).abs().max()
    assert error <= 2 * (eager - want).abs().max()
    assert_close(got, want)


@pytest.mark.parametrize("iters", [0, 1, 2, 6])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_gives_the_same_bits(dtype, binary, iters, device):
    x, mask = (t.to(device) for t in case(2, 20, 12, 10, binary=binary, dtype=dtype))
    want = ops.neighbor_fill(x, mask, iters)
    for laid in relayouts(x).values():
        got = ops.neighbor_fill(laid, mask, iters)
        assert_same(got.contiguous(), want)
    for laid in relayouts(mask).values():
        assert_same(ops.neighbor_fill(x, laid, iters), want)
    last = ops.neighbor_fill(x.contiguous(memory_format=torch.channels_last), mask, iters)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_same(ops.neighbor_fill(x, mask.bool() if binary else mask, iters), want)


@pytest.mark.parametrize("last", [False, True])
def test_instruction_sets_agree(last, simd):
    cases = [case(2, 35, 23, 19, binary=b, share=0.2) for b in (True, False)]
    if last:
        cases = [(x.contiguous(memory_format=torch.channels_last), m) for x, m in cases]
    want = [ops.neighbor_fill(*c, iters) for c in cases for iters in (1, 4)]
    simd()
    got = [ops.neighbor_fill(*c, iters) for c in cases for iters in (1, 4)]
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)


def test_any_number_of_threads(device):
    x, mask = (t.to(device) for t in case(3, 40, 60, 70))
    check_repeatable(lambda: ops.neighbor_fill(x, mask, 5))
    last = x.contiguous(memory_format=torch.channels_last)
    check_repeatable(lambda: ops.neighbor_fill(last, mask, 2))


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("iters", [0, 1, 6])
def test_one_image_with_many_masks(channels, iters, device):
    x, mask = (t.to(device) for t in case(1, channels, 20, 24, masks=5))
    want = ops.neighbor_fill(x.repeat(5, 1, 1, 1), mask, iters)
    assert_same(ops.neighbor_fill(x, mask, iters), want)
    assert_same(ops.neighbor_fill(x.expand(5, -1, -1, -1), mask, iters), want)
    many = x.repeat(5, 1, 1, 1) + torch.arange(5, device=x.device).view(-1, 1, 1, 1)
    one = mask[:1]
    assert_same(
        ops.neighbor_fill(many, one, iters),
        ops.neighbor_fill(many, one.expand(5, -1, -1, -1), iters),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_is_hidden_is_not_read(value, device):
    for last in (False, True):
        x, mask = (t.to(device) for t in case(2, 12, 15, 15, share=0.2))
        other = torch.where(mask > 0, x, value)
        if last:
            other = other.contiguous(memory_format=torch.channels_last)
        for iters in (0, 1, 4):
            assert_same(
                ops.neighbor_fill(other, mask, iters).contiguous(),
                ops.neighbor_fill(x, mask, iters),
            )


def test_visible_pixels_stay_to_the_bit(device):
    x = torch.full((1, 9, 6, 6), 3e38, device=device)  # sums overflow
    for mask in (torch.ones(1, 1, 6, 6, device=device), torch.eye(6, device=device)[None, None]):
        got = ops.neighbor_fill(x, mask, 3)
        shown = (mask > 0).expand_as(x)
        assert_same(got[shown], x[shown])


def test_enough_iterations_are_enough():
    """k - 1 iterations for a k x k window: the k-th changes nothing that it reads."""
    x, mask = case(1, 3, 40, 40, share=0.01, dtype=torch.float64)
    reached = torch.nn.functional.max_pool2d(mask, 13, 1, 6)  # all that a visible 7x7 output reads
    six, seven = (ops.neighbor_fill(x, mask, n) * reached for n in (6, 7))
    assert_same(six, seven)
    assert (ops.neighbor_fill(x, mask, 5) * reached - six).abs().max() > 1e-3


def test_zero_and_partial_multiply():
    x, mask = case(2, 4, 5, 6, binary=False, share=0.5)
    for name in ("zero", "partial"):
        assert_same(ops.neighbor_fill(x, mask, 3, fill=name), x * mask)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shape", [(2, 2, 6, 5), (1, 9, 4, 3)])
@pytest.mark.parametrize("iters", [0, 1, 3, 9])
def test_derivatives(iters, shape, binary):
    x, mask = case(*shape, masks=2, binary=binary, dtype=torch.float64, share=0.15)
    x.requires_grad_()
    check_gradients(lambda x: ops.neighbor_fill(x, mask, iters, detach=False), x)
    (g,) = torch.autograd.grad(ops.neighbor_fill(x, mask, iters).sum(), x)
    want = mask.sum(0, keepdim=True) if len(x) == 1 else mask  # x * mask alone
    assert_close(g, want.expand_as(x))


def test_the_transposed_tiles_reach_far_enough():
    x, mask = case(1, 1, 60, 400, share=0.002, dtype=torch.float64)
    x.requires_grad_()
    v = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad(ops.neighbor_fill(x, mask, 7, detach=False), x, v)
    (want,) = torch.autograd.grad(fill(x, mask, 7), x, v)
    assert_close(got, want)


def test_opcheck():
    x, mask = case(2, 3, 5, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    for image in (x, last, x[:1], x.mT):
        shown = mask.mT if image.shape != x.shape and image.shape[0] == 2 else mask
        torch.library.opcheck(raw.neighbor_fill.default, (image, shown, 2, True, False))
        torch.library.opcheck(raw.neighbor_fill.default, (image, shown, 2, False, True))
    torch.library.opcheck(raw.fill_state.default, (mask, 3))
    torch.library.opcheck(raw.neighbor_fill_.default, (x.clone(), mask, 2))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("binary", [True, False])
def test_in_place(binary, last):
    for shape in ((2, 12, 9, 8), (1, 2, 70, 300)):
        x, mask = case(*shape, binary=binary)
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        for iters in (0, 1, 3):
            want, own = ops.neighbor_fill(x, mask, iters), x.clone()
            raw.neighbor_fill_(own, mask, iters)
            assert_same(own, want)


def test_vmap_and_func_grad():
    x, mask = case(3, 2, 6, 5)
    masks = torch.stack([mask, mask.flip(2)])
    got = torch.func.vmap(lambda m: ops.neighbor_fill(x, m, 2))(masks)
    assert_same(got, torch.stack([ops.neighbor_fill(x, m, 2) for m in masks]))
    images = torch.stack([x, 2 * x], 1)
    got = torch.func.vmap(lambda x: ops.neighbor_fill(x, mask, 2), in_dims=1, out_dims=1)(images)
    assert_same(
        got, torch.stack([ops.neighbor_fill(x, mask, 2), ops.neighbor_fill(2 * x, mask, 2)], 1)
    )
    one = torch.func.vmap(lambda m: ops.neighbor_fill(x[:1], m[None], 2))(mask)
    assert_same(one[:, 0], ops.neighbor_fill(x[:1], mask, 2))
    grads = torch.func.vmap(
        torch.func.grad(lambda x, m: ops.neighbor_fill(x[None], m[None], 2).square().sum())
    )(x, mask)
    assert_close(grads, 2 * (x * mask))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiles_whole():
    x, mask = case(2, 3, 8, 7)
    x.requires_grad_()

    def f(x, mask):
        return ops.neighbor_fill(x * 2, mask, 3, detach=False).square().sum()

    compiled = torch.compile(f, fullgraph=True)
    got, want = (torch.autograd.grad(g(x, mask), x)[0] for g in (compiled, f))
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_forward_mode_is_refused():
    x, mask = case(1, 2, 4, 4)
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        torch.func.jvp(lambda x: ops.neighbor_fill(x, mask, 1), (x,), (x,))


BAD = [
    (dict(x=[1]), "x: got list"),
    (dict(x=torch.zeros(1, 2, 4, 4, dtype=torch.int64)), "x: got torch.int64"),
    (dict(x=torch.zeros(2, 4, 4)), r"x: got shape \[2, 4, 4\], want \[N, C, H, W\]"),
    (dict(mask=None), "mask: got NoneType"),
    (dict(mask=torch.zeros(1, 1, 4, 4, dtype=torch.int64)), "mask: got torch.int64"),
    (dict(mask=torch.zeros(1, 1, 4, 5)), r"mask: got shape \[1, 1, 4, 5\], want \[N, 1, 4, 4\]"),
    (dict(mask=torch.zeros(1, 2, 4, 4)), "mask: got shape"),
    (dict(x=torch.zeros(3, 2, 4, 4), mask=torch.zeros(2, 1, 4, 4)), "mask: got 2 masks for 3"),
    (dict(mask=torch.zeros(1, 1, 4, 4).requires_grad_()), "mask: requires a gradient"),
    (dict(iters=-1), "iters: got -1"),
    (dict(iters=1.5), "iters: got 1.5"),
    (dict(fill="mean"), "fill: got 'mean'"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message):
    good = {"x": torch.zeros(1, 2, 4, 4), "mask": torch.zeros(1, 1, 4, 4), "iters": 1}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.neighbor_fill(**{**good, **change})


def test_the_compiled_checks():
    x, mask = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"iters: got 9, want .* at most 8"):
        raw.neighbor_fill(x, mask, 9, True, False)
    with pytest.raises(ValueError, match=r"iters: got 5, want .* at most 4"):
        raw.neighbor_fill(x, mask, 5, True, True)
    with pytest.raises(ValueError, match="mask: got shape"):
        raw.neighbor_fill(x, mask[..., :3], 1, True, False)
    with pytest.raises(ValueError, match="x: got one image for 3 masks"):
        raw.neighbor_fill_(x, mask.expand(3, -1, -1, -1), 1)
    assert TOLERANCE[torch.float64] == 1e-12
