"""The projection's matrix, written a second time: in NumPy, from its documentation."""

import numpy as np

from smoothing.stream import philox4x32

RADEMACHER, NORMAL = 24, 25


def words(seed, rows, block, domain):
    """The four words of a block of each row, ``[4, rows]``."""
    rows = np.asarray(rows, dtype=np.uint64)
    ones = np.ones_like(rows)
    return philox4x32(
        [
            rows & np.uint64(0xFFFFFFFF),
            ones * np.uint64(block & 0xFFFFFFFF),
            (rows >> np.uint64(32)) & np.uint64(0xFFFFFFFF),
            ones * np.uint64(domain << 24),
        ],
        seed,
    )


def signs(seed, first, count, k):
    """Entries 1 or -1, ``[count, k]``."""
    rows = np.arange(first, first + count, dtype=np.uint64)
    columns = []
    for c in range(k):
        if c % 128 == 0:
            block = words(seed, rows, c // 128, RADEMACHER)
        bit = block[c % 128 // 32] >> np.uint64(c % 32) & np.uint64(1)
        columns.append(1.0 - 2.0 * bit)
    return np.stack(columns, 1)


def normals(seed, first, count, k):
    """Normal entries ``[count, k]``: exact (float64) but for u, which is rounded to float32."""
    rows = np.arange(first, first + count, dtype=np.uint64)
    columns = []
    for block in range(-(-k // 4)):
        w = words(seed, rows, block, NORMAL)
        for pair in (0, 2):
            u = (w[pair].astype(np.float32).astype(np.float64) / 2**32 + 1 / 2**33).astype(
                np.float32
            )
            r = np.sqrt(-2 * np.log(u.astype(np.float64)))
            angle = w[pair + 1].astype(np.int64)
            sign = np.where(angle >> 31, -1.0, 1.0)
            v = ((angle << 1 & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
            columns += [
                sign * r * np.cos(np.pi / 2 * v / 2**31),
                sign * r * np.sin(np.pi / 2 * v / 2**31),
            ]
    return np.stack(columns[:k], 1)
