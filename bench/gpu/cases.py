"""One small call of every op, forward and backward, as functions of a device.

Inputs are made on the CPU, so they are the same wherever the op runs. `exact` says that the op
gives the CPU's bits there; what goes through cuBLAS or cuDNN is only near.
"""

from typing import NamedTuple

import torch

from robustcore import ops

FLOATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LAST = torch.channels_last


class Case(NamedTuple):
    """``run(device)`` gives the tensors that the devices are compared by."""

    op: str
    name: str
    run: object
    exact: bool = True


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def uniform(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def with_gradients(fn, device, *inputs, orders=1):
    """fn's value, its gradient along fixed numbers, and that gradient's own gradient."""
    inputs = [t.to(device).requires_grad_() for t in inputs]
    value = fn(*inputs)
    upstream = normal(*value.shape, dtype=value.dtype, seed=7).to(device)
    first = torch.autograd.grad(value, inputs, upstream, create_graph=orders > 1)
    results = [value, *first]
    if orders > 1:
        along = [normal(*t.shape, dtype=t.dtype, seed=8).to(device) for t in first]
        results += torch.autograd.grad(first, inputs, along)
    return [t.detach() for t in results]


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


def densities():
    for name, dtype in FLOATS.items():
        for shape in ((5, 10), (4, 1000), (2, 5000)):
            yield Case(
                "logsumexp", f"{name}, {list(shape)}, two derivatives",
                lambda device, dtype=dtype, shape=shape: with_gradients(
                    ops.logsumexp, device, normal(*shape, dtype=dtype), orders=2
                ),
            )  # fmt: skip
        for p in (1.0, 2.0, 3.0, float("inf")):
            for shape in ((5, 10), (3, 3000)):
                yield Case(
                    "grad_norm", f"{name}, p = {p:g}, {list(shape)}, two derivatives",
                    lambda device, dtype=dtype, p=p, shape=shape: with_gradients(
                        lambda g: ops.grad_norm(g, p), device, normal(*shape, dtype=dtype), orders=2
                    ),
                )  # fmt: skip
        yield Case(
            "linear_logsumexp", f"{name}, two derivatives",
            lambda device, dtype=dtype: with_gradients(
                ops.linear_logsumexp, device, normal(7, 16, dtype=dtype),
                normal(1100, 16, dtype=dtype) / 4, normal(1100, dtype=dtype), orders=2,
            ), False,
        )  # fmt: skip


def pairs():
    maps = {
        "maxmin": lambda x: ops.maxmin(x),
        "householder": lambda x: ops.householder(x, angles(x, 8)),
        "householder2": lambda x: ops.householder(x, angles(x, 3, 8)),
        "projection_pool": lambda x: ops.projection_pool(x, angles(x, 8)),
    }

    def angles(x, *shape):
        return 3 * uniform(*shape, dtype=x.dtype, seed=4).to(x.device)

    for op, fn in maps.items():
        for name, dtype in FLOATS.items():
            for last in (False, True):

                def run(device, fn=fn, dtype=dtype, last=last):
                    x = normal(3, 16, 5, 7, dtype=dtype)
                    x = x.contiguous(memory_format=LAST) if last else x
                    return with_gradients(fn, device, x)

                yield Case(op, f"{name}, {'channels last' if last else 'contiguous'}", run)


def series():
    for name, dtype in FLOATS.items():
        yield Case(
            "skew_kernel", name,
            lambda device, dtype=dtype: [
                ops.skew_kernel(normal(6, 6, 3, 3, dtype=dtype).to(device)).kernel
            ],
        )  # fmt: skip

        def run(device, dtype=dtype):
            kernel = ops.skew_kernel(normal(24, 24, 3, 3, dtype=dtype) / 30).kernel
            return with_gradients(
                lambda x, k: ops.conv_exp(x, k, radius=1.5, degree=4), device,
                normal(2, 24, 6, 5, dtype=dtype), kernel,
            )  # fmt: skip

        yield Case("conv_exp", name, run, False)


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
    raw = torch.ops.robustcore
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


def projections():
    for kind in ("rademacher", "normal"):
        for name, dtype in FLOATS.items():
            for shape, k in (((3, 40), 7), ((33, 5000), 600)):
                yield Case(
                    "random_projection", f"{kind}, {name}, {list(shape)} to {k}, with gradient",
                    lambda device, kind=kind, dtype=dtype, shape=shape, k=k: with_gradients(
                        lambda x: ops.random_projection(
                            x, k, seed=3, row_offset=2**32 - 20, kind=kind
                        ),
                        device, normal(*shape, dtype=dtype),
                    ),
                )  # fmt: skip


NORMS = {"linf": 0.1, "l2": 1.0, "l1": 5.0, "l0": 9.0}


def attack_steps():
    for name, dtype in FLOATS.items():
        for norm, eps in NORMS.items():

            def run(device, dtype=dtype, norm=norm, eps=eps):
                x, x0 = (uniform(3, 3, 9, 7, dtype=dtype, seed=s).to(device) for s in (0, 1))
                grad = normal(3, 3, 9, 7, dtype=dtype, seed=2).to(device)
                index = torch.arange(3, device=device)
                ball = dict(norm=norm, eps=eps)
                made = [
                    ops.project(x, x0, norm, eps),
                    ops.random_start(x0, index, index, seed=3, **ball),
                ]
                made.append(ops.attack_step(x, grad, x0, step_size=eps / 4, **ball))
                if norm in ("linf", "l2"):
                    made.append(ops.attack_step(
                        x, grad, x0, step_size=eps / 4, momentum=0.75, previous=x0, **ball
                    ))  # fmt: skip
                if norm != "l0":
                    offset = normal(3, seed=4).to(device, torch.promote_types(dtype, torch.float32))
                    made.append(ops.hyperplane_projection(x, grad, offset, norm=norm))
                return made

            yield Case("attack_step", f"{name}, {norm}, with project and the like", run)
        for loss in ("ce", "margin", "dlr"):
            for targeted in (False, True):

                def losses(device, dtype=dtype, loss=loss, targeted=targeted):
                    labels = (torch.arange(40) % 7).to(device)
                    targets = (labels + 1) % 7 if targeted else None
                    z = normal(40, 7, dtype=dtype).to(device)
                    return [*ops.attack_loss(z, labels, targets, loss=loss)]

                yield Case("attack_loss", f"{name}, {loss}{', targeted' * targeted}", losses)


def apgd_state(dtype, device):
    wide = torch.promote_types(dtype, torch.float32)
    points = [uniform(12, 3, 5, 4, dtype=dtype, seed=s).to(device) for s in range(4)]
    numbers = [(4 * uniform(12, seed=s)).floor().to(device, wide) for s in range(6)]
    width = (torch.arange(12) % 3 * 2).to(device)
    return points, numbers, (torch.arange(12) % 2 == 0).to(device), width


def attack_searches():
    for name, dtype in FLOATS.items():

        def update(device, dtype=dtype):
            (x, grad, best, best_grad), numbers, cut, width = apgd_state(dtype, device)
            loss, best_loss, *others = numbers
            ops.apgd_update(x, grad, loss, best, best_grad, best_loss, *others, cut, width)
            return [x, grad, best, best_grad, best_loss, *others, cut]

        def squares(device, dtype=dtype):
            x0 = uniform(3, 3, 12, 9, dtype=dtype).to(device)
            index = torch.arange(3, device=device)
            where = dict(eps=0.1, seed=3)
            best = ops.square_start(x0, index, index, **where)
            share = torch.full((3,), 0.2, device=device, dtype=torch.promote_types(
                dtype, torch.float32))  # fmt: skip
            return [best, ops.square_propose(best, x0, index, index, index, share, **where)]

        def warp(device, dtype=dtype):
            angles = torch.tensor([0.0, 90.0, 17.0, -30.0]).to(device)
            shifts = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.25, 3.0], [-1.5, 0.0]]).to(device)
            return with_gradients(
                lambda x: ops.spatial_warp(x, angles, shifts), device,
                uniform(2, 3, 9, 7, dtype=dtype),
            )  # fmt: skip

        def distance(device, dtype=dtype):
            weights = [uniform(19, seed=5).to(device)]
            f, r = (normal(2, 19, 9, 8, dtype=dtype, seed=s) for s in (0, 1))
            return with_gradients(
                lambda f, r: ops.perceptual_distance([f], [r], weights), device, f, r
            )

        yield Case("apgd_update", name, update)
        yield Case("square_propose", f"{name}, with its start", squares)
        # Of many poses a GPU gathers in another order than the CPU scatters.
        yield Case("spatial_warp", f"{name}, with gradient", warp, False)
        yield Case("perceptual_distance", f"{name}, with gradients", distance, False)


def all_cases():
    for family in (
        noises, other_samples, densities, pairs, series, fills, epilogues, projections,
        attack_steps, attack_searches,
    ):  # fmt: skip
        yield from family()
