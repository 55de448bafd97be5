"""``robustcore certify --grid``: what auto finds, what is recorded, resumed and refused."""

import json
from pathlib import Path

import pytest
import torch

from command.user import certify, rows
from robustcore.smoothing import Gaussian, Smooth, Uniform
from smoothing.models import Pixels
from testing import three_digits_down


def settings():
    return json.loads(Path("out.tsv.json").read_text())


def images(q):
    x = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return (x * q).round() / q


def expected(noise, q, **options):
    result = Smooth(Pixels(3), 3, noise=noise, seed=5).certify(images(q), 20, 200, **options)
    return [
        [str(int(p)), three_digits_down(r) if r else "0.0"]
        for p, r in zip(result.prediction, result.radius.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("data", "q"), [("levels", 255), ("sixteen_bits", 65535)])
def test_auto_takes_the_first_grid_that_fits(folder, capsys, data, q):
    assert certify("--seed", "5", data=f"mine:{data}") == 0
    assert settings()["grid"] == q
    assert f"certified on the grid {q}, seed 5" in capsys.readouterr().out
    assert [row[2:4] for row in rows("out.tsv")[1:]] == expected(Gaussian(0.25, grid=q), q)


def test_auto_is_for_other_noise_too(folder):
    assert certify("--seed", "5", data="mine:levels", noise="Uniform(0.5)") == 0
    assert (settings()["grid"], settings()["noise"]) == (255, repr(Uniform(0.5)))
    assert [row[2:4] for row in rows("out.tsv")[1:]] == expected(Uniform(0.5, grid=255), 255)
    assert certify("--overwrite", data="mine:levels", noise="PixelAblation(2)") == 0
    assert "grid" not in settings()


def test_black_images_fit_anything_but_auto_is_never_coarser(folder):
    assert certify(data="mine:black_at_first") == 0
    assert settings()["grid"] == 255


def test_auto_says_where_nothing_fits(folder, capsys):
    assert certify("--seed", "5") == 0
    assert "certified in real numbers (--grid none)" in capsys.readouterr().out
    assert "grid" not in settings()
    first = rows("out.tsv")
    assert certify("--seed", "5", "--grid", "none", "--overwrite") == 0
    assert rows("out.tsv") == first


def test_a_later_image_that_does_not_fit_is_an_error_that_names_the_way_out(folder, capsys):
    assert certify(data="mine:later_off_grid") == 2
    error = capsys.readouterr().err
    assert "image 4: x: got " in error
    assert "--grid none" in error
    assert len(rows("out.tsv")) == 1 + 4
    assert certify("--overwrite", "--grid", "none", data="mine:later_off_grid") == 0


def test_a_grid_by_its_name(folder, capsys):
    assert certify("--grid", "510", data="mine:levels") == 0
    assert settings()["grid"] == 510
    assert certify("--overwrite", data="mine:levels", noise="Gaussian(0.25, grid=(255, 2))") == 0
    assert settings()["grid"] == [255, 2]
    capsys.readouterr()
    assert certify("--overwrite", "--grid", "255") == 2
    assert "--grid none" in capsys.readouterr().err


def test_an_old_table_resumes_as_none_and_a_new_one_as_it_was(folder, capsys):
    once = ["--seed", "5"]
    assert certify(*once, "--grid", "none", data="mine:levels") == 0
    whole = rows("out.tsv")
    cut = "".join(Path("out.tsv").read_text().splitlines(True)[:3])
    assert "grid" not in settings()  # as older versions wrote it
    Path("out.tsv").write_text(cut)
    assert certify("--resume", data="mine:levels") == 0
    assert rows("out.tsv") == whole
    assert certify(*once, "--overwrite", "--grid", "510", data="mine:levels") == 0
    whole = rows("out.tsv")
    Path("out.tsv").write_text("".join(Path("out.tsv").read_text().splitlines(True)[:3]))
    assert certify("--resume", data="mine:levels") == 0
    assert rows("out.tsv") == whole
    assert certify("--resume", "--grid", "255", data="mine:levels") == 2
    assert "made with grid = 510, this run has 255" in capsys.readouterr().err


def test_looks_on_whole_batches_belong_to_the_run(folder, capsys):
    looks = ["--seed", "5", "--early-stop", "--batch", "50"]
    assert certify(*looks, data="mine:levels") == 0
    assert settings()["batch"] == 50
    assert certify("--resume", *looks[:-1], "40", data="mine:levels") == 2
    assert "made with batch = 50" in capsys.readouterr().err
    assert certify("--overwrite", *looks, "--grid", "none", data="mine:levels") == 0
    assert "batch" not in settings()


@pytest.mark.parametrize(
    ("options", "noise", "message"),
    [
        (["--grid", "0"], None, "--grid: got"),
        (["--grid", "fine"], None, "--grid: got 'fine', want auto, none or an integer"),
        (["--grid", "255"], "PixelAblation(2)", "is for noise that has a grid"),
        (["--grid", "255"], "Gaussian(0.25, grid=510)", "and names none"),
        (["--grid", "none"], "Gaussian(0.25, grid=510)", "--grid none: got --noise"),
    ],
)
def test_refusals(folder, capsys, options, noise, message):
    assert certify(*options, noise=noise, data="mine:levels") == 2
    assert message in capsys.readouterr().err
    assert not Path("out.tsv").exists()
