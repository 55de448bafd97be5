"""The noise stream, written a second time: in NumPy, from its documentation, in float64."""

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter, seed):
    """Ten rounds on counter words ``[4, N]`` (uint64 arrays of 32-bit values)."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & LOW,
        )
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def normals(seed, image, sample, elements):
    """One sample of one image: exact (float64) but for u, which the stream rounds to float32."""
    blocks = -(-elements // 4)
    ones = np.ones(blocks, dtype=np.uint64)
    words = philox4x32(
        [
            np.arange(blocks, dtype=np.uint64),
            ones * np.uint64(sample & 0xFFFFFFFF),
            ones * np.uint64(image & 0xFFFFFFFF),
            ones * np.uint64((sample >> 32) << 16 | (image >> 32)),
        ],
        seed,
    )
    z = np.empty((blocks, 4))
    for pair in (0, 2):
        radius, angle = words[pair].astype(np.float32), words[pair + 1].astype(np.int64)
        u = (radius.astype(np.float64) / 2**32 + 1 / 2**33).astype(np.float32)
        r = np.sqrt(-2 * np.log(u.astype(np.float64)))
        sign = np.where(angle >> 31, -1.0, 1.0)
        v = ((angle << 1 & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000  # as a signed 32-bit integer
        z[:, pair] = sign * r * np.cos(np.pi / 2 * v / 2**31)
        z[:, pair + 1] = sign * r * np.sin(np.pi / 2 * v / 2**31)
    return z.reshape(-1)[:elements]


def words(seed, image, sample, elements, domain):
    """Philox words of one sample of one image, element by element."""
    blocks = -(-elements // 4)
    ones = np.ones(blocks, dtype=np.uint64)
    high = domain << 24 | (sample >> 32) << 16 | (image >> 32)
    out = philox4x32(
        [
            np.arange(blocks, dtype=np.uint64),
            ones * np.uint64(sample & 0xFFFFFFFF),
            ones * np.uint64(image & 0xFFFFFFFF),
            ones * np.uint64(high),
        ],
        seed,
    )
    return out.T.reshape(-1)[:elements]
