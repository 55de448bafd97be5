"""``robustcore attack``: its table, its options, and runs that end before their time."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from command.runs import MODULE, forks, runs  # noqa: F401  (fixtures)
from robustcore import attacks
from robustcore.attacks.rows import ATTACKED
from robustcore.command.main import main

EPS = 0.1
GRID = """
def levels():
    return [((image * 255).round() / 255, label) for image, label in data()]

def minus_one():
    return [(image, -1) for image, _ in data()]

def four():
    return [(image, 4) for image, _ in data()]

def too_bright():
    return [(image * 2, label) for image, label in data()]

def not_a_number():
    class Nan(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * float("nan")
    return Nan()

def one_class():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine_attacked.py").write_text(MODULE + GRID)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def attack(*options, out="out.tsv", model="model", data="data", eps=str(EPS)):
    argv = ["attack", "--model", f"mine_attacked:{model}", "--data", f"mine_attacked:{data}"]
    return main([*argv, "--eps", eps, "--out", out, "--device", "cpu", "--no-progress", *options])


def data(number=10):
    made = torch.rand(number, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return made, made.flatten(1)[:, :3].argmax(1)


def net(x):
    return x.flatten(1)[:, :3]


def read(path="out.tsv"):
    return ATTACKED.read(Path(path))


def without_times(path="out.tsv"):
    return [line.rsplit("\t", 1)[0] for line in Path(path).read_text().splitlines()]


def can_be_fooled(eps, number=10):
    """Of logits that are pixels: the label's goes down and another one's up, within the box."""
    x, y = data(number)
    pixels = net(x)
    own = pixels.gather(1, y[:, None]).squeeze(1)
    rival = pixels.scatter(1, y[:, None], -1.0).amax(1)
    return ((rival + eps).clamp(max=1) > (own - eps).clamp(min=0)).tolist()


def test_rows_are_those_of_the_attack(folder, capsys):
    assert attack("--attack", "apgd", "--seed", "5", "--loss", "margin") == 0
    x, y = data()
    made = attacks.APGD(net, EPS, loss="margin", seed=5).run(x, y)
    rows = read()
    assert [row.idx for row in rows] == list(range(10))
    assert [row.label for row in rows] == y.tolist()
    assert [row.prediction for row in rows] == made.prediction.tolist()
    assert [row.success for row in rows] == made.success.tolist() == can_be_fooled(EPS)
    assert [row.steps for row in rows] == made.steps.tolist()
    assert [row.queries for row in rows] == made.queries.tolist()
    for row, distance in zip(rows, made.distance.tolist(), strict=True):
        assert distance <= row.distance <= distance + 1e-7
    settings = json.loads(Path("out.tsv.json").read_text())
    expected = {"attack": "apgd", "norm": "linf", "eps": EPS, "loss": "margin", "seed": 5}
    assert settings.items() >= expected.items()
    fooled = sum(row.success for row in rows)
    assert capsys.readouterr().out == f"out.tsv: 10 images, {fooled} fooled, seed 5\n"


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("auto", ["--norm", "L2", "--eps", "0.8"], attacks.AutoAttack),
        ("pgd", ["--norm", "L1", "--steps", "7", "--loss", "dlr"], attacks.PGD),
        ("fgsm", [], attacks.FGSM),
        ("apgdt", ["--steps", "20"], attacks.APGDT),
        ("fab", ["--steps", "20", "--norm", "l2"], attacks.FAB),
        ("square", ["--steps", "50"], attacks.Square),
    ],
)
def test_every_attack_and_its_options(folder, name, options, kind):
    given = dict(zip(options[::2], options[1::2], strict=True))
    eps = given.get("--eps", "1/5")
    assert attack("--attack", name, "--seed", "1", *options, eps=eps) == 0
    named = {"norm": given.get("--norm", "Linf")}
    if "--steps" in given:
        named["queries" if name == "square" else "steps"] = int(given["--steps"])
    if "--loss" in given:
        named["loss"] = given["--loss"]
    x, y = data()
    made = kind(net, eps=float(Fraction(eps)), seed=1, **named).run(x, y)
    assert [row.success for row in read()] == made.success.tolist()
    assert [row.queries for row in read()] == made.queries.tolist()


