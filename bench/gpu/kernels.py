"""The device's ceilings, then every kernel at a real size and at a gigabyte or more, by events.

Bytes are the least that an op can move: what it reads and writes, once. A kernel that only writes
is held against `fill_`, any other against a copy.

    python3 bench/gpu/kernels.py FILE --device cuda [--only WORD ...] [--once]
"""

import re

import torch
from harness import Table, arguments, median_seconds, sync
from sizes import GROUPS
from sizes.size import BF16, F32, Shapes, size_of


def ceilings(at):
    """Name, bytes or operations, function."""
    (elements,) = at(2**29)
    source = torch.ones(elements, device=at.device)
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
        table.row("ceiling", name, amount, f"{took * 1e3:.4f}", rate_of(amount, took, name), "")
    return rates


def measure(table, at, only, once):
    rates = {} if once else measure_ceilings(table, at)
    failed = False
    for group in GROUPS:
        try:
            for kernel, case, amount, fn, ceiling in group(at):
                if only and not re.search("|".join(only), f"{kernel}: {case}"):
                    continue
                if once:
                    fn()
                    continue
                took = median_seconds(fn, at.device, 0.06)
                share = f"{100 * amount / took / rates[ceiling]:.0f} %"
                rate = rate_of(amount, took, ceiling)
                table.row(kernel, case, amount, f"{took * 1e3:.4f}", rate, share)
        except Exception as error:  # the next group may still run
            failed = True
            table.row(group.__name__, f"{type(error).__name__}: {error}"[:200], "", "", "", "")
        if at.device.type == "cuda":
            torch.cuda.empty_cache()
    sync(at.device)
    return failed


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", help="kernels and cases that match one of these")
    parser.add_argument("--once", action="store_true", help="one call each: under a profiler")
    args = parser.parse_args()
    table = Table(args.file, ["kernel", "case", "bytes", "ms", "rate", "share of the ceiling"])
    with torch.inference_mode():
        failed = measure(table, Shapes(args.device, args.tiny), args.only, args.once)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
