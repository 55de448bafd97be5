"""A model that sees part of its image."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from robustcore.common.checks import (
    require_choice,
    require_flag,
    require_floating,
    require_int,
    require_integers,
    require_module,
    require_values,
)
from robustcore.common.graph import Untraceable, copied, run, state, trace, unwrap
from robustcore.common.progress import steps
from robustcore.masking.calls import NothingShown
from robustcore.masking.dropped import dropped_graph
from robustcore.masking.fold import fold_batch_norm
from robustcore.masking.fuse import fuse_convolutions
from robustcore.masking.graph import masked_graph
from robustcore.masking.plan import Plan, make_plan
from robustcore.masking.rules.call import UnsupportedOperation
from robustcore.ops.autograd import not_compiled
from robustcore.ops.masking.fill import FILLS

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class _Trace:
    """What a trace becomes: the network, its plan, and the network under masks of each kind."""

    def __init__(self, plain: fx.GraphModule, fill: str, fold: bool) -> None:
        self.fold, self.traced = fold, fold_batch_norm(plain) if fold else plain
        self.plan = make_plan(self.traced.graph, fill)
        self._made: dict[str, fx.GraphModule | None] = {}

    def network(self, kind: str) -> fx.GraphModule | None:
        """``plain``; or under masks that are ``binary``, ``soft`` or ``shared`` by all samples,
        None if that is of no use."""
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def _make(self, kind: str) -> fx.GraphModule | None:
        if kind == "plain":
            made: fx.GraphModule | None = copied(self.traced)
        elif kind == "shared":
            made = dropped_graph(self.traced, self.plan)
        else:
            made = masked_graph(self.traced, self.plan, kind == "soft")
        return fuse_convolutions(made) if made is not None and self.fold else made


class MaskedModel(nn.Module):
    """Any network that torch.export can trace, run on the visible part of its images.

    ``MaskedModel(model)(x, mask)`` is layer masking: what is hidden is filled from its neighbours
    before each convolution that would read it, masks pass through the layers by the rules of
    :mod:`robustcore.masking.rules`, hidden tokens of a transformer are absent, and what lies under
    the mask has no influence at all. ``mask=None`` is the model itself; a mask of ones gives the
    model's own logits, to the bit (attention, whose implementation may change with a mask: to
    1e-5). A network that ends in a dense layer gives that layer's bias for a sample that shows
    nothing; a transformer's class token is always visible.

    Args:
        model: takes one image tensor ``[N, C, H, W]``. Its parameters are shared, not copied
            (unless ``fold``), and stay the model's own. Of DataParallel and compiled models, the
            network inside.
        example: images that the model is traced for at once, ``[N, C, H, W]``; their values are not
            read. Else it is traced at its first masks, once for each size, dtype and device; and
            anew when its modules, what they hold beside the values of parameters, or their hooks
            have changed.
        fill: ``"neighbor"``, ``"zero"`` or ``"partial"`` (see
            :func:`robustcore.ops.masked_conv2d`).
        fold: fold BatchNorm into the convolutions: faster, equal to about 1e-5, with a copy of the
            parameters as they are now, which are constants; the model has to be in eval mode.

    Masks of zeros and ones are the published ones; values between count in fills, means and
    attention as weights, and are otherwise visible. Where all samples of a batch are known to have
    the same mask of zeros and ones, hidden tokens are left out of what is computed; else of dense
    layers and norms. To know, values are looked at (under vmap and torch.compile they are not).

    Raises UnsupportedOperation, a ValueError, when the model cannot be traced or holds an operation
    without a rule: with ``example`` at once, else at the first mask.
    Source: Balasubramanian and Feizi, "Towards improved input masking for convolutional neural
    networks", 2023.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor | None = None,
        *,
        fill: str = "neighbor",
        fold: bool = False,
    ) -> None:
        super().__init__()
        require_module("model", model)
        require_choice("fill", fill, FILLS)
        require_flag("fold", fold)
        self.fill, self.fold = fill, fold
        model = unwrap(model)
        if fold:
            for name, module in model.named_modules():
                if isinstance(module, _BATCH_NORMS) and module.training:
                    raise ValueError(
                        f"fold: {name!r} is in training mode; call eval() before wrapping"
                    )
            model = copy.deepcopy(model)
        self.model = model
        self._traces: dict[Any, _Trace] = {}
        self._state: Any = None
        self._plan: Plan | None = None
        if example is not None:
            _check_image(example, "example")
            self._plan = self._trace(example).plan

    def __getstate__(self) -> dict[str, Any]:
        # Graphs are made again from the model, where it is then.
        return {**self.__dict__, "_traces": {}, "_state": None, "_plan": None}

    def plan(self) -> Plan:
        """The mask plan of the last trace; printed, it is a table: one row an operation.

        Raises RuntimeError if nothing was traced yet.
        """
        if self._plan is None:
            raise RuntimeError("plan: the model was not traced yet; give an example, or call it")
        return self._plan

    def _trace(self, x: Tensor) -> _Trace:
        now = state(self.model)
        if now != self._state:
            self._traces, self._state = {}, now
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._traces:
            try:
                plain = trace(self.model, x)
            except Untraceable as error:
                raise UnsupportedOperation(str(error)) from error
            self._traces[key] = _Trace(plain, self.fill, self.fold)
            self._state = state(self.model)  # a forward may count its calls
        self._plan = self._traces[key].plan
        return self._traces[key]

    @not_compiled
    def _network(self, x: Tensor, *kinds: str) -> Any:
        """The first of use."""
        trace = self._trace(x)
        return next(n for n in map(trace.network, kinds) if n is not None)

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
                that of one batch (results are concatenated, tensor by tensor).
            progress: a progress bar over batches.

        Raises TypeError, ValueError naming the argument; UnsupportedOperation as the class says,
        also for a BatchNorm in training mode. Differentiable in x and the parameters as the model
        is; the gradient of x is exactly 0 under the mask.
        """
        _check_image(x, "x")
        require_flag("progress", progress)
        if self.fold and x.device.type == "cpu" and not _is_mapped(x):
            # The layout whose convolutions are fastest; rounding is not the plain model's anyway.
            x = x.contiguous(memory_format=torch.channels_last)
        if mask is None and segments is None and z is None:
            return run(self._network(x, "plain"), x) if self.fold else self.model(x)
        masks = _Masks(x, mask, segments, z)
        step = len(masks) if batch_size is None else require_int("batch_size", batch_size, 1)
        if step >= len(masks):
            return self._run(x, masks, 0, len(masks))
        outputs = [
            self._run(x if len(x) == 1 else x[i : i + step], masks, i, i + step)
            for i in steps(range(0, len(masks), step), "masks", "batch", shown=progress)
        ]
        return pytree.tree_map(lambda *parts: torch.cat(parts), *outputs)

    def _run(self, x: Tensor, masks: _Masks, begin: int, end: int) -> Any:
        mask = masks.batch(begin, end)
        usual = "soft" if masks.soft else "binary"
        kinds = ("shared", usual) if masks.shared(begin, end) else (usual,)
        try:
            return run(self._network(x, *kinds), x, mask)
        except NothingShown:  # what is hidden takes part, with weight 0
            return run(self._network(x, usual), x, mask)


def _is_mapped(x: Tensor) -> bool:
    """Whether torch.func maps or differentiates over it: values cannot be looked at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


