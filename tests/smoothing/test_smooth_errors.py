"""Bad input of Smooth: every message names its argument, and nothing is sampled before."""

import math

import pytest
import torch

from robustcore import ops
from robustcore.smoothing import Smooth
from smoothing.models import Pixels

IMAGE = torch.full((1, 2, 2), 0.5)


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"sigma": 0.0}, ValueError, "sigma"),
        ({"sigma": -1}, ValueError, "sigma"),
        ({"sigma": math.nan}, ValueError, "sigma"),
        ({"sigma": math.inf}, ValueError, "sigma"),
        ({"sigma": "0.25"}, TypeError, "sigma"),
        ({"sigma": True}, TypeError, "sigma"),
        ({"num_classes": 1}, ValueError, "num_classes"),
        ({"num_classes": 2.0}, TypeError, "num_classes"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"seed": True}, TypeError, "seed"),
        ({"std": 0.0}, ValueError, "std"),
        ({"std": [1.0, -1.0]}, ValueError, "std"),
        ({"mean": math.nan}, ValueError, "mean"),
        ({"mean": "grey"}, TypeError, "mean"),
        ({"mean": [[0.5]]}, ValueError, "mean"),
        ({"dtype": torch.int32}, ValueError, "dtype"),
        ({"memory_format": torch.preserve_format}, ValueError, "memory_format"),
        ({"base_classifier": None}, TypeError, "base_classifier"),
    ],
)
def test_of_the_constructor(changes, error, name):
    arguments = {"base_classifier": Pixels(2), "num_classes": 2, "sigma": 0.25, **changes}
    with pytest.raises(error, match=f"^{name}: "):
        Smooth(**arguments)


@pytest.fixture
def never_called():
    def model(x):
        raise AssertionError("sampled before the arguments were checked")

    return model


BAD_CALLS = [
    ({"n": 0}, ValueError, "n"),
    ({"n": 100.0}, TypeError, "n"),
    ({"n": True}, TypeError, "n"),
    ({"n": "100"}, TypeError, "n"),
    ({"n": 2**40 + 1}, ValueError, "n"),
    ({"alpha": 0.0}, ValueError, "alpha"),
    ({"alpha": 1.0}, ValueError, "alpha"),
    ({"alpha": math.nan}, ValueError, "alpha"),
    ({"alpha": "0.1"}, TypeError, "alpha"),
    ({"alpha": True}, TypeError, "alpha"),
    ({"batch_size": 0}, ValueError, "batch_size"),
    ({"batch_size": 10.0}, TypeError, "batch_size"),
    ({"image_offset": -1}, ValueError, "image_offset"),
    ({"image_offset": 2**48}, ValueError, "image_offset"),
    ({"image_offset": 1.5}, TypeError, "image_offset"),
    ({"image_stride": 0}, ValueError, "image_stride"),
    ({"image_stride": 1.5}, TypeError, "image_stride"),
    ({"x": [[0.5]]}, TypeError, "x"),
    ({"x": torch.ones(1, 2, 2, dtype=torch.uint8)}, TypeError, "x"),
    ({"x": torch.ones(2, 2)}, ValueError, "x"),
    ({"x": torch.ones(1, 1, 1, 2, 2)}, ValueError, "x"),
    ({"x": torch.ones(1, 0, 2)}, ValueError, "x"),
    ({"x": torch.tensor([[[0.5, math.nan]]])}, ValueError, "x"),
    ({"x": torch.tensor([[[0.5, math.inf]]])}, ValueError, "x"),
]
CALLS = [(method, *case) for method in ("certify", "predict") for case in BAD_CALLS]
CALLS += [
    ("certify", {"n": 9}, ValueError, "n: got 9, .*at least 10$"),
    ("predict", {"n": 10}, ValueError, "n: got 10, .*at least 11$"),
    ("certify", {"n": 2**40}, ValueError, "n"),  # with n0
    ("certify", {"n0": 0}, ValueError, "n0"),
    ("certify", {"n0": math.nan}, TypeError, "n0"),
]


@pytest.mark.parametrize(("method", "changes", "error", "message"), CALLS)
def test_of_a_call(method, changes, error, message, never_called):
    smooth = Smooth(never_called, 2, 0.25)
    with pytest.raises(error, match=f"^{message}"):
        getattr(smooth, method)(**{"x": IMAGE, "n": 100, **changes})
    assert smooth.last_seed is None


def test_a_normalisation_for_other_channels(never_called):
    with pytest.raises(ValueError, match=r"^mean: got 3 values for images of 1 channels"):
        Smooth(never_called, 2, 0.25, mean=[0.1, 0.2, 0.3]).certify(IMAGE, n=100)


@pytest.mark.parametrize(
    ("model", "error", "got"),
    [
        (lambda x: x, ValueError, r"torch.float32 of shape \[100, 1, 2, 2\]"),
        (lambda x: x.flatten(1)[:, :3], ValueError, r"torch.float32 of shape \[100, 3\]"),
        (lambda x: x.flatten(1)[:1, :2], ValueError, r"torch.float32 of shape \[1, 2\]"),
        (lambda x: x.flatten(1).argmax(1), ValueError, r"torch.int64 of shape \[100\]"),
        (lambda x: x.flatten(1)[:, :2].long(), ValueError, r"torch.int64 of shape \[100, 2\]"),
        (lambda x: (x.flatten(1)[:, :2],) * 2, TypeError, r"tuple of \[100, 2\], \[100, 2\]"),
        (lambda x: {"loss": None, "x": x}, TypeError, "dict of loss, x"),
        (lambda x: None, TypeError, "NoneType"),
    ],
)
def test_logits_that_are_none(model, error, got):
    with pytest.raises(error, match=rf"^base_classifier: gave {got} for .*want floating logits"):
        Smooth(model, 2, 0.25).certify(IMAGE, n=100)


def test_want_of_memory_is_told_in_the_words_that_callers_look_for():
    """accelerate and others halve a batch on these."""
    x = torch.zeros(1, 3, 4096, 4096)
    with pytest.raises(RuntimeError, match=r"DefaultCPUAllocator: can't allocate memory.*float32"):
        ops.gaussian_noise(x, 1 << 30, 0.1, seed=0)
