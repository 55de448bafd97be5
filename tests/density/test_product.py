"""The matrix product of linear_logsumexp: values, strides, bits, errors."""

import pytest
import torch

from robustcore._C import build_info
from testing import assert_same, check_repeatable, needs_vectors

pytestmark = [pytest.mark.kernel, needs_vectors]

product_ = torch.ops.robustcore.product_
# Rows, summed, columns: less than a tile, tiles, and parts of tiles after several blocks of each.
SHAPES = [(1, 1, 1), (5, 7, 3), (12, 32, 32), (13, 256, 33), (400, 30, 70), (25, 700, 65)]


def factors(shape):
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(s, generator=generator) for s in ((m, k), (k, n), (m, n)))


def layouts(t):
    """The same matrix by rows, by columns, and as every third element of another."""
    apart = t.new_full((2 * t.shape[0], 3 * t.shape[1]), float("nan"))
    apart[::2, ::3] = t
    return t, t.t().contiguous().t(), apart[::2, ::3]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("add", [False, True])
def test_matches_float64_in_any_layout(shape, add):
    a, b, out = factors(shape)
    want = a.double() @ b.double() + (out.double() if add else 0)
    first = None
    for left in layouts(a):
        for right in layouts(b):
            wide = torch.full((shape[0], shape[2] + 5), float("nan"))
            got = wide[:, 2:-3]
            got.copy_(out if add else got)
            product_(got, left, right, add)
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * shape[1] ** 0.5)
            assert wide[:, :2].isnan().all()
            assert wide[:, -3:].isnan().all()
            first = got if first is None else first
            assert_same(got, first)


def test_a_chain_of_fused_multiply_adds():
    e = 2.0**-13
    a, b, out = torch.tensor([[1 + e]]), torch.tensor([[1 - e]]), torch.tensor([[-1.0]])
    product_(out, a, b, True)
    assert out.item() == -e * e
    product_(out, a, b, False)
    assert out.item() == 1  # 1 - e^2, rounded


def test_threads_agree():
    a, b, out = factors((200, 600, 130))

    def run():
        product_(out, a, b, False)
        return out.clone()

    check_repeatable(run)


def test_instruction_sets_agree(simd):
    a, b, out = factors((37, 300, 45))
    product_(out, a, b, False)
    want = out.clone()
    simd()
    if build_info()["simd"] == "baseline":
        with pytest.raises(Exception, match="product_: this processor has no kernel for it"):
            product_(out, a, b, False)
    else:
        product_(out, a, b, False)
        assert_same(out, want)


def test_nothing_to_add_up_or_to_write():
    out = torch.full((3, 4), 2.0)
    product_(out, torch.empty(3, 0), torch.empty(0, 4), True)
    assert_same(out, torch.full((3, 4), 2.0))
    product_(out, torch.empty(3, 0), torch.empty(0, 4), False)
    assert_same(out, torch.zeros(3, 4))
    product_(out[:0], torch.empty(0, 5), torch.empty(5, 4), False)


def test_checks():
    a, b, out = factors((3, 4, 5))
    for bad, message in [
        ((out, a, b[:3]), r"b: got float32 of shape \[3, 5\], want float32 of shape \[4, 5\]"),
        ((out, a[:2], b), r"a: got float32 of shape \[2, 4\]"),
        ((out.double(), a, b), "out: got float64"),
        ((out.t().contiguous().t(), a, b), "out: want the elements of a row side by side"),
    ]:
        with pytest.raises(Exception, match=message):
            product_(*bad, False)
