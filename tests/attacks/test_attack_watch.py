"""ops.attack_watch against what it says, written out an image at a time."""

import math

import pytest
import torch

from attacks.reference import normal, uniform
from robustcore import ops
from testing import assert_same

pytestmark = pytest.mark.kernel

raw = torch.ops.robustcore
FLAGS = ("found", "fooled", "zero", "nan_grad", "nan_logits")


def state(rows=24, dtype=torch.float32, seed=0):
    """Rows fooled now, before or never, some of which count; gradients that are zero, or NaN."""
    wide = torch.promote_types(dtype, torch.float32)
    s = {n: uniform(rows, 3, 5, 4, seed=i, dtype=dtype) for i, n in enumerate(("x", "best"))}
    s["grad"], s["best_grad"] = normal(rows, 3, 5, 4, dtype=dtype), torch.zeros_like(s["x"])
    s["grad"][::5] = 0
    s["grad"][3, 1, 2, 3], s["grad"][4, 0, 0, 0] = math.nan, math.inf
    s["loss"], s["ahead"] = normal(rows, seed=seed, dtype=wide), normal(rows, seed=7, dtype=wide)
    s["ahead"][1], s["ahead"][2], s["loss"][6] = math.nan, 0, math.nan
    s["counts"], s["best_loss"] = normal(rows, seed=8) > 0, normal(rows, seed=9, dtype=wide)
    s |= {name: torch.arange(rows) % (5 + i) == 4 for i, name in enumerate(FLAGS)}
    s["age"] = torch.arange(rows) % 3
    return s


def spelled_out(s):
    s = {name: t.clone() for name, t in s.items()}
    for i in range(len(s["x"])):
        s["fooled"][i] = s["ahead"][i] > 0
        s["nan_logits"][i] |= s["ahead"][i].isnan()
        s["found"][i] |= s["fooled"][i] & s["counts"][i]
        if s["found"][i]:
            s["loss"][i] = math.inf
        s["nan_grad"][i] |= not s["grad"][i].isfinite().all()
        s["zero"][i] |= bool((s["grad"][i] == 0).all()) and s["age"][i] == 0
        s["age"][i] += not s["found"][i]
        if s["loss"][i] > s["best_loss"][i]:
            s["best_loss"][i] = s["loss"][i]
            s["best"][i], s["best_grad"][i] = s["x"][i], s["grad"][i]
    return s


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_what_it_says(dtype, last, device):
    given = state(dtype=dtype)
    want = spelled_out(given)
    layout = torch.channels_last if last else torch.contiguous_format
    got = {
        name: t.clone()
        .to(device)
        .contiguous(memory_format=layout if t.dim() == 4 else torch.contiguous_format)
        for name, t in given.items()
    }
    ops.attack_watch(**got)
    for name, t in got.items():
        assert_same(t.cpu(), want[name])
    assert {name for name in given if not torch.equal(given[name], want[name])} >= {
        *FLAGS, "age", "best", "best_grad", "loss", "best_loss"
    }  # fmt: skip


def test_what_is_not_given_is_not_kept():
    given = state()
    got = {name: t.clone() for name, t in given.items()}
    got |= dict(grad=None, best=None, best_grad=None, counts=None)
    ops.attack_watch(**got)
    assert_same(got["found"], given["found"] | (given["ahead"] > 0))
    for name in ("best_loss", "zero", "nan_grad"):
        assert_same(got[name], given[name])


def test_a_row_does_not_see_its_batch(simd):
    whole, part = state(), {name: t[3:11].clone() for name, t in state().items()}
    ops.attack_watch(**whole)
    simd()
    ops.attack_watch(**part)
    for name, t in part.items():
        assert_same(t, whole[name][3:11])


def test_opcheck():
    s = {name: t.nan_to_num(0) if t.is_floating_point() else t for name, t in state(8).items()}
    names = (
        "x",
        "grad",
        "loss",
        "ahead",
        "counts",
        "best",
        "best_grad",
        "best_loss",
        *FLAGS,
        "age",
    )
    torch.library.opcheck(raw.attack_watch.default, tuple(s[name] for name in names))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(age=torch.zeros(8)), "age: got torch.float32"),
        (dict(zero=torch.zeros(8)), "zero: got torch.float32"),
        (dict(loss=torch.zeros(3)), r"loss: got torch.float32 of shape \[3\]"),
        (dict(best=torch.zeros(8, 3, 5, 5)), "best: got shape"),
        (dict(grad=torch.zeros(8, 3, 5, 8)[..., ::2]), "grad: has to be contiguous"),
        (dict(grad=None), "best_grad: goes with grad and best"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.attack_watch(**{**state(8), **change})
