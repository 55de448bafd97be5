"""What each argument is given in turn: by name, functions that make a fresh bad value."""

from fractions import Fraction

import numpy as np
import torch
from torch import nn

HUGE = 2**40  # elements of an expanded tensor: whoever copies it runs out of memory


def answering(result):
    return lambda *arguments, **options: result


def three_dimensional(x, *rest, **options):
    return x.new_zeros(len(x), 1, 1) if isinstance(x, torch.Tensor) else None


class Echo(nn.Module):
    def forward(self, x=None, *rest):
        return x


NUMBERS = {
    "-1": -1,
    "0": 0,
    "3": 3,
    "2**31": 2**31,
    "2**62": 2**62,
    "2**64": 2**64,
    "-2**63": -(2**63),
    "10**400": 10**400,
    "0.5": 0.5,
    "-0.5": -0.5,
    "1e300": 1e300,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "1j": 1j,
    "Fraction(1, 2)": Fraction(1, 2),
    "np.float32(0.5)": np.float32(0.5),
    "np.float64(nan)": np.float64("nan"),
    "np.int64(3)": np.int64(3),
    "np.int8(-1)": np.int8(-1),
    "np.bool_(True)": np.bool_(True),
}

OBJECTS = {
    "None": lambda: None,
    "True": lambda: True,
    "''": lambda: "",
    "'rubbish'": lambda: "rubbish",
    "b'x'": lambda: b"x",
    "[]": list,
    "[0.5, nan]": lambda: [0.5, float("nan")],
    "[0.5, 'a']": lambda: [0.5, "a"],
    "[[1], [2, 3]]": lambda: [[1], [2, 3]],
    "[None]": lambda: [None],
    "(1, 2)": lambda: (1, 2),
    "(-1, 2**64)": lambda: (-1, 2**64),
    "(1, 2, 3, 4, 5)": lambda: (1, 2, 3, 4, 5),
    "range(3)": lambda: range(3),
    "{}": dict,
    "{1}": lambda: {1},
    "object()": object,
    "a generator": lambda: (i for i in range(3)),
    "a function to None": lambda: answering(None),
    "a function to a string": lambda: answering("rubbish"),
    "a function to [N, 1, 1]": lambda: three_dimensional,
    "a class": lambda: Exception,
    "a module": Echo,
    "torch.float32": lambda: torch.float32,
    "torch.int64": lambda: torch.int64,
    "torch.preserve_format": lambda: torch.preserve_format,
    "torch.device('meta')": lambda: torch.device("meta"),
    "a float array": lambda: np.array([0.5, 0.25, 2.0]),
    "an int array": lambda: np.arange(3),
    "an array of objects": lambda: np.array([object()], dtype=object),
}

TENSORS = {
    "a number": lambda: torch.tensor(0.5),
    "a 0-d int": lambda: torch.tensor(3),
    "a 0-d nan": lambda: torch.tensor(float("nan")),
    "[0]": lambda: torch.empty(0),
    "[7]": lambda: torch.rand(7),
    "[0] * 4": lambda: torch.empty(0, 0, 0, 0),
    "[1] * 6": lambda: torch.rand(1, 1, 1, 1, 1, 1),
    "bool [2, 2]": lambda: torch.tensor([[True, False], [True, True]]),
    "int64 [3]": lambda: torch.arange(3),
    "complex [3]": lambda: torch.ones(3, dtype=torch.complex64),
    "float8 [3]": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "meta [3]": lambda: torch.empty(3, device="meta"),
    "sparse [2, 2]": lambda: torch.eye(2).to_sparse(),
    "quantized [3]": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "2**40 elements": lambda: torch.zeros(1).expand(HUGE),
}

# Made of the tensor that a valid call has.
VARIANTS = {
    "with a nan": lambda t: filled(t, float("nan")),
    "with an inf": lambda t: filled(t, float("inf")),
    "negative": lambda t: -t - 1 if t.dtype != torch.bool else None,
    "times 1e30": lambda t: t * 1e30 if t.is_floating_point() else None,
    "int64 max": lambda t: torch.full_like(t, 2**63 - 1) if t.dtype == torch.int64 else None,
    "bool": lambda t: t.bool() if t.dtype != torch.bool else None,
    "uint8": lambda t: t.to(torch.uint8),
    "int64": lambda t: t.long() if t.dtype != torch.int64 else None,
    "float64": lambda t: t.double() if t.dtype != torch.float64 else None,
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float8": lambda t: t.float().to(torch.float8_e5m2),
    "complex": lambda t: t.to(torch.complex64),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse() if t.dim() else None,
    "csr": lambda t: t.to_sparse_csr() if t.dim() == 2 else None,
    "mkldnn": lambda t: t.to_mkldnn() if t.dtype == torch.float32 and t.dim() else None,
    "quantized": lambda t: (
        torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8)
        if t.dtype not in (torch.bool, torch.float64)
        else None
    ),
    "that wants a gradient": lambda t: (
        t.clone().requires_grad_() if t.is_floating_point() else None
    ),
    "a Parameter": lambda t: nn.Parameter(t.clone(), requires_grad=False),
    "with the bit of negation": lambda t: torch._neg_view(-t) if t.is_floating_point() else None,
    "overlapping itself": lambda t: t.new_ones(()).expand(t.shape),
    "of 2**40 rows": lambda t: t[:1].expand(HUGE, *t.shape[1:]) if t.dim() else None,
    "without rows": lambda t: t[:0] if t.dim() else None,
    "of half the rows": lambda t: t[::2] if t.dim() and len(t) > 1 else None,
    "of twice the rows": lambda t: torch.cat([t, t]) if t.dim() else None,
    "without columns": lambda t: t[:, :0] if t.dim() > 1 else None,
    "of twice the columns": lambda t: torch.cat([t, t], 1) if t.dim() > 1 else None,
    "of one more dimension": lambda t: t.unsqueeze(0),
    "of one fewer": lambda t: t[0] if t.dim() and len(t) else None,
    "with an empty last dimension": lambda t: t[..., :0] if t.dim() > 1 else None,
    "with one more at the end": lambda t: torch.cat([t, t[..., :1]], -1) if t.dim() > 1 else None,
    "as an array": lambda t: t.numpy(),
    "as a list": lambda t: t.tolist(),
}


def filled(t, value):
    if not t.is_floating_point() or t.numel() == 0:
        return None
    t = t.clone()
    t.view(-1)[0] = value
    return t


def bad_values(good):
    """(name, value) of everything that stands in for ``good``, each made when it is asked for."""
    for name, number in NUMBERS.items():
        yield name, number
    for name, make in OBJECTS.items():
        yield name, make()
    for name, make in TENSORS.items():
        yield f"tensor {name}", make()
    if isinstance(good, torch.Tensor):
        for name, make in VARIANTS.items():
            value = make(good.detach())
            if value is not None:
                yield f"itself {name}", value
