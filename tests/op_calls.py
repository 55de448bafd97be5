"""Every public op called as tests/bad_input/examples.py has it, on any device."""

import functools

import torch
from torch.utils._pytree import tree_flatten, tree_map

from bad_input.examples import EXAMPLES
from robustcore import ops

CALLS = sorted(name.removeprefix("ops.") for name in EXAMPLES if name.startswith("ops."))

# Their sums are torch's products and convolutions, or in another order: near, not equal.
NEAR = {
    "attention", "conv_exp", "conv_norm_bound", "conv_spectral_bound", "linear_logsumexp",
    "masked_conv2d", "masked_mean", "masked_pool", "perceptual_distance", "skew_kernel",
    "spatial_warp",
}  # fmt: skip
IN_PLACE = {"apgd_step", "attack_watch"}
CONSTANT = {"mask", "angles", "shifts"}


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def is_float(value):
    return is_tensor(value) and value.is_floating_point()


def op_of(call):
    return call.split("/")[0]


def arguments(call, device, change=lambda t: t):
    """Of the call, anew: every tensor changed, and moved to the device."""
    _, given = EXAMPLES[f"ops.{call}"]()
    moved = tree_map(lambda v: change(v.detach().clone()) if is_tensor(v) else v, given)
    return tree_map(lambda v: v.to(device) if is_tensor(v) else v, moved)


def tensors(*trees):
    return [leaf for leaf in tree_flatten(trees)[0] if is_tensor(leaf)]


def run(call, given):
    """What the op gives, and its arguments after it: some write to them."""
    return tensors(getattr(ops, op_of(call))(**given), given)


@functools.cache
def upstream(shape, dtype, device):
    """Made on the CPU, and once: a capture cannot fetch it."""
    return torch.linspace(-1, 1.5, shape.numel()).view(shape).to(device, dtype)


def with_derivatives(call, given, orders):
    """The results that have a derivative, their gradients, and those of these; [] if there is none.

    A mask, a pose and what is written to are constants.
    """
    if op_of(call) in IN_PLACE:
        return []

    def leaf(v):
        return v.detach().requires_grad_() if is_float(v) else v

    given = {
        name: value if name in CONSTANT else tree_map(leaf, value)
        for name, value in given.items()
        if name != "out"
    }
    inputs = [t for t in tensors(given) if t.requires_grad]
    values = [t for t in tensors(getattr(ops, op_of(call))(**given)) if t.requires_grad]
    results = list(values)
    for order in range(orders * bool(values)):
        along = [upstream(t.shape, t.dtype, t.device) for t in values]
        values = torch.autograd.grad(
            values, inputs, along, create_graph=order + 1 < orders, materialize_grads=True
        )
        results += values
        values = [t for t in values if t.requires_grad]
    return [t.detach() for t in results]
