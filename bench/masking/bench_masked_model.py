"""MaskedModel on torchvision's ResNet-50, against the plain network and the published sequence.

Random weights, 224 x 224, 53 % of random 16 x 16 blocks visible. `plain` is the eager network
without a mask in the same dtype and layout: what the masked one is to cost. torchvision has to be
installed; a torch without its compiled ops does.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustcore.masking import MaskedModel

SHARE, BLOCK, SIZE = 0.53, 16, 224
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))
build = runpy.run_path(str(Path(__file__).with_name("zoo.py")))["build"]


def case(batch, layout, device, dtype=torch.float32, images=None):
    torch.manual_seed(0)
    model = build("torchvision", "resnet50").to(device, dtype, memory_format=layout)
    x = torch.randn(images or batch, 3, SIZE, SIZE, device=device, dtype=dtype)
    side = SIZE // BLOCK
    mask = (torch.rand(batch, 1, side, side, device=device) < SHARE).float()
    mask = mask.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    return model, x.contiguous(memory_format=layout), mask


@pytest.mark.parametrize("impl", ["robustcore", "robustcore, folded", "plain", "published"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resnet50(layout, impl, measure, device):
    cuda = device.type == "cuda"
    batch = 64 if cuda else 8
    model, x, mask = case(batch, LAYOUTS[layout], device)
    masked, folded = MaskedModel(model), MaskedModel(model, fold=True)
    implementations = {
        "robustcore": lambda: masked(x, mask),
        "robustcore, folded": lambda: folded(x, mask),
        "plain": lambda: model(x),
        "published": lambda: published.resnet(model, x, mask),
    }
    with torch.inference_mode():
        if impl.startswith("robustcore"):
            want = published.resnet(model, x, mask)
            error = (implementations[impl]() - want).abs().max()
            assert error < (1e-2 if cuda else 1e-4) * want.abs().max()  # cuDNN: TF32
        against = ("plain", implementations["plain"]) if impl.startswith("robustcore") else None
        group = f"ResNet-50, batch {batch}, {layout}"
        measure(group, impl, implementations[impl], rounds=7, against=against)


@pytest.mark.parametrize("impl", ["robustcore", "robustcore, folded", "plain", "published"])
def test_resnet50_bfloat16(impl, measure, device):
    if device.type != "cuda":
        pytest.skip("bfloat16 is for GPUs")
    model, x, mask = case(64, torch.channels_last, device, torch.bfloat16)
    masked, folded = MaskedModel(model), MaskedModel(model, fold=True)
    implementations = {
        "robustcore": lambda: masked(x, mask),
        "robustcore, folded": lambda: folded(x, mask),
        "plain": lambda: model(x),
        "published": lambda: published.resnet(model, x, mask.to(x.dtype)),
    }
    with torch.inference_mode():
        measure("ResNet-50, batch 64, bfloat16", impl, implementations[impl])


@pytest.mark.parametrize("masks", [32, 128])
@pytest.mark.parametrize("impl", ["robustcore", "published"])
def test_many_masks_of_one_image(impl, masks, measure, device):
    """The peak of memory is that of a batch of 8, whatever the number; published: one batch."""
    model, x, mask = case(masks, torch.channels_last, device, images=1)
    if impl == "robustcore":
        masked = MaskedModel(model, fold=True)

        def fn():
            return masked(x, mask, batch_size=8)
    else:
        if masks > 32:
            pytest.skip("the published batch of 128 takes too long for a benchmark")

        def fn():
            return published.resnet(model, x.repeat(masks, 1, 1, 1), mask)

    with torch.inference_mode():
        measure(f"ResNet-50, one image, {masks} masks", impl, fn, rounds=1)
