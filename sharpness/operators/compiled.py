"""The linearised gradient as one compiled program, for long computations on large data.

The gradient and its derivative along v are traced once, as one list of operations. Those that depend on v are cut out
and compiled; the others run once per chunk and leave the values that the program needs. The trace sees shapes and no
numbers, so that what one chunk holds cannot become a part of the program for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sharpness.objective import Kernels, Objective, exact_arithmetic
from sharpness.operators.linearised import check_finite


class CompiledGraph:
    """One chunk's values, and the program that makes products of them and v."""

    def __init__(self, program: Any, values: Sequence[torch.Tensor], weight: float, device: torch.device) -> None:
        self._program, self._values, self._device, self.weight = program, values, device, weight

    def product(self, direction: Sequence[torch.Tensor]) -> torch.Tensor:
        """∂⟨g, v⟩/∂θ of shape (n,), for v in the parameters' shapes."""
        with torch.no_grad(), exact_arithmetic(self._device):
            columns = self._program(*self._values, *direction)
        return torch.cat([column.reshape(-1) for column in columns])

    def products(self, directions: Sequence[torch.Tensor]) -> None:
        """A program takes one vector at a time."""


class Compiler:
    """Traces a chunk and compiles it, for all chunks of its kind. Takes some seconds to a minute.

    Raises:
        Exception: of whatever kind tracing or compiling meets. The retained graph serves models that this does not.
    """

    def __init__(
        self,
        objective: Objective,
        chunk: Any,
        leaves: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None,
    ) -> None:
        self._objective = objective
        self._state = ([leaf.detach() for leaf in leaves], dict(buffers or {}))
        self._kind = _kind(chunk)
        example = [torch.ones_like(leaf) for leaf in self._state[0]]
        with FakeTensorMode(allow_non_fake_inputs=True) as shapes, exact_arithmetic(objective.device):
            inputs = pytree.tree_map_only(torch.Tensor, shapes.from_tensor, (*self._state, chunk, example))
            traced = make_fx(lambda *inputs: self._products(*inputs))(*inputs)
        self._ahead, tangent = _split(traced, len(example))
        with torch.no_grad(), exact_arithmetic(objective.device):
            _, _, *values = self._ahead(*self._inputs(chunk))
            self._program = torch._inductor.compile(tangent, [*values, *example])

    def fits(self, chunk: Any) -> bool:
        """Whether the program for the chunk that was traced is one for this chunk."""
        return _kind(chunk) == self._kind

    def linearise(self, chunk: Any) -> CompiledGraph:
        """The chunk's values at θ: one gradient and a little more."""
        with torch.no_grad(), exact_arithmetic(self._objective.device):
            weight, finite, *values = self._ahead(*self._inputs(chunk))
        check_finite(bool(finite))
        return CompiledGraph(self._program, values, float(weight), self._objective.device)

    def _inputs(self, chunk: Any) -> list[Any]:
        return pytree.tree_leaves((*self._state, chunk))

    def _products(
        self,
        parameters: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor],
        chunk: Any,
        direction: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]:
        """The weight, whether the gradient is finite, and the products."""
        f = self._objective
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with torch.enable_grad():
            term = f.terms(chunk, leaves, buffers, Kernels(f.kernels, retained=True))
            gradient = f.terms.differentiate(term.total, leaves, create_graph=True)
            curved = [(part, v) for part, v in zip(gradient, direction, strict=True) if part.requires_grad]
            parts, weights = zip(*curved, strict=True)
            columns = torch.autograd.grad(parts, leaves, weights, materialize_grads=True)
        finite = torch.stack([part.detach().isfinite().all() for part in gradient]).all()
        return torch.as_tensor(term.weight), finite, columns


def _split(traced: fx.GraphModule, directions: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """What does not depend on the last inputs, with all values that the rest needs as outputs; and the rest.

    The last outputs, the columns, are those of the rest; the two before them go out ahead of those values.
    """
    traced.graph.eliminate_dead_code()
    nodes = list(traced.graph.nodes)
    tangent = set([node for node in nodes if node.op == "placeholder"][-directions:])
    for node in nodes:
        if not tangent.isdisjoint(node.all_input_nodes):
            tangent.add(node)
    output = nodes[-1]
    weight, finite, *columns = pytree.tree_leaves(output.args[0])
    tangent.discard(output)
    used = [before for node in nodes if node in tangent for before in node.all_input_nodes]
    needed = dict.fromkeys(node for node in [*used, *columns] if node not in tangent)
    ahead, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in tangent and node is not output:
            copies[node] = ahead.node_copy(node, copies.__getitem__)
    ahead.output((copies[weight], copies[finite], *(copies[node] for node in needed)))
    copies = {node: rest.placeholder(node.name) for node in needed}
    for node in nodes:
        if node in tangent:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    rest.output(tuple(copies[column] for column in columns))
    return fx.GraphModule(traced, ahead), fx.GraphModule(traced, rest)


def _kind(chunk: Any) -> tuple[Any, ...]:
    """All of a chunk that becomes a part of the trace: everything but the numbers in its tensors."""
    leaves, structure = pytree.tree_flatten(chunk)
    return structure, [
        (leaf.shape, leaf.stride(), leaf.dtype)
        if isinstance(leaf, torch.Tensor)
        else (type(leaf), leaf if isinstance(leaf, (str, int, float)) else id(leaf))
        for leaf in leaves
    ]
