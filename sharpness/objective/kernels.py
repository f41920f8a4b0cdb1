"""Other ways to compute the functions in which networks spend their time: the same values, cheaper second derivatives.

PyTorch differentiates a backward pass operation by operation. Where a function is bilinear in its input x and its
weight w, as matrix products, convolutions and the scaling of a normalisation are, the product of its second derivative
with a vector needs two more evaluations of the function and one more of its adjoints, and nothing else. On CPUs the
float32 matrix products also go to oneDNN where that multiplies faster than the library PyTorch calls by itself.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from sharpness.objective.execution import exact_arithmetic
from sharpness.objective.precision import WIDENED

KERNELS = ("torch", "bilinear", "onednn")
SMALL = 2**18  # multiplications below which calling oneDNN costs more than it saves
LEAD = 1.25  # how much faster oneDNN has to be; so clear a lead is there in every run

Wanted = tuple[bool, bool]
Adjoints = tuple[Tensor | None, Tensor | None]


class Bilinear(ABC):
    """y = B(x, w), linear in x and linear in w."""

    @abstractmethod
    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        """B(x, w)."""

    @abstractmethod
    def adjoints(
        self, g: Tensor, x: Tensor, w: Tensor, wanted: Wanted, *, held_g: Tensor | None, held_x: Tensor | None
    ) -> Adjoints:
        """∂⟨g, B(x, w)⟩/∂x, a function of g and w, and ∂⟨g, B(x, w)⟩/∂w, a function of g and x, where wanted.

        ``held_g`` and ``held_x`` are what ``hold`` made of g or x.
        """

    def accumulate(self, total: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """total + B(x, w), which may reuse the memory of ``total``."""
        return total.add_(self.apply(x, w))

    def hold(self, factor: Tensor) -> Tensor | None:  # noqa: ARG002 - the default needs nothing
        """Another layout of x or g, made once where ``adjoints`` will be asked again and again for the same one."""
        return None


@final
class _Apply(torch.autograd.Function):
    """B(x, w), whose derivatives of every order are again made of B and its adjoints."""

    @staticmethod
    def forward(ctx: Any, form: Bilinear, x: Tensor, w: Tensor, retained: bool, curved: bool) -> Tensor:
        ctx.form, ctx.retained, ctx.curved = form, retained, curved
        held = form.hold(x) if retained and ctx.needs_input_grad[2] else None
        ctx.save_for_backward(x, w, held)
        ctx.set_materialize_grads(False)
        return form.apply(x, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Any, ...]:
        if g is None:
            return None, None, None, None, None
        x, w, held = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:3]
        if torch.is_grad_enabled():
            factors = (x, w) if ctx.curved else (x.detach(), w.detach())
            adjoints = _Adjoints.apply(ctx.form, g, *factors, held, wanted, ctx.retained and ctx.curved)
        else:
            adjoints = ctx.form.adjoints(g, x, w, wanted, held_g=None, held_x=held)
        return None, *adjoints, None, None


@final
class _Adjoints(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, form: Bilinear, g: Tensor, x: Tensor, w: Tensor, held: Tensor | None, wanted: Wanted, retained: bool
    ) -> Adjoints:
        ctx.form = form
        ctx.save_for_backward(g, x, w, form.hold(g) if retained and wanted[0] else None)
        ctx.set_materialize_grads(False)
        return form.adjoints(g, x, w, wanted, held_g=None, held_x=held)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None) -> tuple[Any, ...]:
        """The gradient of ⟨u, ∂x⟩ + ⟨v, ∂w⟩ = ⟨g, B(u, w) + B(x, v)⟩."""
        g, x, w, held = ctx.saved_tensors
        ahead = None if u is None else _value(ctx.form, u, w)
        if v is not None:
            if ahead is None or torch.is_grad_enabled():
                ahead = _value(ctx.form, x, v) if ahead is None else ahead + _value(ctx.form, x, v)
            else:
                ahead = ctx.form.accumulate(ahead, x, v)
        wanted = (v is not None and ctx.needs_input_grad[2], u is not None and ctx.needs_input_grad[3])
        factors = g, x if u is None else u, w if v is None else v
        if torch.is_grad_enabled():
            back = _Adjoints.apply(ctx.form, *factors, None, wanted, False)
        elif any(wanted):
            back = ctx.form.adjoints(*factors, wanted, held_g=held, held_x=None)
        else:
            back = None, None
        return None, ahead, *back, None, None, None


def _value(form: Bilinear, x: Tensor, w: Tensor) -> Tensor:
    """B(x, w), differentiable where a graph is made of it: models may have derivatives in their losses."""
    return _Apply.apply(form, x, w, False, True) if torch.is_grad_enabled() else form.apply(x, w)


@final
class OneDNNLinear(Bilinear):
    """x wᵀ for x of shape (N, inputs) and w of shape (outputs, inputs)."""

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        return _multiply(x, w)

    def adjoints(
        self, g: Tensor, x: Tensor, w: Tensor, wanted: Wanted, *, held_g: Tensor | None, held_x: Tensor | None
    ) -> Adjoints:
        ahead = _multiply(g, w.t()) if wanted[0] else None
        if not wanted[1]:
            return ahead, None
        if held_x is not None:
            return ahead, _multiply(held_x, g.t()).t()
        return ahead, _multiply(g.t() if held_g is None else held_g, x.t())

    def accumulate(self, total: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return _multiply(x, w, total)

    def hold(self, factor: Tensor) -> Tensor | None:
        return factor.t().contiguous()  # else copied at every gᵀx


@final
class Convolution(Bilinear):
    """x ∗ w without bias, for x of shape (N, channels, …)."""

    def __init__(self, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> None:
        self._how = (stride, padding, dilation, False, [0] * len(stride), groups)

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.convolution(x, w, None, *self._how)

    def adjoints(self, g: Tensor, x: Tensor, w: Tensor, wanted: Wanted, **_: Tensor | None) -> Adjoints:
        back = torch.ops.aten.convolution_backward(g, x, w, None, *self._how, [*wanted, False])
        return back[0], back[1]


@final
class Scale(Bilinear):
    """x · w for x of shape (N, channels, …) and one w per channel."""

    def apply(self, x: Tensor, w: Tensor) -> Tensor:
        return x * _per_channel(w, x.ndim)

    def accumulate(self, total: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return total.addcmul_(x, _per_channel(w, x.ndim))

    def adjoints(self, g: Tensor, x: Tensor, w: Tensor, wanted: Wanted, **_: Tensor | None) -> Adjoints:
        over = [0, *range(2, x.ndim)]
        return g * _per_channel(w, x.ndim) if wanted[0] else None, (g * x).sum(over) if wanted[1] else None


@final
class _ReLU(torch.autograd.Function):
    """max(x, 0), whose second derivative is left out where PyTorch carries it along as zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _passed(g, ctx.saved_tensors[0].detach())


