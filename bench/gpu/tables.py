"""Tables as the stages write them, read back; and what the parts of a summary ask of them."""

import csv
import re
from pathlib import Path


def read(folder, name):
    """The rows of a stage's table as dictionaries; [] if it was not written."""
    path = Path(folder) / f"{name}.tsv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def number(text):
    """The number that a cell begins with, or None."""
    found = re.match(r"-?[\d.]+(e[-+]?\d+)?", text or "")
    return float(found[0]) if found else None


def stages(folder):
    """Name, how it ended, seconds."""
    path = Path(folder) / "stages.tsv"
    return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []


PIECES = ("certify", "resnet50", "soc", "density")


def work(folder):
    """Pieces of work: name to implementation to (milliseconds or None, peak MiB, what was said)."""
    found = {}
    for piece in PIECES:
        for row in read(folder, piece):
            said, peak = row["ms"], number(row["peak MiB"])
            ms = number(said) if re.fullmatch(r"[\d.e+-]+", said) else None
            found.setdefault(row["work"], {})[row["implementation"]] = (ms, peak, said)
    return found


def times(folder, pattern, implementation, over="robustcore"):
    """How many times over's time the implementation takes, of each piece that matches."""
    ratios = []
    for name, found in work(folder).items():
        both = [found.get(key, (None,))[0] for key in (implementation, over)]
        if re.search(pattern, name) and None not in both:
            ratios.append(both[0] / both[1])
    return ratios


def shares(folder, pattern, column="share of the ceiling"):
    """Per cent of the ceiling, of each kernel's row that matches."""
    rows = [r for r in read(folder, "kernels") if re.search(pattern, f"{r['kernel']}: {r['case']}")]
    return [share for row in rows if (share := number(row[column])) is not None]
