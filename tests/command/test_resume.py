"""Runs that end before their time: killed, out of disk, cut off; and what a resume refuses."""

import fcntl
import json
import os
import random
from pathlib import Path

import pytest

from command.runs import MODULE, forks, runs  # noqa: F401  (fixtures)
from robustcore.command.main import main
from robustcore.common.resumable import ResultFile
from robustcore.common.table import CERTIFIED, certificate_cells, line


@pytest.mark.slow
def test_killed_twenty_times_and_resumed(runs):  # noqa: F811
    moments = random.Random(0)
    kills = rows = 0
    while kills < 20:
        # Now and then at once: while the table is being created.
        seconds = moments.choice([0.02, 0.1, 0.2]) * moments.random()
        codes = runs.certify(
            "--resume", out="out.tsv", model="slow_model", data="many", kill=[0, seconds]
        )
        table = runs.folder / "out.tsv"
        if codes == [0]:  # it came through, on a busy machine: once more from the beginning
            table.unlink()
            rows = 0
            continue
        assert codes == [-9], runs.log()
        kills += 1
        if table.exists():
            before, rows = rows, table.read_text().count("\n") - 1
            assert rows >= before
    assert runs.certify("--resume", out="out.tsv", data="many", model="slow_model") == [0]
    seed = runs.seed("out.tsv")
    codes = runs.certify("--seed", seed, out="whole.tsv", data="many", model="slow_model")
    assert codes == [0]
    assert runs.rows("out.tsv") == runs.rows("whole.tsv")
    assert len(runs.rows("out.tsv")) == 201


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [300, 2000, 2001, 2017, 4000])
def test_a_full_disk_keeps_whole_rows(runs, most_bytes):  # noqa: F811
    options = ["--seed", "5", "--resume", "--sync-seconds", "0", "--no-progress"]
    assert runs.certify(*options, out="out.tsv", data="many", most_bytes=most_bytes) == [2]
    assert "File too large" in runs.log()
    if most_bytes == 300:  # too little for the settings
        assert not (runs.folder / "out.tsv").exists()
    else:
        text = runs.text("out.tsv")
        assert text.endswith("\n")
        assert most_bytes - 60 < len(text) <= most_bytes
    assert runs.certify(*options, out="out.tsv", data="many") == [0]
    assert runs.certify(*options, out="whole.tsv", data="many") == [0]
    assert runs.rows("out.tsv") == runs.rows("whole.tsv")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine_resumed.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def certify(*options, out="out.tsv"):
    argv = ["certify", "--model", "mine_resumed:model", "--data", "mine_resumed:data"]
    argv += ["--sigma", "0.25", "--out", out, "--N0", "20", "--N", "200", "--device", "cpu"]
    return main([*argv, "--no-progress", *options])


def without_times(path):
    fields = [line.split("\t") for line in Path(path).read_text().splitlines()]
    return [row[:5] + row[6:] for row in fields]


