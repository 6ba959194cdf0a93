"""The evidence without a factorisation: where it ends is as probable as the factorised optimum, to a stated error."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana.evidence import maximize
from tests import oracles

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64
SAMPLES = 64


@pytest.fixture(autouse=True)
def far_from_the_start(monkeypatch):
    """A start from 30 of the observations, which is not the answer."""
    monkeypatch.setattr(maximize, "_ROWS_TO_START", 30)


def task(c=1, n=250, noise=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, c)).to(DOUBLE)
        x = torch.randn(n, 2, dtype=DOUBLE)
        y = torch.stack([torch.sin((k + 1) * x.sum(1)) for k in range(c)], dim=1)
        y = y + noise * torch.arange(1, c + 1) * torch.randn(n, c, dtype=DOUBLE)
    return jacana.TangentGP(net, progress=False), x, y


def evidence(gp, likelihood, x, y):
    """By the oracle."""
    net = gp.linearization.network.module
    J = oracles.jacobian(net, x) * oracles.prior_deviations(net, gp.prior_std)
    A = torch.from_numpy(J @ J.T) + torch.diag(likelihood.noise_std.square().expand(*y.shape).flatten())
    r = (y - net(x).detach()).reshape(-1)
    return -0.5 * float(r @ torch.linalg.solve(A, r) + torch.logdet(A) + len(r) * math.log(2 * math.pi))


@pytest.mark.parametrize(
    ("c", "words", "n_learned"),
    [
        (1, {}, 2),
        (2, {"prior_std": "layers"}, 4),
        (2, {"noise_std": "outputs"}, 3),
        (1, {"noise_std": 0.2}, 1),
        (1, {"prior_std": 0.5}, 1),
        (1, {"prior_std": {"0": 0.5, "2": 1.0, "4": 0.2}}, 1),
    ],
    ids=str,
)
def test_it_ends_at_the_summit(c, words, n_learned):
    gp, x, y = task(c)
    best = evidence(*jacana.maximize_evidence(gp, x, y, **words), x, y)
    method = jacana.Pathwise(SAMPLES)
    found = evidence(*jacana.maximize_evidence(gp, x, y, **words, method=method), x, y)
    # The error of each is 1/√SAMPLES of its own uncertainty, which costs ½/SAMPLES nats; more, where steps end early.
    assert best - found < 0.1 * n_learned + 6.0 * n_learned / SAMPLES


def test_a_noise_for_each_example_is_held():
    gp, x, y = task()
    noise = 0.05 + 0.2 * torch.rand(250, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    best, likelihood = jacana.maximize_evidence(gp, x, y, noise_std=noise)
    found, same = jacana.maximize_evidence(gp, x, y, noise_std=noise, method=jacana.Pathwise(SAMPLES))
    assert torch.equal(same.noise_std, likelihood.noise_std)
    assert torch.equal(same.noise_std, noise)
    assert evidence(best, same, x, y) - evidence(found, same, x, y) < 0.2


def test_a_loader_is_streamed_to_the_same_scales():
    gp, x, y = task()
    method = jacana.Pathwise(8)
    whole = jacana.maximize_evidence(gp, x, y, method=method)
    loader = DataLoader(TensorDataset(x, y), batch_size=33)
    found = jacana.maximize_evidence(gp, loader, method=method)
    assert found[0].prior_std == pytest.approx(whole[0].prior_std, rel=1e-3)
    assert float(found[1].noise_std) == pytest.approx(float(whole[1].noise_std), rel=1e-3)


def test_it_is_the_same_every_time(generators_untouched):
    gp, x, y = task()
    one, two = (jacana.maximize_evidence(gp, x, y, method=jacana.Pathwise(4, seed=1)) for _ in range(2))
    assert one[0].prior_std == two[0].prior_std
    assert one[1] == two[1]


def test_it_is_taken_where_nothing_can_be_factorised(monkeypatch):
    gp, x, y = task()
    monkeypatch.setattr(maximize, "_LARGEST_SIDE", 100)
    found = jacana.maximize_evidence(gp, x, y)
    asked = jacana.maximize_evidence(gp, x, y, method=jacana.Pathwise(16))
    assert found[0].prior_std == asked[0].prior_std
    assert found[1] == asked[1]


def test_steps_that_do_not_end_are_said(monkeypatch):
    from jacana.evidence import fixed_point

    gp, x, y = task()
    monkeypatch.setattr(fixed_point, "_MOST", 1)
    with pytest.warns(jacana.errors.NotConverged, match="after 1 steps"):
        jacana.maximize_evidence(gp, x, y, method=jacana.Pathwise(8))


def test_a_layer_that_explains_nothing_ends_the_search():
    gp, x, _ = task()
    y = torch.from_numpy(oracles.outputs(gp.linearization.network.module, x)) + 0.3 * torch.randn(
        250, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, likelihood = jacana.maximize_evidence(gp, x, y, prior_std="layers", method=jacana.Pathwise(16))
    assert 0.25 < float(likelihood.noise_std) < 0.35
    assert all(std > 0 for std in found.prior_std.values())


def test_another_method_is_refused():
    gp, x, y = task()
    with pytest.raises(jacana.errors.InvalidOption, match="Pathwise"):
        jacana.maximize_evidence(gp, x, y, method=jacana.FunctionSpace())


def test_it_is_better_than_where_it_starts():
    gp, x, y = task(2)
    started, noise = jacana.maximize_evidence(gp, x[:30], y[:30])
    found, likelihood = jacana.maximize_evidence(gp, x, y, method=jacana.Pathwise(SAMPLES))
    assert evidence(found, likelihood, x, y) > evidence(started, noise, x, y) + 5.0


@pytest.mark.parametrize("place", [0, 17, 249])
def test_one_example_that_is_not_zero_is_started_from(place):
    """None of the few rows that are decomposed to begin with may hold what there is to explain."""
    gp, x, y = task()
    gp = jacana.TangentGP(gp.linearization.network.module, mean="zero")
    rare = torch.zeros_like(y)
    rare[place] = 1.0
    found, likelihood = jacana.maximize_evidence(gp, x, rare, method=jacana.Pathwise(4))
    assert found.prior_std > 0
    assert 0.0 < float(likelihood.noise_std) < 0.2


def test_one_sample_is_enough_to_end():
    gp, x, y = task()
    found, likelihood = jacana.maximize_evidence(gp, x, y, method=jacana.Pathwise(1))
    assert found.prior_std > 0
    assert 0.05 < float(likelihood.noise_std) < 0.2


def test_outputs_of_other_units_have_bounds_of_their_own():
    from jacana.evidence import fixed_point
    from jacana.posteriors import Model, observe

    gp, x, y = task(2)
    lin = gp.linearization
    model = Model(lin, fixed_point.Prior.of(lin.network, 1.0), zero_mean=True)
    y = torch.stack([1e3 * y[:, 0], 0.01 * y[:, 1]], dim=1)
    learned = fixed_point.Learned((0,) * len(lin.names), 1, 2, jacana.Gaussian(1.0))
    low, _ = fixed_point._bounds(observe(model, x, y, jacana.Gaussian(1.0)), learned, torch.zeros(3, dtype=DOUBLE))
    torch.testing.assert_close((0.5 * low[1:]).exp(), 1e-4 * y.square().mean(0).sqrt())
