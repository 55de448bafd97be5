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
