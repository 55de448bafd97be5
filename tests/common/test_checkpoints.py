"""Checkpoints as they are found: keys, prefixes of wrappers, and what is refused."""

import pytest
import torch
from torch import nn

from robustcore.common.errors import UsageError
from robustcore.common.user_code import load_model

MODULE = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2)))

def wrapped():
    return nn.DataParallel(plain())

class Named(nn.Module):
    # A submodule of its own that is called module.
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(3, 2)
        self.linear = nn.Linear(3, 2)

def named():
    return Named()
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    name = f"users_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(content, model="plain", **options):
        torch.save(content, tmp_path / "model.pt")
        return load_model(f"{name}:{model}", tmp_path / "model.pt", "cpu", **options).state_dict()

    return load


def plain():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2)))


WEIGHTS = plain().state_dict()


def under(prefix):
    return {prefix + name: value for name, value in WEIGHTS.items()}


def same(got, want=WEIGHTS):
    return [torch.equal(a, b) for a, b in zip(got.values(), want.values(), strict=True)] == [
        True
    ] * 4


def nested_wrappers():
    model = plain()
    model[1] = nn.DataParallel(torch.compile(model[1]))
    return torch.compile(nn.DataParallel(model)).state_dict()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's import
@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": {}},
        {"net": WEIGHTS, "acc": 0.9},
        {"model": {"state_dict": WEIGHTS}},
        {"state_dict": under("module.")},
        {"net": under("module._orig_mod.")},
        under("_orig_mod.module."),
        {name.replace("1.0.", "1.module.0."): value for name, value in WEIGHTS.items()},
        nested_wrappers,
    ],
)
@pytest.mark.parametrize("model", ["plain", "wrapped"])
def test_weights_are_found(load, content, model):
    assert same(load(content() if callable(content) else content, model))


def test_a_submodule_that_is_called_module_is_none_of_a_wrapper(load):
    state = {f"{part}.{name}": torch.rand(shape) for part in ("module", "linear")
             for name, shape in (("weight", (2, 3)), ("bias", (2,)))}  # fmt: skip
    assert same(load(state, "named"), state)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ({"ema": WEIGHTS, "model": under("x.")}, {"key": "ema"}),
        ({"best": {"ema": under("module.")}}, {"key": "best.ema"}),
        ({"a.b": WEIGHTS}, {"key": "a.b"}),
        (under("student."), {"prefix": "student."}),
        ({**under("student."), "teacher.weight": torch.ones(2)}, {"prefix": "student."}),
        ({"x": under("1.module.")}, {"key": "x", "prefix": "1."}),
    ],
)
def test_told_where(load, content, options):
    assert same(load(content, **options))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"ema": WEIGHTS}, {}, "holds ema, no weights; --checkpoint-key says where"),
        ({}, {}, "holds nothing, no weights"),
        ([1, 2], {}, "got a list, want a state_dict"),
        ({"ema": WEIGHTS}, {"key": "emo"}, "--checkpoint-key emo: .* holds ema"),
        ({"a": {"b": WEIGHTS}}, {"key": "a.c"}, "--checkpoint-key a.c: .* holds b"),
        ({"a": 3}, {"key": "a"}, "got a int, want a state_dict"),
        ([1, 2], {"key": "a"}, "--checkpoint-key a: .* holds list"),
        (WEIGHTS, {"prefix": "net."}, r"--strip-prefix net.: no name begins so .0.weight is"),
        (under("net."), {}, "try --strip-prefix net.: .*Missing key"),
        ({"other": torch.ones(2)}, {}, "Missing key"),
    ],
)  # fmt: skip
def test_what_is_refused(load, content, options, message):
    with pytest.raises(UsageError, match=message):
        load(content, **options)


def test_options_without_a_checkpoint(load):
    load(WEIGHTS)
    for option in ({"key": "a"}, {"prefix": "a"}):
        with pytest.raises(UsageError, match="go with --checkpoint"):
            load_model("torch.nn:Identity", None, "cpu", **option)
