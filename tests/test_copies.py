"""Models as they come: wrapped, checkpointed, with weights computed by hooks; and functions PyTorch gets wrong."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import sharpness as sh
from sharpness.objective.copies import copied, plainly

X, Y = torch.linspace(-2, 2, 48).sin().reshape(12, 4), torch.arange(12) % 3


def objective(module, data=(X, Y), **options):
    return sh.Objective.from_module(module, sh.cross_entropy, data, dtype=torch.float64, **options)


def dense(f, theta):
    return sh.Hessian(f, theta) @ torch.eye(f.size, dtype=torch.float64)


def differences(f, theta, step=1e-5):
    """The Hessian by central differences of the gradient: exact to about 1e-9 where f is smooth."""
    steps = step * torch.eye(f.size, dtype=torch.float64)
    return torch.stack([(f.gradient(theta + d) - f.gradient(theta - d)) / (2 * step) for d in steps])


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.reentrant = nn.Linear(4, 5), nn.Linear(5, 3), reentrant

    def forward(self, x):
        def hidden(y):
            return self.first(y).tanh()

        if self.reentrant is None:
            return self.second(hidden(x))
        return self.second(checkpoint.checkpoint(hidden, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing_and_is_left_as_it_was(reentrant):
    before = dict(vars(checkpoint))
    (plain, theta), (f, same) = objective(Checkpointed(None)), objective(Checkpointed(reentrant))
    assert torch.equal(theta, same)
    assert torch.equal(plain.gradient(theta), f.gradient(theta))
    assert torch.equal(dense(plain, theta), dense(f, theta))
    assert dict(vars(checkpoint)) == before


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("old", [False, True])
def test_weight_norm_has_its_right_second_derivative_which_pytorch_has_not(old, dim):
    torch.manual_seed(0)
    make = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = nn.Sequential(make(nn.Linear(4, 3), dim=dim))
    module(X).sum()  # leaves a weight with its graph behind, which cannot be copied as it is
    f, theta = objective(module)
    assert f.value(theta) == pytest.approx(nn.functional.cross_entropy(module(X), Y).item(), rel=1e-6)
    torch.testing.assert_close(dense(f, theta), differences(f, theta), rtol=0, atol=1e-8)


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid_is_differentiated_twice(inplace):
    class Added(nn.Module):
        def forward(self, x):
            y = x * 1
            nn.functional.hardsigmoid(y, inplace=inplace)
            return nn.functional.hardsigmoid(x) + y

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), Added(), nn.Linear(5, 3))
    f, theta = objective(module)
    assert f.value(theta) == pytest.approx(nn.functional.cross_entropy(module(X), Y).item(), rel=1e-6)
    torch.testing.assert_close(dense(f, theta), differences(f, theta), rtol=0, atol=1e-8)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_parts_that_are_wrapped_inside_a_model_are_called_directly(wrap):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    wrapped = nn.Sequential(wrap(plain[0]), plain[1], plain[2])
    (f, theta), (g, same) = objective(plain), objective(wrapped)
    assert torch.equal(theta, same)
    assert torch.equal(dense(f, theta), dense(g, theta))
    assert g.space.names[0] == next(name for name, _ in wrapped.named_parameters())


class Padded(nn.Module):
    """A transformer whose fast path, taken without gradients only, cuts padding off."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

    def forward(self, x, padding):
        return self.head(self.encoder(x, src_key_padding_mask=padding)).mean(1)


def test_values_of_attention_with_padding_are_those_that_are_differentiated():
    x, padding = torch.linspace(-3, 3, 6 * 5 * 4).cos().reshape(6, 5, 4), torch.zeros(6, 5, dtype=torch.bool)
    padding[:, 3:] = True
    before = torch.backends.mha.get_fastpath_enabled()
    f, theta = objective(Padded(), (x, padding, Y[:6]))
    assert f.value(theta) == pytest.approx(f.value_and_gradient(theta)[0], rel=1e-13)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_plain_tensors_of_a_module_follow_its_dtype():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.scale = nn.Linear(4, 3), torch.tensor([1.0, 2.0, 3.0])

        def forward(self, x):
            return self.linear(x) * self.scale

    module = Scaled()
    f, theta = objective(module)
    assert f.gradient(theta).dtype == torch.float64
    assert module.scale.dtype == torch.float32


def test_tensors_in_lists_follow_the_dtype_and_a_part_of_any_name_is_no_wrapper():
    class Based(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self._orig_mod, self.basis = nn.Linear(4, 3), [2 * torch.eye(3)]

        def forward(self, x):
            return self._orig_mod(x) @ self.basis[0]

    module = Based()
    f, theta = objective(module)
    assert f.value(theta) == pytest.approx(nn.functional.cross_entropy(module(X), Y).item(), rel=1e-6)
    assert module.basis[0].dtype == torch.float32


def test_checkpointing_is_back_after_passes_that_overlap():
    before = checkpoint.CheckpointFunction
    first, second = (plainly(nn.Linear(1, 1), torch.device("cpu")) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert checkpoint.CheckpointFunction is not before
    second.__exit__(None, None, None)
    assert checkpoint.CheckpointFunction is before


def test_a_copy_shares_nothing_with_the_model():
    module = Checkpointed(None)
    own = copied(module)
    with torch.no_grad():
        own.first.weight.zero_()
    assert module.first.weight.any()
