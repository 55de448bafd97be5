"""A model that sees part of its image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcore.common.checks import (
    require_choice,
    require_flag,
    require_floating,
    require_int,
    require_integers,
    require_module,
    require_values,
)
from robustcore.common.progress import steps
from robustcore.masking.fold import fold_batch_norm
from robustcore.masking.fuse import fuse_convolutions
from robustcore.masking.graph import masked_graph
from robustcore.masking.plan import Plan, make_plan
from robustcore.masking.rules.call import UnsupportedOperation, describe
from robustcore.masking.rules.table import LEAVES
from robustcore.ops.masking.fill import FILLS

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class MaskedModel(nn.Module):
    """Any torch.fx-traceable CNN, run on the visible part of its images.

    ``MaskedModel(model)(x, mask)`` is layer masking: what is hidden is filled from its neighbours
    before each convolution that would read it, masks pass through the layers by the rules of
    :mod:`robustcore.masking.rules`, and what lies under the mask has no influence at all.
    ``mask=None`` and a mask of ones give the model's own logits, to the bit. A network that ends in
    a dense layer gives that layer's bias for a sample that shows nothing.

    Args:
        model: takes one image tensor ``[N, C, H, W]``. Its parameters are shared, not copied
            (unless ``fold``), and stay the model's own.
        fill: ``"neighbor"``, ``"zero"`` or ``"partial"`` (see
            :func:`robustcore.ops.masked_conv2d`).
        fold: fold BatchNorm into the convolutions: faster, equal to about 1e-5, with a copy of the
            parameters as they are now; the model has to be in eval mode.

    Masks of zeros and ones are the published ones; values between count in the fills and means as
    weights, and are otherwise visible.

    Raises UnsupportedOperation, a ValueError, when the model holds an operation without a rule.
    Source: Balasubramanian and Feizi, "Towards improved input masking for convolutional neural
    networks", 2023.
    """

    def __init__(self, model: nn.Module, *, fill: str = "neighbor", fold: bool = False) -> None:
        super().__init__()
        require_module("model", model)
        require_choice("fill", fill, FILLS)
        require_flag("fold", fold)
        self.fill, self.fold = fill, fold
        traced = _trace(model)
        if fold:
            traced = fold_batch_norm(traced)
        plan = make_plan(traced.graph, dict(traced.named_modules()), fill)
        masked = masked_graph(traced, plan)
        if fold:
            masked, traced = fuse_convolutions(masked), fuse_convolutions(traced)
        self.model = traced if fold else model
        # The masked graph calls the same modules: registered, they would be in the state twice.
        self._masked: fx.GraphModule
        object.__setattr__(self, "_masked", masked)
        self._norms = {
            describe(node): traced.get_submodule(str(node.target))
            for node in traced.graph.nodes
            if node.op == "call_module"
            and isinstance(traced.get_submodule(str(node.target)), _BATCH_NORMS)
        }
        self._plan = plan

    def plan(self) -> Plan:
        """The mask plan; printed, it is a table: one row an operation, and the masks above it."""
        return self._plan

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        segments: Tensor | None = None,
        z: Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Any:
        """The model's output for each mask.

        Args:
            x: ``[N | 1, C, H, W]`` floating. One image with many masks is never copied.
            mask: ``[N | 1, 1, H, W]``, bool or floating in [0, 1], 1 = visible; None: all visible.
            segments, z: instead of ``mask``: a map ``[H, W]`` of integers below S, and which
                segments each sample shows, bool ``[N, S]``.
            batch_size: samples that are run at a time; default: all. The peak of memory is then
                that of one batch (results of tensors are concatenated).
            progress: a progress bar over batches.

        Raises TypeError, ValueError naming the argument; RuntimeError if a BatchNorm is in training
        mode while a mask is given. Differentiable in x and the parameters as the model is; the
        gradient of x is exactly 0 under the mask.
        """
        _check_image(x)
        require_flag("progress", progress)
        if self.fold and x.device.type == "cpu":
            # The layout whose convolutions are fastest; rounding is not the plain model's anyway.
            x = x.contiguous(memory_format=torch.channels_last)
        if mask is None and segments is None and z is None:
            return self.model(x)
        for name, norm in self._norms.items():
            if norm.training:
                raise RuntimeError(
                    f"{name!r} ({type(norm).__name__}) is in training mode: its statistics would "
                    "mix what is hidden with what is not; call eval()"
                )
        masks = _Masks(x, mask, segments, z)
        step = len(masks) if batch_size is None else require_int("batch_size", batch_size, 1)
        if step >= len(masks):
            return self._masked(x, masks.batch(0, len(masks)))
        outputs = [
            self._masked(x if len(x) == 1 else x[i : i + step], masks.batch(i, i + step))
            for i in steps(range(0, len(masks), step), "masks", "batch", shown=progress)
        ]
        return torch.cat(outputs)


class _Masks:
    """The masks of a call, checked; made batch by batch where they come as segments."""

    def __init__(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, z: Tensor | None
    ) -> None:
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.mask, self.segments, self.z = mask, segments, z
        if mask is not None:
            if segments is not None or z is not None:
                raise ValueError("mask: give it, or segments and z, not both")
            _check_mask(mask, x)
            self.length = max(len(mask), len(x))
        else:
            if segments is None or z is None:
                raise ValueError("segments and z: want both")
            _check_segments(segments, z, x)
            self.length = max(len(z), len(x))

    def __len__(self) -> int:
        return self.length

    def batch(self, begin: int, end: int) -> Tensor:
        if self.mask is not None:
            return (self.mask if len(self.mask) == 1 else self.mask[begin:end]).to(self.dtype)
        assert self.segments is not None
        assert self.z is not None
        z = self.z if len(self.z) == 1 else self.z[begin:end]
        return z.to(self.dtype)[:, self.segments.long()].unsqueeze(1)


class _Root(nn.Module):
    """Puts the model under a name, so that a traced graph finds all of it as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__name__ in LEAVES or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    root = _Root(model)
    root.train(model.training)
    try:
        graph = _Tracer().trace(root)
    except (fx.proxy.TraceError, TypeError, ValueError) as error:
        raise UnsupportedOperation(
            f"model: torch.fx cannot trace {type(model).__name__} (its control flow may depend on "
            f"data): {error}"
        ) from error
    traced = fx.GraphModule(root, graph, type(model).__name__)
    traced.add_module("model", model)  # the model itself, not fx's copy of its structure
    return traced


