"""The skew orthogonal convolution layer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_unshuffle

from robustcore.common.checks import (
    require_flag,
    require_floating,
    require_int,
    require_parameter_form,
    require_positive,
)
from robustcore.lipschitz.base import LipschitzModule, with_gradient
from robustcore.lipschitz.export import Exported
from robustcore.ops import exp_series
from robustcore.ops.autograd import transforming
from robustcore.ops.lipschitz.conv_exp import apply_series
from robustcore.ops.lipschitz.recurrence import Prepared, evaluate, form_for, prepare, reference
from robustcore.ops.lipschitz.series import Series
from robustcore.ops.lipschitz.skew import skew
from robustcore.ops.lipschitz.skew_norm import skew_norm_bound
from robustcore.ops.lipschitz.soc import (
    SingularVectors,
    has_kernels,
    normalised_filter,
    power_step,
    reshapes,
    skew_conv_exp,
)

# Training forwards between two looks at the operator's norm, and what it may grow in between.
_REFRESH, _MARGIN = 200, 1.05
# Channels up to which a 1 x 1 kernel's exponential is made; up to which a grid bounds a norm: a
# finer one is tighter, by a degree or two in all.
_WIDEST_MATRIX = 512
_GRIDS = ((64, 32), (128, 16), (256, 8), (512, 5), (math.inf, None))
# What the published layers keep that follows from the rest, by either repository's names.
_DERIVED = ("u2", "v2", "u4", "v4")


class _Frozen(NamedTuple):
    """What eval needs, derived from one state of the parameters."""

    vectors: SingularVectors
    kernel: Tensor  # or, of a narrow 1 x 1 one, its exponential
    series: Series | None  # None: the kernel is the layer's matrix
    prepared: dict[Any, Prepared]  # the kernel, by the form that some images want


class SOC(LipschitzModule):
    """Orthogonal convolution ``y = exp(L) x``, L the convolution with a normalised skew kernel.

    ``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``, zero padding of ``kernel_size // 2``:
    it takes the place of such an ``nn.Conv2d``, but has no dilation, groups, even or oblong kernels
    or other paddings, wants sides that the stride divides, and its weight is no filter.

    The free parameter is ``weight`` ``[C, C, k, k]``, C = max(out, in * stride**2), and ``L = scale
    * S / sigma`` with its skew part S and the smallest norm sigma of S's reshapes. A stride
    rearranges pixels into channels first; missing channels are padded with zeros, surplus ones
    dropped.

    In training a polynomial of degree ``train_degree`` stands for the exponential, with power
    iterations for sigma. In eval the degree follows from ``tol`` and a rigorous bound of L's norm,
    and the polynomial is scaled so that the layer is 1-Lipschitz; kernel, norms and degree are kept
    until a parameter or buffer changes. An in-place change through ``.data`` is not seen, and the
    layer stays what it was. To compile eval whole (``fullgraph``), run it once before.

    A weight whose skew part is below a thousandth of its largest entry, or that is nearly zero, is
    not blown up to norm ``scale``: the layer tends to the identity there.

    Args:
        in_channels, out_channels, kernel_size, stride, bias: as ``nn.Conv2d``; kernel_size is odd.
        train_degree: convolutions of a training forward. At scale 0.7 and k = 3 degree 4 is nearer
            to the exponential than the published 5 terms.
        tol: largest ``norm(y - exp(L) x) / norm(x)`` in eval, before rounding.
        scale: the published correction: 0.7 in "Skew orthogonal convolutions" (2021), 1 in
            "Improved deterministic l2 robustness" (2022); 1 x 1 kernels take 1.
        recompute: keep x alone for backward.
        fused: on a GPU, all degrees in one kernel: see :func:`robustcore.ops.conv_exp`.
        device, dtype: of the parameters.

    Loads the checkpoints of both published repositories. Raises ValueError naming the argument.
    Source: Singla and Feizi, "Skew orthogonal convolutions", 2021.
    """

    bias: Tensor | None
    scale: Tensor
    _u1: Tensor
    _v1: Tensor
    _u3: Tensor
    _v3: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = True,
        *,
        train_degree: int = 4,
        tol: float = 1e-6,
        scale: float = 1.0,
        recompute: bool = False,
        fused: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("kernel_size", kernel_size),
            ("stride", stride),
            ("train_degree", train_degree),
        ):
            require_int(name, value, 1, 2**31)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size!r}, want an odd integer")
        scale, tol = require_positive("scale", scale), require_positive("tol", tol)
        require_flag("bias", bias)
        require_flag("recompute", recompute)
        if fused is not None and require_flag("fused", fused) and kernel_size != 3:
            raise ValueError(f"fused: got True, but kernel_size is {kernel_size}, want 3")
        require_parameter_form(device, dtype)
        if scale > torch.finfo(dtype or torch.get_default_dtype()).max:
            raise ValueError(f"scale: got {scale}, want a number that its dtype holds")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = kernel_size, stride
        self.train_degree, self.tol, self.recompute = int(train_degree), tol, recompute
        self.fused = fused
        inner, k = in_channels * stride**2, kernel_size
        c = max(out_channels, inner)
        self.weight = nn.Parameter(torch.empty(c, c, k, k, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(self.weight.new_empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.register_buffer("scale", self.weight.new_full((), scale if k > 1 else 1.0))
        # Singular vectors of the reshapes (out h) x (in w) and out x (in h w), shaped as published.
        # The two others have the same norms, because the kernel is skew.
        for name, shape in (
            ("_u1", (1, c, 1, k)),
            ("_v1", (c, 1, k, 1)),
            ("_u3", (1, c, k, k)),
            ("_v3", (c, 1, 1, 1)),
        ):
            self.register_buffer(name, self.weight.new_empty(shape))
        # Of the published initialisation, about; looked at before the first step, unless compiled.
        self._radius, self._until_refresh = 1.8 * scale, 0
        self._series = self._training_series(min(self._radius, 700.0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: weight N(0, 1 / C), bias uniform within 1 / sqrt(out)."""
        nn.init.normal_(self.weight, std=self.weight.shape[0] ** -0.5)
        if self.bias is not None:
            limit = self.out_channels**-0.5
            nn.init.uniform_(self.bias, -limit, limit)
        with torch.no_grad():
            for vector in (self._u1, self._v1, self._u3, self._v3):
                vector.normal_().div_(torch.linalg.vector_norm(vector))
        self._until_refresh = 0

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        if require_floating("x", x).dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: got shape {list(x.shape)}, want [N, {self.in_channels}, H, W]")
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(f"x: got shape {list(x.shape)}, want sides that {self.stride} divides")
        x = _with_channels(x, self.stride, self.weight.shape[0])
        if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = self._train_map(x) if self.training else self._eval_map(x)
        y = y[:, : self.out_channels]
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def lipschitz_bound(self) -> float:
        """Bound of the eval-mode layer's Lipschitz constant: 1, by its scaling.

        In exact arithmetic. Rounding adds to each output an error of about ``degree * eps *
        norm(x)``, with the eps of the convolutions' precision. Raises ValueError if the weight is
        not finite.
        """
        series = self.kept().series
        return 1.0 if series is None else series.lipschitz

    # ---- eval ------------------------------------------------------------------------------------

    def _eval_map(self, x: Tensor) -> Tensor:
        frozen: _Frozen = self.kept()
        kernel, series = frozen.kernel, frozen.series
        tracked = torch.is_grad_enabled() and (self.weight.requires_grad or x.requires_grad)
        plain = not (tracked or torch.compiler.is_compiling() or transforming())
        if series is not None and series.degree and x.numel() and plain:
            form = form_for(x, kernel, series)
            if form not in frozen.prepared:
                frozen.prepared[form] = prepare(x, kernel.to(x.dtype), series)
            return evaluate(x, frozen.prepared[form], series, keep=False)[0]
        if torch.is_grad_enabled() and self.weight.requires_grad:
            # The same values, with a way back to the weight.
            fresh = normalised_filter(self.weight, self.scale, frozen.vectors)
            kernel = with_gradient(kernel, self._exponential(fresh) if series is None else fresh)
        kernel = kernel.to(x.dtype)
        if series is None:
            return torch.conv2d(x, kernel)
        return apply_series(x, kernel, series, self.recompute)

    def settings(self) -> tuple[Any, ...]:
        """The error wanted, and how it is computed."""
        return self.tol, self.fused

    @property
    def runs_as_exported(self) -> bool:  # type: ignore[override]
        """Not where filters of 3 x 3 may run by Winograd's transforms."""
        return self.kernel_size != 3 or self.weight.dtype != torch.float32

    def derive(self) -> _Frozen:
        """Kernel, series and vectors of eval."""
        if not bool(self.weight.isfinite().all()):
            raise ValueError("weight: is not finite, the layer has no bound")
        channels = self.weight.shape[0]
        wide = channels > _WIDEST_MATRIX  # where an iteration takes long
        vectors = self._iterated(skew(self.weight), 12 if wide else 30)
        kernel = normalised_filter(self.weight, self.scale, vectors)
        if self.kernel_size == 1 and not wide:
            return _Frozen(vectors, self._exponential(kernel), None, {})
        grid = next(grid for width, grid in _GRIDS if channels <= width)
        radius = skew_norm_bound(kernel, grid and max(grid, 2 * self.kernel_size - 1))
        series = exp_series(radius, self.tol, contractive=True)._replace(fused=self.fused)
        return _Frozen(vectors, kernel, series, {})

    def export(self) -> nn.Module:
        """The series as convolutions of torch, without parameters."""
        frozen: _Frozen = self.kept()
        form: Any = {"series": frozen.series, "stride": self.stride, "outputs": self.out_channels}
        tensors = {"kernel": frozen.kernel, "bias": self.bias}
        exported = Exported(partial(_exponential_map, **form), self.lipschitz_bound(), **tensors)
        return exported.train(self.training)

    def _exponential(self, kernel: Tensor) -> Tensor:
        """``exp(kernel)`` as a 1 x 1 kernel, of norm at most 1 with its entries rounded."""
        matrix: Tensor = torch.linalg.matrix_exp(kernel[:, :, 0, 0].double())
        error = max(torch.finfo(kernel.dtype).eps / 2, 1e-15) * math.sqrt(kernel.shape[0])
        matrix = (matrix / (1 + error)).to(kernel.dtype)
        return matrix[:, :, None, None]

    # ---- training --------------------------------------------------------------------------------

    def _training_series(self, radius: float) -> Series:
        return exp_series(radius, degree=self.train_degree)._replace(fused=self.fused)

    def _train_map(self, x: Tensor) -> Tensor:
        vectors, norms = self._train_vectors(x.shape[2], x.shape[3])
        if self.kernel_size == 1 and x.numel() > 8 * self.weight.shape[0] ** 2:
            # Many positions a channel: one matrix exponential costs less than the series.
            kernel = normalised_filter(self.weight, self.scale, vectors)
            return torch.conv2d(x, self._exponential(kernel).to(x.dtype))
        if not torch.compiler.is_compiling():
            self._series = self._training_series(self._radius)
        return skew_conv_exp(
            x, self.weight, self.scale, vectors, self._series, self.recompute, norms
        )

    @torch.no_grad()
    def _train_vectors(self, height: int, width: int) -> tuple[SingularVectors, Tensor | None]:
        """This step's singular vectors, and their norms if at hand; every so often, the radius."""
        kept = SingularVectors(self._u1, self._v1, self._u3, self._v3)
        # None of these looks at values; a captured graph has the radius of the steps before it.
        blind = torch.compiler.is_compiling() or transforming() or _capturing(self.weight)
        refresh = self._until_refresh == 0 and not blind
        norms = None
        with torch.autocast(self.weight.device.type, enabled=False):
            fused = has_kernels(self.weight, self.scale)
            vectors = kept
            if refresh or not fused:
                vectors = self._iterated(skew(self.weight), 50 if refresh else 1)
                if not transforming():
                    for old, new in zip(kept, vectors, strict=True):
                        old.copy_(new)
            if fused:
                vectors, norms = power_step(self.weight, kept)
            if refresh:
                self._until_refresh = _REFRESH
                self._refresh(normalised_filter(self.weight, self.scale, vectors), height, width)
            if not blind:
                self._until_refresh -= 1
        return vectors, norms

    def _refresh(self, kernel: Tensor, height: int, width: int) -> None:
        scale, norm = float(self.scale), _operator_norm(kernel, height, width)
        # A kernel that is all but zero says nothing of the next one.
        self._radius = max(_MARGIN * norm, scale)
        if norm < scale / 2:
            self._until_refresh = 1

    @torch.no_grad()
    def _iterated(self, skewed: Tensor, iterations: int) -> SingularVectors:
        """The singular vectors after power iterations."""
        u1, v1, u3, v3 = (t.flatten() for t in (self._u1, self._v1, self._u3, self._v3))
        # Its scale does not matter, but what is large has no squares.
        largest = torch.linalg.vector_norm(skewed, math.inf)
        skewed = skewed / largest.clamp(min=torch.finfo(skewed.dtype).tiny)
        mixed, flat = reshapes(skewed)
        for _ in range(iterations):
            v1 = _unit(mixed @ u1, v1)
            u1 = _unit(v1 @ mixed, u1)
            v3 = _unit(flat @ u3, v3)
            u3 = _unit(v3 @ flat, u3)
        shaped = zip((u1, v1, u3, v3), (self._u1, self._v1, self._u3, self._v3), strict=True)
        return SingularVectors(*(new.view_as(old) for new, old in shaped))

    # ---- state -----------------------------------------------------------------------------------

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # The names of singlasahil14/SOC; improved_l2_robustness has ours, and no scale.
        for old, new in (
            ("random_conv_filter", "weight"),
            ("correction", "scale"),
            *((name, f"_{name}") for name in ("u1", "v1", "u3", "v3")),
        ):
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        for name in _DERIVED:
            state_dict.pop(prefix + name, None)
            state_dict.pop(f"{prefix}_{name}", None)
        scale = state_dict.setdefault(prefix + "scale", self.scale.detach())
        state_dict[prefix + "scale"] = scale.reshape(())
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._until_refresh = 0

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, bias={self.bias is not None}, "
            f"train_degree={self.train_degree}, tol={self.tol:g}"
        )


