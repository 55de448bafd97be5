"""ops.ablate_pixels: which pixels are kept, what they become, derivatives."""

import itertools
import math

import numpy as np
import pytest
import torch

from robustcore import ops
from smoothing import stream
from smoothing.inputs import DTYPES, SEED, images
from testing import assert_close, assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel


def draw(word, bound, seed, image, sample, step):
    """Lemire's draw with its rejections, in Python integers."""
    product = int(word) * bound
    attempt = 0
    while product % 2**32 < 2**32 % bound:
        high = 5 << 24 | (sample >> 32) << 16 | (image >> 32)
        counter = [step << 8 | attempt, sample % 2**32, image % 2**32, high]
        word = stream.philox4x32([np.array([c], dtype=np.uint64) for c in counter], seed)[0, 0]
        product, attempt = int(word) * bound, attempt + 1
    return product >> 32, attempt


def kept_pixels(seed, image, sample, d, k):
    """The pixels kept, from the documentation, and how many draws were rejected."""
    m = min(k, d - k)
    words = stream.words(seed, image, sample, m, 4) if m else []
    marked, rejected = set(), 0
    for step in range(m):
        last = d - m + step
        drawn, attempts = draw(words[step], last + 1, seed, image, sample, step)
        rejected += attempts
        marked.add(last if drawn in marked else drawn)
    return marked if k <= d - k else set(range(d)) - marked, rejected


def masks(shape, samples, k, **kwargs):
    x = torch.ones(1, 1, *shape)
    return ops.ablate_pixels(x, samples, k, fill=0.0, **kwargs).flatten(2)[0].bool()


@pytest.mark.parametrize(
    ("shape", "k"), [((1,), 0), ((1,), 1), ((7, 5), 3), ((7, 5), 33), ((8, 8), 64), ((40, 41), 300)]
)
def test_keeps_the_documented_pixels(shape, k, device):
    x = torch.ones(2, 1, *shape, device=device)
    offsets = dict(image_offset=2**40 + 7, sample_offset=2**35 + 2)
    got = ops.ablate_pixels(x, 4, k, seed=SEED, fill=0.0, **offsets).cpu().flatten(2)
    d = math.prod(shape)
    for b, s in itertools.product(range(2), range(4)):
        want, _ = kept_pixels(SEED, 2**40 + 7 + b, 2**35 + 2 + s, d, k)
        assert set(got[b, s].nonzero().flatten().tolist()) == want


def test_rejected_draws():
    # Large enough that some word is replaced, so the draws stay exactly uniform.
    d, k = 2**22 + 2**21 + 1, 3000
    want, rejected = kept_pixels(SEED, 0, 0, d, k)
    assert rejected > 0
    got = ops.ablate_pixels(torch.ones(1, 1, d), 1, k, seed=SEED, fill=0.0)
    assert set(got.flatten().nonzero().flatten().tolist()) == want


@pytest.mark.parametrize("k", [1, 5, 12, 19])
def test_every_pixel_and_pair_equally_often(k):
    d, n = 20, 60_000
    kept = masks((4, 5), n, k, seed=11).double()
    assert (kept.sum(1) == k).all()
    single = kept.mean(0)
    p = k / d
    assert float((single - p).abs().max()) < 4.5 * math.sqrt(p * (1 - p) / n)
    pairs = kept.T @ kept / n
    q = k * (k - 1) / (d * (d - 1))
    off = pairs[~torch.eye(d, dtype=torch.bool)]
    assert float((off - q).abs().max()) <= 5.5 * math.sqrt(q * (1 - q) / n) + 1e-12


def test_every_subset_equally_often():
    n = 42_000
    kept = masks((7,), n, 3, seed=4).long() @ (2 ** torch.arange(7))
    counts = torch.bincount(kept)
    counts = counts[counts > 0].double()
    assert len(counts) == math.comb(7, 3)
    chi2 = float(((counts - n / 35) ** 2 / (n / 35)).sum())
    assert chi2 < 34 + 4 * math.sqrt(68)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 40, 4, 4), (2, 1, 70)])
def test_null_encoding_and_fill(shape, dtype, device):
    x = images(*shape, dtype=dtype).to(device)
    d = math.prod(shape[2:])
    k = d // 3
    kept = ops.ablate_pixels(torch.ones_like(x), 5, k, seed=1, fill=0.0) > 0
    null = ops.ablate_pixels(x, 5, k, seed=1)
    assert null.shape == (shape[0], 5, 2 * shape[1], *shape[2:])
    zero = torch.zeros((), dtype=dtype, device=device)
    both = torch.cat([x, 1 - x], 1)[:, None]
    assert_same(null, torch.where(torch.cat([kept, kept], 2), both, zero))
    fill, mean, std = (torch.rand(shape[1], device=device) + 0.1 for _ in range(3))
    filled = ops.ablate_pixels(x, 5, k, seed=1, fill=fill, mean=mean, std=std)
    view = (1, 1, -1, *[1] * (x.dim() - 2))
    fill, mean, std = (t.double().view(view) for t in (fill, mean, std))
    want = (torch.where(kept, x[:, None].double(), fill) - mean) / std
    assert_close(filled, want, dtype if dtype != torch.float64 else torch.float32)


