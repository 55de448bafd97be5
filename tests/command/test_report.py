"""``robustcore report``: published tables as they are, the lines of the table, pictures."""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcore.command import report
from robustcore.command.main import main
from robustcore.common.table import (
    CERTIFIED,
    Row,
    certificate_cells,
    line,
    read_certificates,
)
from robustcore.smoothing import (
    BandAblation,
    Laplace,
    PixelAblation,
    Smooth,
    Splitting,
    Uniform,
)
from smoothing.models import Pixels

header = CERTIFIED.header
DATA = Path(__file__).parents[1] / "smoothing" / "data"
COHEN = DATA / "cifar10_cohen_sigma0.50.tsv"
LOCUSLAB = DATA / "cifar10_locuslab_sigma0.25.tsv"


def test_published_certified_accuracy(capsys):
    # From the table of the publication that this file belongs to.
    assert main(["report", str(LOCUSLAB), "--radii", "0.25", "0.5", "0.75", "--alpha", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["radius", "0.25", "0.5", "0.75", "mean", "abstained"]
    first = lines[1].split()
    assert first[:3] == ["sigma", "=", "0.25"]
    assert [round(float(cell), 2) for cell in first[3:6]] == [0.60, 0.43, 0.27]
    assert first[-1] == "0.086"  # 43 of 500 abstained
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
        assert lines[title][:-1] == pytest.approx([*accuracy, mean])
        images = len(read_certificates(path))
        for rho in (0.01, 0.005):
            tail = math.log(1 / rho)
            slack = 0.001 + math.sqrt(0.001 * 0.999 * tail / images) + tail / (3 * images)
            lower[title, rho] = [max(0, a - slack) for a in accuracy]
        assert lines[f"{title}, at least"][:-2] == pytest.approx(lower[title, 0.01])
        accuracies.append(accuracy)
    best = np.max(accuracies, 0)
    assert lines["best of all"] == [*best.tolist(), None, None]
    both = np.max([lower["sigma = 0.5", 0.005], lower["sigma = 0.25", 0.005]], 0)
    assert lines["best of all, at least"][:-2] == pytest.approx(both)


def test_one_table_has_no_envelope_and_knows_its_settings(tmp_path):
    table = tmp_path / "mine.tsv"
    table.write_text(header() + "0\t1\t1\t0.5\t1\t0:00:01\n1\t1\t0\t2.0\t0\t0:00:01\n")
    assert report.load(table, 0.01).name == "mine.tsv"
    (tmp_path / "mine.tsv.json").write_text('{"sigma": 0.12, "alpha": 0.05}')
    loaded = report.load(table, 0.001)  # the settings know better
    assert (loaded.name, loaded.alpha, loaded.average_radius) == ("sigma = 0.12", 0.05, 0.25)
    # The wrong image counts nowhere, not even at radius 0.
    assert loaded.accuracy(np.array([0.0, 0.5, 0.51])).tolist() == [0.5, 0.5, 0.0]
    assert report.default_radii([loaded]).tolist() == [0.0, 0.25, 0.5]
    assert [title for title, _ in report.table_rows([loaded], np.zeros(1), 0.1)] == [
        *("sigma = 0.12", "sigma = 0.12, at least")
    ]


@pytest.mark.parametrize("style", ["markdown", "latex"])
def test_other_formats_hold_the_same_cells(capsys, style):
    assert main(["report", str(COHEN), "--alpha", "0.001", "--format", "text"]) == 0
    text = capsys.readouterr().out.splitlines()[1].split()[3:]
    assert main(["report", str(COHEN), "--alpha", "0.001", "--format", style]) == 0
    line = next(s for s in capsys.readouterr().out.splitlines() if "sigma = 0.5 " in s)
    separator = "|" if style == "markdown" else "&"
    cells = [cell.strip(" \\") for cell in line.strip("|").split(separator)]
    assert cells[1:] == text


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures(tmp_path, capsys, suffix):
    picture = tmp_path / f"curves.{suffix}"
    command = ["report", str(COHEN), str(LOCUSLAB), "--alpha", "0.01", "--plot", str(picture)]
    assert main(command) == 0
    assert picture.stat().st_size > 5000
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_what_certify_writes_is_read(tmp_path):
    row = line(certificate_cells(7, None, -1, 0.0, 1.5, (100, 40)))
    table = tmp_path / "t.tsv"
    table.write_text(header(details=True) + row)
    assert read_certificates(table) == [Row(7, None, -1, 0.0, None, 100, 40)]
    assert CERTIFIED.row(row) == read_certificates(table)[0]


GOOD = "0\t1\t1\t0.5\t1\t15.4\n"
ALPHA = ["--alpha", "0.001"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (header(), "holds no image"),
        ("# a comment\n", "is empty"),
        ("radius\n" + GOOD, "line 1: does not start with the header"),
        ("idx\t" + header() + GOOD, "line 1: does not start with the header"),
        ("# a comment\n" + header() + GOOD + "1\t1\n", "line 4: 2 fields, want 6"),
        (header() + GOOD + "1\t1\t1\t0.", "line 3: 4 fields, want 6"),
        (header() + GOOD + "\n" + GOOD, "line 3: 1 fields, want 6"),
        (header() + GOOD + GOOD, "holds an image twice"),
        (header() + "0\tnan\t1\t0.5\tnan\t15.4\n", "image 0 has no label"),
        (header() + "0\t-1\t-1\t0.0\t1\t15.4\n", "line 2: label: got -1, want at least 0"),
        (header() + "0\t1\t2\t0.5\t1\t15.4\n", "line 2: correct: got 1 for label 1"),
        (header() + "0\t1\t1\t0.5\tnan\t15.4\n", "line 2: correct: got nan for label 1"),
        (header() + "0\t1.5\t1\t0.5\t1\t15.4\n", "line 2: label: got '1.5'"),
        (header() + "0\t1\t1\tinf\t1\t15.4\n", "line 2: radius: got inf"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is no table of text"),
        (header().encode("utf-16"), "is no table of text"),
    ],
)
def test_bad_tables_are_named(tmp_path, capsys, text, message):
    table = tmp_path / "bad.tsv"
    table.write_bytes(text.encode() if isinstance(text, str) else text)
    assert main(["report", str(table), *ALPHA]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "bad.tsv" in error
    assert error.count("\n") == 1


TWO = header() + GOOD + "1\t3\t-1\t0.0\t0\t2.5\n"


@pytest.mark.parametrize(
    "text",
    [
        TWO + "\n\n  \n",
        TWO.replace("\n", "\r\n"),
        TWO.replace("\n", "\r"),
        "\ufeff" + TWO,
        "# made by hand\n" + TWO,
        TWO.replace("\ttime", "").replace("\t15.4", "").replace("\t2.5", ""),
        TWO.replace("time", "time\tnote").replace("15.4", "15.4\tfine").replace("2.5", "2.5\t"),
        "radius\tidx\tcorrect\tpredict\tlabel\n0.5\t0\t1\t1\t1\n0.0\t1\t0\t-1\t3\n",
        TWO.replace("0\t1\t1\t0.5\t1", "0.0\t1.0\t1.0\t0.5\t1.0").replace("3\t-1", "3.0\t-1.0"),
        TWO.replace("0.5\t1\t", "0.5\tTrue\t").replace("0.0\t0\t", "0.0\tFalse\t"),
        TWO.replace("idx\tlabel", " idx \tlabel ").replace("0.5", " 0.5 "),
        TWO.rstrip("\n"),
    ],
)
def test_tables_that_others_have_written_or_edited(tmp_path, text):
    table = tmp_path / "t.tsv"
    table.write_bytes(text.encode())
    got = [row[:5] for row in read_certificates(table)]
    assert got == [(0, 1, 1, 0.5, True), (1, 3, -1, 0.0, False)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*ALPHA, "--rho", "0"], "--rho: got 0.0"),
        (["--alpha", "1"], "--alpha: got 1.0"),
        (["--alpha", "-1"], "--alpha: got -1.0"),
        ([*ALPHA, "--radii", "-1"], "--radii: got [-1.0]"),
        ([*ALPHA, "--plot", "curves.xyz"], "--plot curves.xyz"),
        (
            [],
            "cifar10_cohen_sigma0.50.tsv: does not say with which alpha it was made; give --alpha",
        ),
        ([str(COHEN), *ALPHA], "twice"),
    ],
)
def test_bad_options(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(COHEN), *options]) == 2
    assert message in capsys.readouterr().err
    assert main(["report", "none.tsv"]) == 2


