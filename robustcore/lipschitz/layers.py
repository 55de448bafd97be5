"""Activations, pooling and heads of 1-Lipschitz networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, softplus

from robustcore import ops
from robustcore.common.checks import (
    require_flag,
    require_floating,
    require_int,
    require_parameter_form,
    require_positive,
    require_real,
)
from robustcore.lipschitz.base import Filtered, LipschitzModule, require_finite
from robustcore.lipschitz.export import (
    Exported,
    householder,
    largest_of_pair,
    maxmin,
    projection_pool,
)
from robustcore.lipschitz.norms import matrix_norm_bound


class MaxMin(LipschitzModule):
    """``cat(max(a, b), min(a, b))`` of the halves of the channels, see :func:`ops.maxmin`.

    Args:
        channels: of the input; only checked to be even.

    Raises TypeError or ValueError naming the argument.
    Source: Anil, Lucas, Grosse, "Sorting out Lipschitz function approximation", 2019.
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        if channels is not None:
            _half("channels", channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 2 C, *D]`` to the same shape."""
        return ops.maxmin(require_floating("x", x))

    def lipschitz_bound(self) -> float:
        """1: it permutes the inputs."""
        return 1.0

    def export(self) -> nn.Module:
        """Maxima beside minima."""
        return Exported(maxmin).train(self.training)


class Householder(LipschitzModule):
    """Channel pairs folded along learnable angles, see :func:`ops.householder`.

    Args:
        channels: of the input, even.
        order: 1, angles starting at pi / 2 (a sort of each pair), or 2, starting at random.
        device, dtype: of ``theta``, ``[channels / 2]`` or ``[3, channels / 2]``, radians.

    Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2022.
    """

    rounds_once = True

    def __init__(
        self,
        channels: int,
        order: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        half = _half("channels", channels)
        require_int("order", order, 1, 3)
        require_parameter_form(device, dtype)
        self.channels, self.order = channels, order
        if order == 1:
            theta = torch.full((half,), math.pi / 2, device=device, dtype=dtype)
        else:
            theta = math.pi * torch.rand(3, half, device=device, dtype=dtype)
        self.theta = nn.Parameter(theta)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, *D]`` to the same shape."""
        return ops.householder(_channels(x, self.channels), self.theta)

    def lipschitz_bound(self) -> float:
        """1: continuous, and an isometry on each piece. Raises ValueError of angles that are not
        finite."""
        require_finite(self, "theta")
        return 1.0

    def export(self) -> nn.Module:
        """The pieces, by where each pair lies."""
        return Exported(householder, theta=self.theta).train(self.training)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}, order={self.order}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Published: theta [1, C, 1, 1], or three parameters.
        parts = [f"{prefix}theta{i}" for i in range(3)]
        if all(part in state_dict for part in parts):
            state_dict[prefix + "theta"] = torch.stack([state_dict.pop(part) for part in parts])
        elif prefix + "theta" in state_dict:
            state_dict[prefix + "theta"] = state_dict[prefix + "theta"].reshape(self.theta.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class ProjectionPool2d(LipschitzModule):
    """Channel pairs pooled to one by a learnable signed distance, see :func:`ops.projection_pool`.

    Args:
        channels: of the input, even; half as many come out.
        theta: first angle in radians; default: random in [0, pi]. ``"max"`` pools to the larger
            of each pair, without a parameter.
        device, dtype: of ``theta`` ``[channels / 2]``.

    Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2022.
    """

    rounds_once = True

    def __init__(
        self,
        channels: int,
        theta: float | str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        half = _half("channels", channels)
        require_parameter_form(device, dtype)
        self.channels = channels
        if isinstance(theta, str) and theta == "max":
            self.register_parameter("theta", None)
            return
        if theta is not None:
            wanted = "an angle in [0, pi], None or 'max'"
            theta = require_real("theta", theta, wanted)
            if not 0 <= theta <= math.pi:
                raise ValueError(f"theta: got {theta!r}, want {wanted}")
        angles = torch.rand(half, device=device, dtype=dtype) * math.pi
        self.theta = nn.Parameter(angles if theta is None else torch.full_like(angles, theta))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, *D]`` to ``[N, channels / 2, *D]``."""
        if self.theta is None:
            return torch.maximum(*_channels(x, self.channels).chunk(2, dim=1))
        return ops.projection_pool(_channels(x, self.channels), self.theta)

    def lipschitz_bound(self) -> float:
        """1: a distance to a set. Raises ValueError of angles that are not finite."""
        require_finite(self, "theta")
        return 1.0

    def export(self) -> nn.Module:
        """The larger of each pair, or the distances."""
        if self.theta is None:
            return Exported(largest_of_pair).train(self.training)
        return Exported(projection_pool, theta=self.theta).train(self.training)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}" + ("" if self.theta is not None else ", theta='max'")


class NormalizedLinear(nn.Linear):
    """A linear layer whose rows have unit norm: last-layer normalisation.

    ``[N, *]`` is flattened to ``[N, in_features]``. The arguments (in_features, out_features, bias,
    device, dtype) are those of ``nn.Linear``; the bias is as given. Differentiable.
    Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2022.
    """

    runs_as_exported = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_int("in_features", in_features, 1, 2**31)
        require_int("out_features", out_features, 1, 2**31)
        require_flag("bias", bias)
        require_parameter_form(device, dtype)
        super().__init__(in_features, out_features, bias, device, dtype)

    def normalized_weight(self) -> Tensor:
        """``[out_features, in_features]`` with unit rows."""
        return normalize(self.weight, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, out_features]``."""
        x = of_dtype(flat_features(x, self.in_features), self.weight.dtype)
        return linear(x, self.normalized_weight(), self.bias)

    def lipschitz_bound(self) -> float:
        """Largest singular value of the normalised weight."""
        return matrix_norm_bound(self.normalized_weight())

    def export(self) -> nn.Module:
        """``nn.Flatten`` and the ``nn.Linear`` of unit rows."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        layer.weight = nn.Parameter(self.normalized_weight().detach().clone())
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone())
        return nn.Sequential(nn.Flatten(), layer).train(self.training)


class CRCHead(LipschitzModule):
    """Linear, softplus, Linear: a head whose curvature bounds give larger certificates.

    Args:
        in_features, num_classes: of the logits ``[N, num_classes]``; inputs ``[N, *]`` are
            flattened.
        hidden: width between; default in_features.
        beta: of the softplus ``log(1 + exp(beta t)) / beta``, whose second derivative is at most
            ``beta / 4``.
        device, dtype: of the parameters.

    Source: Singla and Feizi, "Second-order provable defenses", 2020 (CRC); Singla, Singla and
    Feizi, 2022.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: int | None = None,
        beta: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_int("in_features", in_features, 1, 2**31)
        require_int("num_classes", num_classes, 1, 2**31)
        hidden = in_features if hidden is None else require_int("hidden", hidden, 1, 2**31)
        require_parameter_form(device, dtype)
        self.beta = require_positive("beta", beta)
        self.linear1 = nn.Linear(in_features, hidden, device=device, dtype=dtype)
        self.linear2 = nn.Linear(hidden, num_classes, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]``."""
        x = of_dtype(flat_features(x, self.linear1.in_features), self.linear1.weight.dtype)
        inner = self.linear1(x)
        logits: Tensor = self.linear2(softplus(inner, self.beta))
        return logits

    def lipschitz_bound(self) -> float:
        """Of the logits: the product of the two matrices' norms."""
        return matrix_norm_bound(self.linear1.weight) * matrix_norm_bound(self.linear2.weight)

    def export(self) -> nn.Module:
        """``nn.Flatten``, ``nn.Linear``, ``nn.Softplus``, ``nn.Linear``."""
        layers = [nn.Flatten(), self.linear1, nn.Softplus(self.beta), self.linear2]
        return copy.deepcopy(nn.Sequential(*layers)).train(self.training)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for name in ("_u", "_v"):  # published: singular vectors that follow from the weights
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def flat_features(x: Any, features: int, name: str = "x") -> Tensor:
    """``[N, *]`` as ``[N, features]``."""
    if require_floating(name, x).dim() < 2 or math.prod(x.shape[1:]) != features:
        raise ValueError(f"{name}: got shape {list(x.shape)}, want [N, {features}] features")
    return x.flatten(1)  # type: ignore[no-any-return]


class FilteredLinear(Filtered):
    """``[*, in_features]`` to ``[*, out_features]``: a linear map whose matrix is its filter."""

    in_features: int
    out_features: int

    def _set_features(self, in_features: int, out_features: int) -> None:
        require_int("in_features", in_features, 1, 2**31)
        require_int("out_features", out_features, 1, 2**31)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """``[*, in_features]`` to ``[*, out_features]``."""
        return linear(last_features(x, self.in_features, self.weight), self.filter, self.bias)

    def export(self) -> nn.Linear:
        """The layer as an ``nn.Linear``."""
        features = self.in_features, self.out_features
        return self._fill(nn.Linear(*features, self.bias is not None))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def last_features(x: Any, features: int, weight: Tensor) -> Tensor:
    """x, checked to be ``[*, features]`` of the weight's dtype."""
    if require_floating("x", x).dim() < 1 or x.shape[-1] != features:
        raise ValueError(f"x: got shape {list(x.shape)}, want [*, {features}]")
    return of_dtype(x, weight.dtype)


def of_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, of the weight's dtype; autocast gives both another."""
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: got {x.dtype}, want {dtype} as the weight")
    return x


def _channels(x: Any, channels: int) -> Tensor:
    if require_floating("x", x).dim() < 2 or x.shape[1] != channels:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, {channels}, *D]")
    return x  # type: ignore[no-any-return]


def _half(name: str, channels: Any) -> int:
    if require_int(name, channels, 2, 2**31) % 2:
        raise ValueError(f"{name}: got {channels!r}, want an even integer: channels pair up")
    return int(channels) // 2
