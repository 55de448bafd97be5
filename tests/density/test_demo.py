"""The demo, from the command line to its files."""

import pytest
import torch

from robustcore.command.main import main
from robustcore.density.blockdigits import load_block_digits, null_block
from robustcore.density.spurious_digits import AGREE, corner_region, load_spurious_digits

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_block_digits():
    data = load_block_digits(200, 100, seed=1)
    assert data.train_images.shape == (1497, 1, 16, 8)
    assert data.validation_images.shape == (200, 1, 16, 8)
    assert data.test_images.shape == (100, 1, 16, 8)
    null = null_block()
    assert (data.test_images[:, 0, 8:] == null).all()
    on_top = (data.train_images[:, 0, 8:] == null).flatten(1).all(1)
    at_bottom = (data.train_images[:, 0, :8] == null).flatten(1).all(1)
    assert (on_top ^ at_bottom).all()
    assert 0.4 < on_top.float().mean() < 0.6
    assert data.null_region.sum() == 64
    assert torch.equal(load_block_digits(200, 100, seed=1).train_images, data.train_images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["demo", "--family", "density", "--fast", "--out", str(out)]
    assert main(arguments) == 0
    rows = (out / "blockdigits.tsv").read_text().splitlines()
    assert len(rows) == 4
    leakage = {row.split("\t")[0]: float(row.split("\t")[3]) for row in rows[1:]}
    assert leakage["density"] < leakage["input gradient"] < leakage["standard"]
    assert (out / "blockdigits.png").stat().st_size > 1000
    assert "leakage" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_spurious_digits():
    data = load_spurious_digits(300, 500, contrast=0.4, seed=1)
    assert [len(part.labels) for part in data] == [997, 300, 500]
    for part, share in zip(data, (AGREE, 0.5, 0.5), strict=True):
        corner = part.images[..., corner_region()[0]]
        green = corner[:, 1, 0] > corner[:, 0, 0]
        assert torch.equal(part.groups, 2 * part.labels + green)
        assert torch.allclose(corner[:, 0] + corner[:, 1], torch.tensor(1.0))
        assert torch.allclose((corner[:, 0] - corner[:, 1]).abs(), torch.tensor(0.4))
        agrees = (green == part.labels).double().mean()
        assert abs(agrees - share) < 4.5 * (share * (1 - share) / len(green)) ** 0.5
        rest = part.images[..., ~corner_region()[0]]
        assert (rest == rest[:, :1]).all()  # grey
    assert torch.equal(load_spurious_digits(300, 500, 0.4, 1).train.images, data.train.images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spurious_demo(tmp_path, capsys):
    """With a faint corner both is above each, and each above plain; with a strong one density
    alone is below plain, as the family's guide explains.
    """
    out = tmp_path / "out"
    arguments = ["demo", "--family", "density", "--spurious", "--fast", "--out", str(out)]
    assert main(arguments) == 0
    rows = [row.split("\t") for row in (out / "spuriousdigits.tsv").read_text().splitlines()]
    assert len(rows) == 1 + 2 * 4 * 2
    assert rows[0][4] == "worst"
    worst = {}
    for contrast, training, _, _, value, *_ in rows[1:]:
        worst[contrast, training] = worst.get((contrast, training), 0) + float(value) / 2
    faint = {name: value for (contrast, name), value in worst.items() if contrast == "0.25"}
    assert faint["both"] > faint["group DRO"] > faint["plain"]
    assert faint["both"] > faint["density"] > faint["plain"]
    assert worst["1", "both"] > worst["1", "group DRO"] > worst["1", "plain"]
    assert worst["1", "density"] < worst["1", "plain"]
    assert (out / "spuriousdigits.png").stat().st_size > 1000
    assert "worst group" in capsys.readouterr().out
