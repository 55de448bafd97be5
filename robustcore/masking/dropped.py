"""The planned graph on visible tokens alone, for masks that the samples of a batch share."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from robustcore.common import graph as traced
from robustcore.masking import calls
from robustcore.masking.graph import Builder
from robustcore.masking.masks import Mask
from robustcore.masking.plan import Plan, Step
from robustcore.masking.tokens import Lines, Tokens, Wants


def dropped_graph(module: fx.GraphModule, plan: Plan) -> fx.GraphModule | None:
    """``module`` as a function of (x, mask), for a mask of zeros and ones that all samples share.

    What can be computed of visible tokens alone is; they are taken out where they begin to be
    tokens, and put back among zeros where an operation has to see all. None where that saves
    nothing. It raises :class:`robustcore.masking.calls.NothingShown` where no token is visible.
    """
    tokens = Tokens(plan)
    return _Builder(module, plan, tokens).build() if tokens.worthwhile else None


class _Builder(Builder):
    name = "Dropped"

    def __init__(self, module: fx.GraphModule, plan: Plan, tokens: Tokens) -> None:
        super().__init__(module, plan)
        self.tokens, self.row_wise = tokens, set()
        self.at: dict[Mask, fx.Node] = {}
        self.taken: dict[Any, fx.Node] = {}

    def add(self, node: fx.Node, step: Step) -> None:
        wants = self.tokens.wants.get(node)
        if wants is not None:
            found = self.run(node, wants)
            (self.few if node in self.tokens.lines else self.nodes)[node] = found
            return
        super().add(node, step)

    def run(self, node: fx.Node, wants: Wants) -> fx.Node:
        """The node's operation on visible tokens."""

        def given(source: fx.Node) -> fx.Node:
            return self.take(source, wants[source]) if source in wants else self.nodes[source]

        new = self.graph.node_copy(node, given)
        lines, name = self.tokens.lines.get(node, {}), traced.name_of(node)
        if name in ("view", "reshape", "_unsafe_view", "expand"):
            sizes = list(new.args[1])  # type: ignore[arg-type]
            first = len(traced.sizes(node)) - len(sizes)
            with self.graph.inserting_before(new):
                for d, line in lines.items():
                    sizes[d - first] = self.call(torch.numel, (self.place(line),))
            new.args = (new.args[0], sizes, *new.args[2:])
            if name != "expand":  # of memory that may be laid out in another way
                new.target = torch.ops.aten.reshape.default
        return new

    def place(self, line: Mask) -> fx.Node:
        """The positions of a line's visible tokens."""
        if line not in self.at:
            self.at[line] = self.call(calls.kept, (self.mask(line),))
        return self.at[line]

    def take(self, source: fx.Node, wanted: Lines) -> fx.Node:
        """A node's result, without hidden tokens where they are not wanted."""
        own = self.tokens.lines.get(source, {}) if source in self.few else {}
        result = self.few[source] if source in self.few else self.nodes[source]
        for d, line in wanted.items():
            if d in own:
                continue
            key = (result, d, line)
            if key not in self.taken or any(traced.is_in_place(user) for user in source.users):
                self.taken[key] = self.call(calls.take, (result, d, self.place(line)))
            result = self.taken[key]
        return result

    def put_back(self, source: fx.Node) -> fx.Node:
        result, sizes = self.few[source], traced.sizes(source)
        for d, line in self.tokens.lines[source].items():
            result = self.call(calls.put_back, (result, self.place(line), d, sizes[d]))
        return result
