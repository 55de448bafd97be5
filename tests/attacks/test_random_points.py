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
    for norm in NORMS[:3]:
        ball = dict(norm=norm, eps=EPS[norm], seed=3)
        yield ops.square_start, (x0, INDEX, VARIANT), ball
        best = ops.square_start(x0, INDEX, VARIANT, **ball)
        yield ops.square_propose, (best, x0, INDEX, VARIANT, AGE, SHARE), ball


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


def peaks(size, order):
    """The published colours of a window, two rectangles of rings."""
    both = torch.zeros(size, size, dtype=torch.float64)
    for first, rows, sign in ((0, size // 2, 1), (size // 2, size - size // 2, -1)):
        part = both[first : first + rows]
        top, left = rows // 2, size // 2
        for ring in range(max(rows, size) // 2 + 1):
            inside = (
                slice(max(top - ring, 0), top + ring + 1),
                slice(max(left - ring, 0), left + ring + 1),
            )
            part[inside] += sign / (ring + 1) ** 2
        part /= part.abs().pow(order).sum() ** (1 / order)
    return both


@pytest.mark.parametrize(("norm", "order", "eps"), [("l2", 2, 0.5), ("l1", 1, 2.0)])
def test_peaks_are_the_published_ones(norm, order, eps):
    """Of points amid the box, which takes nothing away; written out an image at a time."""
    x0 = torch.full((4, 3, 11, 13), 0.5)
    best = x0 + 0.5 * (ops.square_start(x0, INDEX, VARIANT, norm=norm, eps=eps, seed=3) - x0)
    arguments = best, x0, INDEX, VARIANT, AGE, SHARE
    new = ops.square_propose(*arguments, norm=norm, eps=eps, seed=3)

    def length(v):
        return v.abs().pow(order).sum() ** (1 / order)

    for row in range(4):
        size = min(max(round(math.sqrt(float(SHARE[row]) * 11 * 13)), 3) | 1, 11)
        image, sample = int(INDEX[row]), int(VARIANT[row]) << 24 | int(AGE[row]) + 1
        corners = [
            words(17, image, sample, i) * ((11, 13)[i % 2] - size + 1) >> 32 for i in range(4)
        ]
        windows = [
            (..., slice(t, t + size), slice(w, w + size)) for t, w in (corners[:2], corners[2:])
        ]
        bits = words(17, image, sample, 128)
        colours = peaks(size, order).T if bits >> 3 & 1 else peaks(size, order)
        d = (best[row] - x0[row]).double()
        either = torch.zeros(11, 13, dtype=torch.bool)
        for window in windows:
            either[window] = True
        left = (eps**order - length(d) ** order) / 3
        want = d.clone()
        want[windows[1]] = 0
        for c in range(3):
            own = d[c][windows[0]]
            added = (1 if bits >> c & 1 else -1) * colours + own / (length(own) + 1e-12)
            share = (left + length(d[c][either]) ** order) ** (1 / order)
            want[c][windows[0]] = added / length(added) * share
        torch.testing.assert_close(new[row].double(), x0[row].double() + want, rtol=0, atol=2e-6)
        assert float(length((new[row] - x0[row]).double())) == pytest.approx(eps, rel=1e-5)


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
    rings = torch.arange(13).double()
    for best, age, share, ring in ((None, None, None, None), (x0, AGE, SHARE, rings)):
        norm = 0 if ring is None else 1
        arguments = (best, x0, INDEX, VARIANT, age, share, ring, norm, 0.1, None, 3, 0.0, 1.0)
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
