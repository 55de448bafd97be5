"""Steps and searches of attacks."""

import torch

from robustcore import ops
from sizes.size import raw, size_of


def apgd_state(x, grad, x0):
    """Rows in the middle of a run, none at a new best point."""
    zeros, flags = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    numbers = "loss", "ahead", "last_loss", "step_size", "rises", "checked"
    names = "found", "fooled", "zero", "nan_grad", "nan_logits", "cut"
    return dict(
        x=x, shown=None, grad=grad, x0=x0, previous=x.clone(), best=x0, best_grad=grad,
        best_loss=zeros + 1, counts=None, age=flags.long() + 5, widths=flags[:1].long(),
        **{name: zeros.clone() for name in numbers}, **{name: flags.clone() for name in names},
    )  # fmt: skip


def attack_ops(at):
    for shape in ((128, 3, 32, 32), (64, 3, 224, 224), (2000, 3, 224, 224)):
        x0 = torch.rand(at(*shape), device=at.device)
        x, grad, label = (x0 + 0.1).clamp(max=1), torch.randn_like(x0), f"{list(shape)}, float32"
        out, size = torch.empty_like(x0), size_of(x0)
        for norm, eps in (("linf", 0.1), ("l2", 3.0), ("l1", 12.0)):
            ball = dict(norm=norm, eps=eps, step_size=eps / 4, out=out)
            fn = lambda x=x, g=grad, x0=x0, b=ball: ops.attack_step(x, g, x0, **b)  # noqa: E731
            yield "attack_step", f"{label}, {norm}", 4 * size, fn, "copy"
            fn = lambda x=x, x0=x0, n=norm, e=eps, o=out: ops.project(x, x0, n, e, out=o)  # noqa: E731
            yield "project", f"{label}, {norm}", 3 * size, fn, "copy"
            if norm != "l1":
                state = dict(**apgd_state(x, grad, x0), norm=norm, eps=eps)
                fn = lambda s=state: ops.apgd_step(**s)  # noqa: E731
                yield "apgd_step", f"{label}, {norm}", 5 * size, fn, "copy"
    poses = torch.linspace(-30, 30, 8 if at.tiny else 775, device=at.device)
    for side in (32, 224):
        x = torch.rand(at(1, 3, side, side), device=at.device)
        made, label = size_of(x) * len(poses), f"{len(poses)} poses of [3, {side}, {side}]"
        yield "spatial_warp", label, made, lambda x=x: ops.spatial_warp(x, poses), "fill"
    for shape in ((50, 64, 56, 56), (50, 512, 7, 7), (500, 256, 56, 56)):
        f, r = at.randn(*at(*shape)), at.randn(*at(*shape))
        size, label = size_of(f), f"{list(shape)}, float32"
        fn = lambda f=f, r=r: raw.perceptual_distance(f, r, None)  # noqa: E731
        yield "perceptual_distance", label, 2 * size, fn, "copy"
        g = fn()
        fn = lambda g=g, f=f, r=r: raw.perceptual_distance_backward(g, f, r, None, True, False)  # noqa: E731
        yield "perceptual_distance, backward", label, 3 * size, fn, "copy"


GROUPS = (attack_ops,)
