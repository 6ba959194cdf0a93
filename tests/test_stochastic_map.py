"""StochasticMAP: the mode by L-BFGS, and a certificate that holds whether or not the tolerance was reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import MAP, StochasticMAP, TangentGP, Tempered, Weighted
from jacana.errors import InvalidData, InvalidOption, NotConverged
from jacana.posteriors import dual_ascent
from tests import oracles, zoo
from tests.test_laplace import DOUBLE, KINDS, close, task

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

GAUSSIAN = {"std": np.array([0.4, 0.9])}
LIKELIHOODS = {kind: KINDS[kind] for kind in ("categorical", "bernoulli", "poisson")} | {
    "gaussian": jacana.Gaussian(GAUSSIAN["std"])
}


def slope(it, delta, weights=1.0):
    """The gradient of the log posterior at δ, in units of the prior, by the oracle's formulas."""
    known, words = it.known, GAUSSIAN if it.kind == "gaussian" else {}
    f = known["mean"] + (known["J"] @ delta).reshape(known["mean"].shape)
    score = np.broadcast_to(weights, len(f))[:, None] * oracles.score(it.kind, f, it.y, **words)
    return known["s"] * (known["J"].T @ score.reshape(-1)) - delta / known["s"]


def condition(it, method=None, likelihood=None, batch_size=4, some=slice(None)):
    gp = TangentGP(jacana.linearize(it.net, batch_size=batch_size), it.s, it.mean)
    likelihood = LIKELIHOODS[it.kind] if likelihood is None else likelihood
    method = StochasticMAP() if method is None else method
    return gp.condition(it.x[some], torch.as_tensor(it.y[some]), likelihood=likelihood, method=method)


def held_to_its_word(it, post, want, weights=1.0):
    """The remainder is the gradient, and the mode no farther than it is long; the oracle's own bound comes on top."""
    found = post.weights.numpy()
    oracles.assert_close(post.solution.remainder[:, 0], slope(it, found, weights), DOUBLE, scale=1e3, factor=1e3)
    bound = float(post.solution.remainder.norm())
    assert float(post.solution.relative_residuals) == pytest.approx(bound / np.linalg.norm(found / it.known["s"]))
    slack = np.linalg.norm(slope(it, want, weights))
    assert slack < 0.05 * bound, "the oracle is no better than what it judges"
    assert np.linalg.norm((found - want) / it.known["s"]) <= bound + slack


def reference(it, **words):
    return it.oracle(**words, **(GAUSSIAN if it.kind == "gaussian" else {})).weights


# --- the mode, and what is certified ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "network", "batch_size"),
    [*((kind, "p > nc", 5) for kind in LIKELIHOODS), ("categorical", "p < nc", 256), ("bernoulli", "p < nc", 1)],
)
def test_it_is_the_oracles_within_the_certificate(kind, network, batch_size):
    it = task(kind, network)
    post = condition(it, batch_size=batch_size)
    want = reference(it)
    assert post.solution.converged
    assert 0 < post.solution.steps < post.solution.products
    assert float(post.solution.relative_residuals) <= 1e-3
    held_to_its_word(it, post, want)
    close(post.weights, want, 2e-3, "weights")
    mean = it.elsewhere[1] + (it.elsewhere[0] @ want).reshape(it.elsewhere[1].shape)
    close(post.predict(it.x_new).mean, mean, 5e-3, "mean")


@pytest.mark.parametrize("kind", ["categorical", "poisson"])
def test_a_small_tolerance_gives_newtons_mode(kind):
    it = task(kind)
    want = condition(it, MAP())
    close(condition(it, StochasticMAP(rtol=1e-8)).weights, want.weights, 2e-8)


@pytest.mark.parametrize("network", ["p < nc", "p > nc"])
def test_wide_priors_take_more_epochs_and_are_as_certain(network):
    steps = []
    for s in (0.08, 0.8, 8.0):
        it = task(network=network, s=s)
        post = condition(it, batch_size=7)
        held_to_its_word(it, post, reference(it))
        steps.append(post.solution.steps)
    assert steps[0] < steps[1] < steps[2] < 300


@pytest.mark.parametrize("max_epochs", [1, 4])
@pytest.mark.parametrize(("kind", "s"), [("categorical", 0.8), ("categorical", 8.0), ("poisson", 0.8)])
def test_the_certificate_holds_where_the_tolerance_was_not_reached(kind, s, max_epochs):
    it = task(kind, s=s)
    with pytest.warns(NotConverged):
        post = condition(it, StochasticMAP(max_epochs=max_epochs))
    assert post.solution.steps == max_epochs
    assert not post.solution.converged
    assert float(post.solution.relative_residuals) > 1e-3
    held_to_its_word(it, post, reference(it))


def test_a_network_in_float32():
    it = task()
    net = zoo.mlp(2, 8, 3)
    net.load_state_dict(it.net.state_dict())
    gp = TangentGP(jacana.linearize(net, batch_size=4), it.s)
    post = gp.condition(it.x.float(), it.y, likelihood=LIKELIHOODS["categorical"], method=StochasticMAP(rtol=1e-4))
    assert post.weights.dtype == DOUBLE
    close(post.weights, reference(it), 1e-4)


