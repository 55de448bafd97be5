"""``robustcore report certified.tsv attacked.tsv``: both bounds of one classifier."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from command.runs import MODULE
from robustcore.attacks.plots import draw_sandwich
from robustcore.attacks.rows import ATTACKED
from robustcore.command.main import main
from robustcore.command.sandwich import Sandwich
from robustcore.common.plots import new_figure
from robustcore.common.table import CERTIFIED

IMAGES = 30
MORE = f"""
def thirty():
    return data({IMAGES})
"""
EPS = 0.4


def run(command, out, *options):
    argv = [command, "--model", "mine_both:model", "--data", "mine_both:thirty", "--out", out]
    argv += ["--sigma", "0.25", "--N", "300", "--device", "cpu", "--no-progress", "--seed", "1"]
    assert main([*argv, *options]) == 0


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Both tables of a smoothed classifier, made by the commands."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "mine_both.py").write_text(MODULE + MORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        run("certify", "certified.tsv", "--N0", "20")
        attack = ["--attack", "pgd", "--norm", "L2", "--eps", str(EPS), "--eot", "8"]
        run("attack", "attacked.tsv", *attack)
    return folder


@pytest.fixture
def folder(tables, tmp_path, monkeypatch):
    for path in tables.glob("*.tsv*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(*options, first="certified.tsv", second="attacked.tsv"):
    return main(["report", first, second, *options])


def test_both_lines_are_what_they_say(folder, capsys):
    certified, attacked = CERTIFIED.read(Path("certified.tsv")), ATTACKED.read(Path("attacked.tsv"))
    assert sum(row.success for row in attacked) > 2
    radii = [0.0, 0.05, 0.1, 0.2, EPS, 0.9]
    assert report("--radii", *map(str, radii)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["radius", *(f"{radius:g}" for radius in radii)]
    below = [sum(r.correct and r.radius >= radius for r in certified) for radius in radii]
    above = [IMAGES - sum(r.success and r.distance <= radius for r in attacked) for radius in radii]
    assert lines[1].split() == ["certified,", "at", "least", *(f"{n / IMAGES:.3f}" for n in below)]
    assert lines[2].split() == ["attacked,", "at", "most", *(f"{n / IMAGES:.3f}" for n in above)]
    assert all(b <= a for b, a in zip(below, above, strict=True))
    assert below[1] > below[3] > 0
    assert above[0] > above[4]
    assert lines[3] == f"{IMAGES} images, l2, attacked within {EPS}"
    assert len(lines) == 4  # none inside its certificate
    assert report(first="attacked.tsv", second="certified.tsv") == 0  # in either order
    assert f"{EPS:g}" in capsys.readouterr().out.splitlines()[0].split()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture(folder, capsys, suffix):
    pytest.importorskip("matplotlib")
    picture = Path(f"sandwich.{suffix}")
    assert report("--plot", str(picture)) == 0
    assert f"wrote {picture}" in capsys.readouterr().out
    assert picture.stat().st_size > 3000
    assert report("--plot", str(picture)) == 2  # it is there
    assert report("--plot", str(picture), "--overwrite") == 0
    assert report("--plot", "sandwich.doc") == 2


def test_what_is_drawn_is_what_is_said():
    pytest.importorskip("matplotlib")
    radius, distance = np.array([-1, 0.15, 0.35, 0.65]), np.array([0.0, 0.25, np.inf, np.inf])
    both = Sandwich("linf", radius, distance, 0.5)
    radii = np.linspace(0, 1, 11)
    axes = new_figure(4, 3).subplots()
    draw_sandwich(axes, radii, both.certified(radii), both.attacked(radii), "linf", 0.5)
    below, above, line = axes.get_lines()
    np.testing.assert_allclose(below.get_ydata(), [0.75, 0.75, *[0.5] * 2, *[0.25] * 3, *[0] * 4])
    np.testing.assert_allclose(above.get_ydata(), [*[0.75] * 3, *[0.5] * 3])  # as far as it looked
    assert line.get_xdata()[0] == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_sha256", "0" * 64),
        ("data", "other:data"),
        ("sigma", 0.5),
        ("noise", "Uniform(0.5)"),
        ("mean", [0.5]),
        ("std", [2.0]),
    ],
)
def test_another_classifier_is_refused(folder, capsys, name, value):
    settings = Path("attacked.tsv.json")
    settings.write_text(json.dumps({**json.loads(settings.read_text()), name: value}))
    assert report() == 2
    assert f"attacked.tsv: was made with {name} = {value}" in capsys.readouterr().err


def test_another_norm_is_refused(folder, capsys):
    settings = Path("attacked.tsv.json")
    settings.write_text(settings.read_text().replace('"l2"', '"linf"'))
    assert report() == 2
    expected = "attacked.tsv: is an attack in linf, certified.tsv is certified in l2"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [rows[0], rows[2], rows[1], *rows[3:]],
        lambda rows: [rows[0], "7" + rows[1][1:], *rows[2:]],
    ],
)
def test_other_images_are_refused(folder, capsys, change):
    table = Path("attacked.tsv")
    table.write_text("\n".join(change(table.read_text().splitlines())) + "\n")
    assert report() == 2
    assert "attacked.tsv: has other images than certified.tsv" in capsys.readouterr().err


def test_tables_that_make_no_sandwich(folder, capsys):
    shutil.copy("attacked.tsv", "again.tsv")
    assert report(first="again.tsv") == 2
    error = "want one table of certificates and one of an attack, got again.tsv (attack), attacked"
    assert error in capsys.readouterr().err
    assert main(["report", "attacked.tsv"]) == 2
    assert main(["report", "certified.tsv", "attacked.tsv", "again.tsv"]) == 2
    assert report("--radii", "-1") == 2
    assert "--radii: got [-1.0]" in capsys.readouterr().err
    Path("attacked.tsv.json").unlink()
    assert report() == 2
    assert "attacked.tsv: has no settings beside it in attacked.tsv.json" in capsys.readouterr().err


def test_a_success_inside_a_certificate_is_told(folder, capsys):
    certified = Path("certified.tsv")
    lines = [line.split("\t") for line in certified.read_text().splitlines()]
    fooled = {row.idx for row in ATTACKED.read(Path("attacked.tsv")) if row.success}
    for cells in lines[1:]:
        if int(cells[0]) in fooled:
            cells[2:5] = cells[1], "0.9", "1"
    certified.write_text("\n".join("\t".join(cells) for cells in lines) + "\n")
    assert report() == 0
    assert f"{len(fooled)} images have an adversarial one inside" in capsys.readouterr().out
