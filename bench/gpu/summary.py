"""One page of what bench/gpu.sh found, under 12,000 characters.

python3 bench/gpu/summary.py FOLDER
"""

import collections
import sys
from pathlib import Path
from xml.etree import ElementTree

import goals
import torch
from tables import number, read, stages, work

import robustcore

LIMIT = 11_500


def machine():
    info = robustcore.build_info()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a rehearsal"
    return f"{name}; torch {torch.__version__}; robustcore {info['version']}, CUDA {info['cuda']}"


def ended(folder):
    found = stages(folder)
    yield "; ".join(f"{name} {status} ({seconds} s)" for name, status, seconds in found)
    for name, status, _ in found:
        log = folder / f"{name}.log"
        if status != "passed" and log.exists():
            tail = [line[:160] for line in log.read_text(errors="replace").splitlines()[-4:]]
            yield f"{name}:\n  " + "\n  ".join(tail)


def wanted(folder):
    for goal, limit, measured, verdict in goals.rows(folder):
        yield f"{verdict}: {goal}: {measured or '-'} (wanted {limit})"


def ops_once(folder):
    """What was not as wanted; then an op and how many cases, those that are as the CPU first."""
    counts, wrong = collections.defaultdict(collections.Counter), []
    for row in read(folder, "ops"):
        found = row["found"] if row["found"] in ("equal", "near", "far") else "failed"
        counts[row["op"]][found] += 1
        if found not in ("equal", row["wanted"]):
            wrong.append(f"  {row['op']}: {row['case']}: {row['found']} {row['distance']}")
    yield from wrong[:15]
    if len(wrong) > 15:
        yield f"  and {len(wrong) - 15} more"
    equal = [f"{op} {sum(c.values())}" for op, c in counts.items() if set(c) == {"equal"}]
    yield "equal to the bit, and in how many cases: " + ", ".join(equal)
    for op, found in counts.items():
        if set(found) != {"equal"}:
            yield f"{op}: " + ", ".join(f"{number} {how}" for how, number in found.items())


def tests(folder):
    for path in sorted(folder.glob("tests*.xml")):
        cases = list(ElementTree.parse(path).iter("testcase"))
        bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
        skipped = sum(c.find("skipped") is not None for c in cases)
        yield f"{path.stem}: {len(cases)} run, {skipped} of them skipped, {len(bad)} failed"
        for case in bad[:12]:
            yield f"  {case.get('classname')}::{case.get('name')}"[:150]


def end_to_end(folder):
    """A piece of work a line: robustcore's time, and how many times that the others take."""
    for name, found in work(folder).items():
        ours = found.get("robustcore", (None,))[0]
        cells = []
        for implementation, (ms, peak, said) in found.items():
            took = f"{ms / ours:.2f}x" if ms and ours and ms != ours else f"{ms} ms"
            text = f"{implementation} {took if ms else said[:80]}"
            cells.append(f"{text}, {peak:.0f} MiB" if peak else text)
        yield f"{name}: " + "; ".join(cells)


def kernels(folder):
    """A row a line, the lowest shares first."""
    rows = read(folder, "kernels")
    yield "; ".join(f"{r['case']} {r['rate']}" for r in rows if r["kernel"] == "ceiling")
    rest = [r for r in rows if r["kernel"] != "ceiling"]
    for row in sorted(rest, key=lambda r: number(r["share of the ceiling"]) or 0):
        share, like = row["share of the ceiling"], row["share of torch's at this size"]
        like = f" ({like})" if like else ""
        yield f"{share}{like} {row['kernel']}: {row['case']}: {row['ms']} ms, {row['rate']}"


SECTIONS = {
    "Stages": (ended, 1800),
    "Goals": (wanted, 2200),
    "Ops against the CPU's bits": (ops_once, 1500),
    "Tests": (tests, 900),
    "End to end (times of robustcore's, peak memory)": (end_to_end, 2600),
    "Kernels: share of a copy or fill of 2 GB (of as many bytes), lowest first": (kernels, LIMIT),
}


def main():
    folder = Path(sys.argv[1])
    text = f"# {machine()}\n"
    for title, (section, most) in SECTIONS.items():
        lines = "\n".join(section(folder))
        if len(lines) > most:
            lines = lines[:most].rsplit("\n", 1)[0] + "\n... more in the tar"
        text += f"\n## {title}\n{lines}\n"
    if len(text) > LIMIT:
        text = text[:LIMIT].rsplit("\n", 1)[0] + "\n... more in the tar\n"
    (folder / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
