"""``import robustcore`` loads little beyond torch."""

import subprocess
import sys

import torch

from robustcore.ops.autograd import constant_when_compiled

# What takes long to load, and is loaded where it is first used.
HEAVY = [
    "torch._dynamo",
    "torch.export",
    "scipy.special",
    "scipy.stats",
    "matplotlib",
    "sklearn",
    "PIL",
]


def test_nothing_heavy_is_loaded():
    code = f"""
import sys, torch
before = set(sys.modules)
import robustcore
print([m for m in {HEAVY} if m in set(sys.modules) - before])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout == "[]\n"


def test_marked_as_torch_marks_it():
    def ours(): ...
    def torchs(): ...

    torch.compiler.assume_constant_result(torchs)
    assert vars(constant_when_compiled(ours)) == vars(torchs)
