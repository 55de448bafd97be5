"""One small call of every op, forward and backward, as functions of a device: a file a family.

Inputs are made on the CPU, so they are the same wherever the op runs. `exact` says that the op
gives the CPU's bits there; what goes through cuBLAS or cuDNN is only near.
"""

from cases import attacks, density, examples, influence, lipschitz, masking, smoothing


def all_cases():
    for family in (smoothing, density, lipschitz, masking, influence, attacks, examples):
        for group in family.GROUPS:
            yield from group()
