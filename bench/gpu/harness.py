"""What the pieces of bench/gpu.sh share: options, tables written row by row, the clock."""

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import torch

BENCH = Path(__file__).parents[1]


def arguments(description):
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("file", type=Path, help="the table to write")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--tiny", action="store_true", help="sizes of a rehearsal")
    return parser


class Table:
    """Tab-separated rows, on the disk as soon as they are known."""

    def __init__(self, path, columns):
        self.file = path.open("w", buffering=1)
        self.row(*columns)

    def row(self, *cells):
        line = "\t".join(str(cell).replace("\t", " ").replace("\n", " ") for cell in cells)
        self.file.write(line + "\n")
        print(line, flush=True)


def load(path):
    """A file of bench/ as a module."""
    sys.path.insert(0, str(BENCH.parent / "tests"))
    spec = importlib.util.spec_from_file_location(Path(path).stem, BENCH / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(fn, device, calls):
    """Seconds of one of `calls` calls, by events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            fn()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        fn()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def median_seconds(fn, device, budget=0.15):
    """The median of five goes, after a warm-up, in about `budget` seconds."""
    fn()
    once = max(seconds(fn, device, 1), 1e-7)
    calls = int(min(max(budget / 5 / once, 1), 500))
    return statistics.median(seconds(fn, device, calls) for _ in range(5))


def in_turn(functions, device, budget):
    """Medians of functions called in turn, by the wall clock: name to seconds, or to an error."""
    times = {}
    for name, fn in list(functions.items()):
        try:
            for _ in range(2):
                fn()
            sync(device)
            times[name] = []
        except Exception as error:  # of one implementation; the others are still measured
            times[name] = f"{type(error).__name__}: {error}"[:150]
    alive = [name for name, found in times.items() if isinstance(found, list)]
    end = time.perf_counter() + budget
    while alive and (time.perf_counter() < end or len(times[alive[0]]) < 3):
        for name in alive:
            start = time.perf_counter()
            functions[name]()
            sync(device)
            times[name].append(time.perf_counter() - start)
    return {n: statistics.median(t) if isinstance(t, list) else t for n, t in times.items()}
