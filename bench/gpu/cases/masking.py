"""Fills, epilogues, convolutions under masks."""

import torch

from cases.case import FLOATS, LAST, Case, normal, uniform, with_gradients
from robustcore import ops

raw = torch.ops.robustcore


def masks(shape, number, binary):
    mask = uniform(number, 1, *shape[2:], seed=5)
    return (mask < 0.2).float() if binary else torch.where(mask < 0.7, 0, mask)


def fills():
    for name, dtype in FLOATS.items():
        for shape, number, last in (
            ((2, 3, 17, 11), 2, False),
            ((1, 20, 9, 14), 5, False),
            ((2, 20, 9, 14), 2, True),
        ):
            for binary in (True, False):
                for iters in (0, 1, 2, 6, 9):

                    def run(
                        device, shape=shape, number=number, last=last, binary=binary, iters=iters,
                        dtype=dtype,
                    ):  # fmt: skip
                        x = normal(*shape, dtype=dtype)
                        x = x.contiguous(memory_format=LAST) if last else x
                        mask = masks(shape, number, binary).to(dtype=torch.promote_types(
                            dtype, torch.float32)).to(device)  # fmt: skip
                        return with_gradients(
                            lambda x: ops.neighbor_fill(x, mask, iters, detach=False), device, x
                        )

                    layout = "channels last" if last else "contiguous"
                    label = f"{name}, {list(shape)}, {layout}, {number} masks"
                    label += f", {'binary' if binary else 'soft'}, {iters} iterations"
                    yield Case("neighbor_fill", label, run)


def epilogues():
    for name, dtype in FLOATS.items():
        wide = torch.promote_types(dtype, torch.float32)
        for last in (False, True):
            for shift in (False, True):
                for relu in (False, True):

                    def run(device, dtype=dtype, wide=wide, last=last, shift=shift, relu=relu):
                        x = normal(2, 20, 9, 7, dtype=dtype)
                        x = x.contiguous(memory_format=LAST) if last else x
                        mask = masks((2, 20, 9, 7), 2, True).to(device, wide)
                        numbers = normal(2, 20, dtype=wide, seed=6).to(device)
                        x, scale = x.to(device), numbers[0]
                        add = numbers[1] if shift else None
                        own = x.clone()
                        raw.mask_epilogue_(own, mask, scale, add, relu)
                        return [own, raw.mask_epilogue(x, mask, scale, add, relu)]

                    label = f"{name}, {'channels last' if last else 'contiguous'}, scale"
                    label += ", shift" * shift + ", ReLU" * relu
                    yield Case("mask_epilogue", label, run)

    def convolution(device):
        x, mask = normal(2, 8, 9, 7).to(device), masks((2, 8, 9, 7), 2, True).to(device)
        weight, scale = normal(6, 8, 3, 3).to(device), normal(6, seed=1).to(device)
        return [*ops.masked_conv2d(x, mask, weight, padding=1, scale=scale, relu=True)]

    yield Case("masked_conv2d", "float32", convolution, False)


GROUPS = (fills, epilogues)
