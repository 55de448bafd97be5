"""ops.apgd_update against the published rules, written out an image at a time."""

import pytest
import torch

from attacks.reference import normal, uniform
from robustcore import ops
from testing import assert_same

pytestmark = pytest.mark.kernel

raw = torch.ops.robustcore
IMAGES = ("x", "grad", "best", "best_grad")


def state(rows=40, seed=0, dtype=torch.float32):
    """Rows in every situation: losses that rise, fall and tie, at and between checkpoints."""
    wide = torch.promote_types(dtype, torch.float32)
    values = torch.randint(0, 4, (5, rows), generator=torch.Generator().manual_seed(seed)).to(wide)
    made = {name: uniform(rows, 3, 5, 4, seed=i, dtype=dtype) for i, name in enumerate(IMAGES)}
    names = ("loss", "best_loss", "last_loss", "rises", "checked")
    made |= dict(zip(names, values.clone(), strict=True))
    made["step_size"] = uniform(rows, seed=9, dtype=wide)
    made["cut"] = normal(rows, seed=3) > 0
    made["width"] = torch.arange(rows) % 3 * 2
    made["loss"][1] = float("nan")
    return made


def published(s, rho=0.75):
    """The rules of Croce and Hein, 2020, row by row."""
    s = {name: t.clone() for name, t in s.items()}
    for i in range(len(s["x"])):
        s["rises"][i] += s["loss"][i] > s["last_loss"][i]
        s["last_loss"][i] = s["loss"][i]
        if s["loss"][i] > s["best_loss"][i]:
            s["best_loss"][i] = s["loss"][i]
            s["best"][i], s["best_grad"][i] = s["x"][i], s["grad"][i]
        if s["width"][i] == 0:
            continue
        few = s["rises"][i] <= rho * s["width"][i]
        stuck = not s["cut"][i] and s["checked"][i] >= s["best_loss"][i]
        s["cut"][i], s["checked"][i], s["rises"][i] = few or stuck, s["best_loss"][i], 0
        if few or stuck:
            s["step_size"][i] /= 2
            s["x"][i], s["grad"][i] = s["best"][i], s["best_grad"][i]
    return s


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_the_published_rules(dtype, last, device):
    for seed in range(5):
        given = state(seed=seed, dtype=dtype)
        want = published(given)
        layout = torch.channels_last if last else torch.contiguous_format
        got = {
            name: t.to(device).contiguous(memory_format=layout) if t.dim() == 4 else t.to(device)
            for name, t in given.items()
        }
        ops.apgd_update(**got)
        for name, t in got.items():
            assert_same(t.cpu(), want[name])
        assert 0 < int(want["cut"].sum()) < 40


def test_a_row_does_not_see_its_batch(simd):
    whole, part = state(), {name: t[3:11].clone() for name, t in state().items()}
    ops.apgd_update(**whole)
    simd()
    ops.apgd_update(**part)
    for name, t in part.items():
        assert_same(t, whole[name][3:11])


def test_opcheck():
    s = state(6)
    s["loss"][1] = 0
    names = ("x", "grad", "loss", "best", "best_grad", "best_loss", "last_loss", "step_size",
             "rises", "checked", "cut", "width")  # fmt: skip
    torch.library.opcheck(raw.apgd_update.default, (*(s[name] for name in names), 0.75))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=torch.zeros(4)), "width: got torch.float32"),
        (dict(cut=torch.zeros(4)), "cut: got torch.float32"),
        (dict(loss=torch.zeros(3)), r"loss: got torch.float32 of shape \[3\]"),
        (dict(best=torch.zeros(4, 3, 5, 5)), "best: got shape"),
        (dict(grad=torch.zeros(4, 3, 5, 8)[..., ::2]), "grad: has to be contiguous"),
        (dict(rho=2.0), "rho: got 2"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.apgd_update(**{**state(4), **change})
