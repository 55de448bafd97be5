"""What all layers of this family share: a stated bound, and what eval keeps of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import require_flag, require_parameter_form
from robustcore.ops.autograd import not_compiled


class LipschitzModule(nn.Module):
    """A module that states a bound of its l2 Lipschitz constant in eval mode.

    What follows from the parameters alone, such as an orthogonal filter, is derived once in eval
    and kept until one of them changes; forward and :meth:`lipschitz_bound` read the same. So a
    change that no version counter shows, through ``.data``, leaves an old layer with its own, right
    bound. A compiled or exported eval forward reads what the last one outside kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Any, ...] | None = None

    def lipschitz_bound(self) -> float:
        """Upper bound in eval mode, in exact arithmetic."""
        return 1.0

    bounded_inside = False
    """Whether the operations inside give its bound, in place of :meth:`lipschitz_bound`."""

    runs_as_exported = True
    """Whether eval sums the same products as :meth:`export`, in whatever order."""
    rounds_once = False
    """Whether each result is a rotated or reflected pair."""

    def export(self) -> nn.Module:
        """The layer of eval mode in operations of torch alone; outputs and bound are the same."""
        raise NotImplementedError

    def derive(self) -> Any:
        """What eval needs of the parameters; without gradients, outside of autocast."""
        raise NotImplementedError

    def settings(self) -> tuple[Any, ...]:
        """What :meth:`derive` depends on beside parameters and buffers."""
        return ()

    def kept(self) -> Any:
        """What :meth:`derive` gave for the present parameters."""
        if not torch.compiler.is_compiling():
            return self._current()
        return self._uncompiled() if self._kept is None else self._kept[-1]

    @not_compiled  # its first call imports torch._dynamo, which takes a second
    def _uncompiled(self) -> Any:
        return self._current()

    def _current(self) -> Any:
        tensors = (*self.parameters(recurse=False), *self.buffers(recurse=False))
        # Nothing tells whether a tensor of inference mode has changed.
        known = not any(t.is_inference() for t in tensors)
        key = known and [(t._version, t.data_ptr(), t.dtype, t.device) for t in tensors]
        settings = self.settings()
        if not known or self._kept is None or self._kept[0] != key or self._kept[1] != settings:
            device = next((t.device.type for t in tensors), "cpu")
            ordinary = torch.inference_mode(False)  # it allows gradients: those are off after it
            with torch.autocast(device, enabled=False), ordinary, torch.no_grad():
                # The aliases keep the memory from being used again at the same address.
                self._kept = key, settings, [t.detach() for t in tensors], self.derive()
        return self._kept[-1]

    def train(self, mode: bool = True) -> LipschitzModule:
        """Training or eval mode; what eval kept is not kept over a training."""
        mode = require_flag("mode", mode)
        self._kept = None if mode else self._kept
        super().train(mode)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._kept = None

    def _apply(self, fn: Any, recurse: bool = True) -> LipschitzModule:
        self._kept = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class Filtered(LipschitzModule):
    """A layer with one explicit filter, made of free parameters; a linear map's is its matrix."""

    weight: nn.Parameter
    bias: Tensor | None

    def made(self) -> Tensor:
        """The filter out of the parameters, differentiable."""
        raise NotImplementedError

    def derive(self) -> tuple[Tensor, float]:
        """The filter of eval and a bound of its norm."""
        raise NotImplementedError

    @property
    def filter(self) -> Tensor:
        """The filter as ``torch.nn`` would hold it; in eval that of the certificates."""
        whole = torch.compiler.is_compiling() and self._kept is None  # the graph makes the filter
        kept = None if self.training or whole else self.kept()
        if kept is not None and not needs_gradient(self):
            return kept[0]  # type: ignore[no-any-return]
        with torch.autocast(self.weight.device.type, enabled=False):
            filter = self.made().to(self.weight.dtype)
        return filter if kept is None else with_gradient(kept[0], filter)

    def lipschitz_bound(self) -> float:
        """1, by the filter's scaling. Raises ValueError if a parameter is not finite."""
        bound: float = self.kept()[1]
        return bound

    def _fill(self, module: Any) -> Any:
        """A module of ``torch.nn`` with this layer's filter and bias."""
        module.weight = nn.Parameter(self.kept()[0].clone(), self.weight.requires_grad)
        if self.bias is not None:
            module.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return module.train(self.training)


def make_parameters(
    layer: nn.Module,
    shape: tuple[int, ...],
    fill: Callable[[Tensor], Any],
    outputs: int,
    bias: bool,
    device: Any,
    dtype: Any,
) -> None:
    """Gives the layer a weight that ``fill`` starts, and a bias of zeros or None."""
    require_flag("bias", bias)
    require_parameter_form(device, dtype)
    weight = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
    fill(weight)
    layer.register_parameter("weight", weight)
    zeros = nn.Parameter(weight.new_zeros(outputs)) if bias else None
    layer.register_parameter("bias", zeros)


def require_finite(layer: nn.Module, *names: str) -> None:
    """Raises ValueError where one of these parameters is not: such a layer has no bound."""
    for name in names:
        free = getattr(layer, name)
        if free is not None and not bool(free.isfinite().all()):
            raise ValueError(f"{name}: is not finite, the layer has no bound")


def needs_gradient(layer: nn.Module) -> bool:
    """Whether what is made of the layer's parameters is differentiated: of all but its bias."""
    free = (p for name, p in layer.named_parameters(recurse=False) if name != "bias")
    return torch.is_grad_enabled() and any(p.requires_grad for p in free)


def with_gradient(value: Tensor, of: Tensor) -> Tensor:
    """``value``, with the gradient of ``of``, which it is up to rounding."""
    return value + (of - of.detach()).to(value.dtype)
