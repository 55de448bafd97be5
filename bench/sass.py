"""What a GPU has to issue for every byte that it moves, read out of the machine code for sm_90.

    python bench/sass.py MODULE ... [--write FILE | --check FILE]

A MODULE is an object file, the compiled module or a wheel, with code for sm_90. `cuobjdump` and
`nvdisasm` are those in PATH or beside this Python (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).

Of each kernel: registers, shared memory, spills, and its innermost loop that stores (where none
does, that loads) the most global memory: instructions and bytes of a thread's one turn, by the
shortest of the paths that store most (of those that store nothing, load most). A processor issues
four instructions a cycle for 32 threads each; at 85 % of that, the share is what the loop reaches
of the copy bandwidth. It leaves out set-up and latency, and counts what a load finds in a cache as
moved: an estimate, until a GPU has measured it.

Of a kernel on the tensor cores it is the innermost loop with the most products (HMMA): their number
a turn, and the share of the time that they are at work, if nothing waits. 100 % is what `wgmma`
reaches; what a Hopper GPU makes of HMMA is about two thirds of that.

`--check` compares with an earlier table: a kernel whose loop takes over a tenth more instructions a
byte, or a product, fails.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROCESSORS, CLOCK = 132, 1.98e9
ISSUED = 4 * 32 * 0.85  # thread instructions a cycle and processor
BANDWIDTH = {"H100": 3.0e12, "H200": 4.3e12}  # of a copy, bytes a second
WORSE = 1.10

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
HEADER = (
    "kernel | registers | shared | spilled | instructions | bytes | of an H100 | of an H200 | "
    "products | of the tensor cores"
)
# Operations of one HMMA of a warp, by its shape, and a quarter of a processor's in a cycle.
PRODUCTS = {"16816": 2 * 16 * 8 * 16, "1688": 2 * 16 * 8 * 8, "1684": 2 * 16 * 8 * 4}
TENSOR_RATE = {"TF32": 512, "": 1024}


class Instruction(NamedTuple):
    op: str
    predicated: bool
    target: int | None  # of a branch: an index into the kernel's instructions

    def bytes(self) -> int:
        """Of global memory, a thread."""
        if not re.match(r"(LDG|STG|LD|ST)\b", self.op):
            return 0
        width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", self.op)
        return {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width[1]] if width else 4

    def tensor_cycles(self) -> float:
        """That a product keeps its quarter of a processor's tensor cores at work; else 0."""
        found = re.match(r"HMMA\.(\d+)\.F\d+(?:\.(TF32))?", self.op)
        return PRODUCTS[found[1]] / TENSOR_RATE[found[2] or ""] if found else 0

    def stores(self) -> bool:
        return self.op.startswith("ST")

    def ends(self) -> bool:
        """Whether what follows is reached only by a branch."""
        return not self.predicated and self.op.split(".")[0] in ("BRA", "EXIT", "RET", "JMP", "BRX")


class Loop(NamedTuple):
    instructions: int
    bytes: int
    products: int = 0
    tensor_cycles: float = 0

    def cost(self) -> float:
        """Instructions a product of the tensor cores, or else a byte; 0 where there is neither."""
        each = self.products or self.bytes
        return self.instructions / each if each else 0


class Kernel(NamedTuple):
    name: str
    registers: int
    shared: int
    spilled: int
    loop: Loop

    def share(self, gpu: str) -> float:
        moved = BANDWIDTH[gpu] / PROCESSORS / CLOCK  # bytes a cycle and processor
        return min(1.0, self.loop.bytes / moved / (self.loop.instructions / ISSUED))

    def tensor_share(self) -> float:
        """A warp's products, and its instructions, take their turns in a quarter of a processor."""
        return self.loop.tensor_cycles / max(self.loop.tensor_cycles, self.loop.instructions / 0.85)

    def row(self) -> str:
        loop, tensor = self.loop, bool(self.loop.products)
        cells = [f"`{self.name}`", self.registers, self.shared, self.spilled]
        cells += [loop.instructions, loop.bytes]
        moves = loop.bytes and not tensor
        cells += [f"{self.share(gpu):.0%}" if moves else "" for gpu in BANDWIDTH]
        cells += [loop.products, f"{self.tensor_share():.0%}"] if tensor else ["", ""]
        return "| " + " | ".join(map(str, cells)) + " |"


