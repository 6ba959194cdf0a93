"""Pathwise: its mean is the exact one to the solver's tolerance, its samples have the posterior's covariance."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana.networks import Source
from tests import oracles
from tests.test_solvers import DOUBLE, NETWORKS, networks, random

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

TIGHT = jacana.CG(rtol=1e-9)


@NETWORKS
@pytest.mark.parametrize("mean", ["network", "zero"])
def test_mean_and_covariance(name, mean):
    net, x = networks()[name]
    y = random(len(x), net(x[:1]).shape[1], seed=3)
    new = torch.cat([x[:2], 5 * x[2:4]])  # on the data, and far from them
    gp = jacana.TangentGP(net, 0.7, mean)
    exact = gp.condition(x, y, 0.3, method=jacana.FunctionSpace())
    s = 4000
    found = gp.condition(x, y, 0.3, method=jacana.Pathwise(s, TIGHT))
    assert found.solution.converged
    a, b = exact.predict(new), found.predict(new)
    oracles.assert_close(b.mean, a.mean, DOUBLE, condition=1e8)
    oracles.assert_close(found.weights, exact.weights, DOUBLE, scale=float(exact.weights.abs().max()), condition=1e8)
    # Relative standard errors of squares are √(2/s), of products at most that: false alarm below 1e-6 a number.
    std = a.std.flatten()
    assert float(((b.covariance - a.covariance) / torch.outer(std, std)).abs().max()) < 6 * math.sqrt(2 / s)
    torch.testing.assert_close(b.covariance.diagonal(), b.variance.flatten())
    drawn = b.sample(s)
    assert float(((drawn.mean(0) - a.mean).flatten() / std).abs().max()) < 6 / math.sqrt(s)
    assert abs(found.log_evidence - exact.log_evidence) < 5 * found.evidence.std_error + 0.02


@pytest.mark.parametrize("space", [jacana.FunctionSpace, jacana.WeightSpace])
@pytest.mark.parametrize("preconditioner", [None, jacana.preconditioners.Subset(20)])
def test_what_a_loose_solution_hides_is_in_the_error_of_its_evidence(space, preconditioner):
    if space is jacana.FunctionSpace and preconditioner is not None:
        preconditioner = jacana.preconditioners.PivotedCholesky(rank=5)  # Subset is of weights
    net, x = networks()["mlp"]
    gp, y = jacana.TangentGP(net), random(60, 2, seed=3)
    loose, tight = (
        gp.condition(x, y, 0.3, method=space(jacana.CG(rtol=rtol, preconditioner=preconditioner))).evidence
        for rtol in (0.5, 1e-9)
    )
    hidden = loose.std_error - tight.std_error  # the determinant is estimated by the same probes
    assert 0.0 < abs(loose.value - tight.value) <= hidden


def test_no_sample_leaves_the_posterior():
    net, x = networks()["mlp"]
    post = jacana.TangentGP(net).condition(x, random(60, 2), 0.3, method=jacana.Pathwise(8, TIGHT))
    weights = post.sample_weights(8)
    changes = (oracles.jacobian(net, x[:3]) @ weights.numpy()).reshape(3, 2, 8)
    want = net(x[:3]).detach().unsqueeze(-1).numpy() + changes
    got = post.predict(x[:3]).sample(8, torch.Generator().manual_seed(0))
    for sample in got.numpy():
        assert min(abs(sample - want[..., k]).max() for k in range(8)) < 1e-9
    with pytest.raises(jacana.errors.InvalidOption, match="n_samples=9"):
        post.sample_weights(9)
    with pytest.raises(jacana.errors.InvalidOption, match="leave_one_out"):
        post.leave_one_out()


def test_a_loader_gives_the_same_samples():
    net, x = networks()["mlp"]
    y = random(60, 2, seed=3)
    method, gp = jacana.Pathwise(5, TIGHT), jacana.TangentGP(net)
    whole = gp.condition(x, y, 0.3, method=method).sample_weights(5, torch.Generator().manual_seed(0))
    for size in (7, 60):
        loader = DataLoader(TensorDataset(x, y), batch_size=size)
        streamed = gp.condition(loader, noise_std=0.3, method=method)
        got = streamed.sample_weights(5, torch.Generator().manual_seed(0))
        oracles.assert_close(got, whole, DOUBLE, scale=float(whole.abs().max()), condition=1e8)


def test_more_data_start_from_the_old_solution():
    net, x = networks()["mlp"]
    y = random(60, 2, seed=3)
    rough = jacana.CG(rtol=1e-8, preconditioner=jacana.preconditioners.Nystrom(20))
    gp, method = jacana.TangentGP(net), jacana.Pathwise(50, rough)
    old = gp.condition(x[:57], y[:57], 0.3, method=method)
    more, whole = old.condition(x[57:], y[57:]), gp.condition(x, y, 0.3, method=method)
    oracles.assert_close(more.predict(x[:5]).mean, whole.predict(x[:5]).mean, DOUBLE, condition=1e9)
    assert more.solution.products < whole.solution.products
    exact = gp.condition(x, y, 0.3, method=jacana.FunctionSpace()).predict(x[:5])
    ratio = more.predict(x[:5]).variance / exact.variance
    assert 1 - 6 * math.sqrt(2 / 50) < float(ratio.min()) <= float(ratio.max()) < 1 + 6 * math.sqrt(2 / 50)
    again = old.condition(x[57:], y[57:])  # the first time has left nothing behind
    assert torch.equal(again.weights, more.weights)


@pytest.mark.parametrize(
    ("words", "name"),
    [({"n_samples": 0}, "n_samples"), ({"solver": jacana.Cholesky()}, "solver"), ({"seed": 0.5}, "seed")],
)
def test_options_are_checked(words, name, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match=name):
        jacana.Pathwise(**words)


@pytest.mark.parametrize(
    "method",
    [jacana.Pathwise(5, TIGHT), jacana.FunctionSpace(TIGHT), jacana.WeightSpace(TIGHT)],
    ids=["pathwise", "function space", "weight space"],
)
@pytest.mark.parametrize("first", ["loader", "tensor"])
def test_more_data_of_a_loader_are_read_where_they_are(method, first, monkeypatch):
    net, x = networks()["mlp"]
    y = random(60, 2, seed=3)
    gp = jacana.TangentGP(net)

    def loader(some):
        return DataLoader(TensorDataset(x[some], y[some]), batch_size=7)

    want = gp.condition(x[:40], y[:40], 0.3, method=method).condition(x[40:], y[40:]).condition(x[:3], y[:3])
    prediction = want.predict(x[:4])
    expected = prediction.mean, prediction.variance

    def gathered(self):
        raise AssertionError("all of a stream came into memory")

    monkeypatch.setattr(Source, "gathered", gathered)
    some = slice(0, 40)
    start = (
        gp.condition(loader(some), noise_std=0.3, method=method)
        if first == "loader"
        else gp.condition(x[some], y[some], 0.3, method=method)
    )
    post = start.condition(loader(slice(40, 60))).condition(x[:3], y[:3])
    assert post.n_examples == 63
    oracles.assert_close(post.weights, want.weights, DOUBLE, scale=float(want.weights.abs().max()), condition=1e8)
    got = post.predict(x[:4])
    for found, wanted in zip((got.mean, got.variance), expected, strict=True):
        oracles.assert_close(found, wanted, DOUBLE, scale=1.0, condition=1e8)


def test_more_data_of_another_structure_are_refused():
    net, x = networks()["mlp"]
    post = jacana.TangentGP(net).condition(x, random(60, 2), 0.3, method=jacana.Pathwise(2, TIGHT))
    loader = DataLoader(TensorDataset(torch.cat([x, x], dim=1), random(60, 2)), batch_size=7)
    with pytest.raises(jacana.errors.JacanaError):
        post.condition(loader)
    assert post.n_examples == 60


def test_samples_are_solved_for_as_far_as_so_many_tell_of_a_variance():
    net, _ = networks()["mlp"]
    x, y = random(150, 3, seed=5), random(150, 2, seed=3)
    gp = jacana.TangentGP(net, progress=False)
    J = torch.from_numpy(oracles.jacobian(net, x))
    freedom = float(torch.linalg.solve(J @ J.T + 0.05**2 * torch.eye(300), J @ J.T).trace())
    steps = []
    for n_samples, share in ((4, 0.1 * math.sqrt(2.0 / 4)), (220, 0.01)):
        found = []
        for rtol in (0.9, 1e-8):
            solver = jacana.CG(rtol=rtol, preconditioner=jacana.preconditioners.Nystrom(10))
            post = gp.condition(x, y, 0.05, method=jacana.Pathwise(n_samples, solver))
            found.append(post.sample_weights(n_samples, torch.Generator().manual_seed(0)) - post.weights.unsqueeze(1))
            steps.append(post.solution.steps)
        wrong = (J @ (found[0] - found[1]) / 0.05).square().sum(0) / freedom
        assert float(wrong.max()) < share
    assert steps[0] < steps[2] < steps[1]
