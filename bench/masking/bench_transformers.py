"""MaskedModel on timm's transformers: masks that differ in a batch, and one that all samples share.

Random weights, 224 x 224, batch 8, half of the 16 x 16 patches visible. `plain` is the eager
network without a mask; `visible tokens` is that on 98 of the 196 tokens, which no masking can go
below. timm has to be installed.
"""

import runpy
from pathlib import Path

import pytest
import torch

from robustcore.masking import MaskedModel

build = runpy.run_path(str(Path(__file__).with_name("zoo.py")))["build"]
BATCH, SIDE = 8, 14


def masks(device):
    """Of half of the patches each, random: ``[BATCH, 1, 224, 224]``."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(BATCH, SIDE * SIDE, generator=generator).argsort(1)
    mask = (order < SIDE * SIDE // 2).view(BATCH, 1, SIDE, SIDE).to(device)
    return mask.repeat_interleave(16, 2).repeat_interleave(16, 3)


def alone(model, x, shown):
    """The network on visible patches ``[K]`` alone."""
    t = model._pos_embed(model.patch_embed(x))
    keep = torch.cat([shown.new_zeros(1), shown + 1])
    return model.forward_head(model.norm(model.blocks(t[:, keep])))


@pytest.mark.parametrize(
    "impl", ["robustcore, shared mask", "robustcore", "plain", "visible tokens"]
)
def test_vit_tiny(impl, measure, device):
    model, mask = build("timm", "vit_tiny_patch16_224").to(device), masks(device)
    masked, x = MaskedModel(model), torch.randn(BATCH, 3, 224, 224, device=device)
    shown = mask[0, 0, ::16, ::16].flatten().nonzero().flatten()
    implementations = {
        "robustcore, shared mask": lambda: masked(x, mask[:1]),
        "robustcore": lambda: masked(x, mask),
        "plain": lambda: model(x),
        "visible tokens": lambda: alone(model, x, shown),
    }
    with torch.inference_mode():
        want = alone(model, x, shown)
        near = 1e-2 if device.type == "cuda" else 1e-4  # cuDNN: TF32
        assert (masked(x, mask[:1]) - want).abs().max() < near * want.abs().max()
        assert (masked(x[:2], mask[:2])[:1] - want[:1]).abs().max() < near * want.abs().max()
        against = ("plain", implementations["plain"]) if impl.startswith("robustcore") else None
        group = "ViT-tiny, half of its patches"
        measure(group, impl, implementations[impl], rounds=7, against=against)


@pytest.mark.parametrize("impl", ["robustcore, shared mask", "robustcore", "plain"])
def test_swin_tiny(impl, measure, device):
    """In windows hidden tokens are left out of the dense layers alone."""
    model, mask = build("timm", "swin_tiny_patch4_window7_224").to(device), masks(device)
    masked, x = MaskedModel(model), torch.randn(BATCH, 3, 224, 224, device=device)
    implementations = {
        "robustcore, shared mask": lambda: masked(x, mask[:1]),
        "robustcore": lambda: masked(x, mask),
        "plain": lambda: model(x),
    }
    with torch.inference_mode():
        error = (masked(x, torch.ones_like(mask)) - model(x)).abs().max()
        assert error <= (1e-2 if device.type == "cuda" else 1e-5) * model(x).abs().max()
        against = ("plain", implementations["plain"]) if impl.startswith("robustcore") else None
        group = "Swin-tiny, half of its 16 x 16 blocks"
        measure(group, impl, implementations[impl], rounds=5, against=against)