def write(folder, name, settings=None, text=TWO):
    table = folder / name
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(text)
    if settings is not None:
        Path(f"{table}.json").write_text(
            settings if isinstance(settings, str) else json.dumps(settings)
        )
    return table


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "has no attribute 'get'"),
        ({"alpha": 2}, "alpha: got 2"),
        ({"alpha": "0.1"}, "alpha: got '0.1'"),
        ({"alpha": 0.1, "sigma": "wide"}, "could not convert string to float"),
        ({"alpha": 0.1, "noise": "Mine(3)"}, "noise: got 'Mine(3)'"),
        ({"alpha": 0.1, "noise": 3}, "t.tsv.json: "),
    ],
)
def test_bad_settings_are_named(tmp_path, capsys, settings, message):
    table = write(tmp_path, "t.tsv", settings)
    assert main(["report", str(table)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "t.tsv.json" in error
    assert error.count("\n") == 1


def test_the_api_says_with_which_alpha_its_tables_were_made(tmp_path, capsys):
    x = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    result = Smooth(Pixels(3), 3, 0.5, seed=1).certify(x, n0=10, n=100, alpha=0.28)
    labels = result.prediction.clamp(min=0)
    result.to_tsv(tmp_path / "t.tsv", labels)
    table = report.load(tmp_path / "t.tsv", None)
    assert (table.alpha, table.name, table.norm) == (0.28, "sigma = 0.5", "l2")
    radii = np.array([0.0, 0.1])
    want = result.certified_accuracy_lower(labels, radii, 0.001).clamp(min=0)
    assert table.accuracy_lower(radii, 0.001) == pytest.approx(want.numpy())
    assert main(["report", str(tmp_path / "t.tsv")]) == 0
    assert "alpha = 0.28" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("noise", "norm"),
    [(Uniform(0.5, "linf"), "linf"), (Laplace(0.5), "l1"), (PixelAblation(1, fill=0.5), "l0"),
     (Splitting(0.5, derandomized=True), "l1"), (BandAblation(1, fill=0.5), "patch")],
    ids=repr,
)  # fmt: skip
def test_noise_and_certainty_of_api_tables(tmp_path, noise, norm):
    x = (torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    result = Smooth(Pixels(3), 3, noise=noise, seed=1).certify(x, n=100)
    result.to_tsv(tmp_path / "t.tsv", [0] * 6)
    table = report.load(tmp_path / "t.tsv", None)
    assert (table.name, table.norm) == (repr(noise), norm)
    assert table.alpha == (0.0 if noise.deterministic else 0.001)
    if noise.deterministic:
        radii = np.array([0.0, 1 / 255])
        assert (table.accuracy_lower(radii, 0.001) == table.accuracy(radii)).all()
        lower = result.certified_accuracy_lower([0] * 6, radii)
        assert torch.equal(lower, result.certified_accuracy([0] * 6, radii))


def test_deterministic_tables_are_certain_whatever_alpha_their_run_was_given(tmp_path, capsys):
    table = write(
        tmp_path, "t.tsv", {"sigma": None, "noise": repr(BandAblation(4)), "alpha": 0.001}
    )
    assert main(["report", str(table), "--radii", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[2:3]] == ["0.500"]
    assert "2 images, 1 abstained, certain, radii in patch" in lines[3]
    # Others' tables are certain on request.
    assert main(["report", str(write(tmp_path, "other.tsv")), "--alpha", "0"]) == 0
    assert "1 abstained, certain, radii in l2" in capsys.readouterr().out


def test_names_of_tables_that_are_called_alike(tmp_path):
    paths = [write(tmp_path, f"{folder}/results.tsv") for folder in ("a/x", "b/x", "b/y")]
    assert [t.name for t in report.load_all(paths, 0.1)] == [
        *("a/x/results.tsv", "b/x/results.tsv", "b/y/results.tsv")
    ]
    same = [write(tmp_path, f"{name}.tsv", {"sigma": 0.25, "alpha": 0.1}) for name in "cd"]
    names = [t.name for t in report.load_all([*same, paths[0]], 0.1)]
    assert names == ["sigma = 0.25 (c.tsv)", "sigma = 0.25 (d.tsv)", "results.tsv"]


@pytest.mark.parametrize(
    ("path", "sigma"),
    [
        ("sigma_0.25/t.tsv", "0.25"), ("noise_1.00/test", "1.00"), ("cifar_sigma0.50.tsv", "0.50"),
        ("sigma=.5.tsv", ".5"), ("noise5.tsv", None), ("denoise0.5.tsv", None), ("run_5.tsv", None),
        ("sigma_5_runs.tsv", None), ("noise_2024.01.05.tsv", None),
    ],
)  # fmt: skip
def test_sigma_in_file_names(tmp_path, path, sigma):
    table = report.load(write(tmp_path, path), 0.1)
    assert table.name == (Path(path).name if sigma is None else f"sigma = {float(sigma):g}")


def test_there_is_no_best_of_different_norms(tmp_path, capsys):
    l1 = [write(tmp_path, f"{n}.tsv", {"noise": f"Laplace(0.{n})", "alpha": 0.1}) for n in (1, 2)]
    l2 = write(tmp_path, "l2.tsv", {"sigma": 0.25, "alpha": 0.1})
    names = [
        name for name, _ in report.table_rows(report.load_all([l1[0], l2], None), np.zeros(1), 0.1)
    ]
    assert [name for name in names if "best" in name] == []
    tables = report.load_all([*l1, l2], None)
    lines = dict(report.table_rows(tables, np.array([0.0, 0.6]), 0.1))
    assert [name for name in lines if "best" in name] == ["best in l1", "best in l1, at least"]
    assert lines["best in l1"] == [0.5, 0.0, None, None]
    picture = tmp_path / "p.svg"
    assert main(["report", *map(str, [*l1, l2]), "--plot", str(picture)]) == 0
    assert "best of all" not in picture.read_text()


def test_csv_and_json_hold_the_same_numbers(tmp_path, capsys):
    paths = [str(COHEN), str(LOCUSLAB), *ALPHA, "--radii", "0", "0.5"]
    assert main(["report", *paths, "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    tables = report.load_all([COHEN, LOCUSLAB], 0.001)
    radii = np.array([0, 0.5])
    for got, table in zip(made["tables"], tables, strict=True):
        assert got["certified_accuracy"] == table.accuracy(radii).tolist()
        assert got["at_least"] == table.accuracy_lower(radii, 0.001).tolist()
        assert (got["images"], got["abstained"], got["norm"]) == (
            len(table.radius),
            table.abstained,
            "l2",
        )
    assert made["best"][0]["name"] == "best of all"
    assert main(["report", *paths, "--format", "csv", "--plot", str(tmp_path / "p.png")]) == 0
    captured = capsys.readouterr()
    rows = list(csv.reader(io.StringIO(captured.out)))
    assert rows[0] == ["radius", "0", "0.5", "mean", "abstained"]
    want = report.table_rows(tables, radii, 0.001)
    assert [row[0] for row in rows[1:]] == [name for name, _ in want]
    for row, (_, cells) in zip(rows[1:], want, strict=True):
        assert [float(cell) if cell else None for cell in row[1:]] == cells
    assert "wrote" in captured.err


def test_names_are_escaped(tmp_path, capsys):
    table = write(tmp_path, "50%_a&b|c#{1}^~$\\.tsv")
    assert (
        main(["report", str(table), *ALPHA, "--format", "latex", "--plot", str(tmp_path / "p.svg")])
        == 0
    )
    escaped = r"50\%\_a\&b|c\#\{1\}\textasciicircum{}\textasciitilde{}\$\textbackslash{}.tsv &"
    assert escaped in capsys.readouterr().out
    assert main(["report", str(table), *ALPHA, "--format", "markdown"]) == 0
    assert r"| 50%_a&b\|c#{1}^~$\.tsv |" in capsys.readouterr().out


def test_a_pipe_that_is_closed_is_no_error(tmp_path):
    long = [str(DATA / "cifar10_cohen_sigma0.50.tsv"), *ALPHA, "--radii", *map(str, range(20000))]
    command = [sys.executable, "-m", "robustcore", "report", *long]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
