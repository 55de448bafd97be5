"""Per-sample gradients, projected parameter by parameter as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_int,
    require_module,
    require_seed,
    require_values,
)
from robustcore.influence.layers import Recorder, fits, is_known, pieces
from robustcore.ops import random_projection

# Elements of per-sample gradients that torch.func holds at a time.
HELD = 1 << 24
# What a layer's own gradient may differ by from autograd's, relative.
NEAR = 1e-3


class Projected(NamedTuple):
    """What :meth:`Projector.project` gives for N samples."""

    features: Tensor
    """The projected gradients ``[N, k]``, float32 (float64 of a float64 model)."""
    values: Tensor
    """The scalars ``[N]`` that were differentiated."""


class Projector:
    """Projects the gradient of a scalar of each sample's output in all trained parameters.

    ``features[n] = sum over parameters of grad[n] @ P``, P the matrix of
    :func:`robustcore.ops.random_projection` with one row a parameter element, in the order of
    ``model.named_parameters()``; parameters that want no gradient are left out. Gradients of
    Linear and Conv2d are made and projected a piece at a time, from what went into the layer and
    the gradient of what came out; those of anything else by ``torch.func`` in chunks. The first
    batch compares the former with autograd's for one sample, and a layer that is used in another
    way than by calling it (a shared weight, samples not in the first dimension) goes to the latter.

    Args:
        model: in evaluation mode, so that samples are independent. It may be trained on or loaded
            anew between calls.
        k: numbers a sample.
        seed: of the matrix, in [0, 2**64).
        kind: "rademacher" or "normal", the matrix's entries.
        method: "layers", as above, or "func": all by ``torch.func``.

    Raises TypeError or ValueError naming the argument.
    """

    def __init__(
        self, model: nn.Module, k: int, seed: int = 0, *, kind: str = "rademacher",
        method: str = "layers",
    ) -> None:  # fmt: skip
        require_module("model", model)
        self.k = require_int("k", k, 1, 1 << 31)
        self.seed = require_seed(seed)
        self.kind = require_choice("kind", kind, ("rademacher", "normal"))
        self._model = model
        self._offsets: dict[str, int] = {}
        self.rows = 0
        """Rows of the matrix: how many numbers the parameters have."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._offsets[name] = self.rows
                self.rows += parameter.numel()
        if not self._offsets:
            raise ValueError("model: has no parameter that wants a gradient")
        by_layer = require_choice("method", method, ("layers", "func")) == "layers"
        self._layers = _layers(model, self._offsets) if by_layer else {}
        self._checked = not self._layers

    def project(
        self, x: Tensor, scalar: Callable[..., Tensor], targets: Tensor | None = None
    ) -> Projected:
        """The projected gradients of ``scalar(model(x), targets)``.

        Args:
            x: ``[N, ...]``, where the model is.
            scalar: a function of the model's outputs ``[n, ...]`` and, if there are any, the
                targets ``[n, ...]``, for any n, to numbers ``[n]``, each a function of its sample
                alone. ``torch.func`` calls it, too: no ``.item()``.
            targets: ``[N, ...]``.

        Raises TypeError or ValueError naming the argument. Not differentiable.
        """
        require_values("x", x)
        if x.dim() < 1:
            raise ValueError("x: got a 0-d tensor, want [N, ...]")
        require_callable("scalar", scalar)
        if targets is not None and (require_values("targets", targets).shape[:1] != x.shape[:1]):
            raise ValueError(f"targets: got shape {list(targets.shape)}, want [{len(x)}, ...]")
        if any(module.training for module in self._model.modules()):
            raise ValueError("model: is in training mode, want model.eval()")
        dtype = _wide(next(self._model.parameters()))
        given = (targets,) if targets is not None else ()
        with torch.inference_mode(False), torch.enable_grad():
            features = torch.zeros(len(x), self.k, dtype=dtype, device=x.device)
            values = features.new_zeros(0)
            if len(x) == 0:
                return Projected(features, values)
            if self._layers:
                values = self._add_layers(features, x, scalar, given)
            if rest := self._rest():
                values = self._add_rest(features, rest, x, scalar, given)
        return Projected(features, values.to(dtype))

    def _rest(self) -> list[str]:
        """The parameters that no layer stands for."""
        of_layers = {
            f"{layer}.{name}".removeprefix(".")
            for layer, module in self._layers.items()
            for name, _ in module.named_parameters()
        }
        return [name for name in self._offsets if name not in of_layers]

    def _add(self, features: Tensor, name: str, first: int, grad: Tensor) -> None:
        features += random_projection(
            grad, self.k, seed=self.seed, row_offset=self._offsets[name] + first, kind=self.kind,
            dtype=features.dtype,
        )  # fmt: skip

    # ---- layers ----------------------------------------------------------------------------------

    def _add_layers(self, features: Tensor, x: Tensor, scalar: Any, given: Any) -> Tensor:
        with Recorder(self._layers) as recorder:
            values = _values(scalar(self._model(x), *given), len(x))
        if not values.requires_grad:
            raise ValueError("scalar: gave numbers without a gradient in model's parameters")
        edges = [edge for _, _, edge in recorder.calls]
        grads = edges and torch.autograd.grad(
            values.sum(), edges, allow_unused=True, retain_graph=not self._checked
        )
        calls = [
            (name, value, grad)
            for (name, value, _), grad in zip(recorder.calls, grads, strict=True)
            if grad is not None
        ]
        if not self._checked:
            self._check(calls, values, len(x))
        for name, value, grad in calls:
            if name not in self._layers:
                continue
            prefix = f"{name}." if name else ""
            for some, parameter, first, piece in pieces(self._layers[name], value, grad):
                self._add(features[some], prefix + parameter, first, piece)
        return values.detach()

    def _check(self, calls: list[tuple[str, Tensor, Tensor]], values: Tensor, samples: int) -> None:
        """Leaves a layer to torch.func where its gradient of sample 0 is not autograd's."""
        named = {
            (layer, name): parameter
            for layer, module in self._layers.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        want = torch.autograd.grad(
            values[0], list(named.values()), allow_unused=True, materialize_grads=True
        )
        got = {key: torch.zeros_like(g).flatten() for key, g in zip(named, want, strict=True)}
        wrong = set()
        for layer, value, grad in calls:
            if not fits(self._layers[layer], value, samples):
                wrong.add(layer)
                continue
            for _, name, first, piece in pieces(self._layers[layer], value[:1], grad[:1]):
                got[layer, name][first : first + piece.shape[1]] += piece[0]
        for (layer, name), g in zip(named, want, strict=True):
            if (got[layer, name] - g.flatten()).norm() > NEAR * g.norm():
                wrong.add(layer)
        self._layers = {name: m for name, m in self._layers.items() if name not in wrong}
        self._checked = True

    # ---- anything else ---------------------------------------------------------------------------

    def _add_rest(
        self, features: Tensor, names: list[str], x: Tensor, scalar: Any, given: Any
    ) -> Tensor:
        state = {name: p.detach() for name, p in self._model.named_parameters()}
        wanted = {name: state.pop(name) for name in names}

        def one(parameters: dict[str, Tensor], x: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
            output = functional_call(self._model, {**state, **parameters}, (x[None],))
            value = _values(scalar(output, *(g[None] for g in given)), 1)[0]
            return value, value

        per_sample = vmap(grad_and_value(one, has_aux=True), (None, *[0] * (1 + len(given))))
        values = []
        for some in _chunks(len(x), sum(p.numel() for p in wanted.values())):
            grads, (value, _) = per_sample(wanted, x[some], *(g[some] for g in given))
            for name, grad in grads.items():
                self._add(features[some], name, 0, grad.flatten(1))
            values.append(value.detach())
        return torch.cat(values)


def _chunks(samples: int, elements: int) -> Iterator[slice]:
    size = max(1, min(256, HELD // max(1, elements)))
    for first in range(0, samples, size):
        yield slice(first, first + size)


def _layers(model: nn.Module, trained: dict[str, int]) -> dict[str, nn.Module]:
    """The layers whose gradients can be had piece by piece, by name."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if is_known(module)
        and all(owners[id(p)] == 1 for p in module.parameters())
        and any(f"{name}.{p}".removeprefix(".") in trained for p in ("weight", "bias"))
    }


def _values(values: Any, samples: int) -> Tensor:
    """What the user's function gave."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"scalar: gave {got}, want a floating tensor [{samples}]")
    if values.shape != (samples,):
        raise ValueError(f"scalar: gave shape {list(values.shape)}, want [{samples}]")
    return values


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