def _check_image(x: Any) -> None:
    if require_floating("x", x).dim() != 4:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, C, H, W]")


def _check_mask(mask: Any, x: Tensor) -> None:
    require_values("mask", mask)
    want = f"[N, 1, {x.shape[2]}, {x.shape[3]}]"
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != x.shape[2:]:
        raise ValueError(f"mask: got shape {list(mask.shape)}, want {want} like x")
    if len(mask) != len(x) and 1 not in (len(mask), len(x)):
        raise ValueError(
            f"mask: got {len(mask)} masks for {len(x)} images, want as many, or one of either"
        )
    _check_device("mask", mask, x)
    if mask.dtype == torch.bool:
        return
    require_floating("mask", mask)
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError("mask: requires a gradient; a mask is a constant here, detach it")
    if mask.numel() and not torch.compiler.is_compiling():
        low, high = (float(v) for v in torch.aminmax(mask))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"mask: got values from {low:g} to {high:g}, want them in [0, 1]")


def _check_segments(segments: Any, z: Any, x: Tensor) -> None:
    for name, t in (("segments", segments), ("z", z)):
        _check_device(name, require_values(name, t), x)
    require_integers("segments", segments)
    if segments.shape != x.shape[2:]:
        raise ValueError(
            f"segments: got shape {list(segments.shape)}, want {list(x.shape[2:])} like x"
        )
    if z.dim() != 2 or z.dtype != torch.bool:
        raise ValueError(f"z: got {z.dtype} of shape {list(z.shape)}, want bool [N, S]")
    if len(z) != len(x) and 1 not in (len(z), len(x)):
        raise ValueError(f"z: got {len(z)} samples for {len(x)} images, want as many, or one image")
    if segments.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in torch.aminmax(segments))
        if low < 0 or high >= z.shape[1]:
            raise ValueError(
                f"segments: got values from {low} to {high}, want them in [0, {z.shape[1]}), the "
                "columns of z"
            )


def _check_device(name: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        raise ValueError(f"{name}: is on {t.device}, want {x.device} like x")