@final
class _Passed(torch.autograd.Function):
    """g where y > 0, else 0."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return torch.ops.aten.threshold_backward(g, y, 0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _passed(g, ctx.saved_tensors[0]), None


def _passed(g: Tensor, y: Tensor) -> Tensor:
    return _Passed.apply(g, y) if torch.is_grad_enabled() else torch.ops.aten.threshold_backward(g, y, 0)


class Kernels(TorchFunctionMode):
    """While active, ``linear``, ``conv1d`` … ``conv3d``, eval-mode ``batch_norm`` and ``relu`` take the forms above.

    Args:
        name: ``"torch"`` changes only what PyTorch gets wrong (``CORRECTED``) and casts to fewer digits, as all do;
            ``"bilinear"`` takes the forms of convolutions and batch norm, ``"onednn"`` that of linear layers as well.
        retained: the graph will be differentiated many times: layouts that this needs are held with it.
        curved: gradients will be differentiated with respect to θ; otherwise, with respect to what they are gradients
            of alone, which is all that a Jacobian's products need.
        smallest: multiplications in a linear layer from which on it takes its form.
    """

    def __init__(self, name: str, *, retained: bool = False, curved: bool = True, smallest: int = SMALL) -> None:
        super().__init__()
        self._retained, self._curved, self._smallest = retained, curved, smallest
        self._forms: dict[Any, Callable[..., Tensor | None]] = {}
        if name != "torch":
            self._forms |= dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), self._convolution)
            self._forms[F.batch_norm] = self._batch_norm
            self._forms |= dict.fromkeys((F.relu, torch.relu, Tensor.relu), self._relu)
        if name == "onednn":
            self._forms[F.linear] = self._linear

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in REPLACED:
            return REPLACED[func](*args, **(kwargs or {}))
        form = self._forms.get(func)
        if form is not None and not _transformed():
            result = form(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))

    def _apply(self, form: Bilinear, x: Tensor, w: Tensor) -> Tensor:
        return _Apply.apply(form, x, w, self._retained, self._curved)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        rows = input.numel() // max(1, input.shape[-1])
        if not _strided(input, weight) or weight.ndim != 2 or input.shape[-1] != weight.shape[1]:
            return None
        if rows * weight.numel() < max(1, self._smallest):
            return None
        if not torch.is_grad_enabled():
            output = torch.ops.mkldnn._linear_pointwise.default(input.reshape(rows, -1), weight, bias, "none", [], "")
        else:
            output = self._apply(OneDNNLinear(), input.reshape(rows, -1), weight)
            output = output if bias is None else output + bias
        return output.reshape(*input.shape[:-1], len(weight))

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if not torch.is_grad_enabled() or isinstance(padding, str) or input.ndim != weight.ndim or weight.is_complex():
            return None
        stride, padding, dilation = (
            [int(k) for k in n] if isinstance(n, Sequence) else [int(n)] * (input.ndim - 2)
            for n in (stride, padding, dilation)
        )
        output = self._apply(Convolution(stride, padding, dilation, groups), input, weight)
        return output if bias is None else output + _per_channel(bias, output.ndim)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,  # noqa: ARG002 - a part of the signature
        eps: float = 1e-5,
    ) -> Tensor | None:
        if training or running_mean is None or running_var is None or weight is None or not torch.is_grad_enabled():
            return None
        centred = input - _per_channel(running_mean, input.ndim)
        output = self._apply(Scale(), centred, weight * torch.rsqrt(running_var + eps))
        return output if bias is None else output + _per_channel(bias, output.ndim)

    def _relu(self, input: Tensor, inplace: bool = False) -> Tensor | None:
        if inplace or not torch.is_grad_enabled() or not input.is_floating_point():
            return None
        return _ReLU.apply(input)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g·v/‖v‖, the norm over all dimensions but one (-1: over all).

    PyTorch's fused function takes ‖v‖ for a constant in its second derivative, and says nothing (2.13; gradgradcheck
    fails).
    """
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    output = (input + 3).clamp(0, 6) / 6
    return input.copy_(output) if inplace else output


