"""ops.attack_loss against eager losses and their derivatives, and its verdict."""

import pytest
import torch

from robustcore import ops
from testing import assert_same, check_repeatable

pytestmark = pytest.mark.kernel

raw = torch.ops.robustcore
CASES = [("ce", False), ("margin", False), ("dlr", False), ("margin", True), ("dlr", True)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def logits(classes, rows=17, dtype=torch.float64, seed=0):
    return 3 * torch.randn(
        rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def eager(z, y, t, loss):
    """The loss of each row, for autograd."""
    own = z.gather(1, y[:, None]).squeeze(1)
    if loss == "ce":
        return -z.log_softmax(1).gather(1, y[:, None]).squeeze(1)
    others = z.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = (others if t is None else z.gather(1, t[:, None]).squeeze(1)) - own
    top = z.sort(1, descending=True).values
    if loss == "margin" or z.shape[1] < (3 if t is None else 4):
        return margin
    low = top[:, 2] if t is None else (top[:, 2] + top[:, 3]) / 2
    return margin / (top[:, 0] - low + 1e-12)


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize(("loss", "targeted"), CASES)
@pytest.mark.parametrize("classes", [2, 3, 4, 7, 1100])
def test_losses_and_derivatives(classes, loss, targeted, lowered, device):
    z = logits(classes).to(device).requires_grad_()
    y = torch.arange(17, device=device) % classes
    t = (y + 1) % classes if targeted else None
    sign = -1 if lowered else 1
    want = sign * eager(z, y, t, loss)
    (slope,) = torch.autograd.grad(want.sum(), z)
    got = ops.attack_loss(z, y, t, loss=loss, lowered=lowered)
    torch.testing.assert_close(got[0], want.detach())
    third = z.argsort(1, descending=True)[:, min(2, classes - 1)] == y
    free = third & (loss == "dlr" and classes > 2 and not targeted)
    torch.testing.assert_close(got[1][~free], slope[~free])
    # Where y ranks third, dlr has no slope, and the one of its numerator is taken.
    assert (got[1][free].abs().sum(1) > 0).all()
    assert torch.equal(got[2] > 0, sign * eager(z, y, None, "margin") > 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_logits(dtype):
    z, y = logits(10, 50, dtype), torch.arange(50) % 10
    value, slope, ahead = ops.attack_loss(z, y)
    want = ops.attack_loss(z.double(), y)
    assert slope.dtype == dtype
    assert value.dtype == ahead.dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), want[1], rtol=2e-2, atol=2e-3)


def test_what_is_no_number():
    z, y = logits(5), torch.arange(17) % 5
    z[3, 1] = torch.nan
    for loss in ("ce", "margin", "dlr"):
        value, _, ahead = ops.attack_loss(z, y, loss=loss)
        assert value.isnan().nonzero().flatten().tolist() == [3]
        assert ahead.isnan().nonzero().flatten().tolist() == [3]
    y[5] = 5
    assert ops.attack_loss(z, y)[0].isnan().nonzero().flatten().tolist() == [3, 5]
    infinite = torch.tensor([[torch.inf, 0.0], [-torch.inf, 0.0]])
    assert (ops.attack_loss(infinite, torch.tensor([1, 0]))[2] == torch.inf).all()


def test_ties_are_not_misclassified():
    z = torch.tensor([[1000.0, 1000.0 + 1e-4], [1000.0, 1000.1]])
    assert (ops.attack_loss(z, torch.tensor([0, 0]))[2] > 0).tolist() == [False, True]


@pytest.mark.parametrize(("loss", "targeted"), CASES)
def test_rows_layouts_threads_and_instruction_sets(loss, targeted, simd):
    z, y = logits(1100, 40, torch.float32), torch.arange(40)
    t = y + 1 if targeted else None
    want = ops.attack_loss(z, y, t, loss=loss)

    def check(got, rows=slice(None)):
        for a, b in zip(got, want, strict=True):
            assert_same(a, b[rows])

    check(ops.attack_loss(z.t().contiguous().t(), y, t, loss=loss))
    check(ops.attack_loss(z[7:9], y[7:9], t[7:9] if targeted else None, loss=loss), slice(7, 9))
    check_repeatable(lambda: torch.cat([a.flatten() for a in ops.attack_loss(z, y, t, loss=loss)]))
    simd()
    check(ops.attack_loss(z, y, t, loss=loss))


@pytest.mark.cuda
@pytest.mark.parametrize(("loss", "targeted"), CASES)
def test_devices_agree_to_the_bit(loss, targeted):
    z, y = logits(1100, 40, torch.float32), torch.arange(40)
    t = y + 1 if targeted else None
    got = ops.attack_loss(z.cuda(), y.cuda(), t.cuda() if targeted else None, loss=loss)
    for a, b in zip(got, ops.attack_loss(z, y, t, loss=loss), strict=True):
        assert_same(a.cpu(), b)


def test_opcheck():
    z, y = logits(5, dtype=torch.float32), torch.arange(17) % 5
    for t in (None, (y + 1) % 5):
        torch.library.opcheck(raw.attack_loss.default, (z, y, t, 2, False, 1e-6))


def test_empty():
    made = ops.attack_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert [list(t.shape) for t in made] == [[0], [0, 3], [0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(logits=torch.zeros(3)), r"logits: got shape \[3\]"),
        (dict(logits=torch.zeros(3, 1)), r"logits: got shape \[3, 1\]"),
        (dict(labels=torch.zeros(3)), "labels: got torch.float32"),
        (dict(targets=torch.zeros(2).long()), r"targets: got torch.int64 of shape \[2\]"),
        (dict(loss="mse"), "loss: got 'mse'"),
        (dict(lowered=1), "lowered: got 1"),
    ],
)
def test_bad_input(change, message):
    call = dict(logits=torch.zeros(3, 4), labels=torch.zeros(3).long())
    with pytest.raises((TypeError, ValueError), match=message):
        ops.attack_loss(**{**call, **change})
