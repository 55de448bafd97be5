"""``robustcore report``: published tables as they are, the lines of the table, pictures."""

import math
from pathlib import Path

import numpy as np
import pytest

from robustcore.command import report
from robustcore.command.main import main
from robustcore.common.table import (
    CERTIFIED,
    Row,
    certificate_cells,
    line,
    read_certificates,
)

DATA = Path(__file__).parents[1] / "smoothing" / "data"
COHEN = DATA / "cifar10_cohen_sigma0.50.tsv"
LOCUSLAB = DATA / "cifar10_locuslab_sigma0.25.tsv"


def test_published_certified_accuracy(capsys):
    # From the table of the publication that this file belongs to.
    assert main(["report", str(LOCUSLAB), "--radii", "0.25", "0.5", "0.75", "--alpha", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["radius", "0.25", "0.5", "0.75", "mean"]
    first = lines[1].split()
    assert first[:3] == ["sigma", "=", "0.25"]
    assert [round(float(cell), 2) for cell in first[3:6]] == [0.60, 0.43, 0.27]
    assert "500 images, 43 abstained, alpha = 0.01" in lines[3]


def brute_force(path, radii):
    rows = [line.split("\t") for line in path.read_text().splitlines() if line[0] != "#"][1:]
    right = [float(r[3]) for r in rows if r[4] == "1"]
    return [sum(radius >= r for radius in right) / len(rows) for r in radii], sum(right) / len(rows)


def test_lines_are_what_they_say():
    radii = np.array([0.0, 0.1, 0.25, 0.879, 1.0, 1.9])
    tables = [report.load(path, 0.001) for path in (COHEN, LOCUSLAB)]
    lines = dict(report.table_rows(tables, radii, 0.01))
    assert list(lines) == [
        *("sigma = 0.5", "sigma = 0.25", "best of all"),
        *("sigma = 0.5, at least", "sigma = 0.25, at least", "best of all, at least"),
    ]
    accuracies, lower = [], {}
    for path, title in ((COHEN, "sigma = 0.5"), (LOCUSLAB, "sigma = 0.25")):
        accuracy, mean = brute_force(path, radii)
        assert lines[title] == [*(f"{a:.3f}" for a in accuracy), f"{mean:.3f}"]
        images = len(read_certificates(path))
        for rho in (0.01, 0.005):
            tail = math.log(1 / rho)
            slack = 0.001 + math.sqrt(0.001 * 0.999 * tail / images) + tail / (3 * images)
            lower[title, rho] = [max(0, a - slack) for a in accuracy]
        assert lines[f"{title}, at least"][:-1] == [f"{a:.3f}" for a in lower[title, 0.01]]
        accuracies.append(accuracy)
    best = np.max(accuracies, 0)
    assert lines["best of all"][:-1] == [f"{a:.3f}" for a in best]
    both = np.max([lower["sigma = 0.5", 0.005], lower["sigma = 0.25", 0.005]], 0)
    assert lines["best of all, at least"][:-1] == [f"{a:.3f}" for a in both]


def test_one_table_has_no_envelope_and_knows_its_settings(tmp_path):
    table = tmp_path / "mine.tsv"
    table.write_text(CERTIFIED.header() + "0\t1\t1\t0.5\t1\t0:00:01\n1\t1\t0\t2.0\t0\t0:00:01\n")
    assert report.load(table, None).name == "mine.tsv"
    (tmp_path / "mine.tsv.json").write_text('{"sigma": 0.12, "alpha": 0.05}')
    loaded = report.load(table, None)
    assert (loaded.name, loaded.alpha, loaded.average_radius) == ("sigma = 0.12", 0.05, 0.25)
    # The wrong image counts nowhere, not even at radius 0.
    assert loaded.accuracy(np.array([0.0, 0.5, 0.51])).tolist() == [0.5, 0.5, 0.0]
    assert report.default_radii([loaded]).tolist() == [0.0, 0.25, 0.5]
    assert [title for title, _ in report.table_rows([loaded], np.zeros(1), 0.1)] == [
        *("sigma = 0.12", "sigma = 0.12, at least")
    ]


@pytest.mark.parametrize("style", ["markdown", "latex"])
def test_other_formats_hold_the_same_cells(capsys, style):
    assert main(["report", str(COHEN), "--format", "text"]) == 0
    text = capsys.readouterr().out.splitlines()[1].split()[3:]
    assert main(["report", str(COHEN), "--format", style]) == 0
    line = next(s for s in capsys.readouterr().out.splitlines() if "sigma = 0.5 " in s)
    separator = "|" if style == "markdown" else "&"
    cells = [cell.strip(" \\") for cell in line.strip("|").split(separator)]
    assert cells[1:] == text


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures(tmp_path, capsys, suffix):
    picture = tmp_path / f"curves.{suffix}"
    command = ["report", str(COHEN), str(LOCUSLAB), "--plot", str(picture)]
    assert main(command) == 0
    assert picture.stat().st_size > 5000
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_what_certify_writes_is_read(tmp_path):
    row = line(certificate_cells(7, None, -1, 0.0, 1.5, (100, 40)))
    table = tmp_path / "t.tsv"
    table.write_text(CERTIFIED.header(True) + row)
    assert read_certificates(table) == [Row(7, None, -1, 0.0, None, 100, 40)]
    assert CERTIFIED.row(row) == read_certificates(table)[0]


GOOD = "0\t1\t1\t0.5\t1\t15.4\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (CERTIFIED.header(), "holds no image"),
        ("# a comment\n", "is empty"),
        ("radius\n" + GOOD, "line 1: does not start with the header"),
        ("# a comment\n" + CERTIFIED.header() + GOOD + "1\t1\n", "line 4: 2 fields, want 6"),
        (CERTIFIED.header() + GOOD + "1\t1\t1\t0.", "line 3: 4 fields, want 6"),
        (CERTIFIED.header() + GOOD + GOOD, "holds an image twice"),
        (CERTIFIED.header() + "0\tnan\t1\t0.5\tnan\t15.4\n", "image 0 has no label"),
    ],
)
def test_bad_tables_are_named(tmp_path, capsys, text, message):
    table = tmp_path / "bad.tsv"
    table.write_text(text)
    assert main(["report", str(table)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "bad.tsv" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rho", "0"], "--rho: got 0.0"),
        (["--alpha", "1"], "--alpha: got 1.0"),
        (["--radii", "-1"], "--radii: got [-1.0]"),
        (["--plot", "curves.xyz"], "--plot curves.xyz"),
    ],
)
def test_bad_options(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(COHEN), *options]) == 2
    assert message in capsys.readouterr().err
    assert main(["report", "none.tsv"]) == 2
