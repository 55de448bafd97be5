"""Scale-out over processes, and how many samples the sequential procedures take."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustcore.common.digits import load_digits
from robustcore.smoothing import Smooth
from robustcore.smoothing.demo import FAST, train

SIGMA, RADIUS, MAX_N, IMAGES = 0.25, 0.25, 100_000, 50


@pytest.fixture(autouse=True)
def on_the_cpu(device):
    # Ranks of one thread, and numbers of samples, which are the same on any device.
    if device.type != "cpu":
        pytest.skip("this file measures on the CPU")


class Workers:
    """Ranks of one thread each, as torchrun starts them; imports and connection are done."""

    def __init__(self, number, way):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(Path(__file__).with_name("rank.py")), way]
        self.processes = []
        for rank in range(number):
            names = {"RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1"}
            names |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = os.environ | {name: str(value) for name, value in names.items()}
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )

    def __call__(self):
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in self.processes]
        assert all(answer == answers[0] for answer in answers)
        return answers[0]

    def close(self):
        for process in self.processes:
            process.stdin.close()  # all of them, before any is waited for: they end together
        for process in self.processes:
            process.stdout.close()
            process.wait(60)


@pytest.mark.parametrize("way", ["images", "samples"])
def test_ranks(way, measure):
    one, two = Workers(1, way), Workers(2, way)
    try:
        assert two() == one(), "counts depend on the number of ranks"
        group = f"2 gloo ranks of one thread against 1, sharing {way}"
        note = "counts identical"
        measure(group, "robustcore", two, rounds=11, note=note, against=("1 rank", one))
    finally:
        two.close()
        one.close()


@functools.lru_cache
def digits():
    data = load_digits(IMAGES)
    model, mean, std = train(data, SIGMA, FAST.epochs, seed=0)
    smooth = Smooth(model, 10, SIGMA, seed=0, mean=mean, std=std)
    return smooth, data.test_images, smooth.certify(data.test_images, n=MAX_N)


PROCEDURES = {
    "robustcore": lambda s, x: s.certify_at(x, RADIUS, max_n=MAX_N),
    "early_stop": lambda s, x: s.certify(x, n=MAX_N, early_stop=True),
    "fixed n": lambda s, x: s.certify(x, n=MAX_N),
}


@pytest.mark.parametrize("impl", PROCEDURES)
def test_samples(impl, measure):
    smooth, images, fixed = digits()
    result = PROCEDURES[impl](smooth, images)
    # Far: 100 000 samples put the radius beyond a tenth of sigma on one side or the other.
    far = (fixed.radius - RADIUS).abs() > SIGMA / 10
    samples = getattr(result, "samples", torch.full((IMAGES,), MAX_N)).double()
    if impl == "robustcore":
        assert (result.certified == (fixed.radius >= RADIUS))[far].all()
        answer = f"; {int(result.certified.sum())} certified, {int(result.refuted.sum())} refuted"
    else:
        answer = f"; {int((result.radius >= RADIUS).sum())} certified at the radius"
    note = (
        f"median {samples[far].median():.0f} samples on the {int(far.sum())} images far from the "
        f"boundary, mean {samples.mean():.0f} on all{answer}"
    )
    group = f"{IMAGES} digits, demo CNN, at most {MAX_N} samples, radius {RADIUS}"
    measure(group, impl, lambda: PROCEDURES[impl](smooth, images), rounds=3, note=note)
