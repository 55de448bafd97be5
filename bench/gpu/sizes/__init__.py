"""Every kernel at real sizes, and the least bytes it can move there: a file a family.

A row is the kernel, the case, its bytes (read and written, once), a function that runs it, and the
ceiling that it is held against: "fill" where it only writes, else "copy". What multiplies matrices
has its operations for bytes, and "matrix product, bfloat16", "tf32" or "float32" for ceiling.
"""

from sizes import attacks, density, influence, lipschitz, masking, smoothing

GROUPS = [
    group
    for family in (smoothing, density, lipschitz, masking, influence, attacks)
    for group in family.GROUPS
]
