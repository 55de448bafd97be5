"""Steps, losses and searches of attacks."""

import torch

from cases.case import FLOATS, Case, normal, uniform, with_gradients
from robustcore import ops

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
    """All that a step takes, by name: rows at checkpoints and between, of higher losses and not."""
    wide = torch.promote_types(dtype, torch.float32)
    images = "x", "x0", "previous", "grad", "best", "best_grad"
    numbers = "loss", "ahead", "best_loss", "last_loss", "step_size", "rises", "checked"
    flags = "found", "fooled", "zero", "nan_grad", "nan_logits", "counts", "cut"
    state = {name: uniform(12, 3, 5, 4, dtype=dtype, seed=s) for s, name in enumerate(images)}
    state |= {name: (4 * uniform(12, seed=s)).floor().to(wide) for s, name in enumerate(numbers)}
    state |= {name: torch.arange(12) % (s + 3) == 1 for s, name in enumerate(flags)}
    state |= dict(age=torch.arange(12) % 4, widths=torch.tensor([0, 0, 2, 0, 4]))
    return {name: t.to(device) for name, t in state.items()}


def attack_searches():
    for name, dtype in FLOATS.items():

        def step(device, dtype=dtype):
            made = []
            for norm in ("linf", "l2"):
                state = apgd_state(dtype, device)
                ops.apgd_step(shown=None, **state, norm=norm, eps=NORMS[norm])
                made += state.values()
            return made

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

        yield Case("apgd_step", f"{name}, linf and l2", step)
        yield Case("square_propose", f"{name}, with its start", squares)
        # Of many poses a GPU gathers in another order than the CPU scatters.
        yield Case("spatial_warp", f"{name}, with gradient", warp, False)
        yield Case("perceptual_distance", f"{name}, with gradients", distance, False)


GROUPS = (attack_steps, attack_searches)
