"""One page of what bench/gpu.sh found, under 12,000 characters.

python3 bench/gpu/summary.py FOLDER
"""

import collections
import sys
from pathlib import Path
from xml.etree import ElementTree

import torch

import robustcore

LIMIT = 11_500


def rows(path):
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [line.split("\t") for line in lines[1:]]


def machine():
    info = robustcore.build_info()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a rehearsal"
    return f"{name}; torch {torch.__version__}; robustcore {info['version']}, CUDA {info['cuda']}"


def stages(folder):
    lines = [line.split("\t") for line in (folder / "stages.tsv").read_text().splitlines()]
    yield "; ".join(f"{name} {status} ({seconds} s)" for name, status, seconds in lines)
    for name, status, _ in lines:
        log = folder / f"{name}.log"
        if status != "passed" and log.exists():
            tail = [line[:160] for line in log.read_text(errors="replace").splitlines()[-4:]]
            yield f"{name}:\n  " + "\n  ".join(tail)


def ops_once(folder):
    """An op a line: how many cases, and those that were not as wanted."""
    counts = collections.defaultdict(collections.Counter)
    wrong = []
    for op, case, wanted, found, distance in rows(folder / "ops.tsv"):
        counts[op][found if found in ("equal", "near", "far") else "failed"] += 1
        if found not in ("equal", wanted):
            wrong.append(f"  {op}: {case}: {found} {distance}")
    for op, found in counts.items():
        yield f"{op}: " + ", ".join(f"{number} {how}" for how, number in found.items())
    yield from wrong[:15]
    if len(wrong) > 15:
        yield f"  and {len(wrong) - 15} more"


def tests(folder):
    for path in sorted(folder.glob("tests*.xml")):
        cases = list(ElementTree.parse(path).iter("testcase"))
        bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
        skipped = sum(c.find("skipped") is not None for c in cases)
        yield f"{path.stem}: {len(cases)} run, {skipped} of them skipped, {len(bad)} failed"
        for case in bad[:12]:
            yield f"  {case.get('classname')}::{case.get('name')}"[:150]


def kernels(folder):
    for kernel, case, _, ms, rate, share in rows(folder / "kernels.tsv"):
        yield f"{kernel}: {case}: {ms} ms, {rate}" + f", {share}" * bool(share)


def end_to_end(folder):
    """A piece of work a line: robustcore's time, and how many times that the others take."""
    work = collections.defaultdict(list)
    for path in ("certify", "resnet50", "soc", "density"):
        for name, implementation, ms, ratio, peak in rows(folder / f"{path}.tsv"):
            took = f"{ms} ms" if implementation == "robustcore" else f"{ratio}x" if ratio else ms
            work[name].append(f"{implementation} {took}, {peak} MiB" if peak else f"{took}"[:80])
    for name, found in work.items():
        yield f"{name}: " + "; ".join(found)


SECTIONS = {
    "Stages": (stages, 2000),
    "Ops against the CPU's bits": (ops_once, 2000),
    "Tests": (tests, 1000),
    "End to end (times of robustcore's, peak memory)": (end_to_end, 3000),
    "Kernels (share of a copy or fill)": (kernels, LIMIT),
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
