"""``robustcore demo --family masking --fast``: the numbers make sense and the files are there."""

import pytest

from robustcore.command.main import main
from robustcore.masking import demo


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of one run."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "FAST", demo.Settings(epochs=5, test_images=100, samples=200))
        arguments = ["demo", "--family", "masking", "--fast", "--out", str(folder)]
        assert main(arguments) == 0
    return folder


def test_table(out):
    lines = (out / "masked_digits.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["method", "hidden", "accuracy", "entropy_bits", "unchanged"]
    rows = [line.split("\t") for line in lines[1:]]
    assert len(rows) == 30
    at = {(row[0], float(row[1])): [float(v) for v in row[2:]] for row in rows}
    names = {row[0] for row in rows}
    assert names == {"layer masking", "grey", "mean of the data"}
    for name in names:
        assert at[name, 0.0][0] > 0.7
        assert at[name, 0.0][2] == 1  # folding changes no prediction
    assert at["layer masking", 0.3][0] > at["grey", 0.3][0]


def test_picture(out):
    assert (out / "masked_digits.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["masked_digits.png", "masked_digits.tsv"]


def test_refuses_to_overwrite(out, capsys):
    assert main(["demo", "--family", "masking", "--fast", "--out", str(out)]) == 2
    assert "add --overwrite" in capsys.readouterr().err
