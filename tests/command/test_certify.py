"""``robustcore certify`` on a user's modules: rows, resume, shards, options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robustcore
from command.user import arguments, certify, rows
from robustcore.command.main import main
from robustcore.common.resumable import ResultFile
from robustcore.smoothing import Smooth, tally
from robustcore.smoothing.noise_names import parse_noise
from smoothing.models import Pixels
from testing import three_digits_down


def test_rows_are_those_of_smooth(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert certify("--seed", "5") == 0
    table = rows("out.tsv")
    assert table[0] == ["idx", "label", "predict", "radius", "correct"]
    assert Path("out.tsv").read_text().startswith("idx\tlabel\tpredict\tradius\tcorrect\ttime\n")
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = Smooth(Pixels(3), 3, 0.25, seed=5).certify(images, n0=20, n=200)
    assert [int(row[2]) for row in table[1:]] == expected.prediction.tolist()
    assert [row[3] for row in table[1:]] == list(map(three_digits_down, expected.radius.tolist()))
    assert [row[4] for row in table[1:]] == [str(int(row[1] == row[2])) for row in table[1:]]
    assert any(row[4] == "1" for row in table[1:])
    settings = json.loads(Path("out.tsv.json").read_text())
    assert (settings["seed"], settings["sigma"], settings["N"]) == (5, 0.25, 200)
    captured = capsys.readouterr()
    assert "6/6" in captured.err
    assert "abstained" in captured.err
    assert captured.out.startswith("out.tsv: 6 images, ")


def test_skip_max_and_start_are_parts_of_the_whole(folder):
    assert certify("--seed", "5", "--no-progress") == 0
    whole = rows("out.tsv")[1:]
    assert certify("--seed", "5", "--skip", "2", out="even.tsv") == 0
    assert certify("--seed", "5", "--skip", "2", "--start", "1", out="odd.tsv") == 0
    assert certify("--seed", "5", "--max", "4", out="first.tsv") == 0
    assert certify("--seed", "5", "--max", "99", "--start", "4", out="last.tsv") == 0
    assert rows("even.tsv")[1:] == whole[::2]
    assert rows("odd.tsv")[1:] == whole[1::2]
    assert rows("first.tsv")[1:] + rows("last.tsv")[1:] == whole


def test_an_interrupted_run_resumed_equals_the_whole(folder, monkeypatch, capsys):
    assert certify("--seed", "5", out="whole.tsv") == 0
    append, written = ResultFile.append, []

    def interrupted(self, row):
        if len(written) == 3:
            raise KeyboardInterrupt
        append(self, row)
        written.append(row)

    with monkeypatch.context() as patch:
        patch.setattr(ResultFile, "append", interrupted)
        assert certify("--seed", "5") == 130
    assert rows("out.tsv") == rows("whole.tsv")[:4]
    # Cut off within a row, as by a crash; the seed comes from the settings beside the table.
    Path("out.tsv").write_text(Path("out.tsv").read_text() + "3\t1\t")
    assert certify("--resume", "--batch", "7") == 0
    assert rows("out.tsv") == rows("whole.tsv")
    complete = Path("out.tsv").read_bytes()
    capsys.readouterr()
    assert certify("--resume") == 0
    assert "no image left" in capsys.readouterr().out
    assert Path("out.tsv").read_bytes() == complete


def test_resume_starts_a_table_that_is_not_there(folder):
    assert certify("--resume", "--seed", "5") == 0
    assert len(rows("out.tsv")) == 7


def test_runs_without_a_seed_differ_and_tell_theirs(folder):
    assert certify("--N", "5000", "--max", "1") == 0
    assert certify("--N", "5000", "--max", "1", out="two.tsv") == 0
    seeds = [
        json.loads(Path(name).read_text())["seed"] for name in ("out.tsv.json", "two.tsv.json")
    ]
    assert seeds[0] != seeds[1]


def test_resume_goes_on_to_a_larger_max(folder):
    assert certify("--seed", "5", out="whole.tsv") == 0
    assert certify("--seed", "5", "--max", "2") == 0
    assert certify("--resume", "--max", "6") == 0
    assert rows("out.tsv") == rows("whole.tsv")


@pytest.mark.parametrize("state", ["plain", "state_dict", "model", "DataParallel"])
def test_checkpoints(folder, state):
    weights = {"gain": torch.tensor([0.0, 0.0, 1.0])}
    if state == "DataParallel":
        weights = {"module.gain": weights["gain"]}
    torch.save(weights if state == "plain" else {state: weights, "epoch": 90}, "weights.pt")
    if state == "DataParallel":
        torch.save({"state_dict": weights}, "weights.pt")
    assert certify("--checkpoint", "weights.pt", "--sigma", "0.01") == 0
    assert {row[2] for row in rows("out.tsv")[1:]} == {"2"}


def test_arrays_and_normalisation(folder):
    assert certify("--seed", "5") == 0
    options = ["--seed", "5", "--mean", "0.5", "--std", "0.25", "--num-classes", "3"]
    assert certify(*options, data="mine:arrays", out="arrays.tsv") == 0
    # Pixels keep their order under a normalisation that all share.
    assert rows("arrays.tsv") == rows("out.tsv")


def test_early_stop_and_one_radius(folder):
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    smooth = Smooth(Pixels(3), 3, 0.25, seed=5)
    more = ["--seed", "5", "--N", "3000"]

    def columns(path):
        lines = [line.split("\t") for line in Path(path).read_text().splitlines()]
        assert lines[0][5:] == ["time", "samples", "votes"]
        return [(int(r[2]), r[3], int(r[6]), int(r[7])) for r in lines[1:]]

    def expected(result, radii):
        choice = result.counts0.argmax(1, keepdim=True)
        votes = result.counts.gather(1, choice).squeeze(1).tolist()
        samples = result.counts.sum(1).tolist()
        return list(
            zip(
                result.prediction.tolist(),
                map(three_digits_down, radii),
                samples,
                votes,
                strict=True,
            )
        )

    assert certify(*more, "--early-stop", "--radius-tolerance", "0.1") == 0
    result = smooth.certify(images, 20, 3000, early_stop=True, radius_tolerance=0.1)
    assert columns("out.tsv") == expected(result, result.radius.tolist())
    assert certify(*more, "--at", "0.05", out="at.tsv") == 0
    result = smooth.certify_at(images, 0.05, max_n=3000, n0=20)
    assert columns("at.tsv") == expected(result, (0.05 * result.certified.double()).tolist())
    assert certify(*more, "--details", out="details.tsv") == 0
    result = smooth.certify(images, 20, 3000)
    assert columns("details.tsv") == expected(result, result.radius.tolist())
    assert certify("--resume", *more, "--at", "0.1", out="at.tsv") == 2


def test_images_in_flight_change_nothing(folder, capsys):
    assert certify("--seed", "5") == 0
    for number in ("2", "4", "99"):
        assert certify("--seed", "5", "--in-flight", number, "--overwrite", out="more.tsv") == 0
        assert rows("more.tsv") == rows("out.tsv")
    assert certify("--in-flight", "3", data="mine:bad_pixels", out="bad.tsv") == 2
    assert "images 0 and following: x: got NaN" in capsys.readouterr().err


def test_images_in_flight_that_are_not_neighbours(folder):
    for options in (["--skip", "2"], ["--skip", "2", "--start", "1"], ["--skip", "4"]):
        assert certify("--seed", "5", *options, "--overwrite") == 0
        more = ["--in-flight", "3", "--batch", "7", "--overwrite"]
        assert certify("--seed", "5", *options, *more, out="more.tsv") == 0
        assert rows("more.tsv") == rows("out.tsv")
    more = ["--in-flight", "2", "--early-stop", "--N", "3000", "--skip", "2"]
    assert certify("--seed", "5", *more, out="stopped.tsv") == 0
    assert certify("--seed", "5", *more[2:], out="alone.tsv") == 0
    assert rows("stopped.tsv") == rows("alone.tsv")


@pytest.mark.parametrize(
    "noise",
    [
        "Gaussian(0.25, norm='l1')",
        "Uniform(0.5)",
        "Splitting(scale=0.25, derandomized=True, seed=3)",
        "PixelAblation(3, fill=(0.5,))",
        "PixelAblation(3)",
        "BandAblation(1, threshold=None, fill=0.5)",
        "Dual(Gaussian(0.25))",
    ],
)
def test_other_noise(folder, noise):
    x = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images = (x * 255).round() / 255
    wide = ["--num-classes", "3"] if "Dual" not in noise else ["--num-classes", "2"]
    model = "mine:model" if "Dual" not in noise else "mine:two"
    data = "mine:levels" if "Dual" not in noise else "mine:two_levels"
    options = ["--seed", "5", "--details", "--no-progress", "--grid", "none"]
    assert certify(*options, *wide, noise=noise, model=model, data=data) == 0
    distribution = parse_noise(noise)
    smooth = Smooth(Pixels(int(wide[1])), int(wide[1]), noise=distribution, seed=5)
    result = smooth.certify(images, 20, 200)
    got = [line.split("\t") for line in Path("out.tsv").read_text().splitlines()[1:]]
    assert [int(row[2]) for row in got] == result.prediction.tolist()
    assert [row[3] for row in got] == list(map(three_digits_down, result.radius.tolist()))
    settings = json.loads(Path("out.tsv.json").read_text())
    assert settings["noise"] == repr(distribution)
    # The number of classes is found with an image as the noise makes them.
    assert certify(*options, "--resume", *wide, noise=noise, model=model, data=data) == 0
    assert certify(*options, noise=noise, model=model, data=data, out="found.tsv") == 0
    assert rows("found.tsv") == rows("out.tsv")
    other = dict(noise="Uniform(0.25)", model=model, data=data)
    assert certify(*options, "--resume", *wide, **other) == 2


def test_inputs_and_outputs_that_are_no_images_and_no_tensors(folder):
    options = ["--seed", "5", "--no-progress"]
    of_vectors = dict(model="mine:of_vectors", data="mine:vectors")
    picked = ["--input-dims", "1", "--output", "mine:scores"]
    assert certify(*options, *picked, **of_vectors) == 0
    assert certify(*options, data="mine:wide", out="images.tsv") == 0  # float64 images
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    want = Smooth(Pixels(3), 3, 0.25, seed=5).certify(images, n0=20, n=200)
    for table in ("out.tsv", "images.tsv"):
        assert [row[2] for row in rows(table)[1:]] == [str(p) for p in want.prediction.tolist()]
    settings = json.loads(Path("out.tsv.json").read_text())
    assert (settings["input_dims"], settings["output"]) == (1, "mine:scores")
    # The only tensor that can be the logits is found; a table goes on as it began.
    told = ["--input-dims", "1", "--num-classes", "3"]
    assert certify(*options, *told, **of_vectors, out="found.tsv") == 0
    assert rows("found.tsv") == rows("out.tsv")
    assert certify(*options, *picked, "--resume", **of_vectors) == 0
    assert certify(*options, "--input-dims", "1", "--resume", **of_vectors) == 2
    assert "output" not in json.loads(Path("images.tsv.json").read_text())
    assert certify(*options, data="mine:half", out="half.tsv") == 0  # under autocast


def test_progress_within_an_image(folder, capsys, monkeypatch):
    monkeypatch.setattr(tally.time, "monotonic", iter(range(10**6)).__next__)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert certify("--seed", "5", "--batch", "50") == 0
    shown = capsys.readouterr().err
    # The first image, and the second with the count of those before it.
    assert "[sample" not in shown
    assert "sample 120 of 220" in shown
    assert "sample 170 of 220, right" in shown
    assert "sample 220 of 220" not in shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert certify("--seed", "5", "--overwrite") == 0
    assert capsys.readouterr().err == ""  # no bars in a pipe


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtype_and_memory_format(folder, dtype):
    options = ["--seed", "5", "--dtype", dtype, "--channels-last"]
    assert certify(*options) == 0
    settings = json.loads(Path("out.tsv.json").read_text())
    assert (settings["dtype"], settings["channels_last"]) == (dtype, True)
    assert certify("--resume", "--seed", "5") == 2


def test_as_a_command(folder):
    command = [sys.executable, "-m", "robustcore"]
    run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"robustcore {robustcore.__version__}\n"
    run = subprocess.run([*command, *arguments()], capture_output=True, check=False)
    assert (run.returncode, len(rows("out.tsv"))) == (0, 7), run.stderr
    with pytest.raises(SystemExit, match="2"):
        main(["certify"])
