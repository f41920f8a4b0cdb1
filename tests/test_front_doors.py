"""Checkpoints of any model from the command line: problem files, names, choices, warnings and refusals."""

import argparse
import json

import pytest
import torch
from command_line import QUICK, invoke

from sharpness import store
from sharpness.data import load
from sharpness.models import build
from sharpness.objective import Objective, cross_entropy

OF_DIGITS = ("--model", "digits-mlp", "--data", "digits")


@pytest.fixture(scope="module")
def network():
    """A network for the digits after a few steps: better than guessing."""
    torch.manual_seed(0)
    model, (x, y) = build("digits-mlp", (64,), 10), load("digits").train
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for rows in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).mean().backward()
        optimizer.step()
    return model


def analysed(path, out, *options):
    result = invoke("analyze", path, *options, *QUICK, "--examples", "40", "--json", "--out", out)
    assert result.code == 0, result.stderr
    return next(iter(json.loads(result.stdout)["checkpoints"].values())), result.stderr


def test_a_model_and_data_by_name_give_what_the_objective_gives(network, tmp_path):
    torch.save({"state_dict": network.state_dict(), "epoch": 1}, tmp_path / "weights.pth")
    numbers, told = analysed(tmp_path / "weights.pth", tmp_path / "out", *OF_DIGITS)
    f, theta = Objective.from_module(network, cross_entropy, load("digits").train)
    assert numbers["train loss"] == pytest.approx(f.value(theta), rel=1e-6)
    assert numbers["parameters"] == f.size
    assert "preprocessing" not in told


def test_averaged_weights_are_taken_on_request_and_spoken_of_otherwise(network, tmp_path):
    zeros = {name: torch.zeros_like(t) if t.is_floating_point() else t for name, t in network.state_dict().items()}
    about = argparse.Namespace(rate=0.01)
    torch.save({"model": network.state_dict(), "model_ema": zeros, "args": about}, tmp_path / "both.pth")
    plain, told = analysed(tmp_path / "both.pth", tmp_path / "plain", *OF_DIGITS)
    assert "this file also holds EMA weights: --weights ema" in told
    assert "argparse.Namespace" in told
    averaged, _ = analysed(tmp_path / "both.pth", tmp_path / "ema", *OF_DIGITS, "--weights", "ema")
    assert averaged["train loss"] == pytest.approx(2.302585, rel=1e-5)  # ln 10
    assert plain["train loss"] < 2
    assert any("chance" in remark or "guess" in remark for remark in averaged["remarks"])


def test_what_does_not_fit_is_refused_by_module_and_allowed_by_name(network, tmp_path):
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("6.")}
    torch.save(state | {"extra.weight": torch.ones(2)}, tmp_path / "part.pth")
    refused = invoke("analyze", tmp_path / "part.pth", *OF_DIGITS, *QUICK, "--out", tmp_path / "no")
    assert refused.code == 2
    assert "extra" in refused.stderr
    assert "--allow" in refused.stderr
    numbers, told = analysed(
        tmp_path / "part.pth", tmp_path / "out", *OF_DIGITS, "--allow", "6.*", "--allow", "extra.*"
    )
    assert "kept as the model had them (6: weight, bias)" in told
    assert any("extra" in remark for remark in numbers["remarks"])


@pytest.mark.parametrize("command", ["analyze", "landscape"])
def test_what_a_checkpoint_lacks_is_not_that_of_the_one_before(network, tmp_path, command):
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    torch.save({n: t for n, t in network.state_dict().items() if not n.startswith("6.")}, tmp_path / "part.pth")
    chosen = (*OF_DIGITS, "--allow", "6.*", "--examples", "40", "--json")
    options = QUICK if command == "analyze" else ("--points", "2", "--low", "0", "--high", "1", "--batchnorm", "eval")
    found = invoke(
        command, tmp_path / "whole.pth", tmp_path / "part.pth", *chosen, *options, "--out", tmp_path / command
    )
    assert found.code == 0, found.stderr
    result = json.loads(found.stdout)
    if command == "analyze":
        losses = [numbers["test loss"] for numbers in result["checkpoints"].values()]
    else:
        losses = next(iter(result["landscapes"].values()))["loss"][1]
    assert losses[1] > losses[0] + 0.1  # the last layer of the second is random


def test_a_part_of_the_parameters_and_every_layer(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    part, _ = analysed(tmp_path / "weights.pth", tmp_path / "part", *OF_DIGITS, "--parameters", "6.*")
    assert part["parameters"] == 128 * 10 + 10
    every, _ = analysed(tmp_path / "weights.pth", tmp_path / "all", *OF_DIGITS, "--layers")
    assert part["eigenvalues"][0] == pytest.approx(every["layers"]["6"]["eigenvalue"], rel=0.01)
    assert every["eigenvalues"][0] >= max(layer["eigenvalue"] for layer in every["layers"].values()) * (1 - 1e-3)
    record = store.load(tmp_path / "all" / "weights" / "layers.h5")
    assert record.layer.tolist() == list(every["layers"])


def test_half_precision_is_analysed_in_float32_and_said_so(network, tmp_path):
    torch.save({name: t.bfloat16() for name, t in network.state_dict().items()}, tmp_path / "half.pth")
    numbers, told = analysed(tmp_path / "half.pth", tmp_path / "out", *OF_DIGITS)
    assert "bfloat16" in told
    assert any("bfloat16" in remark for remark in numbers["remarks"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "mlp"), "expected --model and --data together"),
        (("--model", "mlp", "--data", "digits", "--mean", "a"), "expected --mean as numbers"),
        (("--mean", "0.5", "--problem", "p.py:make"), "with --data; got them without"),
        (("--model", "mlp", "--data", "letters"), "expected a data set named"),
        (("--model", "resnet", "--data", "digits"), "expected --model torchvision:NAME"),
        ((), "expected what the weights in"),
    ],
)
def test_incomplete_or_wrong_choices_say_what_is_expected(network, tmp_path, options, message):
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    result = invoke("analyze", tmp_path / "weights.pth", *options, "--out", tmp_path / "out")
    assert result.code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_doctor_looks_at_a_checkpoint(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    result = invoke("doctor", tmp_path / "weights.pth", *OF_DIGITS, "--json")
    assert result.code == 0, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["product against float64"]["outcome"] == "ok"
    assert checks["minimum"]["outcome"] == "note"  # after one epoch it is none
