"""Which parameters: by name, dotted prefix, module or parameter; frozen, shared and idle ones; layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jacana
from tests import oracles, zoo

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def net():
    return zoo.BY_NAME["residual"].net()


@pytest.fixture(scope="module")
def x():
    return zoo.BY_NAME["residual"].x(3)


ALL = ("first.weight", "first.bias", "second.weight", "second.bias", "head.weight", "head.bias")
FIRST, SECOND, HEAD = ALL[:2], ALL[2:4], ALL[4:]
SELECTIONS = {
    "everything by default": (lambda net: None, ALL),
    "a name": (lambda net: "second.weight", ("second.weight",)),
    "a prefix": (lambda net: "head", HEAD),
    "the empty prefix is everything": (lambda net: "", ALL),
    "a list of names": (lambda net: ["first.bias", "head"], ("first.bias", *HEAD)),
    "in the order of the network": (lambda net: ["head.bias", "first.weight"], ("first.weight", "head.bias")),
    "twice is once": (lambda net: ["head", "head.bias", "head"], HEAD),
    "a module": (lambda net: net.second, SECOND),
    "the network itself": (lambda net: net, ALL),
    "a parameter": (lambda net: net.first.bias, ("first.bias",)),
    "a mixture": (lambda net: (net.first, "head.bias", net.second.bias), (*FIRST, "second.bias", "head.bias")),
    "a generator": (lambda net: (module for module in (net.first, net.head)), (*FIRST, *HEAD)),
    "a set": (lambda net: {"head", "first.bias"}, ("first.bias", *HEAD)),
    "parameters()": (lambda net: net.head.parameters(), HEAD),
}


@pytest.mark.parametrize(("choose", "names"), SELECTIONS.values(), ids=SELECTIONS)
def test_selection(net, x, choose, names):
    lin = jacana.linearize(net, parameters=choose(net))
    assert lin.names == names
    assert lin.n_parameters == sum(dict(net.named_parameters())[name].numel() for name in names)
    J = oracles.jacobian(net, x, names)
    oracles.assert_close(lin.jacobian(x), J, DOUBLE)
    v = torch.randn(lin.n_parameters, dtype=DOUBLE)
    oracles.assert_close(lin.jvp(x, v), (J @ v.numpy()).reshape(3, 2), DOUBLE, scale=10 * abs(J).max())


def test_prefixes_match_at_dots_only():
    net = nn.ModuleDict({"head": nn.Linear(2, 2), "header": nn.Linear(2, 2)}).double()
    lin = jacana.linearize(net, parameters="head", forward=lambda net, x: net["header"](net["head"](x)))
    assert lin.names == ("head.weight", "head.bias")


def test_frozen_parameters_are_left_out_by_default_and_taken_when_they_are_named():
    case = zoo.BY_NAME["raw, idle, frozen parameters, buffers"]
    net, x = case.net(), case.x(3)
    assert jacana.linearize(net).names == ("scale", "offset", "idle.weight", "idle.bias", "head.weight")
    lin = jacana.linearize(net, parameters=["frozen.weight", "scale"])
    assert lin.names == ("scale", "frozen.weight")
    oracles.assert_close(lin.jacobian(x), oracles.jacobian(net, x, lin.names), DOUBLE)
    assert not net.frozen.weight.requires_grad


def test_an_alias_selects_the_shared_parameter_under_its_canonical_name():
    case = zoo.BY_NAME["tied embedding and head"]
    net, x = case.net(), case.x(3)
    for chosen in ("head.weight", "head", net.head, net.head.weight, "words", net.words.weight):
        lin = jacana.linearize(net, parameters=chosen)
        assert lin.names == ("words.weight",)
        oracles.assert_close(lin.jacobian(x), oracles.jacobian(net, x, ["words.weight"]), DOUBLE)


def test_a_module_under_two_names_is_selected_by_both():
    case = zoo.BY_NAME["a module called three times"]
    net, x = case.net(), case.x(3)
    for chosen in ("step", "again", net.again, "again.weight"):
        lin = jacana.linearize(net, parameters=chosen)
        assert lin.names[0] == "step.weight"
        oracles.assert_close(lin.jacobian(x), oracles.jacobian(net, x, lin.names), DOUBLE)


def test_layers_are_the_parameters_that_one_module_owns_itself():
    assert jacana.linearize(zoo.BY_NAME["residual"].net()).layers == {
        "first": ("first.weight", "first.bias"),
        "second": ("second.weight", "second.bias"),
        "head": ("head.weight", "head.bias"),
    }
    raw = jacana.linearize(zoo.BY_NAME["raw, idle, frozen parameters, buffers"].net()).layers
    assert sorted(raw.values()) == sorted([("scale", "offset"), ("idle.weight", "idle.bias"), ("head.weight",)])
    tied = jacana.linearize(zoo.BY_NAME["tied embedding and head"].net()).layers
    assert sorted(tied.values()) == sorted([("words.weight",), ("mix.weight", "mix.bias")])


def test_every_selected_parameter_is_of_one_layer():
    for case in zoo.CASES:
        lin = jacana.linearize(case.net(), **case.reading)
        held = [name for names in lin.layers.values() for name in names]
        assert sorted(held) == sorted(lin.names), case.name


def test_dtype_and_device_are_those_of_the_network(dtype):
    lin = jacana.linearize(zoo.mlp().to(dtype))
    assert lin.dtype == dtype
    assert torch.device(lin.device) == torch.device("cpu")


def test_parameters_that_nothing_uses_have_zero_columns():
    case = zoo.BY_NAME["raw, idle, frozen parameters, buffers"]
    net, x = case.net(), case.x(3)
    lin = jacana.linearize(net, parameters=["idle", "scale"])
    assert (lin.jacobian(x)[:, 1:] == 0).all()
    assert (lin.vjp(x, torch.ones(3, 2, dtype=DOUBLE))[1:] == 0).all()
    u = torch.zeros(lin.n_parameters, dtype=DOUBLE)
    u[1:] = 1
    assert not lin.jvp(x, u).any()