def test_cut_off_anywhere_in_the_last_rows(folder):
    assert certify("--seed", "5") == 0
    whole, expected = Path("out.tsv").read_bytes(), without_times("out.tsv")
    for cut in range(1, 70, 3):
        Path("out.tsv").write_bytes(whole[:-cut])
        assert certify("--resume") == 0
        assert without_times("out.tsv") == expected
    # The header itself.
    Path("out.tsv").write_bytes(whole[: len(CERTIFIED.header())])
    assert certify("--resume") == 0
    assert without_times("out.tsv") == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\n3\t", b"\nx\t", "line 5: idx: got 'x'"),
        (b"\n3\t", b"\n3\t3\t", "line 5: 7 fields, want 6"),
        (b"\n3\t", b"\n\xff\t", "line 5: idx: got"),
        (b"\n3\t", b"\n\0\0\0\n3\t", "line 5: 1 fields, want 6"),
        (b"\n3\t", b"\n\n3\t", "line 5: 1 fields"),
        (b"\n3\t", b"\n2\t", "are not the first of this run"),
        (b"\n3\t", b"\n4\t", "are not the first of this run"),
        (b"time\n", b"time\tmore\n", "line 1: does not start with the header"),
        (b"time\n", b"time\tsamples\tvotes\n", "line 2: 6 fields, want 8"),
    ],
)
def test_a_corrupted_line_is_named_and_kept(folder, capsys, old, new, message):
    assert certify("--seed", "5") == 0
    table = Path("out.tsv")
    data = table.read_bytes()
    assert data.count(old) == 1
    table.write_bytes(data.replace(old, new))
    before = table.read_bytes()
    assert certify("--resume") == 2
    assert message in capsys.readouterr().err
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (3, "nan", "radius: got nan"),
        (3, "-1", "radius: got -1"),
        (3, "0,5", "could not convert"),
        (4, "2", "correct: got 2"),
        (1, "x", "label: got 'x'"),
        (5, "", "time: got nothing"),
    ],
)
def test_a_wrong_field_is_named(folder, capsys, field, value, message):
    assert certify("--seed", "5") == 0
    lines = Path("out.tsv").read_text().splitlines()
    row = lines[7].split("\t")
    row[field] = value
    lines[7] = "\t".join(row)
    Path("out.tsv").write_text("\n".join(lines) + "\n")
    assert certify("--resume") == 2
    error = capsys.readouterr().err
    assert "line 8: " in error
    assert message in error


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("early_stop", ["--early-stop"]),
        ("at", ["--at", "0.1"]),
        ("details", ["--details"]),
        ("dtype", ["--dtype", "float64"]),
        ("channels_last", ["--channels-last"]),
        ("std", ["--std", "0.5"]),
        ("num_classes", ["--num-classes", "3"]),
    ],
)
def test_other_parameters_are_refused(folder, capsys, name, options):
    assert certify("--seed", "5", "--max", "2") == 0
    before = Path("out.tsv").read_bytes()
    assert certify("--resume", *options) == 2
    assert f"was made with {name} = " in capsys.readouterr().err
    assert Path("out.tsv").read_bytes() == before


def test_another_model_or_version_is_refused(folder, capsys, monkeypatch):
    assert certify("--seed", "5", "--max", "2") == 0
    text = Path("out.tsv.json").read_text()
    assert '"model_sha256": "e3b0c442' in text  # of nothing: this model has no parameters
    Path("out.tsv.json").write_text(text.replace("e3b0c442", "00000000"))
    assert certify("--resume") == 2
    assert "model_sha256 = 00000000" in capsys.readouterr().err
    Path("out.tsv.json").write_text(text)
    monkeypatch.setattr("torch.__version__", "9.9.9")
    assert certify("--resume") == 2
    assert "'torch': '9.9.9'" in capsys.readouterr().err


def test_two_runs_do_not_write_one_table(folder, capsys):
    assert certify("--seed", "5", "--max", "2") == 0
    with Path("out.tsv").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert certify("--resume") == 2
        assert "another run is writing it" in capsys.readouterr().err
    assert certify("--resume") == 0


def test_an_overwritten_table_never_has_the_settings_of_another(folder, monkeypatch):
    assert certify("--seed", "5") == 0
    with monkeypatch.context() as patch:

        def no_space(*arguments, **named):
            raise OSError(28, "No space left on device")

        patch.setattr("os.replace", no_space)
        assert certify("--seed", "6", "--overwrite") == 2
    assert json.loads(Path("out.tsv.json").read_text())["seed"] == 5
    assert certify("--seed", "5", out="old.tsv") == 0
    assert without_times("out.tsv") == without_times("old.tsv")
    assert certify("--seed", "6", "--overwrite") == 0
    assert certify("--seed", "6", out="whole.tsv") == 0
    assert without_times("out.tsv") == without_times("whole.tsv")


def test_rows_reach_the_disk_at_the_stated_interval(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for seconds, each in ((0.0, 1), (3600.0, 0)):
        table = ResultFile(
            tmp_path / "t.tsv", form=CERTIFIED, overwrite=True, resume=False, sync_seconds=seconds
        )
        table.remaining(range(3), {"seed": 1})
        table.append(line(certificate_cells(0, 1, 1, 0.5, 1.0)))
        synced.clear()
        table.append(line(certificate_cells(1, 1, 1, 0.5, 1.0)))
        assert len(synced) == each
        synced.clear()
        table.close()
        assert len(synced) == 1
