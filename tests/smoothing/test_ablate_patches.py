"""ops.ablate_patches: a patch at every position, layouts, derivatives."""

import itertools

import pytest
import torch

from robustcore import ops
from smoothing.inputs import DTYPES, images
from testing import assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("size", [1, 3, (2, 5), (6, 2), (6, 7)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1), (6, 2)])
def test_patches_at_every_position(size, stride, device):
    x = images(2, 3, 6, 7).to(device)
    h, w = (size, size) if isinstance(size, int) else size
    down, right = (stride, stride) if isinstance(stride, int) else stride
    corners = list(itertools.product(range(0, 6, down), range(0, 7, right)))
    want = torch.full((2, len(corners), 3, 6, 7), 0.25)
    for i, (top, left) in enumerate(corners):
        for r, c in itertools.product(range(h), range(w)):
            r, c = (top + r) % 6, (left + c) % 7
            want[:, i, :, r, c] = x[:, :, r, c].cpu()
    got = ops.ablate_patches(x, size, stride=stride, fill=0.25)
    assert_same(got.cpu(), want)
    last = ops.ablate_patches(
        x, size, stride=stride, fill=0.25, memory_format=torch.channels_last, positions=(1, 3)
    )
    assert_same(last.cpu(), want[:, 1:3])
    assert ops.ablate_patches(x, size, stride=stride).shape[2] == 6


def test_layouts_and_threads(device):
    x = images(2, 3, 6, 7).to(device)
    for options in (dict(), dict(fill=[0.1, 0.2, 0.3], std=0.5)):
        expected = ops.ablate_patches(x, 3, stride=2, **options)
        for laid in relayouts(x).values():
            assert_same(ops.ablate_patches(laid, 3, stride=2, **options), expected)
        buffer = torch.empty_like(expected)
        ops.ablate_patches(x, 3, stride=2, out=buffer, **options)
        assert_same(buffer, expected)
    if device.type == "cpu":
        check_repeatable(lambda: ops.ablate_patches(images(2, 3, 32, 32), 5))


def test_instruction_sets_agree(simd):
    def run():
        for dtype in DTYPES:
            yield ops.ablate_patches(images(2, 3, 9, 11), 4, stride=3, dtype=dtype)

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


def test_gradients(device):
    x = images(2, 2, 3, 3).double().to(device).requires_grad_()
    check_gradients(lambda x: ops.ablate_patches(x, 2, stride=2), x)
    check_gradients(lambda x: ops.ablate_patches(x, 2, fill=0.3, std=0.5), x)


def test_opcheck_and_transforms():
    op = torch.ops.robustcore.ablate_patches.default
    rest = (1, 2, 3, 1, 1)
    for fill in (None, torch.rand(1, 3, 1, 1)):
        torch.library.opcheck(op, (images(2, 3, 4, 5), fill, 3, *rest, torch.float32, True))
    sums = torch.ops.robustcore.ablate_patches_sums.default
    torch.library.opcheck(sums, (images(2, 3, 3, 4, 5), *rest))

    def ablate(x):
        return ops.ablate_patches(x, 2)

    batch = images(2, 2, 3, 4, 4)
    assert_same(torch.func.vmap(ablate)(batch), torch.stack([ablate(x) for x in batch]))
    loss = torch.func.grad(lambda x: ablate(x).square().sum())
    torch.testing.assert_close(torch.func.vmap(loss)(batch), torch.stack([loss(x) for x in batch]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ablate(batch[0]).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile():
    def loss(x):
        return ops.ablate_patches(x, 2, fill=0.5).square().sum()

    x = images(2, 3, 4, 4).requires_grad_()
    leaf = x.detach().clone().requires_grad_()
    got, want = torch.compile(loss, fullgraph=True)(x), loss(leaf)
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    torch.testing.assert_close(x.grad, leaf.grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(size=0), "size: got 0"),
        (dict(size=5), "size: got 5 for a height of 4"),
        (dict(size=1.5), "size: got 1.5"),
        (dict(stride=0), "stride: got 0"),
        (dict(stride=5), "stride: got 5"),
        (dict(positions=(0, 17)), "positions: got 0 to 17, there are 16"),
        (dict(positions=(3, 1)), "positions: got"),
        (dict(x=torch.rand(2, 3, 4)), "x: got shape"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.ablate_patches(**{"x": images(2, 3, 4, 4), "size": 2, **change})
