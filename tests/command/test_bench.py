"""``robustcore bench``."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from robustcore.command import bench
from robustcore.command.main import main


def test_bench_runs_the_suite(capfd, tmp_path, monkeypatch):
    pytest.importorskip("pytest_benchmark")
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)  # this is a run of its own, and benchmarks refuse to share
    report = tmp_path / "table.md"
    command = ["bench", "--device", "cpu", "--threads", "1", "--only", "count_votes and robustcore"]
    assert main([*command, "--report", str(report)]) == 0
    assert "| robustcore |" in capfd.readouterr().out
    assert "## count_votes" in report.read_text()
    assert main(["bench", "--only", "no_such_benchmark"]) == 2


def test_suite_reads_nothing_beside_it(tmp_path):
    """A wheel holds the benchmarks alone."""
    pytest.importorskip("pytest_benchmark")
    ignore = shutil.ignore_patterns("gpu", "results")
    folder = shutil.copytree(bench.suite(), tmp_path / "bench", ignore=ignore)
    (tmp_path / "pytest.ini").write_text(bench.SETTINGS)
    command = [sys.executable, "-m", "pytest", "-c", tmp_path / "pytest.ini", "--collect-only"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(
        [*command, "--rootdir", folder, folder], env=environment, capture_output=True, text=True,
        check=False, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:]


def test_bench_refusals(capsys, monkeypatch):
    pytest.importorskip("pytest_benchmark")
    assert main(["bench", "--threads", "0"]) == 2
    assert "--threads: got 0" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert main(["bench"]) == 2
    assert "robustcore[bench]" in capsys.readouterr().err
    monkeypatch.setattr(bench, "suite", lambda: None)
    assert main(["bench"]) == 2
