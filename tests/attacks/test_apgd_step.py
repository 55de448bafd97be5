"""ops.apgd_step against the ops of its parts and the published rules, an image at a time."""

import pytest
import torch

from attacks.reference import normal, uniform
from attacks.test_attack_watch import state as watched_state
from robustcore import ops
from testing import assert_same

pytestmark = pytest.mark.kernel

raw = torch.ops.robustcore
WATCHED = ("loss", "ahead", "counts", "best", "best_grad", "best_loss", "found", "fooled", "zero",
           "nan_grad", "nan_logits", "age")  # fmt: skip
NUMBERS = ("last_loss", "step_size", "rises", "checked", "cut")
NAMES = ("x", "shown", "grad", "x0", "previous", *WATCHED, *NUMBERS, "widths")
NORMS = {"linf": 0.1, "l2": 0.5}


def state(rows=40, seed=0, dtype=torch.float32):
    """Rows in every situation: losses that rise, fall and tie, at and between checkpoints."""
    wide = torch.promote_types(dtype, torch.float32)
    s = watched_state(rows, dtype, seed)
    s |= {name: uniform(rows, 3, 5, 4, seed=9 + i, dtype=dtype)
          for i, name in enumerate(("x", "x0", "previous"))}  # fmt: skip
    s["shown"] = s["x"].clone()
    values = torch.randint(0, 4, (5, rows), generator=torch.Generator().manual_seed(seed)).to(wide)
    names = ("loss", "best_loss", "last_loss", "rises", "checked")
    s |= dict(zip(names, values.clone(), strict=True))
    s["step_size"], s["cut"] = uniform(rows, seed=9, dtype=wide), normal(rows, seed=3) > 0
    s["age"], s["widths"] = torch.arange(rows) % 6, torch.tensor([0, 0, 2, 4, 0])
    s["loss"][1] = float("nan")
    return s


def published(s, norm, rho=0.75, momentum=0.75):
    """The rules of Croce and Hein, 2020, row by row, between the watch and the step."""
    s = {name: t.clone() for name, t in s.items()}
    ops.attack_watch(s["shown"], s["grad"], *(s[name] for name in WATCHED))
    grad = s["grad"].clone()
    for i in range(len(s["x"])):
        s["rises"][i] += s["loss"][i] > s["last_loss"][i]
        s["last_loss"][i] = s["loss"][i]
        age = int(s["age"][i])
        width = int(s["widths"][age]) if age < len(s["widths"]) else 0
        if width == 0:
            continue
        few = s["rises"][i] <= rho * width
        stuck = not s["cut"][i] and s["checked"][i] >= s["best_loss"][i]
        s["cut"][i], s["checked"][i], s["rises"][i] = few or stuck, s["best_loss"][i], 0
        if few or stuck:
            s["step_size"][i] /= 2
            s["x"][i], grad[i] = s["best"][i], s["best_grad"][i]
    share = torch.where(s["age"] > 1, momentum, 1.0).to(s["loss"].dtype)
    s["previous"] = ops.attack_step(
        s["x"], grad, s["x0"], norm=norm, eps=NORMS[norm], step_size=s["step_size"], momentum=share,
        previous=s["previous"],
    )  # fmt: skip
    return s


def step(s, norm):
    ops.apgd_step(**s, norm=norm, eps=NORMS[norm])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_the_published_rules(norm, dtype, last, device):
    for seed in range(3):
        given = state(seed=seed, dtype=dtype)
        want = published(given, norm)
        layout = torch.channels_last if last else torch.contiguous_format
        got = {
            name: t.clone(memory_format=layout).to(device) if t.dim() == 4 else t.clone().to(device)
            for name, t in given.items()
        }
        step(got, norm)
        for name, t in got.items():
            assert_same(t.cpu(), want[name])
        assert 0 < int(want["cut"].sum()) < 40
        assert (want["x"] != given["x"]).flatten(1).any(1).sum() >= 2


def test_what_was_evaluated_is_kept_and_gone_back_to():
    """Of a grid: what the model was shown is the best point, also where that is new."""
    given = state()
    given["shown"] = (given["x"] * 7).round() / 7
    want = published(given, "linf")
    got = {name: t.clone() for name, t in given.items()}
    step(got, "linf")
    for name, t in got.items():
        assert_same(t, want[name])
    higher = want["best_loss"] > given["best_loss"]
    back = (want["x"] != given["x"]).flatten(1).any(1)
    assert (higher & back).any()
    assert_same(want["x"][higher & back], given["shown"][higher & back])


def test_x_is_what_was_evaluated():
    given, same = state(), state()
    given["shown"] = given["x"].clone()
    step(given, "l2")
    same["shown"] = None
    step(same, "l2")
    for name in set(NAMES) - {"shown"}:
        assert_same(same[name], given[name])


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_see_its_batch(norm, simd):
    whole = state()
    part = {name: t.clone() if name == "widths" else t[3:11].clone() for name, t in whole.items()}
    step(whole, norm)
    simd()
    step(part, norm)
    for name, t in part.items():
        assert_same(t, whole[name] if name == "widths" else whole[name][3:11])


def test_opcheck():
    s = {name: t.nan_to_num(0) if t.is_floating_point() else t for name, t in state(8).items()}
    torch.library.opcheck(raw.apgd_step.default, (*(s[n] for n in NAMES), 0, 0.1, 0.75, 0.75))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(widths=torch.zeros(8)), "widths: got torch.float32"),
        (dict(cut=torch.zeros(8)), "cut: got torch.float32"),
        (dict(loss=torch.zeros(3)), r"loss: got torch.float32 of shape \[3\]"),
        (dict(best=torch.zeros(8, 3, 5, 5)), "best: got shape"),
        (dict(grad=torch.zeros(8, 3, 5, 8)[..., ::2]), "grad: has to be contiguous"),
        (dict(x0=torch.zeros(8, 3, 5, 8)[..., ::2]), "x0: has to be contiguous"),
        (dict(shown=torch.zeros(8, 3, 5, 8)[..., ::2]), "shown: has to be contiguous"),
        (dict(rho=2.0), "rho: got 2"),
        (dict(momentum=-1.0), "momentum: got -1"),
        (dict(norm="l1"), "norm: got 'l1'"),
        (dict(eps=0.0), "eps: got 0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.apgd_step(**{**state(8), "norm": "linf", "eps": 0.1, **change})
