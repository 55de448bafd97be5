"""Noise, ablations, votes."""

import torch

from cases.case import FLOATS, LAST, Case, normal, uniform, with_gradients
from robustcore import ops


def noises():
    for kind in ("gaussian", "uniform", "laplace"):
        op = getattr(ops, f"{kind}_noise")
        for name, dtype in FLOATS.items():
            # 3 channels and 16, 37 pixels a row: quads of samples cross every border.
            for shape in ((2, 3, 5, 37), (1, 16, 4, 4)):
                for layout in (torch.contiguous_format, LAST):
                    label = f"{name}, {list(shape)}, {str(layout).split('.')[1]}"

                    def plain(device, op=op, shape=shape, dtype=dtype, layout=layout):
                        x = uniform(*shape, dtype=dtype).to(device)
                        return [op(x, 5, 0.25, seed=3, memory_format=layout)]

                    def normalised(device, op=op, shape=shape, dtype=dtype, layout=layout):
                        x = uniform(*shape, dtype=dtype).to(device)
                        mean = uniform(shape[1], seed=1).to(device)
                        options = dict(seed=3, mean=mean, std=mean + 0.5, memory_format=layout)
                        return [op(x, 5, 0.25, sample_offset=2**33, **options)]

                    yield Case(f"{kind}_noise", label, plain)
                    yield Case(f"{kind}_noise", f"{label}, mean and std", normalised)
        for name in ("float32", "float64"):

            def gradients(device, op=op, dtype=FLOATS[name]):
                x, sigma = uniform(2, 3, 5, 7, dtype=dtype), torch.full((1, 3, 5, 7), 0.3).to(dtype)
                return with_gradients(lambda x, s: op(x, 9, s, seed=3), device, x, sigma)[:2]

            yield Case(f"{kind}_noise", f"{name}, gradient", gradients)


def other_samples():
    for name, dtype in FLOATS.items():
        yield Case(
            "splitting_noise", name,
            lambda device, dtype=dtype: [
                ops.splitting_noise(uniform(2, 3, 5, 7, dtype=dtype).to(device), 9, 0.3, seed=3)
            ],
        )  # fmt: skip
        yield Case(
            "ablate_pixels", f"{name}, with gradient",
            lambda device, dtype=dtype: with_gradients(
                lambda x: ops.ablate_pixels(x, 9, 11, seed=3), device,
                uniform(2, 3, 5, 7, dtype=dtype),
            ),
        )  # fmt: skip
        yield Case(
            "ablate_patches", f"{name}, with gradient",
            lambda device, dtype=dtype: with_gradients(
                lambda x: ops.ablate_patches(x, 3), device, uniform(2, 3, 5, 7, dtype=dtype)
            ),
        )  # fmt: skip
        for shape in ((3, 50, 10), (1, 70, 1000), (2, 9, 40)):
            yield Case(
                "count_votes", f"{name}, {list(shape)}",
                lambda device, dtype=dtype, shape=shape: [
                    ops.count_votes(normal(*shape, dtype=dtype).to(device))
                ],
            )  # fmt: skip


GROUPS = (noises, other_samples)
