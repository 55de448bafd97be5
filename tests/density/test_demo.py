"""The demo, from the command line to its files."""

import pytest
import torch

from robustcore.command.main import main
from robustcore.density.blockdigits import load_block_digits, null_block

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
