"""ops.random_start, ops.square_start, ops.square_propose: the stream, balls, batches, devices."""

import math

import pytest
import torch
from scipy import stats

from robustcore import _C, ops
from testing import assert_same, check_repeatable, relayouts

pytestmark = pytest.mark.kernel

NORMS = ["linf", "l2", "l1", "l0"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EPS = {"linf": 0.1, "l2": 0.5, "l1": 6.0, "l0": 7}
raw = torch.ops.robustcore
INDEX, VARIANT = torch.tensor([5, 0, 7, 7]), torch.tensor([0, 0, 1, 2])
AGE, SHARE = torch.tensor([0, 3, 3, 4000]), torch.tensor([0.8, 0.3, 0.05, 0.0])


def images(dtype=torch.float32):
    return torch.rand(4, 3, 11, 13, generator=torch.Generator().manual_seed(0)).to(dtype)


def calls(dtype=torch.float32):
    x0 = images(dtype)
    for norm in NORMS:
        yield ops.random_start, (x0, INDEX, VARIANT), dict(norm=norm, eps=EPS[norm], seed=3)
    yield ops.square_start, (x0, INDEX, VARIANT), dict(eps=0.1, seed=3)
    best = ops.square_start(x0, INDEX, VARIANT, eps=0.1, seed=3)
    yield ops.square_propose, (best, x0, INDEX, VARIANT, AGE, SHARE), dict(eps=0.1, seed=3)


def words(domain, image, sample, element, seed=3):
    counter = [element // 4, sample & 0xFFFFFFFF, image, domain << 24 | (sample >> 32) << 16]
    return _C.philox4x32(counter, seed)[element % 4]


def test_starts_are_the_words_of_their_stream():
    noise = raw.attack_noise(images(), INDEX, VARIANT, 3, False).flatten(1)
    for row, element in ((0, 0), (1, 5), (2, 428), (3, 100)):
        word = words(16, int(INDEX[row]), int(VARIANT[row]), element)
        signed = word - (1 << 32) if word >> 31 else word
        assert noise[row, element].item() == pytest.approx((signed + 0.5) / 2**31, abs=1e-7)


def test_windows_are_the_words_of_their_stream():
    x0 = torch.full((4, 3, 11, 13), 0.5)
    new = ops.square_propose(x0, x0, INDEX, VARIANT, AGE, SHARE, eps=0.1, seed=3)
    for row in range(4):
        size = min(max(round(math.sqrt(float(SHARE[row]) * 11 * 13)), 1), 11)
        image, sample = int(INDEX[row]), int(VARIANT[row]) << 24 | int(AGE[row]) + 1
        top = words(17, image, sample, 0) * (11 - size + 1) >> 32
        left = words(17, image, sample, 1) * (13 - size + 1) >> 32
        want = x0[row].clone()
        for c in range(3):
            sign = 1 if words(17, image, sample, 128) >> c & 1 else -1
            want[c, top : top + size, left : left + size] += 0.1 * sign
        torch.testing.assert_close(new[row], want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inside(dtype):
    x0 = images(dtype)
    for op, arguments, options in calls(dtype):
        x = op(*arguments, **options)
        assert x.dtype == dtype
        assert x.min() >= 0
        assert x.max() <= 1
        d = (x.double() - x0.double()).flatten(1)
        norm, eps = options.get("norm", "linf"), options["eps"]
        if norm == "l0":
            changed = (d.view(4, 3, -1) != 0).any(1).sum(1)
            assert ((changed > 0) & (changed <= eps)).all()
            continue
        order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
        length = torch.linalg.vector_norm(d, order, dim=1)
        assert (length <= eps * (1 if norm == "linf" else 1 + 1e-6)).all()
        assert (length >= 0.5 * eps).all()


def test_distributions():
    x0, rows = torch.full((100, 1000), 0.5), torch.arange(100)
    u = raw.attack_noise(x0, rows, rows * 0, 1, False)
    z = raw.attack_noise(x0, rows, rows * 0, 1, True)
    assert stats.kstest(u.flatten().double(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(z.flatten().double(), stats.norm.cdf).pvalue > 1e-3


def test_an_image_does_not_see_its_batch():
    for op, arguments, options in calls():
        want = op(*arguments, **options)
        for pick in ([2], [3, 1]):
            assert_same(op(*(t[pick] for t in arguments), **options), want[pick])
        check_repeatable(lambda op=op, a=arguments, o=options: op(*a, **o))
        assert not torch.equal(op(*arguments, **{**options, "seed": 4}), want)


def test_instruction_sets_agree(simd):
    def run():
        return [op(*a, **o) for dtype in DTYPES for op, a, o in calls(dtype)]

    expected = run()
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_agree_to_the_bit(dtype):
    for op, arguments, options in calls(dtype):
        got = op(*(t.cuda() for t in arguments), **options)
        assert_same(got.cpu(), op(*arguments, **options))


def test_any_layout_in():
    for op, arguments, options in calls():
        want = op(*arguments, **options)
        for name in relayouts(arguments[0]):
            laid = (relayouts(t)[name] if t.dim() == 4 else t for t in arguments)
            assert_same(op(*laid, **options), want)


def test_radii_of_one_an_image():
    eps = torch.tensor([0.05, 0.1, 0.2, 0.3])
    for op, arguments, options in calls():
        if options.get("norm", "linf") in ("linf", "l2"):
            got = op(*arguments, **{**options, "eps": eps})
            for i in range(4):
                one = op(*(t[i : i + 1] for t in arguments), **{**options, "eps": float(eps[i])})
                torch.testing.assert_close(got[i : i + 1], one, rtol=0, atol=1e-7)


def test_opcheck():
    x0 = images()
    torch.library.opcheck(raw.attack_noise.default, (x0, INDEX, VARIANT, 3, True))
    for best, age, share in ((None, None, None), (x0, AGE, SHARE)):
        arguments = (best, x0, INDEX, VARIANT, age, share, 0.1, None, 3, 0.0, 1.0)
        torch.library.opcheck(raw.square_propose.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(index=torch.zeros(4)), r"index: got torch.float32 of shape \[4\]"),
        (dict(restart=torch.zeros(3).long()), r"restart: got torch.int64 of shape \[3\]"),
        (dict(seed=-1), "seed: got -1"),
        (dict(eps=-1.0), "eps: got -1"),
        (dict(norm="l7"), "norm: got 'l7'"),
    ],
)
def test_bad_input(change, message):
    call = dict(x0=images(), index=INDEX, restart=VARIANT, norm="linf", eps=0.1, seed=0)
    with pytest.raises((TypeError, ValueError), match=message):
        ops.random_start(**{**call, **change})
