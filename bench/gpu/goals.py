"""The goals that a GPU is to decide, each beside what was measured.

A goal is met when the worst of the rows that it is about meets it.
"""

import re
from typing import NamedTuple

from tables import number, read, shares, stages, times, work


class Goal(NamedTuple):
    """``measured(folder)`` lists figures; ``best`` is min where small ones are good, else max."""

    what: str
    wanted: str
    limit: float
    good: str  # "high" or "low"
    unit: str
    measured: object

    def verdict(self, folder):
        """What was found, and "met", "missed" or "not measured"."""
        found = self.measured(folder)
        if not found:
            return "", "not measured"
        worst = min(found) if self.good == "high" else max(found)
        met = worst >= self.limit if self.good == "high" else worst <= self.limit
        shown = f"{worst:.3g}{self.unit}"
        if len(found) > 1:
            best = max(found) if self.good == "high" else min(found)
            shown += f" (of {len(found)}; best {best:.3g}{self.unit})"
        return shown, "met" if met else "missed"


def kernel(what, limit, pattern, column="share of the ceiling"):
    return Goal(
        what, f">= {limit} %", limit, "high", " %", lambda f: shares(f, pattern, column)
    )  # fmt: skip


def faster(what, limit, pattern, implementation):
    return Goal(
        what, f">= {limit}x", limit, "high", "x", lambda f: times(f, pattern, implementation)
    )  # fmt: skip


def at_most(what, limit, pattern, over):
    return Goal(
        what, f"<= {limit}x", limit, "low", "x", lambda f: times(f, pattern, "robustcore", over)
    )  # fmt: skip


def memory(folder):
    """Per cent of eager's peak."""
    found = [w for name, w in work(folder).items() if name.startswith("linear_logsumexp")]
    pairs = [
        (w["robustcore"][1], w["eager"][1]) for w in found if {"robustcore", "eager"} <= set(w)
    ]
    return [100 * ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def unequal(folder):
    """Cases of ops that promise the CPU's bits and did not give them."""
    rows = [row for row in read(folder, "ops") if row["wanted"] == "equal"]
    return [sum(row["found"] != "equal" for row in rows)] if rows else []


def sanitizers(folder):
    """Errors by compute-sanitizer's last line; one where it did not come to an end."""
    found = []
    for name, status, _ in stages(folder):
        if name in ("memcheck", "racecheck"):
            log = (folder / f"{name}.log").read_text(errors="replace")
            said = re.findall(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", log)
            if said or status != "passed":
                found.append(number(said[-1]) if said else 1.0)
    return found


SMALL = "share of torch's at this size"
GOALS = [
    kernel("noise of fill_, float32", 80, r"^gaussian_noise: (100000|2000) x .*float32$"),
    kernel("noise of fill_, bfloat16", 80, r"^gaussian_noise: (100000|2000) x .*bfloat16$"),
    kernel("noise 1000 x 3x32x32, mean and std", 80, r"^gaussian_noise: 1000 x .*and std", SMALL),
    kernel("noise, channels last", 85, r"^gaussian_noise: 100000 x .*last"),
    kernel("splitting noise", 85, r"^splitting_noise", SMALL),
    kernel("maxmin", 85, r"^maxmin: .4096"),
    kernel("fill, channels last", 70, r"^neighbor_fill: .64, (64|512),.* 1 iter.*last"),
    kernel("epilogue, channels last", 70, r"^mask_epilogue_: .64, (64|512),.*last"),
    faster("certify, small CNN, of the published loop", 3, "certify.*small CNN", "published"),
    at_most("certify, ResNet-50, of the bare model", 1.03, "certify.*ResNet-50", "model alone"),
    faster("SOC training, of the published", 3, "SOC training step", "published"),
    faster("SOC inference, of the published", 4, "SOC inference", "published"),
    at_most("masked ResNet-50, float32, of the plain", 1.15, "masked ResNet-50.*float32", "plain"),
    at_most("masked ResNet-50, bfloat16, of the plain", 1.15, "masked ResNet-50.*bfloat16",
            "plain"),
    faster("density step, of the published stable form", 1.4, "density training",
           "published, two gradients"),
    Goal("linear_logsumexp, of eager's memory", "<= 2 %", 2, "low", " %", memory),
    faster("linear_logsumexp, of eager", 1.3, "^linear_logsumexp", "eager"),
    Goal("cases off the CPU's bits", "0", 0, "low", "", unequal),
    Goal("compute-sanitizer's errors", "0", 0, "low", "", sanitizers),
]  # fmt: skip


def rows(folder):
    """Goal, wanted, measured, verdict."""
    return [(goal.what, goal.wanted, *goal.verdict(folder)) for goal in GOALS]
