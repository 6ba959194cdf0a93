"""Gradients through the dense kernel: with respect to its inputs and to the weights that it is taken at."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import jacana
from tests import oracles, zoo

DOUBLE = torch.float64


class Views(nn.Module):
    """Views, computed weights, an operation without a rule."""

    def __init__(self):
        super().__init__()
        self.packed, self.head = nn.Parameter(torch.randn(6, 2)), nn.Linear(3, 2)
        self.scale, self.table = nn.Parameter(torch.rand(2, 1)), nn.Embedding(2, 2)
        self.centres = nn.Parameter(torch.randn(2))

    def forward(self, x):
        x = torch.tanh(functional.linear(x, self.packed[:3]) * functional.linear(x, self.packed[3:]))
        weight = self.scale.exp() * self.head.weight
        x = functional.linear(x, weight, self.head.bias) + self.table(torch.arange(2)).tanh().sum(0)
        return torch.logaddexp(x, self.centres)


def networks():
    torch.manual_seed(0)
    return {
        "mlp": (nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), (2,)),
        "cnn": (nn.Sequential(nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)), (1, 4)),
        "attention": (
            nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, 0.0, "gelu", batch_first=True), nn.Flatten()),
            (2, 4),
        ),
        "views": (Views(), (2,)),
    }


def _right(function, arguments):
    return gradcheck(function, arguments, fast_mode=True)


NETWORKS = networks()
for network in (net for net, _ in NETWORKS.values()):
    zoo.settle(network)
SHAPES = ("full", "separate", "trace", "pseudo", "diagonal", "blocks")


def prepared(name, n):
    net, shape = NETWORKS[name]
    return net.double().eval(), torch.randn(n, *shape, dtype=DOUBLE)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("outputs", SHAPES)
def test_with_respect_to_inputs(name, outputs):
    torch.manual_seed(1)
    net, x = prepared(name, 2)
    _, z = prepared(name, 3)
    lin = jacana.linearize(net)
    x.requires_grad_()
    assert _right(lambda x: jacana.gram(lin, x, outputs=outputs), (x,))
    assert torch.equal(
        jacana.gram(lin, x, outputs=outputs).detach(), jacana.gram(lin, x.detach(), outputs=outputs)
    ) or (
        torch.allclose(jacana.gram(lin, x, outputs=outputs), jacana.gram(lin, x.detach(), outputs=outputs), rtol=1e-12)
    )
    if outputs not in ("diagonal", "blocks"):
        assert _right(lambda z: jacana.gram(lin, x.detach(), z, outputs=outputs), (z.requires_grad_(),))
        assert _right(lambda x, z: jacana.gram(lin, x, z, outputs=outputs), (x, z))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("outputs", ["full", "trace", "blocks"])
def test_with_respect_to_weights(name, outputs):
    torch.manual_seed(2)
    net, x = prepared(name, 2)
    lin = jacana.linearize(net)
    names = list(lin.names)
    values = [value.clone().requires_grad_() for value in lin.network.values]

    def kernel(*values):
        return jacana.gram(lin, x, outputs=outputs, weights=dict(zip(names, values, strict=True)))

    assert _right(kernel, values)


@pytest.mark.parametrize("name", NETWORKS)
def test_at_other_weights_it_is_the_kernel_there(name):
    net, x = prepared(name, 3)
    lin = jacana.linearize(net)
    torch.manual_seed(3)
    moved = {
        name: value + 0.1 * torch.randn_like(value) for name, value in zip(lin.names, lin.network.values, strict=True)
    }
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name_of, parameter in other.named_parameters():
            parameter.copy_(moved[name_of])
    J = oracles.jacobian(other, x)
    got = jacana.gram(lin, x, weights=moved)
    assert not got.requires_grad
    oracles.assert_close(got, J @ J.T, DOUBLE)
    some = {lin.names[0]: moved[lin.names[0]].requires_grad_()}
    assert jacana.gram(lin, x, weights=some).requires_grad
    assert np.isfinite(jacana.gram(lin, x, weights=some).detach().numpy()).all()


def test_without_a_request_no_graph_is_kept():
    net, x = prepared("mlp", 3)
    assert not jacana.gram(net, x).requires_grad
    with torch.no_grad():
        assert not jacana.gram(net, x.clone().requires_grad_()).requires_grad
    with torch.inference_mode():
        assert not jacana.gram(net, x).requires_grad
    K = jacana.gram(net, x.clone().requires_grad_())
    before = [parameter.grad for parameter in net.parameters()]
    K.sum().backward()
    assert all(parameter.grad is was for parameter, was in zip(net.parameters(), before, strict=True))


def test_in_float32_and_with_a_mapping():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)

        def forward(self, *, a, b):
            return torch.tanh(self.body(a)) * b

    net = Named()
    a, b = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)
    for dtype in (torch.float64, torch.float32):
        K = jacana.gram(net, {"a": a, "b": b}, dtype=dtype, layers=True)["body"]
        (gradient,) = torch.autograd.grad(K.sum(), a)
        assert gradient.shape == a.shape
        assert gradient.dtype == torch.float32
        assert float(gradient.abs().max()) > 0


def test_checkpointed_layers_have_gradients_of_inputs():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(checkpoint(lambda x: torch.tanh(self.body(x)), x, use_reentrant=False))

    torch.manual_seed(0)
    net = Checkpointed().double()
    lin = jacana.linearize(net)
    assert _right(lambda x: jacana.gram(lin, x), (torch.randn(2, 2, dtype=DOUBLE, requires_grad=True),))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"2.weights": torch.zeros(2, 4)}, "'2.weights' is no selected parameter"),
        ({"2.weight": torch.zeros(4, 2)}, r"shape \(4, 2\).*expected floating point, shape \(2, 4\)"),
        ({"2.weight": torch.zeros(2, 4, dtype=torch.int64)}, "int64"),
        ({"2.weight": torch.full((2, 4), float("nan"))}, "NaN or infinite values for '2.weight'"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(jacana.errors.InvalidOption, match=message):
        jacana.gram(NETWORKS["mlp"][0], torch.randn(2, 2), weights=weights)


def test_a_wrong_second_derivative_of_torch_is_refused():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), weight_norm(nn.Linear(3, 2))).double()
    x = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    assert _right(lambda x: jacana.gram(net, x), (x,))
    with pytest.raises(jacana.errors.UnsupportedNetwork, match="weight_norm"):
        jacana.gram(net, x, weights={"0.bias": torch.zeros(3, dtype=DOUBLE, requires_grad=True)})
