"""Networks of torchvision and timm, for benchmarks and tests, where they are installed."""

import importlib.util
from pathlib import Path

import pytest
import torch


def torchvision():
    """The module, or the test is skipped; where its compiled part does not load, without that."""
    spec = importlib.util.find_spec("torchvision")
    try:
        for library in Path(spec.origin).parent.glob("_C*.so") if spec else ():
            torch.ops.load_library(library)
    except OSError:  # of another torch
        pass
    for name in ("nms", "qnms"):  # which it expects of that part
        if not hasattr(torch.ops.torchvision, name):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
    return pytest.importorskip("torchvision", exc_type=ImportError)


def build(library, name):
    """A network of the library in eval mode, random weights; skips the test without the library."""
    vision = torchvision()  # timm imports it too
    torch.manual_seed(0)
    if library == "torchvision":
        return getattr(vision.models, name)(weights=None).eval()
    timm = pytest.importorskip("timm", exc_type=ImportError)
    return timm.create_model(name, pretrained=False).eval()
