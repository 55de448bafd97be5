"""A smooth perceptron, as it is found in the graph that runs."""

from __future__ import annotations

import math
import weakref
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from robustcore.common import graph as traced
from robustcore.common.checks import require_module, require_values

_RESHAPES = {"flatten", "view", "reshape", "_unsafe_view", "contiguous", "alias", "detach"}
_WANT = "want linear layers with softplus, sigmoid or tanh between them"
_UP = 1 + 1e-15  # the constants below are rounded


class Activation(NamedTuple):
    """A smooth function of one variable, with its bounds."""

    kind: str
    beta: float = 1.0
    threshold: float = math.inf

    def __call__(self, z: Tensor) -> Tensor:
        """Without torch's threshold, which is counted in :meth:`jump`."""
        if self.kind == "softplus":
            return torch.logaddexp(self.beta * z, z.new_zeros(())) / self.beta
        return torch.sigmoid(z) if self.kind == "sigmoid" else torch.tanh(z)

    def slope(self, z: Tensor) -> Tensor:
        """The derivative."""
        if self.kind == "softplus":
            return torch.sigmoid(self.beta * z)
        value = self(z)
        return value * (1 - value) if self.kind == "sigmoid" else 1 - value**2

    @property
    def max_slope(self) -> float:
        """The derivative lies in [0, this]."""
        return 0.25 if self.kind == "sigmoid" else 1.0

    @property
    def bend(self) -> tuple[float, float]:
        """An interval of the second derivative."""
        if self.kind == "softplus":
            return 0.0, self.beta / 4
        most = (1 / (6 * math.sqrt(3)) if self.kind == "sigmoid" else 4 / (3 * math.sqrt(3))) * _UP
        return -most, most

    @property
    def jump(self) -> float:
        """How far torch's function, linear above its threshold, is from the smooth one."""
        return math.log1p(math.exp(-self.threshold)) / self.beta * _UP


class Mlp(NamedTuple):
    """Linear layers with activations between them; one more layer than activations."""

    weights: list[Tensor]  # [out, in]
    biases: list[Tensor]  # [out]
    activations: list[Activation]

    def to(self, dtype: torch.dtype) -> Mlp:
        return Mlp(
            [w.to(dtype) for w in self.weights],
            [b.to(dtype) for b in self.biases],
            self.activations,
        )


def read_mlp(model: nn.Module, x: Tensor, *, known: bool = False) -> Mlp:
    """The perceptron that ``model`` computes on images like x, in the dtype of its weights.

    Differentiable in the parameters. ``known`` takes the graph of the last call for this model,
    where its modules, what they hold and their hooks are the same; what a forward reads elsewhere
    would not be seen, which a certificate must not risk. Raises ValueError naming the module and
    the operation that is no part of one.
    """
    require_module("model", model)
    if require_values("x", x).dim() < 2 or not x.is_floating_point() or len(x) == 0:
        raise ValueError(f"x: got {x.dtype} {list(x.shape)}, want floating images [N, *D], N >= 1")
    model = traced.unwrap(model)
    own = next((p.dtype for p in model.parameters()), x.dtype)
    if x.dtype != own:
        raise TypeError(f"x: got {x.dtype}, want {own} as the model")
    reader = _Reader(_graph(model, x, known), model)
    reader.run(x[: traced.BATCH].detach())
    found = reader.found
    if len(found.activations) + 1 != len(found.weights) or len(found.weights) < 2:
        raise ValueError(
            f"model: has {len(found.weights)} linear layers and {len(found.activations)} "
            f"activations, {_WANT}"
        )
    return found


# One trace a model, for as long as it lives: training asks at every step.
_GRAPHS: weakref.WeakKeyDictionary[nn.Module, tuple[Any, fx.GraphModule]]
_GRAPHS = weakref.WeakKeyDictionary()


def _graph(model: nn.Module, x: Tensor, known: bool) -> fx.GraphModule:
    held, hooks = traced.state(model)
    weak = [weakref.ref(one) if isinstance(one, nn.Module) else one for one in held]
    key = weak, [weakref.ref(hook) for hook in hooks], x.shape[1:], x.dtype, x.device
    last = _GRAPHS.get(model)
    if known and last is not None and last[0] == key:
        return last[1]
    graph = traced.trace(model, x)
    del graph.model  # else the trace would keep the model
    _GRAPHS[model] = key, graph
    return graph


class _Reader(fx.Interpreter):
    """Runs a graph and keeps the layers of its one path from the images to the logits."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module) -> None:
        super().__init__(graph)
        self.model = model
        self.found = Mlp([], [], [])
        self.at: fx.Node | None = None  # where the path has come to

    def run_node(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            self.at = node
        elif self.at is not None and self.at in node.all_input_nodes:
            self.follow(node)
        elif node.op == "call_function" and any(self._of_x(n) for n in node.all_input_nodes):
            raise self.refused(node)  # a second path
        return super().run_node(node)

    def fetch_attr(self, target: str) -> Any:
        prefix, _, name = target.partition(".")
        if prefix != "model":
            return super().fetch_attr(target)
        return attrgetter(name)(self.model)

    def _of_x(self, node: fx.Node) -> bool:
        return node.op == "placeholder" or any(self._of_x(n) for n in node.all_input_nodes)

    def follow(self, node: fx.Node) -> None:
        if node.op == "output":
            if len(node.args[0]) != 1 or node.args[0][0] is not self.at:  # type: ignore[index, arg-type]
                raise ValueError("model: has several outputs, want logits [N, K]")
            return
        name, given = traced.name_of(node), traced.arguments(node)
        if next(iter(given.values())) is not self.at or node.all_input_nodes.count(self.at) != 1:
            raise self.refused(node)
        layers, activations = len(self.found.weights), len(self.found.activations)
        if name == "linear" and layers == activations and len(traced.sizes(node)) == 2:
            weight = self._value(given["weight"])
            self.found.weights.append(weight)
            bias = self._value(given["bias"])
            self.found.biases.append(weight.new_zeros(len(weight)) if bias is None else bias)
        elif name in ("softplus", "sigmoid", "tanh") and layers == activations + 1:
            self.found.activations.append(self._activation(node, name, given))
        elif name not in _RESHAPES and not (name == "dropout" and not given["train"]):
            raise self.refused(node)
        self.at = node

    def _activation(self, node: fx.Node, name: str, given: dict[str, Any]) -> Activation:
        if name != "softplus":
            return Activation(name)
        beta, threshold = float(given["beta"]), float(given["threshold"])
        if not (beta > 0 and threshold >= 0):
            raise ValueError(
                f"model: {traced.path(node)!r} is a softplus of beta {beta} and threshold "
                f"{threshold}, want beta > 0 and a threshold >= 0"
            )
        return Activation(name, beta, threshold)

    def _value(self, argument: Any) -> Any:
        return self.env[argument] if isinstance(argument, fx.Node) else argument

    def refused(self, node: fx.Node) -> ValueError:
        where = traced.path(node)
        return ValueError(f"model: {where!r} calls {traced.name_of(node)}, {_WANT}")