def test_images_in_flight_and_parts_change_nothing(folder):
    assert attack("--attack", "pgd", "--seed", "5") == 0
    for options in (["--in-flight", "1"], ["--in-flight", "3"], ["--batch", "2"]):
        assert attack("--attack", "pgd", "--seed", "5", "--overwrite", *options, out="b.tsv") == 0
        assert without_times("b.tsv") == without_times()
    parts = ["--start", "1", "--skip", "3", "--max", "9"]
    assert attack("--attack", "pgd", "--seed", "5", *parts, out="part.tsv") == 0
    assert without_times("part.tsv")[1:] == without_times()[2:10:3]


def test_a_grid_is_kept(folder, capsys):
    assert attack("--attack", "pgd", "--grid", "255") == 2
    assert "image 0: image: got pixels that are not k / 255" in capsys.readouterr().err
    assert not Path("out.tsv").exists()
    options = ["--attack", "pgd", "--grid", "255", "--seed", "0"]
    assert attack(*options, data="levels", eps="40.5/255") == 0
    levels = [row.distance * 255 for row in read() if row.success]
    assert levels
    for level in levels:
        assert abs(level - round(level)) < 1e-4
        assert level < 40.5
    assert max(row.distance for row in read()) * 255 == pytest.approx(40, abs=1e-4)


def test_a_smoothed_classifier_is_fooled_where_predict_says_so(folder):
    options = ["--attack", "pgd", "--norm", "L2", "--sigma", "0.25", "--N", "200", "--eot", "4"]
    assert attack(*options, "--seed", "3", eps="0.5") == 0
    rows = read()
    assert any(row.success for row in rows)
    for row in rows:
        assert row.success == (row.prediction not in (-1, row.label))
    assert attack(*options, "--seed", "3", "--resume", eps="0.5") == 0
    assert attack(*options, "--seed", "3", "--resume", "--N", "300", eps="0.5") == 2


def test_progress_counts_what_is_left(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = ["attack", "--model", "mine_attacked:model", "--data", "mine_attacked:data", "--eps"]
    shown += ["0.1", "--attack", "pgd", "--out", "out.tsv", "--device", "cpu", "--seed", "5"]
    assert main(shown) == 0
    robust = 1 - sum(row.success for row in read()) / 10
    error = capsys.readouterr().err
    assert "attack" in error
    assert f"robust {robust:.1%}" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eps", "0"], "--eps: got 0.0, want a finite number above 0"),
        (["--eps=-1/255"], "--eps: got -0.00392"),
        (["--eps", "8/0"], "--eps: got '8/0', want a number or a fraction"),
        (["--eps", "nan"], "--eps: got"),
        (["--norm", "L3"], "--norm: got 'l3', want"),
        (["--norm", "L0", "--attack", "square"], "--norm: got 'l0', want"),
        (["--steps", "5"], "--steps: --attack auto has a budget of its own"),
        (["--steps", "0", "--attack", "pgd"], "--steps: got 0"),
        (["--loss", "ce"], "--loss: --attack auto has a loss of its own"),
        (["--loss", "ce", "--attack", "fab"], "--loss: --attack fab has a loss of its own"),
        (["--version", "newest"], "--version: got 'newest'"),
        (["--eot", "0", "--attack", "pgd"], "--eot: got 0"),
        (["--in-flight", "0"], "--in-flight: got 0"),
        (["--grid", "0"], "--grid: got 0"),
        (["--sigma", "-1"], "--sigma: got -1.0"),
        (["--std", "0"], "--std: got"),
        (["--std", "1", "2"], "std: got"),
        (["--start", "11"], "--start 11: the data set has only 10 images"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(folder, capsys, options, message):
    assert attack(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("robustcore: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out.tsv").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": "minus_one"}, "image 0: label: got -1, want at least 0"),
        ({"data": "four"}, "labels: got 4"),
        ({"data": "too_bright"}, "image 0: image: got pixels from"),
        ({"model": "one_class"}, "model: gave logits of 1 class, want at least 2"),
    ],
)
def test_bad_images_and_models(folder, capsys, given, message):
    assert attack("--attack", "pgd", **given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_bad_image_in_the_middle_keeps_the_rows_before_it(folder, capsys):
    assert attack("--attack", "pgd", "--seed", "5", out="whole.tsv") == 0
    capsys.readouterr()
    assert attack("--attack", "pgd", "--seed", "5", data="bad_pixels") == 2
    error = "image 4: image: got pixels from nan to nan, want [0, 1]"
    assert capsys.readouterr().err == f"robustcore: error: {error}\n"
    assert without_times() == without_times("whole.tsv")[:5]


def test_logits_that_are_no_numbers_are_no_success(folder):
    both = "model: gave gradients that are no numbers for 10", "model: gave logits that are no num"
    with pytest.warns(UserWarning, match=both[0]), pytest.warns(UserWarning, match=both[1]):
        assert attack("--attack", "pgd", model="not_a_number") == 0
    assert not any(row.success for row in read())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attack", ["--attack", "fgsm"]),
        ("norm", ["--norm", "L2"]),
        ("steps", ["--steps", "3"]),
        ("loss", ["--loss", "dlr"]),
        ("eot", ["--eot", "2"]),
        ("eps", ["--eps", "0.2"]),
        ("std", ["--std", "0.5"]),
        ("data", ["--data", "mine_attacked:levels"]),
    ],
)
def test_resume_refuses_other_settings(folder, capsys, name, options):
    assert attack("--attack", "pgd", "--seed", "5", "--max", "2") == 0
    before = Path("out.tsv").read_bytes()
    assert attack("--attack", "pgd", "--resume", *options) == 2
    assert f"was made with {name} = " in capsys.readouterr().err
    assert Path("out.tsv").read_bytes() == before
    assert attack("--attack", "pgd", "--resume") == 0
    assert len(read()) == 10


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (2, "x", "predict: got 'x'"),
        (3, "2", "success: got"),
        (3, "flip", "success: got"),
        (4, "nan", "distance: got nan"),
        (4, "-1", "distance: got -1"),
        (7, "", "time: got nothing"),
    ],
)
def test_a_wrong_field_is_named(folder, capsys, column, value, message):
    assert attack("--attack", "pgd", "--seed", "5") == 0
    lines = Path("out.tsv").read_text().splitlines()
    row = lines[7].split("\t")
    row[column] = str(1 - int(row[column])) if value == "flip" else value
    lines[7] = "\t".join(row)
    Path("out.tsv").write_text("\n".join(lines) + "\n")
    assert attack("--attack", "pgd", "--resume") == 2
    error = capsys.readouterr().err
    assert "line 8: " in error
    assert message in error


