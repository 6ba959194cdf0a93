"""LastLayer: the exact posterior of the sub-model that linearizes one layer, in the weights of the whole network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import FunctionSpace, LastLayer, WeightSpace
from tests import oracles, zoo
from tests.problems import problem

DOUBLE = torch.float64
NAMES = ["p < nc, c = 2", "p > nc, c = 2", "one noise an example", "images, BatchNorm", "tokens, padding row",
         "mean zero", "n = 1, p < c", "frozen and idle parameters"]  # fmt: skip


def last(net):
    """The names of the last layer's parameters."""
    names = oracles.parameter_names(net)
    owner = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == owner]


def alike(got, want, x, tolerance=1e-10):
    """Two posteriors of one function."""
    a, b = got.predict(x), want.predict(x)
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.variance, b.variance, rtol=tolerance, atol=tolerance)
    assert got.log_evidence == pytest.approx(want.log_evidence, rel=tolerance)


@pytest.mark.parametrize("inner", [None, FunctionSpace(), WeightSpace()], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_posterior_of_the_layer(name, inner):
    it = problem(name)
    names = last(it.net)
    post = it.gp.condition(it.x, it.y, it.noise_argument, method=LastLayer(method=inner))
    head = jacana.linearize(it.net, parameters=names)
    alone = jacana.TangentGP(head, it.spec.prior_std, it.spec.mean)
    alike(post, alone.condition(it.x, it.y, it.noise_argument, method=inner), it.x_new)
    J, J_new = (oracles.jacobian(it.net, x, names) for x in (it.x, it.x_new))
    want = oracles.condition_on_functions(
        **{**it.known, "J": J, "s": np.full(J.shape[1], it.spec.prior_std)}, J_new=J_new, mean_new=it.m_new
    )
    it.close(post.predict(it.x_new).mean, it.shaped(want.mean), "mean", scale=it.size)
    it.close(post.predict(it.x_new).covariance, want.covariance, "covariance", scale=np.abs(it.K_new).max())


def test_its_weights_are_the_whole_networks():
    it = problem("a prior each layer")
    post = it.gp.condition(it.x, it.y, 0.3, method=LastLayer())
    names = oracles.parameter_names(it.net)
    sizes = [parameter.numel() for _, parameter in it.net.named_parameters()]
    moved = [bool(piece.any()) for piece in torch.split(post.weights, sizes)]
    assert dict(zip(names, moved, strict=True)) == {
        "0.weight": False,
        "0.bias": False,
        "2.weight": True,
        "2.bias": True,
    }
    drawn = post.sample_weights(5, torch.Generator().manual_seed(0))
    assert drawn.shape == (it.p, 5)
    assert [bool(piece.any()) for piece in torch.split(drawn, sizes)] == moved
    samples = post.predict(it.x_new).sample(5, torch.Generator().manual_seed(0))
    want = it.m_new[..., None] + (it.J_new @ drawn.numpy()).reshape(*it.m_new.shape, 5)
    oracles.assert_close(samples.permute(1, 2, 0), want, DOUBLE, condition=1e4)


def test_a_mapping_of_prior_scales_carries_over():
    it = problem("a prior each layer")
    head = jacana.TangentGP(jacana.linearize(it.net, parameters="2"), it.spec.prior_std["2"])
    alike(it.gp.condition(it.x, it.y, 0.3, method=LastLayer()), head.condition(it.x, it.y, 0.3), it.x_new)
    iterated = FunctionSpace(jacana.CG(rtol=1e-10, preconditioner=jacana.preconditioners.Diagonal()))
    post = it.gp.condition(it.x, it.y, 0.3, method=LastLayer(method=iterated))
    assert post.solution.converged
    torch.testing.assert_close(post.weights[-10:], head.condition(it.x, it.y, 0.3).weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("layer", "parameters"), [("0", "0"), ("2.bias", "2.bias"), ("", ["0", "2"]), (None, "2")])
def test_another_layer(layer, parameters):
    it = problem("p > nc, c = 2")
    head = jacana.TangentGP(jacana.linearize(it.net, parameters=parameters))
    post = it.gp.condition(it.x, it.y, 0.3, method=LastLayer(layer))
    alike(post, head.condition(it.x, it.y, 0.3), it.x_new)


@pytest.mark.parametrize("name", NAMES)
def test_no_variance_is_above_the_full_posteriors(name):
    it = problem(name)
    fixed = it.gp.condition(it.x, it.y, it.noise_argument, method=LastLayer()).predict(it.x_new).covariance
    full = it.gp.condition(it.x, it.y, it.noise_argument).predict(it.x_new).covariance
    assert torch.linalg.eigvalsh(full - fixed).min() >= -1e-10 * np.abs(it.K_new).max()


CASES = {case.name: case for case in zoo.CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_restricted_linearization_is_that_of_the_selection(name):
    """Whatever the network is made of, and without a second copy of its weights."""
    case = CASES[name]
    net = case.net()
    lin, x = jacana.linearize(net, **case.reading, **case.options, batch_size=3), case.x(4, DOUBLE)
    names = list(lin.layers.values())[-1]
    direct = jacana.linearize(net, names, **case.reading, **case.options)
    before = lin.jacobian(x)
    part = lin.restricted(names)
    assert (part.names, part.n_parameters, part.dtype, part.batch_size) == (names, direct.n_parameters, direct.dtype, 3)
    torch.testing.assert_close(part.jacobian(x), direct.jacobian(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(part(x), lin(x))
    v = torch.ones(part.n_parameters, dtype=part.dtype)
    torch.testing.assert_close(part.jvp(x, v), direct.jvp(x, v), rtol=1e-9, atol=1e-11)
    assert torch.equal(lin.jacobian(x), before)
    storage = {parameter.data_ptr() for parameter in lin.network.module.parameters()}
    assert {value.data_ptr() for value in part.network.values} <= storage


def test_it_is_of_the_snapshot_and_read_as_the_model_is():
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = (torch.randn(8, k, generator=torch.Generator().manual_seed(k), dtype=DOUBLE) for k in (2, 1))
    options = {"output": lambda out: out[:, :1], "forward": lambda net, x: net(2 * x)}
    gp = jacana.TangentGP(jacana.linearize(net, **options, batch_size=3))
    want = jacana.TangentGP(jacana.linearize(net, "2", **options)).condition(x, y, 0.2)
    with torch.no_grad():
        net[2].weight.add_(1.0)
    alike(gp.condition(x, y, 0.2, method=LastLayer()), want, x[:3])


@pytest.mark.parametrize("inner", [None, FunctionSpace(), WeightSpace()], ids=str)
def test_more_data_are_the_same_as_all_at_once(inner):
    it = problem("p > nc, c = 2")
    method = LastLayer(method=inner)
    post = it.gp.condition(it.x[:2], it.y[:2], 0.3, method=method).condition(it.x[2:], it.y[2:])
    alike(post, it.gp.condition(it.x, it.y, 0.3, method=method), it.x_new)
    assert post.n_examples == 5
    left = post.leave_one_out()
    head = jacana.TangentGP(jacana.linearize(it.net, "2")).condition(it.x, it.y, 0.3)
    torch.testing.assert_close(left.mean, head.leave_one_out().mean, rtol=1e-9, atol=1e-9)


def test_it_streams_as_its_inner_method_does():
    it = problem("p > nc, c = 2")
    method = LastLayer(method=FunctionSpace(jacana.CG(rtol=1e-10, preconditioner=None)))
    assert method.streams
    assert not LastLayer().streams
    assert not LastLayer(method=WeightSpace()).streams
    want = it.gp.condition(it.x, it.y, 0.3, method=LastLayer()).predict(it.x_new).mean
    for inner in (method, LastLayer()):
        loader = DataLoader(TensorDataset(it.x, it.y), batch_size=2)
        got = it.gp.condition(loader, noise_std=0.3, method=inner).predict(it.x_new).mean
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


def test_an_unknown_layer_is_refused():
    it = problem("p > nc, c = 2")
    with pytest.raises(jacana.errors.InvalidOption, match=r"layer: 'head' .* '0', '2'"):
        it.gp.condition(it.x, it.y, 0.3, method=LastLayer("head"))
    gp = jacana.TangentGP(jacana.linearize(it.net, "0"))
    with pytest.raises(jacana.errors.InvalidOption, match="linearized"):
        gp.condition(it.x, it.y, 0.3, method=LastLayer("2"))


@pytest.mark.parametrize(
    ("words", "name"), [({"layer": 2}, "layer"), ({"method": "exact"}, "method"), ({"method": LastLayer()}, "method")]
)
def test_options_are_checked(words, name, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match=name):
        LastLayer(**words)


class Keeps(nn.Module):
    """Leaves on itself what a pass computed from the weights; uses what an earlier one left, or computes it anew."""

    def __init__(self, anew):
        super().__init__()
        self.body, self.head, self.kept, self.anew = nn.Linear(2, 3), nn.Linear(3, 1), None, anew

    def forward(self, x):
        if self.kept is None or self.anew:
            self.kept = 2.0 * self.head.weight
        return nn.functional.linear(self.body(x), self.kept, self.head.bias)


def test_only_what_an_earlier_pass_kept_is_refused_in_a_part_too():
    stale, anew, x = Keeps(False).double(), Keeps(True).double(), torch.ones(3, 2, dtype=DOUBLE)
    stale(x), anew(x)
    with pytest.raises(jacana.errors.UnsupportedNetwork, match="kept"):
        jacana.linearize(stale).restricted(["head.weight"])(x)
    torch.testing.assert_close(jacana.linearize(anew).restricted(["head.weight"])(x), anew(x))