def parse(listing: str) -> list[Instruction]:
    found = [m for m in map(INSTRUCTION.match, listing.splitlines()) if m]
    index = {int(m[1], 16): i for i, m in enumerate(found)}
    code = []
    for m in found:
        # Where BRA.DIV goes, a warp whose threads have parted comes together: no way of its own.
        jumps = m[2].startswith("BRA") and m[2] != "BRA.DIV"
        target = re.search(r"0x([0-9a-f]+)\s*$", m[3]) if jumps else None
        code.append(
            Instruction(m[2], "@" in m[0], index.get(int(target[1], 16)) if target else None)
        )
    return code


def reached(code: list[Instruction]) -> set[int]:
    """What a kernel comes to; of a jump by a table, what follows it."""
    found, ways = set(), [0]
    while ways:
        i = ways.pop()
        if i in found or i >= len(code):
            continue
        found.add(i)
        if not code[i].ends() or code[i].op.startswith("BRX"):
            ways.append(i + 1)
        target = code[i].target
        if target is not None:
            ways.append(target)
    return found


def stored_bytes(step: Instruction) -> float:
    return step.bytes() if step.stores() else 0


def through(
    code: list[Instruction],
    first: int,
    last: int,
    weight: Callable[[Instruction], float] = stored_bytes,
) -> Loop:
    """One turn from `first` to the branch back at `last`: of the most weight, then the shortest."""
    end = (0.0, -1, (last,))  # weight, minus instructions, the path
    best = {last: end}
    for i in range(last - 1, first - 1, -1):
        step = code[i]
        following = [] if step.ends() else [i + 1]
        if step.target is not None and i < step.target <= last:
            following.append(step.target)
        ways = [best[j] for j in following if j in best]
        if ways:
            total, steps, path = max(ways, key=lambda way: way[:2])
            best[i] = total + weight(step), steps - 1, (i, path)
    path, taken = best.get(first, end)[2], []
    while len(path) == 2:
        taken.append(code[path[0]])
        path = path[1]
    taken.append(code[path[0]])
    cycles = [step.tensor_cycles() for step in taken]
    moved = sum(step.bytes() for step in taken)
    return Loop(len(taken), moved, sum(c > 0 for c in cycles), sum(cycles))


def inner_loop(code: list[Instruction]) -> Loop:
    """The innermost loop with the most products of the tensor cores; else the one that stores most,
    or one in it, or any, that loads more; all of a kernel that has none."""
    ways = ((code[i].target, i) for i in sorted(reached(code)))
    back = [(target, i) for target, i in ways if target is not None and target < i]

    def total(span: tuple[int, int], weight: Callable[[Instruction], float]) -> float:
        return sum(map(weight, code[span[0] : span[1] + 1]))

    def innermost(weight: Callable[[Instruction], float]) -> list[tuple[int, int]]:
        weighty = [span for span in back if total(span, weight)]
        return [
            (a, b)
            for a, b in weighty
            if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in weighty)
        ]

    weight: Callable[[Instruction], float] = Instruction.tensor_cycles
    spans = innermost(weight)
    if not spans and (spans := innermost(stored_bytes)):
        a, b = span = max(spans, key=lambda span: total(span, stored_bytes))
        within = [(c, d) for c, d in innermost(Instruction.bytes) if a <= c and d <= b]
        loading = [at for at in within if total(at, Instruction.bytes) > total(span, stored_bytes)]
        weight, spans = stored_bytes, [span]
        if loading and span not in within:
            weight, spans = Instruction.bytes, loading
    if not spans:
        weight, spans = Instruction.bytes, innermost(Instruction.bytes)
    if spans:
        return through(code, *max(spans, key=lambda span: total(span, weight)), weight)
    return through(code, 0, len(code) - 1)