def test_cut_off_anywhere_in_the_last_rows(folder):
    assert attack("--attack", "pgd", "--seed", "5") == 0
    whole, expected = Path("out.tsv").read_bytes(), without_times()
    for cut in range(1, 100, 9):
        Path("out.tsv").write_bytes(whole[:-cut])
        assert attack("--attack", "pgd", "--resume") == 0
        assert without_times() == expected


def test_killed_and_resumed(runs):  # noqa: F811
    options = dict(model="slow_model", data="many")
    given = ["--in-flight", "7"]
    killed = 0
    for seconds in (0.0, 0.05, 0.1, 0.15, 0.2):
        codes = runs.attack("--resume", *given, out="out.tsv", kill=[0, seconds], rows=1, **options)
        killed += codes == [-9]
    assert killed >= 2, runs.log()
    assert runs.attack("--resume", *given, out="out.tsv", **options) == [0]
    seed = runs.seed("out.tsv")
    assert runs.attack("--seed", seed, out="whole.tsv", data="many", model="slow_model") == [0]
    assert runs.rows("out.tsv") == runs.rows("whole.tsv")
    assert len(runs.rows("out.tsv")) == 201


def test_ranks_make_the_table_of_one_process(runs):  # noqa: F811
    assert runs.attack("--seed", "5", out="one.tsv", data="many") == [0]
    assert runs.attack("--seed", "5", "--in-flight", "9", out="out.tsv", data="many", ranks=2) == [
        0,
        0,
    ]
    assert runs.rows("out.tsv") == runs.rows("one.tsv")
    assert "robust" not in runs.log(1)  # rank 0 alone shows the progress
    assert runs.attack("--eps", "0", out="out.tsv", data="many", ranks=2, rows=0) == [2, 2]


def test_a_rank_that_is_killed_costs_no_row(runs):  # noqa: F811
    options = dict(model="slow_model", data="many", ranks=2)
    given = ["--seed", "5", "--in-flight", "4"]
    codes = runs.attack(*given, out="out.tsv", kill=[1, 0.0], rows=8, **options)
    assert codes[1] == -9
    assert codes[0] != 0
    rows = len(runs.rows("out.tsv"))
    assert 8 <= rows < 201
    assert runs.attack(*given, "--resume", out="out.tsv", **options) == [0, 0]
    assert runs.attack("--seed", "5", out="one.tsv", model="slow_model", data="many") == [0]
    assert runs.rows("out.tsv") == runs.rows("one.tsv")
