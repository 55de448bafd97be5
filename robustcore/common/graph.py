"""A model as a graph of ATen operations, traced by torch.export.

:func:`trace` gives a GraphModule of one image tensor in which every node is an ATen operation with
known sizes. Parameters and buffers are read from the model itself at each call, so what an
optimiser, ``load_state_dict`` or ``.to()`` does to them is seen. What a trace freezes (image size,
dtype, device, modules, their modes, attributes and hooks) is what :func:`state` and the image make
up; a caller keeps one trace for each. This file knows nothing of what the graph is for.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack  # of vmap
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from robustcore.common.fingerprint import held
from robustcore.common.graph_guards import (
    line_of_model,
    plain_attention,
    plain_normalization,
    quiet,
    watched,
)

BATCH = 3  # images in a trace's example; sizes of nodes are those of this batch
# Of a node's meta: it writes into memory that is read again later under another name.
WRITES_PART = "writes_part"
_LOCK = threading.RLock()  # tracing watches what all of torch calls
_CHECKS = {
    "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size", "_guards_fn",
}  # fmt: skip
_REGIONS = {"wrap_with_set_grad_enabled", "wrap_with_autocast"}


class Untraceable(ValueError):
    """torch.export cannot trace the model, or a trace would not do what the model does."""


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DataParallel and ``torch.compile``."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def state(model: nn.Module) -> tuple[Any, ...]:
    """What a trace freezes of the model: its modules, what they hold, and their hooks.

    Whatever plain value a forward reads, the trace has it as a constant: a stride changed later
    would not be seen.
    """
    hooks = [
        hook for m in model.modules() for table in _hooks(m) if table for hook in table.values()
    ]
    return held(model), hooks


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    return (
        module._forward_hooks, module._forward_pre_hooks,
        module._backward_hooks, module._backward_pre_hooks,
    )  # fmt: skip


class Root(nn.Module):
    """Puts the model under a name beside the constants of its code."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.constants = nn.Module()


