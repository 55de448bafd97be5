"""The Python that README.md shows, run in its order, as one program."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
# What it leaves to the reader, and what takes minutes.
READERS = {
    "model = ...  #": "model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))  #",
    "n=100_000": "n=1000",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_python_blocks(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images = torch.rand(3, 1, 8, 8)
    names = {"image": images[0], "images": images, "labels": torch.tensor([0, 1, 2])}
    first = BLOCKS[0]
    for old, new in READERS.items():
        assert first.count(old) == 1
        first = first.replace(old, new)
    blocks = [first, *(block for block in BLOCKS[1:] if "pip install captum" not in block)]
    assert len(blocks) >= 9
    for block in blocks:
        exec(compile(block, f"{README}: {block.splitlines()[0]}", "exec"), names)
    assert (tmp_path / "results.tsv").exists()
    assert (tmp_path / "results.png").exists()
    assert names["noisy"].shape == (8, 100, 3, 32, 32)
