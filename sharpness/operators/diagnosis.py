"""Where a model cannot be differentiated twice: the operation, the module it sits in, and a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from sharpness.errors import SharpnessError, UnsupportedModelError
from sharpness.objective import Kernels, Objective, exact_arithmetic
from sharpness.objective.batches import chunked
from sharpness.random import preserved_random_state

EXAMPLES = 8  # with which the model is looked at
NAMED = 3  # modules that a message names

ATTENTION = (
    'load the model with attn_implementation="eager", or call torch.nn.functional.scaled_dot_product_attention without '
    "choosing a kernel: here it is computed by its formula"
)
WAYS_OUT = {  # by a part of what PyTorch says, in small letters; each was differentiated twice
    "attention": ATTENTION,
    "flash": ATTENTION,
    "fmha": ATTENTION,
    "cdist_backward": 'torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"), or exactly '
    "torch.linalg.vector_norm(x[..., :, None, :] - y[..., None, :, :], dim=-1)",
    "pdist_backward": "torch.linalg.vector_norm(x[i] - x[j], dim=-1) with i, j = torch.triu_indices(n, n, 1)",
    "embedding_bag": "torch.nn.Embedding, and the mean, sum or max of its rows",
    "ctc_loss": "the forward recursion written with torch.logsumexp",
    "margin_loss_backward": "the sum of torch.clamp(margin - difference, min=0)",
    "segment_reduce": "torch.Tensor.index_add or scatter_reduce",
    "sparse_softmax": "torch.softmax of the dense tensor",
    "sparse_log_softmax": "torch.log_softmax of the dense tensor",
    "cudnn_rnn": 'device="cpu", or torch.backends.cudnn.flags(enabled=False) around the call',
    "numpy()": "write the function's backward in operations of torch",
    "once_differentiable": "write its backward in differentiable operations of torch, and take the mark away",
    "no autograd formula": "register one for it (torch.library.register_autograd)",
}

Explain = Callable[[], UnsupportedModelError | None]


class Fault(NamedTuple):
    """What stands in the way of derivatives of a graph, and of which."""

    says: str
    order: int


@contextmanager
def diagnosed(explain: Explain) -> Iterator[None]:
    """Turn PyTorch's refusal to differentiate into ``explain()``, where that gives a reason. Other errors pass."""
    try:
        yield
    except (SharpnessError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        refusal = explain()
        if refusal is None:
            raise
        raise refusal from error


def check_differentiable_twice(tensors: Iterable[torch.Tensor], explain: Explain) -> None:
    """Refuse a graph with functions marked ``once_differentiable``, whose second derivative PyTorch drops silently."""
    name = marked([get_gradient_edge(tensor) for tensor in tensors if tensor.requires_grad])
    if name is not None:
        raise explain() or _refusal(Fault(_marked_once(name), 2))


def diagnose(
    objective: Objective,
    chunk: Any,
    leaves: Sequence[torch.Tensor],
    buffers: Mapping[str, torch.Tensor] | None,
    *,
    curved: bool = True,
) -> UnsupportedModelError | None:
    """Why the losses of a chunk cannot be differentiated twice, by its first examples; None where they can.

    The model is run once, and every call of a module recorded as the part of the graph between its inputs and its
    outputs. Each part is then differentiated twice by itself: the innermost that fail are at fault, or where none does,
    the loss. ``curved``: the second derivatives of the model itself are wanted, so that to leave them out is a way out.
    """
    few = chunked([chunk], EXAMPLES)[0]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    with preserved_random_state(), exact_arithmetic(objective.device):
        with recorded(objective.terms.module) as record:
            try:
                total = objective.terms(few, leaves, buffers, Kernels("torch")).total
            except Exception as error:  # of the model's own code
                return _of_forward(objective, few, leaves, buffers, record, error)
        whole = fault(_edges(_variables([total])), _edges(leaves), [torch.ones_like(total)])
        if whole is None:
            return None
        found = [] if record.root is None else list(record.root.faults())
        if not found:
            return _refusal(whole, "in the loss")
        first, own = found[0]
        others = list(dict.fromkeys(f"'{call.path}'" for call, _ in found if call.path != first.path))
        where = f"in {first.name}" + (f", and likewise in {_listed(others)}" if others else "")
        other = _gauss_newton(objective, few, leaves, buffers) if curved and own.order == 2 else ""
        return _refusal(own, where, other)


def own_functions(
    objective: Objective,
    chunk: Any,
    parameters: Sequence[torch.Tensor],
    buffers: Mapping[str, torch.Tensor] | None,
) -> list[str]:
    """The ``torch.autograd.Function`` that the losses of a chunk are made of, each with the module it sits in.

    Those of PyTorch and of this package do not count.
    """
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    with preserved_random_state(), recorded(objective.terms.module) as record:
        total = objective.terms(chunk, leaves, buffers, Kernels("torch")).total
    found: list[str] = []
    for node in _nodes([total.grad_fn]):
        if (name := own_function(node)) is not None:
            call = None if record.root is None else record.root.innermost(node)
            found.append(f"{name} in {call.name if call else 'the loss'}")
    return list(dict.fromkeys(reversed(found)))


def has_own_functions(total: torch.Tensor) -> bool:
    """Whether any are in a graph."""
    return any(own_function(node) is not None for node in _nodes([total.grad_fn]))


def own_function(node: Node) -> str | None:
    """The name of the ``torch.autograd.Function`` of a node, if it is neither PyTorch's nor of this package."""
    function = getattr(node, "_forward_cls", None)
    if function is None or function.__module__.partition(".")[0] in ("torch", "sharpness"):
        return None
    return str(function.__name__)


def fault(
    outputs: Sequence[GradientEdge], inputs: Sequence[GradientEdge], directions: Sequence[torch.Tensor]
) -> Fault | None:
    """Differentiate a part of a graph twice: what stands in the way, if anything does.

    ``directions``, what comes in from behind when it is differentiated, are variables as well.
    """
    if not outputs or not inputs:
        return None
    name = marked(outputs, inputs)
    if name is not None:
        return Fault(_marked_once(name), 2)
    near, order = _nearest(inputs), 1
    weights = [direction.clone().requires_grad_() for direction in directions]
    try:
        torch.autograd.grad(outputs, near, directions, retain_graph=True, allow_unused=True)
        order = 2
        slopes = torch.autograd.grad(outputs, near, weights, create_graph=True, allow_unused=True)
        curved = [slope for slope in slopes if slope is not None and slope.requires_grad]
        ones = [torch.ones_like(slope) for slope in curved]
        if curved:
            torch.autograd.grad(curved, [*near, *_edges(weights)], ones, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        return Fault(_first_sentence(error), order)
    return None


# The graph, node by node


@once_differentiable
def _once(ctx: Any) -> None:
    """Shares its code with every function so marked, by which they are known."""


def marked(outputs: Iterable[GradientEdge], inputs: Iterable[GradientEdge] = ()) -> str | None:
    """The name of a function marked ``once_differentiable`` in a graph, before its inputs are reached."""
    for node in _nodes([edge.node for edge in outputs], [edge.node for edge in inputs]):
        function = getattr(node, "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _once.__code__:
            return str(getattr(function, "__name__", "a function"))
    return None


def _nodes(last: Iterable[Node | None], until: Iterable[Node] = ()) -> Iterator[Node]:
    """Those of a graph from its last ones back, before those of ``until`` are reached."""
    seen, waiting = set(until), list(last)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            yield node


def _nearest(edges: Sequence[GradientEdge]) -> list[GradientEdge]:
    """Those from which no way leads back to another: derivatives in these alone stay in one part of the graph."""
    behind = set(_nodes(before for edge in edges for before, _ in edge.node.next_functions))
    return [edge for edge in edges if edge.node not in behind]


# Which part of it belongs to which module


@dataclass
class Call:
    """One call of a module: the ends of its part of the graph, and the calls of other modules inside it."""

    path: str
    kind: str
    inputs: list[GradientEdge]
    outputs: list[GradientEdge] = field(default_factory=list)
    directions: list[torch.Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As messages give it."""
        return f"'{self.path}' ({self.kind})" if self.path else f"the model itself ({self.kind})"

    def innermost(self, node: Node) -> Call | None:
        """The innermost call in whose part of the graph a node is."""
        if node not in set(_nodes([edge.node for edge in self.outputs], [edge.node for edge in self.inputs])):
            return None
        inner = (call.innermost(node) for call in self.calls)
        return next((call for call in inner if call is not None), self)

    def faults(self) -> Iterator[tuple[Call, Fault]]:
        """The innermost calls that cannot be differentiated twice, in the order of the forward pass."""
        own = fault(self.outputs, self.inputs, self.directions)
        if own is not None:
            inner = [found for call in self.calls for found in call.faults()]
            yield from inner or [(self, own)]


class Record:
    """The calls of a model's modules in one forward pass.

    Attributes:
        root: that of the model.
        running: those not left yet, the innermost last; after an error, where it was raised.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paths = {module: path for path, module in model.named_modules()}
        self.root: Call | None = None
        self.running: list[Call] = []

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pre-hook."""
        # edges, not tensors: these may be changed in place later
        ends = _edges([*_variables(list(module.parameters())), *_variables((args, kwargs))])
        call = Call(self._paths[module], type(module).__name__, ends)
        if self.running:
            self.running[-1].calls.append(call)
        else:
            self.root = call
        self.running.append(call)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - a hook's signature
        """A forward hook."""
        while (call := self.running.pop()).path != self._paths[module]:  # one left by an error that was caught
            pass
        outputs = _variables(output)
        call.outputs, call.directions = _edges(outputs), [torch.ones_like(tensor.detach()) for tensor in outputs]


@contextmanager
def recorded(model: nn.Module) -> Iterator[Record]:
    """The calls of a model's modules while it runs."""
    record = Record(model)
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(record.enter, prepend=True, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(record.leave).remove)
        yield record


def _variables(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]


def _edges(tensors: Iterable[torch.Tensor]) -> list[GradientEdge]:
    return [get_gradient_edge(tensor) for tensor in tensors]


# What is said about it


def _of_forward(
    objective: Objective,
    few: Any,
    leaves: Sequence[torch.Tensor],
    buffers: Mapping[str, torch.Tensor] | None,
    record: Record,
    error: Exception,
) -> UnsupportedModelError | None:
    """Of an error in the forward pass: whether it is that gradients are wanted."""
    try:
        with torch.no_grad():
            objective.terms(few, leaves, buffers, Kernels("torch"))
    except Exception:  # it is something else
        return None
    where = f"in {record.running[-1].name}" if record.running else "in the loss"
    return _refusal(Fault(_first_sentence(error), 1), where)


def _gauss_newton(
    objective: Objective, few: Any, leaves: Sequence[torch.Tensor], buffers: Mapping[str, torch.Tensor] | None
) -> str:
    """The advice to take the Gauss–Newton matrix, where its products can be had."""
    from sharpness.operators.gauss_newton import OutputGraph  # it knows this module

    try:
        graph = OutputGraph(objective, few, leaves, buffers, Kernels("torch"))
        graph.check()
        graph.product([torch.ones_like(leaf) for leaf in leaves])
    except (SharpnessError, RuntimeError):
        return ""
    return " sharpness.GaussNewton, which leaves out the second derivatives of the model, can be computed as it is."


def _refusal(found: Fault, where: str = "", other: str = "") -> UnsupportedModelError:
    twice = " twice" if found.order == 2 else ""
    known = next((way for part, way in WAYS_OUT.items() if part in found.says.lower()), "")
    way = f"A way out: {known}." if known else "Replace that operation for the analysis by one that can be."
    at = f", {where}" if where else ""
    return UnsupportedModelError(f"expected a model that can be differentiated{twice}; {found.says}{at}. {way}{other}")


def _marked_once(name: str) -> str:
    return f"{name} is marked once_differentiable"


def _first_sentence(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return f"PyTorch says: {line.partition('. ')[0].rstrip('. ')}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
