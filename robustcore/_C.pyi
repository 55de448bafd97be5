from typing import Any

MAX_FILL_ITERS: int
MAX_FILL_ITERS_TRANSPOSED: int
MAX_SERIES_DEGREE: int
MAX_SERIES_BLOCK_DEGREE: int
HOUSEHOLDER: int
HOUSEHOLDER2: int
PROJECTION: int
PAIR_MAP_ANGLES: tuple[int, int, int]

def build_info() -> dict[str, Any]: ...
def select_simd(name: str) -> None: ...
def winograd_block() -> int: ...
def philox4x32(counter: list[int], seed: int) -> list[int]: ...
def series_block_fits(
    channels: int, height: int, width: int, degree: int, bytes: int, device: int
) -> bool: ...