@torch.no_grad()
def _operator_norm(kernel: Tensor, height: int, width: int) -> float:
    """About the norm of the convolution on such images: enough to train with, not to certify."""
    c, _, k, _ = kernel.shape
    generator = torch.Generator().manual_seed(0)
    # A larger image says little more.
    x = torch.randn(1, c, min(height, 16), min(width, 16), generator=generator).to(kernel)
    norm = torch.linalg.vector_norm(x)
    for _ in range(16):
        x = torch.conv2d(x / norm.clamp(min=1e-30), kernel, padding=k // 2)
        norm = torch.linalg.vector_norm(x)
    return float(norm)


def _capturing(t: Tensor) -> bool:
    """Whether a CUDA graph is being made, in which nothing can be read."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def _unit(vector: Tensor, before: Tensor) -> Tensor:
    """The vector over its norm, or the one before it where it is zero."""
    norm = torch.linalg.vector_norm(vector)
    return torch.where(norm > 0, vector / norm, before)


def _with_channels(x: Tensor, stride: int, channels: int) -> Tensor:
    """``[N, channels, H / stride, W / stride]``: pixels as channels, and channels of zeros."""
    if stride > 1:
        x = pixel_unshuffle(x, stride)
    if x.shape[1] < channels:
        x = pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
    return x


def _exponential_map(
    x: Tensor, kernel: Tensor, bias: Tensor | None, series: Series | None, stride: int, outputs: int
) -> Tensor:
    """A SOC of eval mode in operations of torch."""
    x = _with_channels(x, stride, len(kernel))
    y = torch.conv2d(x, kernel) if series is None else reference(x, kernel, series)
    y = y[:, :outputs]
    return y if bias is None else y + bias.view(-1, 1, 1)
