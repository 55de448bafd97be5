"""Small valid arguments, as functions that make them."""

import functools

import torch
from torch import nn

from robustcore import density, lipschitz, masking, ops, smoothing
from robustcore.common.graph import trace

CLASSES = 3


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@functools.cache
def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, CLASSES)).eval()


@functools.cache
def masked_network():
    return masking.MaskedModel(network())


@functools.cache
def smoothed():
    return smoothing.Smooth(network(), CLASSES, 0.25, seed=0)


def dense():
    """A segmentation network, and one of regression."""
    return nn.Conv2d(3, CLASSES, 1).eval()


def images(n=2):
    return rand(n, 3, 8, 8)


def mask():
    return (rand(2, 1, 8, 8) > 0.5).float()


def labels(n=2):
    return torch.arange(n) % CLASSES


def counts():
    return torch.tensor([[90, 7, 3], [5, 93, 2]])


NOISE = dict(
    x=images, num_samples=2, seed=0, image_offset=0, sample_offset=0, mean=None, std=None,
    dtype=torch.float32, memory_format=torch.contiguous_format, out=None,
)  # fmt: skip
PENALTY = dict(
    model=network, x=images, p=2.0, reduction="mean", logits=None, mode="auto", target=labels,
    step=1e-2, ignore_index=-100, token_weights=None,
)  # fmt: skip
IMAGE_OF_RUN = dict(batch_size=10, image_offset=0, image_stride=1, progress=False)


def skew():
    return ops.skew_kernel(rand(4, 4, 3, 3) - 0.5).kernel


def lime():
    return masking.explain_lime(masked_network(), images(1), segments(), 8)


def curves():
    return masking.Curves((0.0, 0.5), {"a": [0.5, 0.4]}, {"a": [1.0, 1.0]}, {"a": [1.0, 0.5]})


def game():
    return masking.Game([0.0, 1.0], [0.1, 0.9], [0.9, 0.1], 0.5, 0.5)


def segments():
    return torch.arange(64).view(8, 8) // 16


@functools.cache
def certificates():
    return smoothed().certify(images(), n0=4, n=20)


def saved():
    certificates().save(tmp_path("saved.pt"), overwrite=True)
    return tmp_path("saved.pt")


@functools.cache
def lipschitz_network():
    torch.manual_seed(0)
    return lipschitz.LipConvNet(1, CLASSES, init_channels=2, input_size=4, stages=1).eval()


def call(function, **arguments):
    """An entry. Functions of these files make what they stand for, anew for each call."""

    def value(v):
        ours = (getattr(v, "__module__", None) or "").startswith("bad_input.")
        return v() if ours else v

    def make():
        return value(function), {name: value(v) for name, v in arguments.items()}

    return make


def method(make_owner, name, **arguments):
    def bound():
        return getattr(make_owner(), name)

    bound.__module__ = __name__
    return call(bound, **arguments)


@functools.cache
def leaf():
    return images().requires_grad_()


@functools.cache
def logits():
    return network()(leaf())


def traced():
    return trace(network(), images(1))


@functools.cache
def penalty_op():
    return density.PenaltyOp(density.marginal_density_penalty, network())


def penalty(function, **more):
    return call(function, **PENALTY, **more)


def tmp_path(name):
    # A device that takes everything: nothing is left on the disk.
    return f"/dev/shm/{name}"