def trace(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """The model's graph for images of x's size, dtype and device, in its modes as they are.

    Args:
        model: takes one tensor ``[N, C, H, W]``; in a graph N is free.
        x: an example; its values are not read.

    Returns:
        A GraphModule ``image -> [outputs]``. ``meta["out_spec"]`` says how the outputs make up the
        model's. Attributes are ``model.<name>`` of the model itself and ``constants.<name>``. A
        node's sizes, for :data:`BATCH` images, are :func:`sizes` of it. Regions of ``no_grad`` and
        autocast lie in the graph between calls that enter and leave them.

    Raises :class:`Untraceable` naming what stands in the way; the model's own error, where it does
    not take such images at all.
    """
    # Weights made in inference mode can be traced in it alone.
    inference = any(t.is_inference() for t in [*model.parameters(), *model.buffers()])
    with (
        _LOCK, temporarily_clear_interpreter_stack(), watched(model) as seen,
        torch.inference_mode(inference), torch.enable_grad(),
    ):  # fmt: skip
        example = torch.empty((BATCH, *x.shape[1:]), dtype=x.dtype, device=x.device)
        try:
            with (
                torch.autocast(x.device.type, enabled=False), plain_attention(),
                plain_normalization(model), quiet(),
            ):  # fmt: skip
                program = export(model, (example,), dynamic_shapes=({0: Dim("n")},), strict=False)
        except Exception as error:
            with torch.no_grad():
                model(torch.zeros_like(x[:1]))  # what is wrong with the image is the model's to say
            raise Untraceable(
                f"model: torch.export cannot trace {type(model).__name__}{line_of_model(error)} "
                "(control flow may depend on values; a batch size is x.shape[0], not len(x)): "
                f"{_first_lines(error)}"
            ) from error
    if seen:
        raise Untraceable(seen[0])
    root = Root(model)
    module = with_graph(root, _Copy(program, root).graph, type(model).__name__)
    module.meta["out_spec"] = program.call_spec.out_spec
    return module


def with_graph(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A module of that graph with root's own children, and what it says of its outputs."""
    module = fx.GraphModule(root, graph, name)
    for child_name, child in root.named_children():
        module.add_module(child_name, child)  # itself, not fx's copy of its structure
    module.meta.update(getattr(root, "meta", {}))
    return module


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """The same with a graph of its own."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return with_graph(module, graph, type(module).__name__)


def run(module: fx.GraphModule, *inputs: Any) -> Any:
    """The outputs of a traced graph, or of one made of it, in the form of the model's."""
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # a region that fails leaves its mode
        outputs = module(*inputs)
    spec: Any = module.meta["out_spec"]
    return pytree.tree_unflatten(list(outputs), spec)


def sizes(node: fx.Node) -> tuple[int, ...]:
    """The sizes of a node's tensor for a batch of :data:`BATCH`."""
    return _sizes(node.meta["val"])


def part_sizes(node: fx.Node) -> list[tuple[int, ...]]:
    """The same of each part of a node's tuple."""
    return [_sizes(part) for part in node.meta["val"]]


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(_hint(size) for size in tensor.shape)


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def path(node: fx.Node) -> str:
    """The path of the module whose forward made the call, or the node's name at the top."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(stack[-1][0]) if stack else ""
    return name.partition("@")[0] or node.name


def module_type(node: fx.Node) -> str:
    """The class of that module."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][1]).rpartition(".")[2] if stack else ""


def name_of(node: fx.Node) -> str:
    """The operation: ``conv2d``, ``add_`` ..."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2]
    return getattr(node.target, "__name__", str(node.target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(enumerate(node.args)) | dict(node.kwargs)  # type: ignore[return-value]
    found = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            found[argument.name] = node.args[index]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def is_in_place(node: fx.Node) -> bool:
    """Whether the operation writes into its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    written = [a.alias_info is not None and a.alias_info.is_write
               for a in node.target._schema.arguments]  # fmt: skip
    return bool(written) and written[0]


def is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with the first argument, unwritten."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function"
    if name_of(node) in ("reshape", "contiguous", "to", "flatten", "dropout", "feature_dropout",
                         "alpha_dropout", "type_as", "unflatten"):  # fmt: skip
        return True
    return any(a.alias_info is not None for a in node.target._schema.arguments)


class _Copy:
    """An exported program's graph with attributes in place of lifted inputs, regions inlined."""

    def __init__(self, program: ExportedProgram, root: Root) -> None:
        self.program, self.root = program, root
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, Any] = {}
        inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        outputs: list[Any] = []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                self.nodes[node] = self.input(node, inputs[node.name])
            elif node.op == "output":
                kinds = [spec.kind for spec in program.graph_signature.output_specs]
                outputs = [
                    o for o, k in zip(node.args[0], kinds, strict=True)
                    if k == OutputKind.USER_OUTPUT
                ]  # fmt: skip
            else:
                self.call(node, program.graph_module)
        self.graph.output([self.nodes.get(o, o) for o in outputs])
        _make_functional(self.graph)

    def input(self, node: fx.Node, spec: Any) -> fx.Node:
        if spec.kind == InputKind.USER_INPUT:
            new = self.graph.placeholder("x")
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            new = self.graph.create_node("get_attr", f"model.{spec.target}")
        else:
            name = spec.target.replace(".", "_")
            self.root.constants.register_buffer(name, self.program.constants[spec.target])
            new = self.graph.create_node("get_attr", f"constants.{name}")
        new.meta = dict(node.meta)
        return new

    def call(self, node: fx.Node, owner: nn.Module) -> None:
        name = getattr(node.target, "__name__", "")
        if node.op == "get_attr":
            value = getattr(owner, str(node.target))
            if not isinstance(value, fx.GraphModule):  # else the body of a region
                key = f"{node.target}_{len(self.nodes)}"
                self.root.constants.register_buffer(key, value)
                self.nodes[node] = self.graph.create_node("get_attr", f"constants.{key}")
                self.nodes[node].meta = dict(node.meta)
        elif name in _REGIONS:
            self.region(node, owner, name)
        elif node in self.nodes or name.partition(".")[0] in _CHECKS:
            return  # taken from a region's results; or of no use once traced
        else:
            self.nodes[node] = self.graph.node_copy(node, lambda n: self.nodes[n])

    def region(self, node: fx.Node, owner: nn.Module, name: str) -> None:
        """Inlines the body of ``no_grad``, ``enable_grad`` or autocast."""
        at = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node))
        body: Any = getattr(owner, str(node.args[at].target))  # type: ignore[union-attr]
        call = self.graph.call_function
        if name == "wrap_with_set_grad_enabled":
            before = call(torch.is_grad_enabled)
            call(torch._C._set_grad_enabled, (node.args[0],))
        else:
            mode: Any = torch.amp.autocast_mode
            before = call(mode._enter_autocast, tuple(node.args[:at]))
        given = iter(node.args[at + 1 :])
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                outer = next(given)
                self.nodes[inner] = self.nodes[outer] if isinstance(outer, fx.Node) else outer
            elif inner.op != "output":
                self.call(inner, body)
            else:
                results = [self.nodes.get(r, r) for r in inner.args[0]]
        if name == "wrap_with_set_grad_enabled":
            call(torch._C._set_grad_enabled, (before,))
        else:
            call(mode._exit_autocast, (before,))
        for user in node.users:  # each takes one of the results
            self.nodes[user] = results[int(str(user.args[1]))]


def _make_functional(graph: fx.Graph) -> None:
    """What reads a tensor after it was written to reads the write's result: the same memory."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or not is_in_place(node):
            continue
        source = node.args[0]
        if source.op == "get_attr":
            continue
        related = _sharing(source, node) - {source}
        late = [n for n in related if any(order[u] > order[node] for u in n.users)]
        node.meta[WRITES_PART] = bool(late)
        source.replace_all_uses_with(
            node, delete_user_cb=lambda user, node=node: order[user] > order[node]
        )


def _sharing(node: fx.Node, write: fx.Node) -> set[fx.Node]:
    """The nodes whose results may be the same memory as node's, but for what comes of the write."""
    root = node
    while root.op == "call_function" and (is_view(root) or is_in_place(root)):
        source = next((a for a in root.args if isinstance(a, fx.Node)), None)
        if source is None:
            break
        root = source
    found, stack = {root}, [root]
    while stack:
        for user in stack.pop().users:
            if (
                user not in found
                and user is not write
                and user.op == "call_function"
                and is_view(user)
            ):
                found.add(user)
                stack.append(user)
    return found


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:600] or type(error).__name__