class _Masks:
    """The masks of a call, checked; made batch by batch where they come as segments."""

    def __init__(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, z: Tensor | None
    ) -> None:
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.mask, self.segments, self.z = mask, segments, z
        self.soft = False
        if mask is not None:
            if segments is not None or z is not None:
                raise ValueError("mask: give it, or segments and z, not both")
            _check_mask(mask, x)
            self.soft = _is_soft(mask)
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
        return self._z(begin, end).to(self.dtype)[:, self.segments.long()].unsqueeze(1)

    def _z(self, begin: int, end: int) -> Tensor:
        assert self.z is not None
        return self.z if len(self.z) == 1 else self.z[begin:end]

    def shared(self, begin: int, end: int) -> bool:
        """Whether all samples of a batch have the same mask, of zeros and ones."""
        return not self.soft and _is_shared(
            self.batch(begin, end) if self.z is None else self._z(begin, end)
        )


def _check_image(x: Any, name: str) -> None:
    if require_floating(name, x).dim() != 4:
        raise ValueError(f"{name}: got shape {list(x.shape)}, want [N, C, H, W]")


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
    if mask.numel() and _is_known(mask):
        low, high = (float(v) for v in torch.aminmax(mask))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"mask: got values from {low:g} to {high:g}, want them in [0, 1]")


def _is_known(mask: Tensor) -> bool:
    """Whether values can be looked at."""
    return not torch.compiler.is_compiling() and not _is_mapped(mask)


def _is_soft(mask: Tensor) -> bool:
    """Whether a mask may have values between 0 and 1."""
    if mask.dtype == torch.bool:
        return False
    return not _is_known(mask) or not bool(((mask == 0) | (mask == 1)).all())


def _is_shared(mask: Tensor) -> bool:
    """Whether all rows are known to be the same."""
    if len(mask) == 1 or (len(mask) and mask.stride(0) == 0):
        return _is_known(mask)
    return _is_known(mask) and len(mask) > 0 and torch.equal(mask[1:], mask[:-1])


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
    if segments.numel() and _is_known(segments):
        low, high = (int(v) for v in torch.aminmax(segments))
        if low < 0 or high >= z.shape[1]:
            raise ValueError(
                f"segments: got values from {low} to {high}, want them in [0, {z.shape[1]}), the "
                "columns of z"
            )


def _check_device(name: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        raise ValueError(f"{name}: is on {t.device}, want {x.device} like x")
