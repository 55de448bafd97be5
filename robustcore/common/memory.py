"""How the C library treats memory that a model on the CPU frees, batch after batch."""

import ctypes
import sys

# Names of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets this process use freed memory again instead of handing it back to the system.

    The activations of a model are large blocks, which the GNU C library takes from the system and
    returns at every layer of every batch; the page faults of that can take as long as the
    computation, and two processes get in each other's way with them. After this call memory stays
    with the process until it ends: for one that does nothing but sample, as ``robustcore certify``
    on a CPU, which calls it.

    Returns:
        Whether the C library has these settings; they do nothing to another allocator.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
