"""A results file out of what bench/gpu.sh packed, and the README's table of the same figures.

    python3 bench/gpu/report.py gpu.tar --results bench/results/h200.md --readme README.md

Kernels that were slower than their machine code promised (bench/results/sm90_kernels.md) are listed
with what ncu says of them.
"""

import argparse
import collections
import csv
import re
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import goals
from harness import BENCH, load
from tables import number, read, stages, work

short = load("sass.py").short
SLOWER = 10  # points of per cent under the prediction
REASON = 300  # characters of ncu's
Reason = collections.namedtuple("Reason", "memory compute occupancy said")


def markdown(header, rows):
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |"
    yield ""


def machine(folder):
    page = folder / "summary.md"
    said = page.read_text().splitlines()[0].removeprefix("# ") if page.exists() else "?"
    info = folder / "machine.txt"
    driver = re.search(r"Driver Version: (\S+)", info.read_text()) if info.exists() else None
    return f"{said}, driver {driver[1]}" if driver else said


def predictions(gpu):
    """Per cent of the copy bandwidth by kernel, as its machine code for sm_90 allows."""
    text = (BENCH / "results" / "sm90_kernels.md").read_text()
    rows = re.findall(r"^\| `(.*?)` \|.*\| (\d+)% \| (\d+)% \|", text, re.M)
    return {name: float(h200 if gpu == "H200" else h100) for name, h100, h200 in rows}


def reasons(folder):
    """Of each kernel that ncu saw: its shares of memory and issue, occupancy, the main advice."""
    path = folder / "ncu.csv"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    metrics, advice = collections.defaultdict(dict), collections.defaultdict(list)
    for row in csv.DictReader(lines[first:]):
        kernel = short(row["Kernel Name"])
        if row["Metric Name"] and row["Metric Unit"] == "%":
            metrics[kernel][row["Metric Name"]] = row["Metric Value"]
        if row["Rule Type"] in ("OPT", "WRN"):
            gain = number(row.get("Estimated Speedup") or "") or 0
            advice[kernel].append((gain, row["Rule Description"]))
    names = ("Memory Throughput", "Compute (SM) Throughput", "Achieved Occupancy")
    return {
        kernel: Reason(
            *(found.get(name, "") for name in names),
            max(advice[kernel], default=(0, ""))[1][:REASON],
        )
        for kernel, found in metrics.items()
    }


def kernel_rows(folder):
    """Rows of kernels.tsv, each with the kernels it launched and what was predicted for them."""
    gpu = "H200" if "H200" in machine(folder) else "H100"
    promised = predictions(gpu)
    launched = {row["row"]: row["launched"].split("; ") for row in read(folder, "launched")}
    for row in read(folder, "kernels"):
        names = launched.get(f"{row['kernel']}: {row['case']}", [])
        found = [promised[name] for name in names if name in promised]
        yield row, names, min(found) if found else None


def slower(folder):
    """Row, kernel, predicted and measured share, and ncu's figures; the largest gap first."""
    why, found = reasons(folder), []
    for row, names, promised in kernel_rows(folder):
        share = number(row["share of the ceiling"])
        like = number(row["share of torch's at this size"]) or 0
        if promised is None or share is None or max(share, like) >= promised - SLOWER:
            continue
        seen = next((why[name] for name in names if name in why), Reason("", "", "", "not seen"))
        case = f"{row['kernel']}: {row['case']}"
        cells = (case, ", ".join(names), f"{promised:.0f} %", f"{share:.0f} %", *seen)
        found.append((share - promised, cells))
    return [cells for _, cells in sorted(found)]


def goal_table(folder):
    return markdown(("goal", "wanted", "measured", ""), goals.rows(folder))


def text(folder):
    yield f"# Measured on {machine(folder)}"
    yield ""
    yield "Written by `bench/gpu/report.py` out of what `bench/gpu.sh` packed."
    yield "\n## Goals\n"
    yield from goal_table(folder)
    yield "## Slower than the machine code allows\n"
    header = (
        "case", "kernel", "predicted", "measured", "memory %", "issue %", "occupancy %", "ncu",
    )  # fmt: skip
    yield from markdown(header, slower(folder))
    yield "## Whole pieces of work\n"
    for name, found in work(folder).items():
        ours = found.get("robustcore", (None,))[0]
        rows = []
        for key, (ms, peak, said) in found.items():
            ratio = f"{ms / ours:.2f}" if ms and ours else ""
            rows.append((key, f"{ms:.3f} ms" if ms else said, ratio, f"{peak or 0:.0f} MiB"))
        yield f"### {name}\n"
        yield from markdown(("implementation", "time", "ratio", "peak memory"), rows)
    yield "## Kernels\n"
    header = (
        "kernel", "case", "ms", "rate", "of 2 GB's", "of torch's at this size", "predicted",
    )  # fmt: skip
    rows = (
        (*(row[c] for c in ("kernel", "case", "ms", "rate", "share of the ceiling")),
         row["share of torch's at this size"], f"{promised:.0f} %" if promised is not None else "")
        for row, _, promised in kernel_rows(folder)
    )  # fmt: skip
    yield from markdown(header, rows)
    yield "## Ops beside the CPU\n"
    counts = collections.defaultdict(collections.Counter)
    for row in read(folder, "ops"):
        counts[row["op"]][row["found"]] += 1
    rows = ((op, ", ".join(f"{n} {how}" for how, n in c.items())) for op, c in counts.items())
    yield from markdown(("op", "cases"), rows)
    yield "## Stages\n"
    yield from markdown(("stage", "", "seconds"), stages(folder))


SECTION = "## On a GPU"


def with_table(readme, results, folder):
    """The README with the goals' table as a section: in place of an earlier one, or at the end."""
    table = "\n".join(goal_table(folder))
    new = f"{SECTION}\n\nOn {machine(folder)} ([all of it]({results})):\n\n{table}\n"
    old = re.search(rf"^{SECTION}$.*?(?=^## |\Z)", readme, re.M | re.S)
    if old:
        return readme[: old.start()] + new + readme[old.end() :]
    return readme.rstrip("\n") + "\n\n" + new


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tar", type=Path, help="gpu.tar of bench/gpu.sh")
    parser.add_argument("--results", type=Path, required=True, help="the file to write")
    parser.add_argument("--readme", type=Path, help="the README whose section to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tarfile.open(args.tar) as packed:
        # Python 3.11 has learned of filters on its way.
        packed.extractall(name, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        folder = Path(name)
        args.results.write_text("\n".join(text(folder)))
        if args.readme:
            new = with_table(args.readme.read_text(), args.results, folder)
            args.readme.write_text(new)


if __name__ == "__main__":
    main()
