"""Mixed precision: the network's operations in half precision, everything else as it is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import jacana
from tests import oracles

HALVES = [torch.bfloat16]


def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        convolution = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.GELU(),
            nn.Flatten(), nn.Linear(16, 3),
        ).eval()  # fmt: skip
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        attention = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 2))
        yield "mlp", mlp, torch.randn(5, 6)
        yield "convolution", convolution, torch.randn(5, 2, 8, 8)
        yield "attention", attention.eval(), torch.randn(5, 4, 8)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize(("net", "x"), [pytest.param(net, x, id=name) for name, net, x in networks()])
def test_products_and_gram_are_right_to_the_rounding_of_the_lower_dtype(net, x, half):
    before = oracles.Snapshot(net)
    lin = jacana.linearize(net, autocast=half)
    J = oracles.jacobian(copy.deepcopy(net).double(), x.double())
    n, p = len(x), lin.n_parameters
    rounding = 8 * torch.finfo(half).eps
    v, u = torch.randn(p, 2), torch.randn(n * lin(x).shape[1], 2)
    operator = jacana.Jacobian(lin, x)
    for got, want in (
        (operator @ v, J @ v.numpy()),
        (operator.T @ u, J.T @ u.numpy()),
        (lin.jvp(x, v).flatten(0, 1), J @ v.numpy()),
        (jacana.gram(lin, x), J @ J.T),
    ):
        error = np.linalg.norm(got.double().numpy() - want) / np.linalg.norm(want)
        assert error < rounding
        assert error > 1e-6  # it is in half precision that the network ran
    assert lin(x).dtype == (operator @ v).dtype == torch.float32
    before.assert_unchanged()


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_posterior_in_mixed_precision(half):
    _, net, x = next(networks())
    y = torch.sin(x[:, :3]).double()
    want = jacana.TangentGP(net).condition(x, y, noise_std=0.3).predict(x)
    got = jacana.TangentGP(jacana.linearize(net, autocast=half)).condition(x, y, noise_std=0.3).predict(x)
    assert got.mean.dtype == torch.float64
    allowed = 16 * torch.finfo(half).eps
    assert float((got.mean - want.mean).abs().max()) < allowed * float(want.mean.abs().max())
    assert float((got.variance - want.variance).abs().max()) < allowed * float(want.variance.max())


def test_callers_autocast_changes_nothing():
    _, net, x = next(networks())
    lin = jacana.linearize(net, autocast=torch.bfloat16)
    v = torch.randn(lin.n_parameters)
    alone = jacana.Jacobian(lin, x) @ v
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(jacana.Jacobian(lin, x) @ v, alone)


@pytest.mark.parametrize("wrong", [torch.float64, torch.float16, torch.int8, True, "bfloat16"])
def test_other_dtypes_are_refused(wrong, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match="autocast"):
        jacana.linearize(nn.Linear(2, 1), autocast=wrong)
