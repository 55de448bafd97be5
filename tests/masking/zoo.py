"""Networks for the tests, made as the benchmarks make them."""

import runpy
from pathlib import Path

_zoo = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "masking" / "zoo.py"))
torchvision, build = _zoo["torchvision"], _zoo["build"]

TORCHVISION = (
    "resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg16_bn", "alexnet",
    "squeezenet1_1", "densenet121", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_large",
    "convnext_tiny",
)  # fmt: skip
TIMM = ("resnet50",)
