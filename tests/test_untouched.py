"""Every public call leaves the network bit for bit as it was: weights, buffers, mode, gradients, hooks.

So it leaves the data, torch's switches and the global random generators; also while another thread runs the network.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from tests import oracles, zoo
from tests.conftest import generators, switches

DOUBLE = torch.float64


def posterior(it, method=None):
    return jacana.TangentGP(it.lin).condition(it.x, it.y, 0.4, method=method)


def regressor(it, **options):
    options = {"prior_std": 0.7, "noise_std": 0.3, "output": it.case.output, "forward": it.case.forward, **options}
    return jacana.NTKRegressor(it.net, **options).fit(it.x, it.y)


def generator():
    return torch.Generator().manual_seed(0)


def classified(it, method=None):
    """With a label for each output."""
    words = {"likelihood": jacana.Bernoulli(), "method": method}
    return jacana.TangentGP(it.lin).condition(it.x, (it.y > 0).to(DOUBLE), **words)


CALLS = {
    "linearize": lambda it: jacana.linearize(it.net, **it.case.reading),
    "linearize a selection": lambda it: jacana.linearize(it.net, it.lin.names[-1], **it.case.reading),
    "lin(x)": lambda it: it.lin(it.x),
    "lin.jvp": lambda it: it.lin.jvp(it.x, it.v),
    "lin.jvp of many": lambda it: it.lin.jvp(it.x, torch.stack([it.v, it.v], 1)),
    "lin.vjp": lambda it: it.lin.vjp(it.x, it.u),
    "lin.vjp of many": lambda it: it.lin.vjp(it.x, torch.stack([it.u.reshape(-1)] * 2, 1)),
    "lin.jacobian": lambda it: it.lin.jacobian(it.x),
    "lin.jacobian by batches": lambda it: it.lin.jacobian(it.x, batch_size=1),
    "lin.route": lambda it: it.lin.route(it.x),
    "lin.layers": lambda it: (it.lin.layers, it.lin.names, it.lin.n_parameters, it.lin.dtype, it.lin.device),
    "Jacobian @": lambda it: jacana.Jacobian(it.lin, it.x) @ it.v,
    "Jacobian.T @": lambda it: jacana.Jacobian(it.lin, it.x).T @ it.u.reshape(-1),
    "Jacobian.to_dense": lambda it: jacana.Jacobian(it.lin, it.x).to_dense(),
    "NTK @": lambda it: jacana.NTK(it.lin, it.x) @ it.u.reshape(-1),
    "NTK.to_dense": lambda it: jacana.NTK(it.lin, it.x, it.x_new).to_dense(),
    "NTK.diagonal": lambda it: jacana.NTK(it.lin, it.x).diagonal(),
    "prior mean": lambda it: jacana.TangentGP(it.lin).predict(it.x).mean,
    "prior covariance": lambda it: jacana.TangentGP(it.lin).predict(it.x).covariance,
    "prior sample": lambda it: jacana.TangentGP(it.lin).predict(it.x).sample(2, generator=generator()),
    "condition": posterior,
    "condition, function space": lambda it: posterior(it, jacana.FunctionSpace()).weights,
    "condition, weight space": lambda it: posterior(it, jacana.WeightSpace()).weights,
    "mean": lambda it: posterior(it).predict(it.x_new).mean,
    "variance": lambda it: posterior(it).predict(it.x_new).variance,
    "covariance": lambda it: posterior(it).predict(it.x_new, observed=True).covariance,
    "interval": lambda it: posterior(it).predict(it.x_new).interval(0.9),
    "sample": lambda it: posterior(it).predict(it.x_new).sample(2, generator=generator()),
    "sample_weights": lambda it: posterior(it).sample_weights(2, generator=generator()),
    "condition on more": lambda it: posterior(it).condition(it.x_new, it.y[:2]).predict(it.x).variance,
    "log_evidence": lambda it: posterior(it).log_evidence,
    "leave_one_out": lambda it: posterior(it).leave_one_out().log_probability,
    "maximize_evidence": lambda it: jacana.maximize_evidence(jacana.TangentGP(it.lin), it.x, it.y),
    "maximize_evidence, layers": lambda it: jacana.maximize_evidence(
        jacana.TangentGP(it.lin), it.x, it.y, prior_std="layers", noise_std="outputs"
    ),
    "Laplace": lambda it: classified(it).predict(it.x_new).probabilities(),
    "relinearize": lambda it: jacana.TangentGP(it.lin).relinearize(classified(it)).predict(it.x_new).mean,
    "NTKClassifier.fit": lambda it: (
        jacana.NTKClassifier(
            it.net, prior_std=0.7, temperature=1.0, classes=range(it.y.shape[1]), **it.case.reading
        ).fit(it.x, it.y > 0)
        if it.y.shape[1] > 1
        else None
    ),
    "NTKRegressor.fit": regressor,
    "NTKRegressor.predict": lambda it: regressor(it).predict(it.x_new, return_std=True),
    "NTKRegressor.sample_y": lambda it: regressor(it).sample_y(it.x_new, 2, random_state=0),
    "NTKRegressor.score": lambda it: regressor(it).score(it.x_new, it.y[:2]),
}


class Used:
    """A network in the middle of its life: in training mode, with gradients, hooks, a frozen part; and data for it."""

    def __init__(self, name):
        self.case = zoo.BY_NAME[name]
        self.net = self.case.net()
        self.x, self.x_new = self.case.x(4), self.case.x(2)
        out = self.case.values(self.net, self.x)
        self.y = torch.from_numpy(out + np.random.default_rng(0).normal(size=out.shape))
        self.net.train()
        oracles.call(self.net, self.case.x(3), **self.case.reading).square().sum().backward()
        first = next(self.net.modules())
        self.handles = [
            first.register_forward_pre_hook(_nothing),
            first.register_forward_hook(_nothing_at_all, always_call=True),
            next(iter(self.net.parameters())).register_hook(_same),
        ]
        self.lin = jacana.linearize(self.net, **self.case.reading)
        self.v = torch.ones(self.lin.n_parameters, dtype=DOUBLE)
        self.u = torch.ones(out.shape, dtype=DOUBLE)


def _nothing(module, args):
    return None


def _nothing_at_all(module, args, out):
    return None


def _same(gradient):
    return gradient


NETWORKS = [
    "conv, BatchNorm, in-place ReLU",
    "LSTM, two layers, both ways",
    "TransformerEncoder with a padding mask",
    "raw, idle, frozen parameters, buffers",
    "tied embedding and head",
    "custom Function, once differentiable",
    "weight_norm",
    "spectral_norm",
]


def parts(x):
    return [x] if isinstance(x, torch.Tensor) else list(x.values())


PAIRS = [(name, call) for i, name in enumerate(NETWORKS) for j, call in enumerate(CALLS) if (i + j) % 3 == 0]
"""Every call with two or three of the networks, every network with a third of the calls."""


@pytest.mark.parametrize(("name", "call"), PAIRS)
def test_every_public_call_leaves_everything_as_it_was(name, call):
    it = Used(name)
    snapshot = oracles.Snapshot(it.net)
    data = [(tensor, tensor.clone(), tensor._version) for tensor in [*parts(it.x), *parts(it.x_new), it.y, it.u, it.v]]
    state = generators()
    turned = switches()
    CALLS[call](it)
    snapshot.assert_unchanged()
    for tensor, before, version in data:
        assert torch.equal(tensor, before)
        assert tensor._version == version
        assert not tensor.requires_grad
    assert generators() == state, "a global random generator was used"
    assert switches() == turned


def test_a_new_head_leaves_everything_as_it_was():
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().train()
    x, y = torch.randn(12, 2, dtype=DOUBLE), torch.arange(12) % 4
    net(x).square().sum().backward()
    snapshot, state = oracles.Snapshot(net), generators()
    jacana.with_head(net, [0, 1, 2, None], x, y)
    snapshot.assert_unchanged()
    assert generators() == state


def test_hooks_of_the_network_see_nothing():
    """A user who counts calls of her own network counts her own."""
    net, counts = zoo.mlp().double(), []
    calls = []
    handle = net.register_forward_hook(lambda module, args, out: calls.append(id(module)))
    jacana.linearize(net)(torch.randn(3, 3, dtype=DOUBLE))
    assert id(net) not in calls
    handle.remove()
    assert not counts


def test_attributes_that_forward_writes_are_written_on_the_copy():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = zoo.mlp()
            self.last = None

        def forward(self, x):
            self.last = self.body(x)
            return self.last

    net = Remembering().double()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    snapshot = oracles.Snapshot(net)
    jacana.TangentGP(net).condition(x, y, 0.3).predict(x).variance  # noqa: B018
    snapshot.assert_unchanged()
    assert net.last is None


def test_gradients_of_the_user_flow_on():
    """A graph that the user built before still runs backward, with the numbers of before."""
    net = zoo.mlp().double()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    want = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    loss = net(x).square().sum()
    jacana.TangentGP(net).condition(x, y, 0.3).predict(x).covariance  # noqa: B018
    loss.backward()
    for parameter, gradient in zip(net.parameters(), want, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", ["conv, BatchNorm, in-place ReLU", "tied embedding and head", "weight_norm"])
def test_another_thread_runs_the_network_all_the_while(name):
    """Its outputs are the same bits at every moment: nothing is swapped, not even for a while."""
    it = Used(name)
    it.net.eval()
    for handle in it.handles:
        handle.remove()
    identities = [id(p) for p in it.net.parameters()]
    with torch.no_grad():
        want = it.net(it.x).clone()
    snapshot = oracles.Snapshot(it.net)
    faults: list[str] = []
    rounds = 0
    done = threading.Event()

    def run():
        nonlocal rounds
        with torch.no_grad():
            while not done.is_set():
                out = it.net(it.x)
                rounds += 1
                if not torch.allclose(out, want, rtol=1e-12, atol=1e-12):
                    faults.append(f"outputs off by {(out - want).abs().max():.1e} in round {rounds}")
                if [id(p) for p in it.net.parameters()] != identities:
                    faults.append("parameters were swapped")
                if it.net.training:
                    faults.append("the mode was changed")

    watcher = threading.Thread(target=run)
    watcher.start()
    try:
        for call in CALLS.values():
            call(it)
    finally:
        done.set()
        watcher.join()
    assert rounds > 20
    assert not faults, faults[:3]
    snapshot.assert_unchanged()


def test_another_thread_trains_the_network_meanwhile():
    """The linearization is of the weights at its beginning, whole; training goes on undisturbed."""
    net = zoo.mlp().double()
    x, y = torch.randn(6, 3, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    lin = jacana.linearize(net)
    J = oracles.jacobian(net, x)
    want = oracles.condition_on_functions(
        J, np.ones(J.shape[1]), oracles.outputs(net, x), y.numpy(), 0.4, J, oracles.outputs(net, x)
    )
    done, failures = threading.Event(), []

    def train():
        optimiser = torch.optim.SGD(net.parameters(), lr=1e-2)
        try:
            while not done.is_set():
                optimiser.zero_grad()
                net(x).sub(y).square().sum().backward()
                optimiser.step()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(5):
            prediction = jacana.TangentGP(lin).condition(x, y, 0.4).predict(x)
            oracles.assert_close(prediction.mean, want.mean, DOUBLE, condition=1e3, scale=5.0)
            oracles.assert_close(prediction.covariance, want.covariance, DOUBLE, condition=1e3, scale=5.0)
    finally:
        done.set()
        trainer.join()
    assert not failures


def test_loaders_are_passed_over_without_a_trace(generators_untouched):
    it = Used("mlp")
    loader = DataLoader(TensorDataset(it.x, it.y), batch_size=2)
    snapshot = oracles.Snapshot(it.net)
    gp = jacana.TangentGP(it.lin)
    gp.condition(loader, noise_std=0.3).predict(loader).variance  # noqa: B018
    jacana.maximize_evidence(gp, loader)
    jacana.NTK(it.lin, loader).to_dense()
    snapshot.assert_unchanged()
