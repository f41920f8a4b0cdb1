"""The Hessian of an objective, linearised once and applied to vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch

from sharpness.errors import ShapeError
from sharpness.objective import Kernels, Objective, free_bytes, seconds_of
from sharpness.operators.base import SymmetricOperator
from sharpness.operators.compiled import CompiledGraph, Compiler
from sharpness.operators.linearised import RetainedGraph
from sharpness.params import Point
from sharpness.random import normal

REPLAYS = ("auto", "graph", "compiled")
RETAIN_FRACTION = 0.5  # of the memory that is free when the operator is made
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9}  # between two ways; a wrong formula differs by far more
CHEAP_SHARE = 1 / 3  # of the examples, from which on a Hessian of fewer examples does not pay
EXPECTED_PRODUCTS = 50  # top-10 pairs of a network take about as many
COMPILED_GAIN, COMPILE_SECONDS = 0.2, 30.0  # usual ones: the share of a product saved, and what compiling takes


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
        replay: ``"graph"``, or ``"compiled"``: the derivative is traced and compiled, which takes up to a minute and
            then saves about a fifth of every product. ``"auto"`` compiles where 50 products would win that time back,
            and keeps the program where it agrees with the graph and is faster. ``conditions["execution"]`` says what
            was taken, and why; given here, it is taken again.

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
        self._objective = objective
        self._batched = objective.device.type == "cuda"  # several vectors at once fill a GPU; a CPU is full with one
        if objective.kernels != "torch" and not self._kernels_agree():
            self._objective = objective.replace(kernels="torch")
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
        kept = [size for size, graph in zip(self._objective.partition, self._graphs, strict=True) if graph is not None]
        return self._bytes_per_example * sum(kept)

    @property
    def conditions(self) -> dict[str, Any]:
        own = self._objective.conditions
        retained = sum(graph is not None for graph in self._graphs)
        execution = {**own["execution"], "replay": self._replay, "why": self._why, "retained_chunks": retained}
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
        part._weight = self._weight  # the same mean, of fewer terms
        return share, part

    def _kernels_agree(self) -> bool:
        """Whether the objective's kernels and PyTorch's give the same product on a few examples."""
        f = self._objective
        ours, reference = (
            RetainedGraph(f, f.few, self._leaves, self._point.buffers, Kernels(name, retained=True, smallest=0))
            for name in (f.kernels, "torch")
        )
        return self._agree(ours, reference, vectors=1)

    def _agree(self, ours: RetainedGraph | CompiledGraph, reference: RetainedGraph, *, vectors: int) -> bool:
        """Whether two ways give the same products."""
        for draw in range(vectors):
            vector = normal(self.shape[0], key=("agreement", draw), seed=0, dtype=self.dtype, device=self.device)
            direction = self._objective.space.split(vector)
            expected = reference.product(direction)
            if not bool((ours.product(direction) - expected).norm() <= AGREEMENT[self.dtype] * expected.norm()):
                return False
        return True

    def _linearise(self, memory: float, replay: str) -> None:
        f = self._objective
        self._bytes_per_example = f.saved_bytes_per_example(linearised=True)
        seconds, first = seconds_of(lambda: self._graph(f.chunks[0]), self.device)
        first.check()
        if self._bytes_per_example * f.partition[0] > memory:
            compiler, self._why = None, "no memory to keep anything"
        else:
            compiler, self._why = self._choose(first, seconds * f.examples / f.partition[0], replay)
        self._replay = "graph" if compiler is None else "compiled"
        self._graphs: list[RetainedGraph | CompiledGraph | None] = []
        self._weight = 0.0
        used = 0
        for index, (chunk, size) in enumerate(zip(f.chunks, f.partition, strict=True)):
            used += self._bytes_per_example * size
            graph: RetainedGraph | CompiledGraph
            if compiler is not None and used <= memory and compiler.fits(chunk):
                graph = compiler.linearise(chunk)
            else:
                graph = self._graph(chunk) if index else first
                graph.check()
            self._weight += graph.weight
            self._graphs.append(graph if used <= memory else None)

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
            agree = self._agree(compiled, first, vectors=2)  # the first product may spoil what is kept for the second
        except Exception as error:  # of any kind: tracing meets every model's own code
            return None, f"compiling failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        ours, reference = self._seconds(compiled), self._seconds(first)
        times = f"a chunk takes {ours:.3g} s compiled, {reference:.3g} s by its graph"
        if not agree:
            return None, "compiled products differ from the graph's"
        return (compiler if ours < reference or replay == "compiled" else None), times

    def _seconds(self, graph: RetainedGraph | CompiledGraph) -> float:
        """What one product takes, the better of two."""
        direction = self._objective.space.split(torch.ones_like(self._point.theta))
        return min(seconds_of(lambda: graph.product(direction), self.device)[0] for _ in range(2))

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        f, rows = self._objective, vectors.T.contiguous()
        # one chunk's product is the sum itself; more are added up in float64
        precision = torch.float64 if len(self._graphs) > 1 else self.dtype
        sums = torch.zeros(rows.shape, dtype=precision, device=self.device)
        for chunk, kept in zip(f.chunks, self._graphs, strict=True):
            graph = kept or self._graph(chunk)
            if (block := self._block(graph, rows)) is not None:
                sums += block
                continue
            for total, row in zip(sums, rows, strict=True):
                total += graph.product(f.space.split(row))
        sums /= self._weight
        if f.l2:
            sums += f.l2 * rows
        return sums.to(self.dtype).T

    def _block(self, graph: RetainedGraph | CompiledGraph, rows: torch.Tensor) -> torch.Tensor | None:
        """One chunk's products with several vectors at once; None where that does not pay or cannot be done."""
        if not self._batched or len(rows) < 2 or isinstance(graph, CompiledGraph):
            return None
        try:
            return graph.products(self._objective.space.split_rows(rows))
        except RuntimeError:  # an operation that takes no batch of gradients, or not enough memory for one
            self._batched = False
            return None
