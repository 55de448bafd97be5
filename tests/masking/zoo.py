"""Networks for the tests: torchvision's and timm's where they are installed."""

import pytest
import torch


def torchvision():
    """The module, or the test is skipped. What it expects of its compiled part is declared."""
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        name, arguments = schema.split("(", 1)
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", f"({arguments}")
    return pytest.importorskip("torchvision", exc_type=ImportError)


TORCHVISION = (
    "resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg16_bn", "alexnet",
    "squeezenet1_1", "densenet121", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_large",
    "convnext_tiny",
)  # fmt: skip
TIMM = ("resnet50",)


def build(library, name):
    """A network of the library in eval mode, random weights; skips the test without the library."""
    vision = torchvision()  # timm imports it too
    torch.manual_seed(0)
    if library == "torchvision":
        return getattr(vision.models, name)(weights=None).eval()
    timm = pytest.importorskip("timm", exc_type=ImportError)
    return timm.create_model(name, pretrained=False).eval()