def tool(name: str) -> str:
    beside = Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/*/bin/{name}")
    path = shutil.which(name) or next(map(str, beside), None)
    if path is None:
        sys.exit(f"bench/sass.py: no {name} found; pip install nvidia-cuda-{name}")
    Path(path).chmod(0o755)  # the packages forget it
    return path


def demangled(text: str) -> str:
    out = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    return short(out.stdout.strip())


def short(name: str) -> str:
    """As in the source, without namespaces and parameters."""
    name = re.sub(r"(\w+|\(anonymous namespace\))::|^void ", "", name)
    name = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", name)  # an enumerator
    return name.rpartition("(")[0] or name


@contextmanager
def unpacked(module: Path) -> Iterator[Path]:
    """The compiled module of a wheel; anything else is one."""
    if module.suffix != ".whl":
        yield module
        return
    with zipfile.ZipFile(module) as wheel, tempfile.TemporaryDirectory() as folder:
        (member,) = [n for n in wheel.namelist() if "/_C." in n and n.endswith(".so")]
        yield Path(wheel.extract(member, folder))


def dumps(module: Path, *options: str) -> list[str]:
    """What cuobjdump says to each of the options."""
    environment = {"PATH": f"{Path(tool('nvdisasm')).parent}:/usr/bin:/bin"}
    with unpacked(module) as file:
        runs = [
            subprocess.run(
                [tool("cuobjdump"), option, "-arch", "sm_90", file],
                capture_output=True, text=True, check=True, env=environment,
            )
            for option in options
        ]  # fmt: skip
    return [run.stdout for run in runs]


def kernels(module: Path) -> list[Kernel]:
    usage, code = dumps(module, "-res-usage", "-sass")
    of_kernel = {
        name: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", text)}
        for name, text in re.findall(r"Function (\S+):\n\s*(.*)", usage)
    }
    result = []
    for part in code.split("Function : ")[1:]:
        name, _, listing = part.partition("\n")
        used, loop = of_kernel[name.strip()], inner_loop(parse(listing))
        result.append(Kernel(demangled(name), used["REG"], used["SHARED"], used["LOCAL"], loop))
    return result


def table(found: list[Kernel]) -> str:
    rule = "|---" * len(HEADER.split("|")) + "|"
    return "\n".join(
        [
            "# Kernels in the machine code for sm_90",
            "",
            "Written by `bench/sass.py`, which says what the columns are. Not measured on a GPU.",
            "",
            f"| {HEADER} |",
            rule,
            *(kernel.row() for kernel in found),
            "",
        ]
    )


def earlier(file: Path) -> dict[str, float]:
    """Instructions a product, or a byte, by kernel."""
    found = {}
    for line in file.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("| `"):
            count, moved, products = cells[4], cells[5], (cells[8:9] or [""])[0]
            loop = Loop(int(count), int(moved), int(products or 0))
            found[cells[0].strip("`")] = loop.cost()
    return found


def check(found: list[Kernel], file: Path) -> int:
    before, failures = earlier(file), 0
    for kernel in found:
        now, was = kernel.loop.cost(), before.get(kernel.name)
        if now and (was is None or now > WORSE * was):
            each = "product" if kernel.loop.products else "byte"
            then = "not in the table before" if was is None else f"{was:.2f} before"
            print(f"{kernel.name}: {now:.2f} instructions a {each}, {then}")
            failures += 1
    print(f"{len(found)} kernels, {failures} that are new or worse than in {file}")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", type=Path, nargs="+", help="object file, module or wheel")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the table there")
    args = parser.parse_args()
    found = sorted(kernel for module in args.module for kernel in kernels(module))
    if args.write:
        args.write.write_text(table(found))
    elif not args.check:
        print(table(found))
    return check(found, args.check) if args.check else 0


if __name__ == "__main__":
    sys.exit(main())
