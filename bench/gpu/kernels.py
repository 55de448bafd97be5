"""The device's ceilings, then every kernel at a real size and at a gigabyte or more, by events.

Bytes are the least that an op can move: what it reads and writes, once. A kernel that only writes
is held against `fill_`, any other against a copy: of 2 GB, and of as many bytes as it moves itself,
which counts where a launch takes longer than the bytes or a cache holds them.

    python3 bench/gpu/kernels.py FILE --device cuda [--only WORD ...]
    python3 bench/gpu/kernels.py FILE --device cuda --once [--slow TABLE]    # under a profiler
"""

import re
from pathlib import Path

import torch
from harness import Table, arguments, median_seconds, sync
from sizes import GROUPS
from sizes.size import BF16, F32, Shapes, size_of
from tables import number, read


def ceilings(at):
    """Name, bytes or operations, function."""
    (elements,) = at(2**29)
    source = at.randn(elements)
    target = torch.empty_like(source)
    yield "copy", 2 * size_of(source), lambda: target.copy_(source)
    yield "fill", size_of(target), lambda: target.fill_(1.0)
    n = 64 if at.tiny else 8192
    for name, dtype in (("bfloat16", BF16), ("tf32", F32), ("float32", F32)):
        a, b = at.randn(n, n, dtype=dtype), at.randn(n, n, dtype=dtype)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        yield f"matrix product, {name}", 2 * n**3, lambda a=a, b=b: torch.mm(a, b)
    torch.backends.cuda.matmul.allow_tf32 = False


def rate_of(amount, took, ceiling):
    if ceiling.startswith("matrix product"):
        return f"{amount / took / 1e12:.1f} TFLOP/s"
    return f"{amount / took / 1e9:.0f} GB/s"


def measure_ceilings(table, at):
    rates = {}
    for name, amount, fn in ceilings(at):
        took = median_seconds(fn, at.device)
        rates[name] = amount / took
        table.row("ceiling", name, amount, f"{took * 1e3:.4f}", rate_of(amount, took, name), "", "")
    return rates


class Small:
    """Seconds of torch's fill or copy of a number of bytes, measured once each."""

    def __init__(self, device):
        self.device, self.found = device, {}

    def share(self, ceiling, amount, took):
        if ceiling not in ("fill", "copy") or amount > 2**28:
            return ""  # far beyond any cache and launch
        if (ceiling, amount) not in self.found:
            target = torch.empty(
                amount if ceiling == "fill" else amount // 2, device=self.device, dtype=torch.uint8
            )
            source = torch.empty_like(target)
            fn = (lambda: target.fill_(1)) if ceiling == "fill" else lambda: target.copy_(source)
            self.found[ceiling, amount] = median_seconds(fn, self.device, 0.02)
        return f"{100 * self.found[ceiling, amount] / took:.0f} %"


def slow(table):
    """Of an earlier table, the rows under 80 % of what torch reaches."""
    for row in read(table.parent, table.stem):
        share = number(row["share of torch's at this size"] or row["share of the ceiling"])
        if share is not None and share < 80:
            yield f"^{re.escape(row['kernel'] + ': ' + row['case'])}$"


def measure(table, at, only, once):
    rates = {} if once else measure_ceilings(table, at)
    small, failed = Small(at.device), False
    for group in GROUPS:
        try:
            for kernel, case, amount, fn, ceiling in group(at):
                if only is not None and not any(re.search(o, f"{kernel}: {case}") for o in only):
                    continue
                if once:
                    fn()
                    continue
                took = median_seconds(fn, at.device, 0.06)
                share = f"{100 * amount / took / rates[ceiling]:.0f} %"
                rate = rate_of(amount, took, ceiling)
                like = small.share(ceiling, amount, took)
                table.row(kernel, case, amount, f"{took * 1e3:.4f}", rate, share, like)
        except Exception as error:  # the next group may still run
            failed = True
            table.row(group.__name__, f"{type(error).__name__}: {error}"[:200], *[""] * 5)
        if at.device.type == "cuda":
            torch.cuda.empty_cache()
    sync(at.device)
    return failed


COLUMNS = [
    "kernel", "case", "bytes", "ms", "rate", "share of the ceiling",
    "share of torch's at this size",
]  # fmt: skip


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", help="kernels and cases that match one of these")
    parser.add_argument("--slow", type=Path, help="those that were slow, by an earlier table")
    parser.add_argument("--once", action="store_true", help="one call each: under a profiler")
    args = parser.parse_args()
    only = list(slow(args.slow)) if args.slow else args.only
    table = Table(args.file, COLUMNS)
    with torch.inference_mode():
        failed = measure(table, Shapes(args.device, args.tiny), only, args.once)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
