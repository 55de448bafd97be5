"""Images turned and moved: what a spatial attack looks through."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, needs_grad, raw, register_loop
from robustcore.ops.checks import check_device, check_floating

_warp = raw.warp_images.default
_transposed = raw.warp_images_transposed.default


def spatial_warp(x: Tensor, angles: Tensor, shifts: Tensor | None = None) -> Tensor:
    """Every image turned about its centre and then moved, for each of P poses.

    Bilinear, zeros outside. No grid and no copies of the images are held beside the output: of a
    grid of 775 poses ``affine_grid`` alone takes 2/3 of what the poses of a colour image take.

    Args:
        x: images ``[B, C, H, W]``, floating, any strides, ``(H + 4) * (W + 4)`` below 2**31.
        angles: floating ``[P]``, or ``[B, P]`` for poses of each image's own; degrees, against
            the clock.
        shifts: floating ``[P, 2]`` or ``[B, P, 2]``, pixels down and to the right; None: none.

    Returns:
        ``[B, P, C, H, W]``, contiguous, of x's dtype. Arithmetic is in float32, in float64 if x
        is. Quarter turns of square images are ``torch.rot90`` to the bit, and moves by whole
        pixels are copies. A pose that is no number or out of sight is all zeros.

    Raises TypeError or ValueError naming the argument. Differentiable to any order in x; angles
    and shifts have no gradient, as poses are searched.

    Source: Engstrom et al., "Exploring the landscape of spatial robustness", 2019.

    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> spatial_warp(x, torch.tensor([90.0, 0.0]), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))[0, :, 0]
    tensor([[[2., 4.],
             [1., 3.]],
    <BLANKLINE>
            [[0., 0.],
             [1., 2.]]])
    """
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: got shape {list(x.shape)}, want [B, C, H, W]")
    turns = _turns(x, angles, shifts)
    if needs_grad(x):
        return _Warp.apply(x, turns)
    return _warp(x.contiguous(), turns)


def _turns(x: Tensor, angles: Tensor, shifts: Tensor | None) -> Tensor:
    """Cosine, sine, pixels down and to the right ``[B | 1, P, 4]`` of every pose."""
    poses = _of_poses("angles", angles, x, 0)
    # In float64, and the part below 45 degrees by itself, so that quarter turns are exact.
    quarters = (poses / 90).round()
    rest = (poses - 90 * quarters).deg2rad()
    cosine, sine, quarter = rest.cos(), rest.sin(), quarters % 4
    odd, back = quarter % 2 == 1, quarter >= 2
    cosine, sine = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    turned = torch.stack([torch.where(back, -cosine, cosine), torch.where(back, -sine, sine)], 2)
    if shifts is None:
        moved = torch.zeros_like(turned)
    else:
        moved = _of_poses("shifts", shifts, x, 1)
        if moved.shape[1:] != (poses.shape[1], 2):
            want = f"[{poses.shape[1]}, 2] or [{len(x)}, {poses.shape[1]}, 2]"
            raise ValueError(f"shifts: got shape {list(shifts.shape)}, want {want}")
    rows = max(len(turned), len(moved))
    both = turned.expand(rows, -1, -1), moved.expand(rows, -1, -1)
    return torch.cat(both, 2).to(arithmetic(x)).contiguous()


def _of_poses(name: str, t: Tensor, x: Tensor, after: int) -> Tensor:
    """``[B | 1, P, ...]`` in float64 of what is given for all images, or for each."""
    check_floating(name, t)
    check_device(name, t, x)
    if t.requires_grad:
        raise ValueError(f"{name}: requires a gradient, and has none; want {name}.detach()")
    if t.dim() == 1 + after:
        t = t.unsqueeze(0)
    if t.dim() != 2 + after or (len(t) not in (1, len(x))):
        want = "[P] or [B, P]" if after == 0 else "[P, 2] or [B, P, 2]"
        raise ValueError(f"{name}: got shape {list(t.shape)}, want {want} for {len(x)} images")
    return t.double()


class _Warp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, turns):
        return _warp(x.contiguous(), turns)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        return _Transposed.apply(grad, ctx.saved_tensors[0]), None


class _Transposed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, turns):
        return _transposed(grad.contiguous(), turns)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, v):
        return _Warp.apply(v, ctx.saved_tensors[0]), None


@torch.library.register_fake("robustcore::warp_images")
def _(x, turns):
    return x.new_empty([x.shape[0], turns.shape[1], *x.shape[1:]])


@torch.library.register_fake("robustcore::warp_images_transposed")
def _(grad, turns):
    return grad.new_empty([grad.shape[0], *grad.shape[2:]])


for _op in (_warp, _transposed):
    register_loop(_op, Tensor.contiguous)
