"""The Hessian of an objective, linearised once and applied to vectors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, final

import torch

from sharpness.errors import ShapeError
from sharpness.objective import Objective, free_bytes, seconds_of
from sharpness.operators.base import SymmetricOperator
from sharpness.operators.chunks import RETAIN_FRACTION, ChunkProduct, Chunks, agree, checked
from sharpness.operators.compiled import CompiledGraph, Compiler
from sharpness.operators.linearised import RetainedGraph
from sharpness.params import Point

REPLAYS = ("auto", "graph", "compiled")
CHEAP_SHARE = 1 / 5  # of the examples, from which on a Hessian of fewer examples does not pay: certifying costs more
EXPECTED_PRODUCTS = 50  # top-10 pairs of a network take about as many
COMPILED_GAIN, COMPILE_SECONDS = 0.1, 30.0  # usual ones: the share of a product saved, and what compiling takes


@final
class Hessian(SymmetricOperator):
    """H = ∇²f(θ) of an objective at one place, by exact products.

    The gradient is linearised once, when the operator is made: its graph is retained chunk by chunk, and a product
    ``H @ v`` is one backward pass through it, about two gradients. Chunks whose graphs do not fit into ``memory`` are
    rebuilt at every product, at about three gradients; the numbers are the same.

    Args:
        objective: f; its batch-norm policy must be ``"eval"`` or ``"batch"``. Its kernels are compared with PyTorch's
            own on a few examples, and PyTorch's taken where they do not agree.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``.
        memory: bytes that retained graphs may take; default: half of what is free.
        replay: ``"graph"``, or ``"compiled"``: the derivative is traced and compiled, which takes up to a minute
            and then saves a fifth of every product of an MLP, a tenth of a transformer's and nothing of a ResNet's.
            ``"auto"`` compiles where 50 products would win that time back, and keeps the program where it agrees
            with the graph and is faster. ``conditions["execution"]`` says what was taken, and why; given here, it
            is taken again.

    Raises:
        ShapeError: replay is none of these.
        UnsupportedModelError: f cannot be differentiated twice, or only its values exist.
        NonFiniteError: the gradient at this place is NaN or infinite.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> f, theta = Objective.from_module(model, lambda o, t: 0.5 * o.square(), (torch.eye(2), torch.zeros(2, 1)))
        >>> Hessian(f, theta) @ torch.tensor([1.0, 2.0])  # f = (θ₁² + θ₂²) / 4
        tensor([0.5000, 1.0000])
    """

    def __init__(
        self, objective: Objective, place: Any, *, memory: int | None = None, replay: str | Mapping[str, Any] = "auto"
    ) -> None:
        recorded = {} if isinstance(replay, str) else replay
        replay = replay if isinstance(replay, str) else recorded.get("replay", "auto")
        if replay not in REPLAYS:
            raise ShapeError(f"expected replay to be one of {', '.join(REPLAYS)}; got {replay!r}")
        objective.check_differentiable()
        point = objective.point(place)
        self._point = Point(point.theta.clone(), point.buffers)  # what the caller does to θ later is not our θ
        self._leaves = [part.clone().requires_grad_() for part in objective.space.split(self._point.theta)]
        self._replay, self._why = "graph", ""
        graph = partial(RetainedGraph, objective, objective.few, self._leaves, point.buffers)
        self._objective = checked(objective, graph)
        self._linearise(free_bytes(objective.device) * RETAIN_FRACTION if memory is None else memory, replay)
        if self._replay == recorded.get("replay"):
            self._why = recorded.get("why", self._why)

    @property
    def shape(self) -> tuple[int, int]:
        return (self._objective.size, self._objective.size)

    @property
    def dtype(self) -> torch.dtype:
        return self._objective.dtype

    @property
    def device(self) -> torch.device:
        return self._objective.device

    @property
    def retained_bytes(self) -> int:
        """Memory that the retained graphs take, as estimated from a few examples."""
        return self._chunks.bytes

    @property
    def conditions(self) -> dict[str, Any]:
        own = self._objective.conditions
        plan = {"replay": self._replay, "why": self._why, "retained_chunks": self._chunks.count}
        execution = {**own["execution"], **plan}
        return {**own, "operator": "hessian", "theta_sha256": self._point.sha256, "execution": execution}

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.conditions, "data": self._objective.fingerprint}

    def cheaper(self, accuracy: float) -> tuple[float, SymmetricOperator] | None:
        """The Hessian of the examples with the largest losses, all but a share ``accuracy`` of their sum.

        Where a network has learnt most examples, few of them carry the curvature: the second derivative of the
        cross-entropy vanishes with the loss.
        """
        f = self._objective
        losses = f.losses(self._point)
        if losses is None or not bool((losses >= 0).all()):
            return None
        ordered, order = losses.double().sort()
        least = ordered.cumsum(0) <= accuracy * ordered.sum()
        share = 1 - float(least.double().mean())
        if not 0 < share < CHEAP_SHARE:
            return None
        chosen = torch.ones_like(least).index_fill_(0, order[least], False)
        part = Hessian(f.replace(examples=chosen), self._point)
        part._chunks.weight = self._chunks.weight  # the same mean, of fewer terms
        return share, part

    def _linearise(self, memory: float, replay: str) -> None:
        f = self._objective
        bytes_per_example = f.terms.saved_bytes_per_example(f.few, linearised=True)
        seconds, first = seconds_of(lambda: self._graph(f.chunks[0]), self.device)
        first.check()
        if bytes_per_example * f.partition[0] > memory:
            compiler, self._why = None, "no memory to keep anything"
        else:
            compiler, self._why = self._choose(first, seconds * f.examples / f.partition[0], replay)
        self._replay = "graph" if compiler is None else "compiled"

        def begin(index: int, kept: bool) -> ChunkProduct:
            if compiler is not None and kept and compiler.fits(f.chunks[index]):
                return compiler.linearise(f.chunks[index])
            graph = self._graph(f.chunks[index]) if index else first
            graph.check()
            return graph

        self._chunks = Chunks(f, begin, self._graph, memory=memory, bytes_per_example=bytes_per_example)

    def _graph(self, chunk: Any) -> RetainedGraph:
        return RetainedGraph(self._objective, chunk, self._leaves, self._point.buffers)

    def _choose(self, first: RetainedGraph, seconds: float, replay: str) -> tuple[Compiler | None, str]:
        """The compiler, if products are to be compiled, and the reason for either.

        ``seconds`` is what building the graphs of all chunks takes, half of a product.
        """
        if replay == "graph":
            return None, "asked for"
        if replay == "auto" and EXPECTED_PRODUCTS * 2 * seconds * COMPILED_GAIN < COMPILE_SECONDS:
            return None, "products too cheap for compiling to pay"
        chunk = self._objective.chunks[0]
        try:
            compiler = Compiler(self._objective, chunk, self._leaves, self._point.buffers)
            compiled = compiler.linearise(chunk)
            # two, for the first product may spoil what is kept for the second
            same = agree(self._objective, compiled, first, vectors=2)
        except Exception as error:  # of any kind: tracing meets every model's own code
            return None, f"compiling failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        ours, reference = self._seconds(compiled), self._seconds(first)
        times = f"a chunk takes {ours:.3g} s compiled, {reference:.3g} s by its graph"
        if not same:
            return None, "compiled products differ from the graph's"
        return (compiler if ours < reference or replay == "compiled" else None), times

    def _seconds(self, graph: RetainedGraph | CompiledGraph) -> float:
        """What one product takes, the better of two."""
        direction = self._objective.space.split(torch.ones_like(self._point.theta))
        return min(seconds_of(lambda: graph.product(direction), self.device)[0] for _ in range(2))

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._chunks.product(vectors)
