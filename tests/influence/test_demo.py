"""The demo, from the command line to its files."""

import pytest
import torch

from robustcore.command.main import main
from robustcore.influence import demo

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_wrong_labels():
    labels = torch.arange(1000) % 10
    given, wrong = demo.with_wrong_labels(labels, 3)
    assert wrong.sum() == 20
    assert torch.equal(given != labels, wrong)
    assert given.min() >= 0
    assert given.max() < 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["demo", "--family", "influence", "--fast", "--out", str(out)]
    assert main(arguments) == 0
    rows = [line.split("\t") for line in (out / "influence.tsv").read_text().splitlines()]
    assert rows[0] == ["idx", "label", "true_label", "self_influence"]
    assert len(rows) == 1298
    largest = sorted(rows[1:], key=lambda row: -float(row[3]))[:26]
    assert sum(given != true for _, given, true, _ in largest) >= 13  # by chance 0.5
    assert (out / "influence.png").stat().st_size > 1000
    assert "by chance" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
