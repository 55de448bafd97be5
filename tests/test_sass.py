"""bench/sass.py: what it reads out of machine code."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "bench" / "sass.py"
spec = importlib.util.spec_from_file_location("sass", PATH)
sass = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sass)


def listing(*instructions):
    """As cuobjdump prints them, 16 bytes each."""
    lines = (
        f"        /*{16 * i:04x}*/    {text} ;  /* 0x0 */" for i, text in enumerate(instructions)
    )
    return "\n".join(lines)


COPY = (
    "MOV R1, c[0x0][0x28]",
    "LDG.E.128 R4, desc[UR4][R2.64]",
    "@P0 BRA 0x0040",
    "IADD3 R9, R9, 0x1, RZ",
    "STG.E.128 desc[UR4][R6.64], R4",
    "@P1 BRA 0x0010",
    "EXIT",
)
PRODUCTS = (
    "LDG.E.64 R4, desc[UR4][R2.64]",
    "LDSM.16.M88.4 R8, [R7]",
    "HMMA.16816.F32.BF16 R12, R8, R4, R12",
    "HMMA.16816.F32.BF16 R16, R8, R4, R16",
    "@!P0 BRA 0x0010",
    "STG.E.64 desc[UR4][R6.64], R12",
    "@P1 BRA 0x0000",
    "EXIT",
)


def kernel(code):
    return sass.Kernel("k", 32, 0, 0, sass.inner_loop(sass.parse(listing(*code))))


def test_a_loop_that_stores():
    loop = kernel(COPY).loop
    assert loop == sass.Loop(instructions=4, bytes=32)  # by the branch round the IADD3
    assert loop.cost() == 4 / 32


def test_a_loop_of_products():
    """The inner one, though the outer one stores: two products in four instructions."""
    found = kernel(PRODUCTS)
    assert found.loop == sass.Loop(instructions=4, bytes=0, products=2, tensor_cycles=8.0)
    assert found.loop.cost() == 2
    assert found.tensor_share() == 1
    narrow = kernel([code.replace("16816.F32.BF16", "1688.F32.TF32") for code in PRODUCTS])
    assert narrow.loop.tensor_cycles == 8
    crowded = kernel([*PRODUCTS[:2], *["FADD R0, R0, R0"] * 20, *PRODUCTS[2:4], "@!P0 BRA 0x0010"])
    assert crowded.tensor_share() == pytest.approx(8 / (24 / 0.85))


@pytest.mark.parametrize("code", [COPY, PRODUCTS])
def test_a_kernel_that_got_worse_fails(code, tmp_path):
    table = tmp_path / "table.md"
    table.write_text(sass.table([kernel(code)]))
    assert sass.check([kernel(code)], table) == 0
    loop = kernel(code).loop
    longer = kernel(code)._replace(loop=loop._replace(instructions=loop.instructions + 1))
    assert sass.check([longer], table) == 1


def test_a_new_kernel_fails(tmp_path):
    table = tmp_path / "table.md"
    table.write_text(sass.table([]))
    assert sass.check([kernel(COPY)], table) == 1


def test_names_are_those_of_the_source():
    name = "noise<float, (robustcore::Kind)0, 3>(robustcore::A)"
    assert (
        sass.short(f"void robustcore::(anonymous namespace)::{name}") == "noise<float, Kind 0, 3>"
    )
    assert sass.short("robustcore::logsumexp") == "logsumexp"