CORRECTED: dict[Any, Callable[..., Tensor]] = {torch._weight_norm: _weight_norm, F.hardsigmoid: _hardsigmoid}
"""Functions whose second derivative PyTorch has wrong or lacks, and the same ones with the right one."""
REPLACED = {**CORRECTED, **WIDENED}


def best_kernels(device: torch.device, dtype: torch.dtype) -> str:
    """Which kernels are fastest there: a property of the machine, the same in every run."""
    return "onednn" if device.type == "cpu" and dtype == torch.float32 and onednn_leads() else "bilinear"


@cache
def onednn_leads() -> bool:
    """Whether oneDNN multiplies float32 matrices clearly faster on this CPU than PyTorch's own choice. Takes 20 ms."""
    if not torch.backends.mkldnn.is_available():
        return False
    a, b = (torch.ones(rows, 512, dtype=torch.float32, device="cpu") for rows in (256, 512))
    with exact_arithmetic(a.device):  # as the products will be computed, whatever the caller has set
        return LEAD * _fastest(lambda: _multiply(a, b)) < _fastest(lambda: F.linear(a, b))


def _fastest(run: Callable[[], Any], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


# An operation of its own, so that a compiler leaves it as it is.
_library = torch.library.Library("sharpness", "DEF")
_library.define("multiply(Tensor a, Tensor b, Tensor? total=None) -> Tensor")


def _multiply_cpu(a: Tensor, b: Tensor, total: Tensor | None = None) -> Tensor:
    if total is None:
        return torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(a, total, b, None, "add")


_library.impl("multiply", _multiply_cpu, "CPU")
_library.impl("multiply", lambda a, b, total=None: a.new_empty(len(a), len(b)), "Meta")  # noqa: ARG005


def _multiply(a: Tensor, b: Tensor, total: Tensor | None = None) -> Tensor:
    """a bᵀ, plus ``total``, by oneDNN in float32."""
    b = b if b.is_contiguous() or b.t().is_contiguous() else b.contiguous()
    return torch.ops.sharpness.multiply.default(a, b, total)


def _per_channel(values: Tensor, ndim: int) -> Tensor:
    return values.reshape(-1, *[1] * (ndim - 2))


def _strided(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.float32 and t.device.type == "cpu" and t.layout == torch.strided for t in tensors)


def _transformed() -> bool:
    """Whether under vmap, jvp and their like, for which the forms have no rule, or an autocast of the model's own."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
    )
