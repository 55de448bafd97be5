"""Runs of ``robustcore certify`` and ``attack`` in other processes, on a user's module."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import time, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, pause=0.0):
        super().__init__()
        self.pause = pause
    def forward(self, x):
        time.sleep(self.pause)
        return x.flatten(1)[:, :3]

def model():
    return Net()

def slow_model():
    return Net(0.002)

def data(number=10):
    images = torch.rand(number, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return [(image, int(image.flatten()[:3].argmax())) for image in images]

def many():
    return data(200)

def bad_pixels():
    return [(image * float("nan") if i == 4 else image, y) for i, (image, y) in enumerate(data())]
"""


class Runs:
    """Starts runs in a folder, from a process that has the imports done."""

    def __init__(self, folder, forks):
        self.folder = folder
        (folder / "mine.py").write_text(MODULE)
        self._process = forks

    def certify(
        self, *options, out, model="model", data="data", ranks=0, kill=None, rows=0, most_bytes=None
    ):
        """Exit codes, one a process."""
        options = ["--sigma", "0.25", "--N0", "20", "--N", "400", *options]
        return self.run("certify", options, out, model, data, ranks, kill, rows, most_bytes)

    def attack(self, *options, out, model="model", data="data", ranks=0, kill=None, rows=0):
        """Exit codes, one a process."""
        options = ["--eps", "0.1", "--attack", "pgd", *options]
        return self.run("attack", options, out, model, data, ranks, kill, rows)

    def run(self, command, options, out, model, data, ranks, kill, rows, most_bytes=None):
        argv = [command, "--model", f"mine:{model}", "--data", f"mine:{data}", "--out", out]
        argv += ["--device", "cpu", *options]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = str(self.folder)
        job = dict(argv=argv, folder=folder, ranks=ranks, port=port, most_bytes=most_bytes)
        job |= dict(kill=kill, out=out, rows=rows)
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def text(self, name):
        return (self.folder / name).read_text()

    def log(self, rank=0):
        return self.text(f"log{rank}.txt")

    def rows(self, name):
        """The lines of a table as they are, without their times."""
        text = self.text(name)
        assert text.endswith("\n")
        fields = [line.split("\t") for line in text[:-1].split("\n")]
        time = fields[0].index("time")
        return ["\t".join(row[:time] + row[time + 1 :]) for row in fields]

    def seed(self, name):
        return str(json.loads(self.text(name + ".json"))["seed"])


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """forks.py, started once: it forks a run, and keeps nothing of it."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forks.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path_factory.mktemp("forks"),
    )
    yield process
    process.stdin.close()
    process.stdout.close()
    assert process.wait(300) == 0


@pytest.fixture
def runs(tmp_path, forks):
    return Runs(tmp_path, forks)