def test_layouts_splits_threads(device):
    x = images(2, 3, 5, 7).to(device)
    for options in (dict(), dict(fill=[0.1, 0.2, 0.3], std=0.5)):
        expected = ops.ablate_pixels(x, 70, 9, seed=SEED, **options)
        for laid in relayouts(x).values():
            assert_same(ops.ablate_pixels(laid, 70, 9, seed=SEED, **options), expected)
        last = ops.ablate_pixels(x, 70, 9, seed=SEED, memory_format=torch.channels_last, **options)
        assert_same(last, expected)
        part = ops.ablate_pixels(
            x[1:], 3, 9, seed=SEED, image_offset=1, sample_offset=50, **options
        )
        assert_same(part, expected[1:, 50:53])
        buffer = torch.empty_like(expected)
        ops.ablate_pixels(x, 70, 9, seed=SEED, out=buffer, **options)
        assert_same(buffer, expected)
    offset = torch.tensor(50, device=device)
    assert_same(
        ops.ablate_pixels(x, 3, 9, seed=SEED, sample_offset=offset),
        ops.ablate_pixels(x, 3, 9, seed=SEED, sample_offset=50),
    )
    if device.type == "cpu":
        check_repeatable(lambda: ops.ablate_pixels(images(2, 3, 32, 32), 60, 75, seed=SEED))
        grad = torch.randn(2, 90, 3, 8, 8)
        sums = torch.ops.robustcore.ablate_pixels_sums
        check_repeatable(lambda: sums(grad, 9, 5, 0, 0, None, None))


def test_instruction_sets_agree(simd):
    def run():
        for shape in ((2, 3, 5, 7), (1, 1, 2000), (1, 2, 33, 32)):
            d = math.prod(shape[2:])
            for dtype, k in itertools.product(DTYPES, (d // 5, d - 3)):
                yield ops.ablate_pixels(images(*shape), 5, k, seed=SEED, dtype=dtype)
            x = images(*shape).requires_grad_()
            ops.ablate_pixels(x, 70, d // 2, seed=SEED).square().sum().backward()
            yield x.grad

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_agree_to_the_bit(dtype):
    for shape, k in (((2, 3, 5, 7), 9), ((1, 3, 224, 224), 1000), ((1, 1, 300, 300), 89_000)):
        x = images(*shape, dtype=dtype)
        for options in (dict(), dict(fill=0.3), dict(memory_format=torch.channels_last)):
            cpu = ops.ablate_pixels(x, 20, k, seed=SEED, **options)
            assert_same(ops.ablate_pixels(x.cuda(), 20, k, seed=SEED, **options).cpu(), cpu)
        grad = torch.randn(shape[0], 40, *shape[1:], dtype=dtype)
        a, b = (
            torch.ops.robustcore.ablate_pixels_sums(g, k, 5, 0, 0, None, None)
            for g in (grad, grad.cuda())
        )
        assert_same(b.cpu(), a)


def test_gradients(device):
    x, mean, std = (
        (images(*shape, seed=i).double() + low).to(device).requires_grad_()
        for i, (shape, low) in enumerate([((2, 2, 3, 3), 0), ((2,), 0), ((2,), 0.5)])
    )
    check_gradients(lambda x: ops.ablate_pixels(x, 3, 4, seed=SEED), x)
    check_gradients(
        lambda x, mean, std: ops.ablate_pixels(
            x, 3, 4, seed=SEED, fill=mean * 2, mean=mean, std=std, memory_format=torch.channels_last
        ),
        x, mean, std,
    )  # fmt: skip


def test_opcheck_and_transforms():
    op = torch.ops.robustcore.ablate_pixels.default
    rest = (5, 9, 0, 0, None, None)
    for fill in (None, torch.rand(1, 3, 1, 1)):
        torch.library.opcheck(op, (images(2, 3, 4, 5), fill, 3, *rest, torch.float32, True))
    sums = torch.ops.robustcore.ablate_pixels_sums.default
    torch.library.opcheck(sums, (images(2, 3, 3, 4, 5), *rest))

    def ablate(x):
        return ops.ablate_pixels(x, 3, 5, seed=SEED)

    batch = images(2, 2, 3, 4, 4)
    assert_same(torch.func.vmap(ablate)(batch), torch.stack([ablate(x) for x in batch]))
    loss = torch.func.grad(lambda x: ablate(x).square().sum())
    torch.testing.assert_close(torch.func.vmap(loss)(batch), torch.stack([loss(x) for x in batch]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ablate(batch[0]).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile():
    def loss(x, k, offset):
        return ops.ablate_pixels(2 * x, 3, k, seed=SEED, sample_offset=offset).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    for k, offset in ((3, 0), (4, 7)):
        x = images(2, 3, 4, 4).requires_grad_()
        leaf = x.detach().clone().requires_grad_()
        got, want = compiled(x, k, offset), loss(leaf, k, offset)
        torch.testing.assert_close(got, want)
        got.backward()
        want.backward()
        torch.testing.assert_close(x.grad, leaf.grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=17), r"k: got 17 of 16 pixels, want an integer in \[0, 16\]"),
        (dict(k=-1), "k: got -1"),
        (dict(num_samples=-1), "num_samples: got -1"),
        (dict(seed=1.5), "seed: got 1.5"),
        (dict(x=torch.rand(2, 3)), r"x: got shape \[2, 3\]"),
        (dict(x=torch.zeros(2, 3, 4, 4, dtype=torch.int32)), "x: got torch.int32"),
        (dict(mean=0.5), "mean: cannot normalise"),
        (dict(fill=[0.1, 0.2]), "fill: got shape"),
        (dict(sample_offset=-1), "sample_offset: got -1"),
        (dict(dtype=torch.int32), "dtype: got"),
        (dict(out=torch.empty(2, 2, 3, 4, 4)), "out: got shape"),
        (dict(x=torch.rand(1, 1, 4, 4, requires_grad=True), out=torch.empty(1, 2, 2, 4, 4)), "out"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": images(2, 3, 4, 4), "num_samples": 2, "k": 3, "seed": 1, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.ablate_pixels(**arguments)
