"""LipConvNet: the published 1-Lipschitz networks for images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_broadcast,
    require_choice,
    require_floating,
    require_int,
    require_real,
    require_sequence,
    require_values,
)
from robustcore.lipschitz.base import LipschitzModule
from robustcore.lipschitz.bounds import lipschitz_bound
from robustcore.lipschitz.export import Exported, export, normalized
from robustcore.lipschitz.layers import (
    CRCHead,
    Householder,
    MaxMin,
    NormalizedLinear,
    ProjectionPool2d,
)
from robustcore.lipschitz.soc import SOC

_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "maxmin": MaxMin,
    "householder": Householder,
    "householder2": partial(Householder, order=2),
}
_POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "max": partial(ProjectionPool2d, theta="max"),
    "projection": ProjectionPool2d,
}


class Normalize(LipschitzModule):
    """``(x - shift) / scale`` of images ``[N, C, H, W]``.

    ``shift`` and ``scale`` are buffers that broadcast to the image, in the units of x; scale is
    above 0.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        require_floating("shift", shift)
        if not bool((require_floating("scale", scale).abs() > 0).all()):
            raise ValueError("scale: got 0 or NaN, want other numbers")
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        require_broadcast("shift", self.shift, require_floating("x", x))
        return (x - self.shift) / self.scale

    def lipschitz_bound(self) -> float:
        """``1 / min(scale)``."""
        return 1 / float(self.scale.double().abs().min())

    def export(self) -> nn.Module:
        """The same in torch."""
        tensors = {"shift": self.shift, "scale": self.scale}
        return Exported(normalized, self.lipschitz_bound(), **tensors).train(self.training)


