"""f on one data set, as a frozen function of θ."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from sharpness.errors import ShapeError, UnsupportedModelError
from sharpness.objective.batches import chosen, chunked, fingerprint, freeze, selected, tree_map
from sharpness.objective.copies import copied
from sharpness.objective.execution import device_name, exact_arithmetic, placement, warm_allocator
from sharpness.objective.kernels import KERNELS, Kernels, best_kernels
from sharpness.objective.losses import BatchLoss, Evaluation, Term, length
from sharpness.objective.snapshot import Snapshot
from sharpness.objective.stack import Stack
from sharpness.objective.terms import Terms
from sharpness.objective.verify import verify, verify_counts
from sharpness.params import ParamSpace, Point, as_point
from sharpness.random import preserved_random_state

FEW_EXAMPLES = 8  # on which memory and kernels are measured and checked
BATCH_STATISTICS_CHUNK = 5000  # batchnorm="batch": the evaluation batch of Keskar et al.'s released code


class Objective:
    """f(θ) = Σ losses / Σ weights over a whole data set (+ ½·l2·‖θ‖²), a frozen function of θ.

    It owns the data, the averaging, the chunks, the device, the batch-norm policy and a private copy of the model; it
    holds no current point. Sums over chunks are accumulated in float64, so chunk size and order change f by rounding
    only. Made by ``from_module``.

    Wherever a method takes ``place`` it takes θ of shape (n,), a ``Point`` or a ``Minimizer``; the latter two bring
    their own buffers (running statistics), θ alone uses those the model had. ``module`` is a copy of the model as it
    came, in its own mode and dtype, to look at.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: BatchLoss,
        batches: list[Any],
        space: ParamSpace,
        *,
        l2: float,
        chunk_size: int | None,
        device: torch.device,
        dtype: torch.dtype,
        batchnorm: str,
        kernels: str = "auto",
    ) -> None:
        warm_allocator()
        self.module, self._loss, self._source = module, loss, batches
        self.space, self.l2, self.device, self.dtype, self.batchnorm = space, l2, device, dtype, batchnorm
        self._requested_kernels = kernels
        self.kernels = best_kernels(device, dtype) if kernels == "auto" else kernels
        if self.kernels not in KERNELS:
            raise ShapeError(f"expected kernels to be auto or one of {', '.join(KERNELS)}; got {kernels!r}")
        self._snapshot = Snapshot(module, device, dtype)
        self._snapshot.check_policy(batchnorm)
        self._requested_chunk_size = chunk_size
        coupled = batchnorm == "batch" and self.has_batchnorm
        self.terms = Terms(self._snapshot, loss, space, coupled=coupled, device=device, kernels=self.kernels)
        self._batches = [tree_map(self._place, batch) for batch in batches]
        by_policy = BATCH_STATISTICS_CHUNK if batchnorm == "batch" else None
        self.chunk_size = chunk_size or by_policy or self.terms.chunk_size(self._batches, self.few)
        self.chunks = chunked(self._batches, self.chunk_size)
        self._verify()

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        loss: Callable[..., Any] | str,
        data: Any,
        *,
        weight: Callable[[Any], Any] | None = None,
        l2: float = 0.0,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        parameters: str | Sequence[str] | None = None,
        batchnorm: str = "eval",
    ) -> tuple[Objective, torch.Tensor]:
        """The objective of a model, loss and data set, and the model's current θ of shape (n,).

        The module is copied in eval mode and never touched.

        Args:
            module: any ``nn.Module``; compiled and data-parallel wrappers are unwrapped.
            loss: ``loss(output, target)`` returning per-example losses of any shape, a pair ``(sum, weight)``, or a
                scalar, taken as a mean over the batch and verified by splitting one; or ``"model"`` for models that
                return an output with ``.loss`` when called with a dictionary batch.
            data: ``(inputs, targets)`` tensors, a Dataset, a DataLoader, or any re-iterable of batches. Held in memory;
                tensors are not copied, so do not change them in place.
            weight: total weight of a batch, where it is not its number of losses (masked tokens, class weights).
            l2: adds ½·l2·‖θ‖² to f.
            chunk_size: most examples processed at once; default: as many as save 128 MiB of activations (4 GiB on a
                GPU), or 5,000 with ``batchnorm="batch"``, where the chunks are part of f.
            device: default: where the module is.
            dtype: float32 or float64; default: the module's, half precision raised to float32.
            parameters: names or patterns of the parameters that make up θ; the others are constants. Default: every
                parameter with ``requires_grad``.
            batchnorm: ``"eval"`` running statistics of the point; ``"batch"`` statistics of each chunk, differentiated
                through; ``"recompute"`` statistics re-estimated over the data at every point (values only).

        Raises:
            UnsupportedModelError: the scalar loss is no mean over examples, a layer cannot follow the policy, …
            NonDeterministicError: two evaluations differ.
            NonFiniteError: the loss at the model's own weights is NaN or infinite.
            DataError: empty, inconsistent or randomly augmented data.

        Example:
            >>> model = nn.Linear(2, 1, bias=False)
            >>> _ = model.weight.data.fill_(1.0)
            >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
            >>> f, theta = Objective.from_module(model, lambda output, target: (output - target) ** 2, (x, y))
            >>> f.value(theta), f.gradient(theta).tolist()  # (1 + 4) / 2, and 2 Σ (w·x) x / 2
            (2.5, [1.0, 4.0])
        """
        if not isinstance(module, nn.Module):
            raise UnsupportedModelError(f"expected a torch.nn.Module; got {type(module).__name__}")
        module = copied(module)  # the caller's may change later
        space = ParamSpace.of(module, parameters)
        where, precision = placement(module, device, dtype)
        if chunk_size is not None and chunk_size < 1:
            raise ShapeError(f"expected chunk_size >= 1; got {chunk_size}")
        objective = cls(
            module,
            BatchLoss(loss, weight),
            freeze(data),
            space,
            l2=float(l2),
            chunk_size=chunk_size,
            device=where,
            dtype=precision,
            batchnorm=batchnorm,
        )
        return objective, space.flatten(dict(module.named_parameters())).to(device=where, dtype=precision)

    def replace(
        self,
        *,
        batchnorm: str | None = None,
        dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
        kernels: str | None = None,
        examples: torch.Tensor | None = None,
        loss: Callable[..., Any] | None = None,
    ) -> Objective:
        """The same objective under another batch-norm policy, in another precision, in other chunks or kernels.

        ``examples``, a mask of shape (N,), leaves only those where it is true; ``loss`` takes the place of the loss.
        ``kernels="torch"`` computes every layer by PyTorch's own functions; the default, ``"auto"``, takes forms with
        the same values and cheaper second derivatives for convolutions and eval-mode batch norm (``"bilinear"``) and,
        in float32 on CPUs where oneDNN multiplies faster, for linear layers (``"onednn"``).
        """
        return Objective(
            self.module,
            self._loss if loss is None else BatchLoss(loss),
            self._source if examples is None else selected(self._source, examples),
            self.space,
            l2=self.l2,
            chunk_size=chunk_size or self._requested_chunk_size,
            device=self.device,
            dtype=dtype or self.dtype,
            batchnorm=batchnorm or self.batchnorm,
            kernels=kernels or self._requested_kernels,
        )

    def restricted(self, patterns: str | Sequence[str], place: Any) -> tuple[Objective, Point]:
        """f of some parameters θ_S alone, the others constant where they are at ``place``; and that place's θ_S.

        Its gradient is g[S], its Hessian the principal sub-matrix H[S, S] of f's; a penalty l2 is on θ_S alone. The
        point's buffers carry the constants: with a θ_S that has none, they are those of the model.

        Raises:
            UnsupportedModelError: a name or pattern matches none of this objective's parameters.

        Example (f = (θ₁ θ₂)², of which θ₂ at θ₁ = 3):
            >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
            >>> f, _ = Objective.from_module(model, lambda output, _: output**2, (torch.ones(1, 1), torch.zeros(1, 1)))
            >>> part, point = f.restricted("1.weight", torch.tensor([3.0, 2.0]))
            >>> point.theta.tolist(), part.value(point), part.gradient(point).tolist()
            ([2.0], 36.0, [36.0])
        """
        point, part = self.point(place), copy.copy(self)
        part.space = self.space.part(patterns)
        part.terms = self.terms.of(part.space)
        named = {**(point.buffers or {}), **self.space.unflatten(point.theta.clone())}
        return part, Point(part.space.flatten(named), {n: t for n, t in named.items() if n not in part.space.names})

    # What it is

    @property
    def size(self) -> int:
        """n, the number of parameters."""
        return self.space.size

    @property
    def examples(self) -> int:
        """N, the number of examples."""
        return sum(self.partition)

    @property
    def partition(self) -> tuple[int, ...]:
        """The number of examples in each chunk."""
        return tuple(length(chunk) for chunk in self.chunks)

    @property
    def few(self) -> Any:
        """The first few examples as one chunk, to measure and check on."""
        return tree_map(lambda t: t[:FEW_EXAMPLES], self._batches[0])

    @cached_property
    def fingerprint(self) -> str:
        """A number, as text, that depends on the examples but not on their order. Reads all data once."""
        return f"{fingerprint(self._source):x}"

    @property
    def has_batchnorm(self) -> bool:
        """Whether the model has batch-norm layers, so that ``batchnorm`` matters."""
        return bool(self._snapshot.batchnorm_layers)

    @property
    def conditions(self) -> dict[str, Any]:
        """Under which choices numbers of this objective hold; every record carries it."""
        return {
            "parameters": self.size,
            "examples": self.examples,
            "chunk_size": max(self.partition),
            "last_chunk": self.partition[-1],
            "chunks": len(self.chunks),
            "batchnorm": self.batchnorm if self.has_batchnorm else "none",
            "l2": self.l2,
            "device": device_name(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "execution": {"kernels": self.kernels},
        }

    # What it computes

    def point(self, place: Any) -> Point:
        """``place`` as a checked ``Point`` on this objective's device, in its dtype."""
        point = as_point(place)
        self.space.check(point.theta)
        theta = point.theta.detach().to(device=self.device, dtype=self.dtype)
        if point.buffers is None:
            return Point(theta)
        self._snapshot.check_buffers(point.buffers)
        return Point(theta, {name: self._place(b) for name, b in point.buffers.items()})

    def value(self, place: Any) -> float:
        """f(θ) in nats; NaN or infinite where it is. One pass over the data."""
        return self.evaluate(place).loss

    def evaluate(self, place: Any) -> Evaluation:
        """Loss (with the l2 term, if any) and accuracy in one pass over the data."""
        point = self._ready(place)
        parameters = self.space.split(point.theta)
        with torch.no_grad():
            return self._scored(point.theta, [self.terms.score(c, parameters, point.buffers) for c in self.chunks])

    def evaluate_together(self, places: Sequence[Any]) -> list[Evaluation]:
        """``evaluate`` of several points in one pass, in which every operation works on all of them at once.

        Values agree with those of ``evaluate`` to rounding. Worth it on a GPU, which a small network alone leaves idle;
        on a CPU it is slower. Needs the activations of one chunk times the number of points.

        Raises:
            UnsupportedModelError: the model or its loss does what cannot be vectorised over parameters: operations in
                place, branches on values, custom functions.
        """
        if self.batchnorm == "recompute":
            places = self.with_statistics_together(places)
        stack = self._stack(places)

        def score(rows: list[torch.Tensor], buffers: list[torch.Tensor], chunk: Any) -> Any:
            return self.terms.score(chunk, rows, stack.named(buffers), Kernels("torch"))

        scores = [stack.each(score, chunk) for chunk in self.chunks]
        return [
            self._scored(theta, [tuple(values[i] for values in chunk) for chunk in scores])
            for i, theta in enumerate(stack.thetas)
        ]

    def losses(self, place: Any) -> torch.Tensor | None:
        """The loss of each of the N examples, in one pass over the data; None where f does not tell them apart."""
        point = self._ready(place)
        with torch.no_grad():
            parts = [self.terms.losses(chunk, self.space.split(point.theta), point.buffers) for chunk in self.chunks]
        return None if any(part is None for part in parts) else torch.cat([p for p in parts if p is not None])

    def gradient(self, place: Any) -> torch.Tensor:
        """g = ∇f(θ) of shape (n,). One forward and one backward pass over the data."""
        return self.value_and_gradient(place)[1]

    def value_and_gradient(self, place: Any, examples: torch.Tensor | None = None) -> tuple[float, torch.Tensor]:
        """f(θ) and ∇f(θ) in one forward and one backward pass.

        ``examples``, their numbers, makes it those of a mini-batch: as one chunk, whose mean loss takes f's place.
        """
        self.check_differentiable()
        point = self._ready(place)
        total = weight = 0.0
        gradient = torch.zeros(self.size, device=self.device, dtype=torch.float64)
        for parts, term in self.gradients(point, None if examples is None else [chosen(self._batches, examples)]):
            total += float(term.total.detach())
            weight += float(term.weight)
            gradient += torch.cat([part.reshape(-1) for part in parts])
        gradient = gradient / weight + self.l2 * point.theta
        return self._average(total, weight, point.theta), gradient.to(self.dtype)

    def gradients(
        self, point: Point, chunks: list[Any] | None = None
    ) -> Iterator[tuple[tuple[torch.Tensor, ...], Term]]:
        """For each chunk the gradient of its Σ losses, in the parameters' shapes, and its term."""
        leaves = [part.detach().requires_grad_() for part in self.space.split(point.theta)]
        for chunk in self.chunks if chunks is None else chunks:
            term = self.terms(chunk, leaves, point.buffers)
            yield self.terms.differentiate(term.total, leaves), term

    def with_statistics(self, place: Any) -> Point:
        """The point with batch-norm statistics re-estimated over this objective's data.

        One forward pass in which every chunk is normalised by its own statistics; their means and variances are then
        pooled exactly. Behind the first such layer they depend a little on the chunks, which are recorded.
        """
        point = self.point(place)
        if not self.has_batchnorm:
            return point

        parameters = self.space.unflatten(point.theta)
        moments = (self._moments(chunk, parameters, point.buffers, self.kernels) for chunk in self.chunks)
        return Point(point.theta, self._snapshot.statistics(moments, point.buffers))

    def with_statistics_together(self, places: Sequence[Any]) -> list[Point]:
        """``with_statistics`` of several points at once, in the way and with the errors of ``evaluate_together``."""
        stack = self._stack(places)
        if not self.has_batchnorm:
            return stack.points
        calls: list[tuple[str, int]] = []

        def moments(rows: list[torch.Tensor], buffers: list[torch.Tensor], chunk: Any) -> Any:
            parameters = dict(zip(self.space.names, rows, strict=True))
            calls[:], means, variances = self._moments(chunk, parameters, stack.named(buffers), "torch")
            return means, variances

        batches = ((calls, *stack.each(moments, chunk)) for chunk in self.chunks)
        fresh = self._snapshot.statistics(batches, stack.named(stack.buffers))
        own = self._snapshot.buffers
        return [
            Point(theta, {name: b if b is own.get(name) else b[i] for name, b in fresh.items()})
            for i, theta in enumerate(stack.thetas)
        ]

    def check_differentiable(self) -> None:
        """Refuse derivatives under a policy that has values only."""
        if self.batchnorm == "recompute" and self.has_batchnorm:
            raise UnsupportedModelError(
                'batchnorm="recompute" has values only; for gradients and products choose "eval" or "batch"'
            )

    # How it does it

    def _scored(self, theta: torch.Tensor, scores: Sequence[tuple[torch.Tensor, ...]]) -> Evaluation:
        total, weight, hits, counted = (float(torch.stack(column).sum()) for column in zip(*scores, strict=True))
        return Evaluation(self._average(total, weight, theta), hits / counted if counted else math.nan, weight)

    def _moments(self, chunk: Any, parameters: Mapping[str, torch.Tensor], buffers: Any, kernels: str) -> Any:
        with exact_arithmetic(self.device), Kernels(kernels):
            return self._snapshot.moments(parameters, buffers, lambda model: self._loss.output(model, chunk))

    def _stack(self, places: Sequence[Any]) -> Stack:
        return Stack([self.point(place) for place in places], self.space, self._snapshot.state)

    def _ready(self, place: Any) -> Point:
        return self.with_statistics(place) if self.batchnorm == "recompute" else self.point(place)

    def _average(self, total: float, weight: float, theta: torch.Tensor) -> float:
        if not weight > 0:
            raise UnsupportedModelError(f"expected the weights of all losses to sum to more than 0; got {weight}")
        penalty = 0.5 * self.l2 * float(theta.double().square().sum()) if self.l2 else 0.0
        return total / weight + penalty

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device=self.device, dtype=self.dtype if tensor.is_floating_point() else None)

    def _verify(self) -> None:
        """At the model's own weights."""
        term = partial(self._loss, self._snapshot.watched())
        with torch.no_grad(), preserved_random_state(), exact_arithmetic(self.device), Kernels("torch"):
            adds_up = not any(layer.running_mean is None for layer in self._snapshot.batchnorm_layers.values())
            self._snapshot.draws = verify(term, self._batches, self.chunks, dtype=self.dtype, adds_up=adds_up)
            if adds_up and self._loss.averages(term.args[0], self.few):
                verify_counts(self.chunks)
