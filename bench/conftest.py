"""What every benchmark shares: devices, threads, the way to measure, and the table of ratios.

    pytest bench                               # all of it, CPU, 2 threads
    pytest bench --device cuda                 # on a GPU
    pytest bench -k noise --report out.md      # one family; the table also as Markdown

A benchmark is a test with a parameter `impl`; tests that do the same work share a `group`. Medians
are compared within a group, in one run, against `robustcore`.
"""

import platform
import statistics
import subprocess
import time
from pathlib import Path

import pytest
import torch

import robustcore


def pytest_addoption(parser):
    group = parser.getgroup("robustcore")
    group.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where to measure")
    group.addoption("--threads", type=int, help="of torch on the CPU (2; on a GPU machine all)")
    group.addoption("--report", metavar="FILE", help="write the table of ratios as Markdown")


def pytest_configure(config):
    if config.option.threads is None:
        cuda = config.getoption("--device") == "cuda"
        config.option.threads = torch.get_num_threads() if cuda else 2
    torch.set_num_threads(config.option.threads)


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda: no GPU on this machine", returncode=2)
    return torch.device(name)


@pytest.fixture
def no_tf32(monkeypatch):
    """For work that is asserted equal to a float32 reference: cuDNN's default is TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def measure(benchmark, device):
    """measure(group, impl, fn, **options): times fn, and writes a row of the group's table.

    The most memory it holds at a time is measured beside, but for work of so many calls that to
    note each would take more than there is (``memory=False``). With ``against=(name, function)``
    that function runs before each round, so that a machine whose speed drifts slows both down; the
    note has how many times as long fn takes, by the medians.

    On CUDA `launches` calls are queued before one synchronisation, so launch latency hides as it
    does in use; the figure is of one call. The note stands below the table.
    """

    def run(
        group, impl, fn, *, launches=1, rounds=None, warmups=3, note="", against=None, memory=True
    ):
        cuda = device.type == "cuda"
        for _ in range(warmups):
            fn()
        benchmark.group = group
        benchmark.extra_info["impl"] = impl
        benchmark.extra_info["note"] = note
        benchmark.extra_info["peak_bytes"] = _peak_bytes(fn, cuda) if memory else None
        launches = max(launches, 10) if cuda else launches

        def timed():
            for _ in range(launches):
                fn()
            if cuda:
                torch.cuda.synchronize()

        benchmark.extra_info["launches"] = launches
        rounds, warmup_rounds = (
            (15 if cuda else 11, 2) if rounds is None else (rounds, min(1, max(0, warmups - 1)))
        )
        others = []

        def other():
            start = time.perf_counter()
            for _ in range(launches):
                against[1]()
            if cuda:
                torch.cuda.synchronize()
            others.append(time.perf_counter() - start)

        benchmark.pedantic(
            timed, rounds=rounds, warmup_rounds=warmup_rounds, setup=other if against else None
        )
        if against:
            theirs = statistics.median(others[-rounds:])
            times = benchmark.stats.stats.median / theirs
            ratio = (
                f"{times:.2f} times as long as {against[0]}, {theirs / launches * 1e3:.3g} ms, in "
                f"turn with it (medians of {rounds} rounds)"
            )
            benchmark.extra_info["note"] = "; ".join(filter(None, [note, ratio]))

    return run


def _peak_bytes(fn, cuda):
    """The most memory fn() holds at a time, beyond what it found."""
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        fn()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        result = fn()
    del result
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _rows(config):
    session = getattr(config, "_benchmarksession", None)
    rows = {}
    for bench in session.benchmarks if session else []:
        if bench.stats.rounds:
            seconds = bench.stats.median / bench.extra_info["launches"]
            rows.setdefault(bench.group, []).append(
                (
                    bench.extra_info["impl"],
                    seconds,
                    bench.extra_info["peak_bytes"],
                    bench.extra_info["note"],
                )
            )
    return rows


def _machine(config):
    if config.getoption("--device") == "cuda":
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        where = f"{torch.cuda.get_device_name()}, driver {driver[0] if driver else 'unknown'}"
    else:
        model = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        name = model[0] if model else platform.processor()
        where = f"{name}, {config.getoption('--threads')} threads"
    info = robustcore.build_info()
    return (
        f"{where}; torch {torch.__version__}, robustcore {info['version']} "
        f"({info['simd']}, {info['compiler']}), Python {platform.python_version()}"
    )


def _markdown(config, rows):
    yield f"# Benchmarks on {_machine(config)}"
    yield ""
    yield "Median time of one call and its peak memory; ratio: how many times robustcore's time."
    for group, entries in rows.items():
        ours = next((seconds for impl, seconds, *_ in entries if impl == "robustcore"), None)
        yield ""
        yield f"## {group}"
        yield ""
        yield "| implementation | time | ratio | peak memory |"
        yield "|---|---:|---:|---:|"
        for impl, seconds, peak, _ in entries:
            ratio = f"{seconds / ours:.2f}" if ours else ""
            memory = "" if peak is None else f"{peak / 2**20:.2f} MiB"
            yield f"| {impl} | {seconds * 1e3:.3f} ms | {ratio} | {memory} |"
        for impl, _, _, note in entries:
            if note:
                yield ""
                yield f"{impl}: {note}"


def pytest_terminal_summary(terminalreporter, config):
    rows = _rows(config)
    if not rows:
        return
    text = "\n".join(_markdown(config, rows)) + "\n"
    terminalreporter.write_line("")
    terminalreporter.write_line(text)
    if report := config.getoption("--report"):
        Path(report).write_text(text)
