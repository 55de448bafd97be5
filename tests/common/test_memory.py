"""Memory that a process keeps."""

import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from robustcore.common.memory import keep_freed_memory
if len(sys.argv) > 1:
    assert keep_freed_memory()

def batch():  # two layers: the blocks of the first are freed before those of the second
    for size in (40, 20):
        a = torch.ones(size * 2**18)
        b = a + 1
    return float(b[0])

batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow  # a process of its own: the setting is one of the process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again(tmp_path):
    def faults(*arguments):
        command = [sys.executable, "-c", PROGRAM, *arguments]
        # Outside the checkout, whose robustcore may not be the one under test.
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return int(run.stdout)

    pages = 10 * 2 * 60 * 2**20 // resource.getpagesize()
    assert faults("keep") < pages / 5