def test_one_logit_for_two_classes():
    net, x, y = zoo.mlp(2, 6, 1).double(), task().x, torch.arange(14) % 2
    gp = TangentGP(jacana.linearize(net, batch_size=4), 0.9)
    post, want = (gp.condition(x, y, likelihood=jacana.Bernoulli(), method=m) for m in (StochasticMAP(), MAP()))
    assert float((post.weights - want.weights).norm()) / 0.9 <= float(post.solution.remainder.norm())
    assert post.predict(x).mean.shape == (14,)
    assert post.predict(x).probabilities().shape == (14, 1)


def test_noise_for_each_observation_goes_with_its_batch():
    it = task("gaussian")
    noise = jacana.Gaussian(np.random.default_rng(0).uniform(0.4, 0.9, (14, 2)))
    post, want = (condition(it, method, noise) for method in (StochasticMAP(), MAP()))
    assert float(((post.weights - want.weights) / it.s).norm()) <= float(post.solution.remainder.norm())


# --- likelihoods that count an example more or less than once --------------------------------------------------------


@pytest.mark.parametrize("kind", ["categorical", "poisson"])
def test_weights(kind):
    it = task(kind)
    weights = np.array([2.0] * 4 + [0.0] * 5 + [1.0] * 5)  # the second batch of four weighs nothing
    post = condition(it, likelihood=Weighted(LIKELIHOODS[kind], weights))
    assert post.solution.converged
    held_to_its_word(it, post, reference(it, weights=weights), weights)
    with pytest.raises(InvalidOption, match="weights for each old example"):
        post.condition(it.x, torch.as_tensor(it.y))


def test_tempered_counts_each_example_as_several():
    it = task()
    post = condition(it, likelihood=Tempered(LIKELIHOODS["categorical"], 3.0))
    held_to_its_word(it, post, reference(it, weights=np.full(14, 3.0)), 3.0)


def test_what_weighs_nothing_may_be_anything():
    """Of a linear network, an example so far away that the rate there overflows."""
    torch.manual_seed(0)
    x, y = torch.randn(9, 2, dtype=DOUBLE), torch.arange(9) % 3
    x[0] = 1e5
    gp = TangentGP(jacana.linearize(nn.Linear(2, 1).double(), batch_size=3))
    weighted = Weighted(jacana.Poisson(), [0.0] + [1.0] * 8)
    post = gp.condition(x, y, likelihood=weighted, method=StochasticMAP(rtol=1e-6))
    assert not torch.isfinite(post.predict(x[:1]).mean.abs().exp()).all()
    want = gp.condition(x[1:], y[1:], likelihood=jacana.Poisson(), method=StochasticMAP(rtol=1e-6))
    torch.testing.assert_close(post.weights, want.weights, rtol=0, atol=3e-6 * float(want.weights.norm()))


def test_a_second_time_is_a_weight_of_two():
    it, rtol = task(), 1e-6
    both = (
        condition(it, StochasticMAP(rtol), some=np.repeat(np.arange(14), 2)),
        condition(it, StochasticMAP(rtol), Weighted(LIKELIHOODS["categorical"], [2.0] * 14)),
    )
    close(both[0].weights, both[1].weights, 3 * rtol)


# --- where the data come from ----------------------------------------------------------------------------------------