class LipConvNet(LipschitzModule):
    """Orthogonal convolutions and isometric activations: a 1-Lipschitz classifier of images.

    ``depth`` convolutions in ``stages`` equal stages, the last of a stage with stride 2; the last
    stage's strided one is 1 x 1. Width doubles with every stage.

    Args:
        depth: a multiple of ``stages``.
        num_classes: of the logits.
        version: ``"soc"`` (2021: strided convolutions go straight to the doubled width) or
            ``"improved"`` (2022: one more convolution in front; strided convolutions are square,
            then channel pairs are pooled, not before a CRC head; the last stage is all 1 x 1).
        in_channels, init_channels: of the image, and of the first stage's convolutions.
        input_size: side of the square images, a multiple of ``2**stages``.
        stages: 5 as published, for 32 x 32.
        activation: ``maxmin``, ``householder`` or ``householder2``.
        pooling: of pairs in the improved version: ``max`` or ``projection``.
        head: ``orthogonal`` (a 1 x 1 SOC), ``normalized`` (last-layer normalisation) or ``crc``.
        mean, std: of the channels, part of the network: its constant is ``1 / min(std)``.
        scale: of the SOCs; default 0.7 for "soc" and 1 for "improved", as published.
        options: further arguments of SOC: train_degree, tol, recompute.

    Forward: ``[N, in_channels, S, S]`` to logits ``[N, num_classes]``. Parameters have the names of
    singlasahil14/SOC or improved_l2_robustness, so their checkpoints load. Raises ValueError naming
    the argument.
    Source: Singla and Feizi, 2021; Singla, Singla and Feizi, 2022.
    """

    bounded_inside = True
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        version: str = "soc",
        in_channels: int = 3,
        init_channels: int = 32,
        input_size: int = 32,
        stages: int = 5,
        activation: str = "maxmin",
        pooling: str = "max",
        head: str = "orthogonal",
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        scale: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value, wanted in (
            ("version", version, ("soc", "improved")),
            ("activation", activation, tuple(_ACTIVATIONS)),
            ("pooling", pooling, tuple(_POOLINGS)),
            ("head", head, ("orthogonal", "normalized", "crc")),
        ):
            require_choice(name, value, wanted)
        _check_sizes(depth, num_classes, in_channels, init_channels, input_size, stages)
        self.register_buffer("shift", _channel_values("mean", mean, in_channels))
        self.register_buffer("scale", _channel_values("std", std, in_channels))
        if not bool((self.scale > 0).all()):
            raise ValueError(f"std: got {std}, want numbers above 0")
        options["scale"] = (0.7 if version == "soc" else 1.0) if scale is None else scale
        self.version, self._options, self._input_size = version, options, input_size
        self._activation, self._pooling = _ACTIVATIONS[activation], _POOLINGS[pooling]
        block_size = depth // stages
        if version == "soc":
            channels = self._build_soc(in_channels, init_channels, block_size, stages)
        else:
            channels = self._build_improved(
                in_channels, init_channels, block_size, stages, keeps_all=head == "crc"
            )
        features = channels * (input_size // 2**stages) ** 2
        self.add_module(self._head_name, self._build_head(head, features, num_classes))

    def _build_head(self, head: str, features: int, num_classes: int) -> nn.Module:
        if head == "normalized":
            return NormalizedLinear(features, num_classes)
        if head == "crc":
            return CRCHead(features, num_classes)
        last = SOC(features, num_classes, 1, **self._options)
        if self.version == "improved":
            return nn.Sequential(OrderedDict(ortho=last))
        return last

    @property
    def _head_name(self) -> str:
        return "last_layer" if self.version == "soc" else "logits_layer"

    def _build_soc(self, channels: int, width: int, block_size: int, stages: int) -> int:
        for stage in range(stages):
            blocks = []
            for i in range(block_size):
                last = i == block_size - 1
                stride, k = (2, 1 if stage == stages - 1 else 3) if last else (1, 3)
                block = nn.Sequential()
                block.add_module("conv", SOC(channels, width * stride, k, stride, **self._options))
                channels = width * stride
                block.add_module("activation", self._activation(channels))
                blocks.append(block)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            width = channels
        return channels

    def _build_improved(
        self, channels: int, width: int, block_size: int, stages: int, keeps_all: bool
    ) -> int:
        self.init_layer = self._square(channels, width, 3, 1, pools=False)
        channels = width
        for stage in range(stages):
            blocks = []
            for i in range(block_size):
                final = stage == stages - 1
                # The last stage halves its image first.
                strided = i == (0 if final else block_size - 1)
                stride, out = (2, 4 * channels) if strided else (1, channels)
                k = 1 if final else 3
                pools = i == block_size - 1 and not (final and keeps_all)
                blocks.append(self._square(channels, out, k, stride, pools))
                channels = out // 2 if pools else out
            self.add_module(f"block{stage + 1}", nn.Sequential(*blocks))
        return channels

    def _square(self, channels: int, out: int, k: int, stride: int, pools: bool) -> nn.Sequential:
        block = nn.Sequential()
        block.add_module("ortho", SOC(channels, out, k, stride, **self._options))
        block.add_module("act", self._pooling(out) if pools else self._activation(out))
        return block

    def _blocks(self) -> list[nn.Module]:
        return [child for name, child in self.named_children() if name != self._head_name]

    def features(self, x: Tensor) -> Tensor:
        """What the head reads: ``[N, F, 1, 1]``."""
        side, channels = self._input_size, len(self.shift)
        if require_floating("x", x).shape[1:] != (channels, side, side):
            got = list(x.shape)
            raise ValueError(f"x: got shape {got}, want [N, {channels}, {side}, {side}]")
        x = (x - self.shift) / self.scale
        for block in self._blocks():
            x = block(x)
        return x.flatten(1)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]``."""
        head: nn.Module = getattr(self, self._head_name)
        return torch.flatten(head(self.features(x)), 1)

    def body_and_head(self) -> tuple[nn.Sequential, nn.Module | None]:
        """The network up to the features, and the head; None, and all, if that is orthogonal."""
        head: nn.Module = getattr(self, self._head_name)
        body = [Normalize(self.shift, self.scale), *self._blocks()]
        body += [nn.Flatten(), nn.Unflatten(1, (-1, 1, 1))]
        apart = isinstance(head, (NormalizedLinear, CRCHead))
        parts = nn.Sequential(*body) if apart else nn.Sequential(*body, head, nn.Flatten())
        for new in (parts, *(child for child in parts if child not in self.children())):
            new.training = self.training
        return parts, head if apart else None

    def lipschitz_bound(self) -> float:
        """Of the logits, in eval mode; see :func:`robustcore.lipschitz.lipschitz_bound`."""
        size = (1, len(self.shift), self._input_size, self._input_size)
        return lipschitz_bound(self, self.shift.new_zeros(size))

    def export(self) -> nn.Module:
        """The network as an ``nn.Sequential`` of exported layers."""
        body, head = self.body_and_head()
        layers = [*body] if head is None else [*body, head]
        return export(nn.Sequential(*layers).train(self.training))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for name in ("shift", "scale"):  # not in the checkpoints of singlasahil14/SOC
            state_dict.setdefault(prefix + name, getattr(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _check_sizes(
    depth: int, num_classes: int, in_channels: int, init_channels: int, input_size: int, stages: int
) -> None:
    require_int("stages", stages, 1, 31)
    for name, value in (
        ("depth", depth),
        ("num_classes", num_classes),
        ("in_channels", in_channels),
        ("init_channels", init_channels),
        ("input_size", input_size),
    ):
        require_int(name, value, 1, 2**31)
    if depth < stages or depth % stages:
        raise ValueError(f"depth: got {depth}, want a multiple of {stages} stages")
    if input_size % 2**stages:
        raise ValueError(f"input_size: got {input_size}, want a multiple of {2**stages}")
    if init_channels % 2:
        raise ValueError(f"init_channels: got {init_channels}, want an even number")


def _channel_values(name: str, value: Any, channels: int) -> Tensor:
    """A number or one a channel as ``[channels, 1, 1]``."""
    wanted = f"a number or {channels}"
    if isinstance(value, Tensor):
        each = require_values(name, value).reshape(-1).tolist()
    elif isinstance(value, Sequence):
        each = require_sequence(name, value, wanted)
    else:
        each = [value]
    numbers = [require_real(name, number, wanted) for number in each]
    if len(numbers) not in (1, channels):
        raise ValueError(f"{name}: got {value}, want {wanted}")
    return (
        torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1).expand(channels, 1, 1).clone()
    )
