"""``robustcore certify``: what it refuses, in one line, and what it leaves behind."""

from pathlib import Path

import pytest
import torch

from command.user import certify, rows


@pytest.mark.parametrize(
    "options",
    [
        ["--sigma", "0.5"],
        ["--N", "300"],
        ["--N0", "10"],
        ["--alpha", "0.01"],
        ["--seed", "6"],
        ["--mean", "0.5"],
        ["--skip", "2"],
        ["--start", "1"],
        ["--data", "mine:arrays"],
        ["--checkpoint", "weights.pt"],
    ],
)
def test_resume_refuses_other_settings(folder, capsys, options):
    torch.save({"gain": torch.ones(3)}, "weights.pt")
    assert certify("--seed", "5", "--max", "2") == 0
    before = Path("out.tsv").read_bytes()
    assert certify("--resume", *options) == 2
    assert "--resume: out.tsv was made with" in capsys.readouterr().err
    assert Path("out.tsv").read_bytes() == before


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        ("idx\tlabel\n", None, "does not start with the header"),
        ("", None, "does not start with the header"),
        (None, "", "cannot read the settings"),
        (None, "[]", "holds no settings"),
        ("HEADER1\t0\t0\t0.1\t1\t0\n", None, "are not the first of this run"),
        ("HEADERx\t0\t0\t0.1\t1\t0\n", None, "out.tsv, line 2: idx: got 'x'"),
    ],
)
def test_resume_refuses_what_it_does_not_know(folder, capsys, table, settings, message):
    assert certify("--seed", "5", "--max", "2") == 0
    if table is not None:
        Path("out.tsv").write_text(
            table.replace("HEADER", "idx\tlabel\tpredict\tradius\tcorrect\ttime\n")
        )
    if settings is not None:
        Path("out.tsv.json").write_text(settings)
    before = Path("out.tsv").read_bytes()
    assert certify("--resume") == 2
    assert message in capsys.readouterr().err
    assert Path("out.tsv").read_bytes() == before


def test_an_existing_table_is_refused_before_anything_is_loaded(folder, capsys):
    Path("out.tsv").write_text("precious")
    assert certify(model="no_such_module:model") == 2
    assert "exists" in capsys.readouterr().err
    assert Path("out.tsv").read_text() == "precious"
    assert certify("--overwrite") == 0
    assert len(rows("out.tsv")) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "mine"}, "want PKG.MODULE:FUNCTION"),
        ({"model": "no_such_module:model"}, "No module named 'no_such_module'"),
        ({"model": "mine:nothing"}, "has no attribute 'nothing'"),
        ({"model": "mine:a_number"}, "got a int, want a function"),
        ({"model": "mine:function"}, "want a torch.nn.Module"),
        (
            {"model": "mine:flat_logits"},
            "--model: base_classifier: gave torch.float32 of shape [4]",
        ),
        ({"data": "mine:stream"}, "want a dataset with a length"),
        ({"data": "mine:no_pairs"}, "item 0 is no (image tensor, integer label)"),
        ({"data": "mine:bytes_instead"}, "image 0: x: got torch.uint8"),
        ({"data": "mine:flat"}, "image 0: x: got shape [2, 2], want one input [C, H, W]"),
        ({"data": "mine:minus_one"}, "item 0 has the label -1, want one in [0, 3)"),
        ({"data": "mine:three"}, "item 0 has the label 3, want one in [0, 3)"),
        ({"model": "mine:linear"}, "--model: for an input [1, 1, 2, 2] it raised: mat1 and mat2"),
        (["--input-dims", "2"], "image 0: x: got shape [1, 2, 2], want one input [C, T]"),
        (["--output", "probabilities"], "--output: got 'probabilities', want PKG.MODULE:FUNCTION"),
        (["--output", "binary"], "--model: base_classifier: gave torch.float32 of shape [1, 3]"),
        ({"sigma": "0"}, "sigma: got 0.0"),
        ({"sigma": "nan"}, "sigma: got nan"),
        ({"out": "no/such/folder.tsv"}, "there is no folder no/such"),
        ({"out": "."}, "is a folder"),
        (["--N", "9"], "at least 10"),
        (["--alpha", "1"], "alpha: got 1.0"),
        (["--batch", "0"], "batch_size: got 0"),
        (["--seed", "-1"], "seed: got -1"),
        (["--skip", "0"], "--skip 0"),
        (["--num-classes", "4"], "image 0: base_classifier: gave"),
        (["--mean", "0", "0"], "mean: got 2 values for images of 1 channels"),
        (["--checkpoint", "none.pt"], "none.pt"),
        (["--checkpoint", "mine.py"], "holds no plain weights"),
        (["--checkpoint", "other.pt"], "gain"),
        (["--checkpoint", "list.pt"], "got a list, want a state_dict"),
        (["--device", "nowhere"], "--device nowhere"),
        ({"model": "mine:broken"}, "--model mine:broken: raised ZeroDivisionError: division"),
        ({"data": "mine:broken"}, "--data mine:broken: raised ZeroDivisionError: division"),
        ({"model": "broken_module:model"}, "raised SyntaxError"),
        ({"data": "mine:broken_items"}, "--data: item 0 raised KeyError"),
        (["--skip", "7"], "--skip 7: the data set has only 6 images"),
        (["--start", "6"], "--start 6: the data set has only 6 images"),
        (["--in-flight", "0"], "--in-flight: got 0"),
        (
            {"noise": "Gauss(1)"},
            "--noise: got 'Gauss(1)': want NAME(arguments), NAME one of",
        ),
        ({"noise": "Uniform(-1)"}, "scale: got -1"),
        ({"noise": "Uniform(1, 2, 3, 4, 5)"}, "positional arguments"),
        ({"noise": "Uniform(open('f'))"}, "want NAME(arguments)"),
        ({"noise": "Uniform("}, "noise: got 'Uniform('"),
        ({"noise": "PixelAblation(9)"}, "k: got 9 for images of 4 pixels"),
        (["--radius-tolerance", "0.1"], "goes with --early-stop"),
        (["--early-stop", "--radius-tolerance", "-1"], "radius_tolerance: got -1"),
        (["--at", "9"], "radius: got 9.0, which max_n=200 samples cannot certify"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, capsys, options, message):
    torch.save({"weight": torch.ones(3)}, "other.pt")
    torch.save([1, 2], "list.pt")
    before = sorted(folder.iterdir())
    keys = options if isinstance(options, dict) else {}
    flags = options if isinstance(options, list) else []
    assert certify("--no-progress", *flags, **keys) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("robustcore: error: ")
    assert error.count("\n") == 1
    left = [path for path in folder.iterdir() if path.name != "__pycache__"]
    assert sorted(left) == before


def test_a_bad_image_in_the_middle_keeps_the_rows_before_it(folder, capsys):
    assert certify(data="mine:bad_pixels") == 2
    assert "image 1: x: got NaN" in capsys.readouterr().err
    assert [row[0] for row in rows("out.tsv")] == ["idx", "0"]


def test_other_noise_is_refused_where_there_is_no_procedure(folder, capsys):
    for option in (["--early-stop"], ["--at", "0.1"]):
        assert certify(*option, noise="Dual(Gaussian(0.5))") == 2
        want = f"{option[0]}: is for random noise whose radius is a function of one probability"
        assert want in capsys.readouterr().err
    with pytest.raises(SystemExit):
        certify("--noise", "Uniform(1)")
    assert "not allowed with argument --sigma" in capsys.readouterr().err