def test_a_loader_and_a_memory_map_are_the_tensor(tmp_path, monkeypatch):
    it, method, likelihood = task(n=30), StochasticMAP(), LIKELIHOODS["categorical"]
    assert method.streams
    np.save(tmp_path / "x.npy", it.x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = torch.from_numpy(it.y)
    gp = TangentGP(jacana.linearize(it.net, batch_size=7), it.s)
    loader = DataLoader(TensorDataset(it.x, y), batch_size=5)
    posts = [
        gp.condition(it.x, y, likelihood=likelihood, method=method),
        gp.condition(loader, likelihood=likelihood, method=method),
        gp.condition(mapped, y, likelihood=likelihood, method=method),
        condition(it, batch_size=15),
    ]
    monkeypatch.setattr(dual_ascent, "_POOL_BYTES", 16 * 10)  # two batches wait at a time
    posts.append(gp.condition(loader, likelihood=likelihood, method=method))
    want = reference(it)
    for post in posts:
        assert post.solution.converged
        held_to_its_word(it, post, want)
    assert not torch.equal(posts[1].weights, posts[4].weights)  # another order


def test_a_loader_that_shuffles_is_refused():
    it = task()
    loader = DataLoader(TensorDataset(it.x, torch.from_numpy(it.y)), batch_size=5, shuffle=True)
    with pytest.raises(InvalidData, match="use shuffle=False"):
        it.gp.condition(loader, likelihood=LIKELIHOODS["categorical"], method=StochasticMAP())


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_more_data_are_the_same_as_all_at_once(kind):
    it = task(kind)
    post = condition(it, some=slice(12)).condition(it.x[12:], torch.as_tensor(it.y[12:]))
    assert post.n_examples == 14
    assert post.method == StochasticMAP()
    held_to_its_word(it, post, reference(it))


def test_what_was_found_is_where_more_data_are_started_from():
    it, method = task(n=40), StochasticMAP(rtol=0.3)
    again = condition(it, method, some=slice(39), batch_size=8).condition(it.x[39:], torch.as_tensor(it.y[39:]))
    assert again.solution.steps < 0.5 * condition(it, method, batch_size=8).solution.steps


# --- starts that mislead ---------------------------------------------------------------------------------------------


def test_nothing_to_learn_is_found_at_once():
    it = task("gaussian")
    y = it.net(it.x).detach()
    post = TangentGP(it.net).condition(it.x, y, 0.3, method=StochasticMAP())
    assert post.solution.steps == 0
    assert post.solution.converged
    assert not post.weights.any()


def test_a_network_that_is_sure_and_wrong():
    """Where it starts, the curvature is gone: the first steps would be a thousand times too long."""
    it = task("bernoulli")
    y = (it.net(it.x) < 0).double()
    gp = TangentGP(jacana.linearize(it.net, output=lambda out: 40.0 * out, batch_size=4), 0.1)
    post, want = (gp.condition(it.x, y, likelihood=jacana.Bernoulli(), method=m) for m in (StochasticMAP(), MAP()))
    assert post.solution.converged
    assert float((post.weights - want.weights).norm()) / 0.1 <= float(post.solution.remainder.norm())


def test_counts_far_from_where_it_starts():
    it = task("poisson", s=0.5)
    y = 20.0 + 10.0 * it.y
    gp = TangentGP(jacana.linearize(it.net, batch_size=7), it.s)
    method = StochasticMAP(rtol=1e-2)
    post, want = (gp.condition(it.x, y, likelihood=jacana.Poisson(), method=m) for m in (method, MAP()))
    assert post.solution.converged
    assert float((post.weights - want.weights).norm()) / it.s <= float(post.solution.remainder.norm())


@pytest.mark.parametrize("step", [20.0, 1e300])
def test_a_step_that_is_too_long_is_shortened(step):
    it = task(s=3.0)
    post = condition(it, StochasticMAP(step=step), batch_size=7)
    assert post.solution.converged
    held_to_its_word(it, post, reference(it))


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_tolerance_that_was_not_reached_is_said_with_the_cure():
    it = task()
    with pytest.warns(NotConverged, match=r"after 1 epochs .* asked for; take more epochs \(max_epochs, now 1\)"):
        post = condition(it, StochasticMAP(max_epochs=1))
    assert not post.solution.converged
    with pytest.warns(NotConverged, match="after 1 epochs"):
        post.condition(it.x, torch.as_tensor(it.y))


@pytest.mark.parametrize(
    ("words", "name"),
    [({"rtol": 0.0}, "rtol"), ({"rtol": 1.0}, "rtol"), ({"rtol": True}, "rtol"), ({"step": -1.0}, "step"),
     ({"step": float("nan")}, "step"), ({"step": float("inf")}, "step"), ({"max_epochs": 0}, "max_epochs"),
     ({"max_epochs": 2.0}, "max_epochs"), ({"max_epochs": True}, "max_epochs")],
)  # fmt: skip
def test_options_are_checked(words, name):
    with pytest.raises(InvalidOption, match=f"{name}: got .*; expected"):
        StochasticMAP(**words)


@pytest.mark.parametrize("likelihood", [KINDS["heteroscedastic"], Tempered(KINDS["heteroscedastic"], 2.0)], ids=repr)
def test_a_likelihood_that_is_not_concave_is_refused(likelihood):
    it = task("heteroscedastic")
    with pytest.raises(InvalidOption, match=r"StochasticMAP is for .* concave .* take jacana\.MAP\(\)"):
        condition(it, likelihood=likelihood)


def test_noise_of_zero_is_refused():
    with pytest.raises(InvalidOption, match="noise_std: got zero"):
        condition(task("gaussian"), likelihood=jacana.Gaussian(0.0))


def test_a_point_has_blocks_of_zero_and_no_variance():
    it = task()
    post = condition(it)
    prediction = post.predict(it.x_new)
    assert not prediction.marginal_covariance.any()
    torch.testing.assert_close(prediction.probabilities(), prediction.mean.softmax(1))
    for ask in (
        lambda: prediction.variance, lambda: prediction.std, lambda: prediction.covariance, prediction.sample,
        post.sample_weights, lambda: post.log_evidence, lambda: post.evidence, prediction.interval,
    ):  # fmt: skip
        with pytest.raises(InvalidOption, match=r"StochasticMAP\(\) is a point.*jacana\.Laplace"):
            ask()


def test_the_last_layer_alone():
    it = task()
    post = condition(it, jacana.LastLayer(method=StochasticMAP()))
    want = condition(it, jacana.LastLayer(method=MAP()))
    assert post.solution.converged
    close(post.weights, want.weights, 2e-3)


def test_the_same_answer_every_time(generators_untouched):
    one, two = (condition(task()) for _ in range(2))
    assert torch.equal(one.weights, two.weights)
    assert one.solution.steps == two.solution.steps
