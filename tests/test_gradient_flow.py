"""GradientFlow: closed forms where the network is linear, an implicit integrator where it is not."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.integrate
import torch
from sklearn.base import clone
from torch import nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import CG, MAP, FunctionSpace, GradientFlow, Laplace, Pathwise, TangentGP, Tempered, Weighted, WeightSpace
from jacana.errors import InvalidOption, NotConverged, UnsupportedNetwork
from tests import zoo

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64
N, C, T, POWER = 20, 3, 0.8, 1.7
EXACT = 1e-4
"""A tolerance with which three digits are there; the integrator has tests of its own."""

LIKELIHOODS = {
    "categorical": jacana.Categorical(),
    "tempered": Tempered(jacana.Categorical(), POWER),
    "weighted": Weighted(jacana.Categorical(), np.linspace(0.2, 2.0, N)),
    "poisson": jacana.Poisson(),
    "gaussian": jacana.Gaussian(0.3),
}
SCORES = {
    "categorical": lambda f, y: -nn.functional.cross_entropy(f, y, reduction="sum"),
    "tempered": lambda f, y: -POWER * nn.functional.cross_entropy(f, y, reduction="sum"),
    "weighted": lambda f, y: (
        -(torch.linspace(0.2, 2.0, N, dtype=DOUBLE) * nn.functional.cross_entropy(f, y, reduction="none")).sum()
    ),
    "poisson": lambda f, y: (y * f - f.exp() - torch.lgamma(y + 1.0)).sum(),
    "gaussian": lambda f, y: torch.distributions.Normal(f, 0.3).log_prob(y).sum(),
}
KIND = pytest.mark.parametrize("kind", LIKELIHOODS)


def network(hidden=6):
    torch.manual_seed(3)
    return zoo.mlp(2, hidden, C).double()


def inputs(n=N, seed=0):
    return torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def targets(kind, x):
    classes = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 1] > 0.7).long()
    if kind in ("categorical", "tempered", "weighted"):
        return classes
    counts = nn.functional.one_hot(classes, C).to(DOUBLE)
    return 3.0 * counts if kind == "poisson" else counts


def conditioned(kind="categorical", method=None, std=0.5, net=None, x=None):
    net, x = network() if net is None else net, inputs() if x is None else x
    gp = TangentGP(net, std, temperature=T)
    return gp.condition(x, targets(kind, x), likelihood=LIKELIHOODS[kind], method=method or GradientFlow())


def score(kind, net, x, y):
    """Log p(y | f) as a function of all weights in a row, and these, written anew."""
    start = nn.utils.parameters_to_vector(net.parameters()).detach()
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}

    def value(theta):
        parts = torch.split(theta, [math.prod(shape) for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return SCORES[kind](functional_call(net, named, (x,)) / T, y)

    return value, start


def fit(kind, post, x=None):
    """Log p(y | f) of the training data at the mean."""
    x = inputs() if x is None else x
    return float(SCORES[kind](post.predict(x).mean, targets(kind, x)))


@KIND
@pytest.mark.parametrize("time", [0.05, 0.5])
def test_it_ends_where_an_implicit_method_ends(kind, time):
    net, x = network(), inputs()
    stds = {"0": 0.2, "": 0.6}
    each = torch.cat([
        torch.full((p.numel(),), stds["0" if name.startswith("0.") else ""], dtype=DOUBLE)
        for name, p in net.named_parameters()
    ])  # fmt: skip
    value, start = score(kind, net, x, targets(kind, x))
    slope = grad(lambda delta: value(start + T * delta))
    want = scipy.integrate.solve_ivp(
        lambda _, delta: (each**2 * slope(torch.tensor(delta))).numpy(),
        (0.0, time), np.zeros(len(start)), method="BDF", rtol=1e-6, atol=1e-8,
    ).y[:, -1]  # fmt: skip
    post = conditioned(kind, GradientFlow(time, rtol=EXACT), stds)
    scale = float(np.abs(want).max())
    np.testing.assert_allclose(post.weights, want, rtol=0, atol=1e-3 * scale)
    there = post.observations.model.lin.network.module
    moved = nn.utils.parameters_to_vector(there.parameters()).detach()
    torch.testing.assert_close(moved, start + T * post.weights)
    new = inputs(5, seed=9)
    torch.testing.assert_close(post.predict(new).mean, there(new).detach() / T)


@pytest.mark.parametrize("time", [0.1, 0.5, 2.0])
def test_of_a_linear_network_it_is_the_closed_form(time):
    """Each direction goes 1 − e^(−tλ) of its way."""
    torch.manual_seed(0)
    net, x = nn.Linear(2, C).double(), inputs()
    y = targets("gaussian", x)
    gp = TangentGP(net, 0.7)
    post = gp.condition(x, y, noise_std=0.3, method=GradientFlow(time, rtol=EXACT))
    root = 0.7 * gp.linearization.jacobian(x).to(DOUBLE) / 0.3
    rates, vectors = torch.linalg.eigh(root.T @ root)
    right = vectors.T @ (root.T @ ((y - net(x).detach()).flatten() / 0.3))
    u = vectors @ (right * -torch.expm1(-time * rates) / rates)
    torch.testing.assert_close(post.weights, 0.7 * u, rtol=0, atol=1e-3)


def test_at_half_the_prior_variance_it_shrinks_as_the_posterior_mean():
    """What the docstring says of every λ."""
    rates = torch.logspace(-6, 6, 100_001, dtype=DOUBLE)
    apart = (-torch.expm1(-GradientFlow().time * rates) - rates / (1.0 + rates)).abs().max()
    assert 0.1 < float(apart) < 0.12
    other = [float((-torch.expm1(-t * rates) - rates / (1.0 + rates)).abs().max()) for t in (0.3, 0.7, 1.0)]
    assert min(other) > 0.13


@KIND
def test_the_uncertainty_is_the_linear_models(kind):
    new = inputs(5, seed=9)
    flowed, linear = conditioned(kind), conditioned(kind, Laplace())
    for name in ("variance", "covariance", "marginal_covariance"):
        torch.testing.assert_close(getattr(flowed.predict(new), name), getattr(linear.predict(new), name))
    assert flowed.log_evidence == linear.log_evidence
    assert float((flowed.predict(new).mean - linear.predict(new).mean).abs().max()) > 1e-3


def test_samples_have_its_mean_and_covariance():
    prediction = conditioned().predict(inputs(3, seed=4))
    samples = prediction.sample(20_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    standardised = torch.linalg.solve_triangular(
        torch.linalg.cholesky(prediction.covariance + 1e-9 * torch.eye(9, dtype=DOUBLE)),
        (samples - prediction.mean.flatten()).T, upper=False,
    )  # fmt: skip
    assert float(standardised.mean(1).abs().max()) < 6.0 / math.sqrt(20_000)  # false alarm 2e-8 a number
    unit = torch.eye(9, dtype=DOUBLE)
    assert float((standardised @ standardised.T / 20_000 - unit).abs().max()) < 9.0 / math.sqrt(20_000)


@KIND
@pytest.mark.parametrize("std", [0.1, 1.0])
def test_the_log_likelihood_never_falls(kind, std):
    net, x = network(10), inputs()
    values = [float(SCORES[kind](net(x).detach() / T, targets(kind, x)))]
    values += [fit(kind, conditioned(kind, GradientFlow(time, MAP()), std, net)) for time in (0.02, 0.1, 0.5, 2.0)]
    assert values == sorted(values)
    assert values[-1] > values[0]


def test_a_point_is_the_network_and_nothing_else():
    post, x = conditioned(method=GradientFlow(method=MAP())), inputs(4, seed=5)
    there = post.observations.model.lin.network.module
    torch.testing.assert_close(post.predict(x).probabilities(), (there(x) / T).softmax(1).detach())
    for what in ("variance", "covariance"):
        with pytest.raises(InvalidOption, match=r"GradientFlow\(method=MAP\(\)\) is a point.*=jacana.GradientFlow\(\)"):
            _ = getattr(post.predict(x), what)
    with pytest.raises(InvalidOption, match=r"GradientFlow\(method=MAP\(\)\) is a point.*=jacana.GradientFlow\(\)"):
        _ = post.log_evidence


def test_a_point_needs_no_kernel(monkeypatch):
    x = inputs()
    monkeypatch.setattr("jacana.posteriors.nonlinear.side_of", None)
    more = conditioned(method=GradientFlow(method=MAP()), x=x[:12]).condition(x[12:], targets("categorical", x)[12:])
    monkeypatch.undo()
    want = conditioned(method=GradientFlow(), x=x)
    torch.testing.assert_close(more.weights, want.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_more_data_come_to_the_same_end_as_all_at_once(kind):
    net, x = network(), inputs()
    y, method = targets(kind, x), GradientFlow()
    gp = TangentGP(net, 0.5, temperature=T)
    want = gp.condition(x, y, likelihood=LIKELIHOODS[kind], method=method)
    got = gp.condition(x[:10], y[:10], likelihood=LIKELIHOODS[kind], method=method).condition(x[10:], y[10:])
    torch.testing.assert_close(got.weights, want.weights, rtol=1e-9, atol=1e-9)
    assert got.method == method
    torch.testing.assert_close(got.predict(x).variance, want.predict(x).variance)


def test_order_and_batches_do_not_matter():
    net, x = network(), inputs()
    y, order = targets("categorical", x), torch.randperm(N, generator=torch.Generator().manual_seed(1))

    def weights(x, y, batch_size):
        gp = TangentGP(jacana.linearize(net, batch_size=batch_size), 0.5, temperature=T)
        return gp.condition(x, y, likelihood=jacana.Categorical(), method=GradientFlow()).weights

    want = weights(x, y, None)
    torch.testing.assert_close(weights(x[order], y[order], None), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights(x, y, 3), want, rtol=1e-9, atol=1e-9)


def test_an_example_of_weight_two_is_there_twice():
    net, x = network(), inputs()
    y = targets("categorical", x)
    gp, method = TangentGP(net, 0.5), GradientFlow()
    twice = gp.condition(torch.cat([x, x[:4]]), torch.cat([y, y[:4]]), likelihood=jacana.Categorical(), method=method)
    weights = np.where(np.arange(N) < 4, 2.0, 1.0)
    weighted = gp.condition(x, y, likelihood=Weighted(jacana.Categorical(), weights), method=method)
    torch.testing.assert_close(weighted.weights, twice.weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [Pathwise(6, CG(rtol=1e-7)), WeightSpace(CG(rtol=1e-7))], ids=repr)
def test_a_loader_and_a_memory_map_are_the_tensor(side, tmp_path):
    net, x = network(), inputs()
    y, method = targets("categorical", x), GradientFlow(method=Laplace(side))
    assert method.streams
    np.save(tmp_path / "x.npy", x.numpy())
    gp = TangentGP(net, 0.5, temperature=T)
    want = gp.condition(x, y, likelihood=jacana.Categorical(), method=method).predict(x[:4])
    for given in ((DataLoader(TensorDataset(x, y), 5),), (np.load(tmp_path / "x.npy", mmap_mode="r"), y)):
        got = gp.condition(*given, likelihood=jacana.Categorical(), method=method).predict(x[:4])
        torch.testing.assert_close(got.mean, want.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.variance, want.variance, rtol=1e-4, atol=1e-6)


def test_a_parameter_that_the_output_does_not_reach_stays():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, C).double(), nn.Linear(2, C).double()

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    net, x = Idle(), inputs()
    post = TangentGP(net, 1.0).condition(
        x, targets("categorical", x), likelihood=jacana.Categorical(), method=GradientFlow()
    )
    half = sum(p.numel() for p in net.used.parameters())
    assert bool((post.weights[half:] == 0.0).all())
    assert bool((post.weights[:half] != 0.0).any())


def test_the_network_that_was_given_is_never_moved():
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    post = conditioned(net=net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert post.observations.model.lin.network.module is not net


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_switched_off(mode):
    net, x = network(), inputs()
    want = conditioned(net=net, x=x).predict(x).mean
    with mode():
        got = conditioned(net=net, x=x).predict(x).mean
    torch.testing.assert_close(got, want)


def test_a_network_that_fails_on_the_way_is_left_where_it_works():
    torch.manual_seed(0)
    x = inputs()
    post = TangentGP(zoo.Correlated(), 1.0).condition(
        x, 20.0 * x.prod(1, keepdim=True), noise_std=1.0, method=GradientFlow()
    )
    assert torch.isfinite(post.predict(x).mean).all()
    assert float(post.weights.norm()) > 0.1


def test_a_flow_that_would_take_too_long_stops_and_says_so():
    net, x = network(), inputs()
    with pytest.warns(NotConverged, match=r"stopped at time .* of 0\.5 after .*max_gradients, now 30"):
        post = TangentGP(net, 30.0).condition(
            x, targets("gaussian", x), noise_std=0.01, method=GradientFlow(max_gradients=30)
        )
    assert torch.isfinite(post.predict(x).mean).all()
    before = nn.functional.mse_loss(net(x), targets("gaussian", x)).detach()
    assert float(nn.functional.mse_loss(post.predict(x).mean, targets("gaussian", x))) < float(before)


@pytest.mark.parametrize("weight", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("rtol", [0.1, 0.02])
def test_labels_that_a_wide_prior_knows_by_heart_are_not_learned_for_ever(weight, rtol):
    """It ends where they could gain less than ``rtol`` of what the prior has lost, or next to nothing."""
    net, x = network(30), inputs()
    y, likelihood = targets("categorical", x), Tempered(jacana.Categorical(), weight)
    post = TangentGP(net, 30.0).condition(x, y, likelihood=likelihood, method=GradientFlow(1e3, rtol=rtol))
    unsaid = -float(likelihood.log_prob(post.predict(x).mean, y).sum())
    lost = 0.5 * float((post.weights / 30.0).square().sum())
    assert 0.01 * rtol * lost < unsaid <= rtol * max(lost, 0.5 * rtol)


@pytest.mark.parametrize("std", [0.1, 0.3, 1.0, 2.0, 4.0, 10.0, 100.0])
@pytest.mark.parametrize("n", [1, 50])
def test_one_weight_ends_as_far_as_its_posterior_mean_to_within_an_eighth(std, n):
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    x, y = torch.ones(n, 1, dtype=DOUBLE), torch.full((n, 1), 1.42, dtype=DOUBLE)
    flowed, exact = (
        float(TangentGP(net, std).condition(x, y, noise_std=1.0, method=method).predict(x[:1]).mean)
        for method in (GradientFlow(), FunctionSpace())
    )
    assert abs(flowed - exact) < 0.13 * 1.42


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_was_never_trained_flows_to_its_end(seed, dtype):
    """Under a prior as wide as labels choose for one; it warns where it does not, and warnings are errors here."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv1d(2, 8, 5), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).to(dtype)
    y = torch.arange(60) % 3
    waves = torch.outer(2.0 * y + 2.0, torch.linspace(0.0, 6.0, 20)) + 6.0 * torch.rand(60, 1)
    x = (torch.stack([waves.sin(), waves.cos()], 1) + 0.3 * torch.randn(60, 2, 20)).to(dtype)
    method = GradientFlow(max_gradients=400)  # of which it takes about 200; 2,000 were not enough
    post = TangentGP(net, 30.0).condition(x, y, likelihood=jacana.Categorical(), method=method)
    assert float((post.predict(x).mean.argmax(1) == y).double().mean()) == 1.0


@pytest.mark.parametrize("likelihood", [jacana.HeteroscedasticGaussian(), jacana.Poisson()], ids=repr)
@pytest.mark.filterwarnings("ignore::jacana.errors.NotConverged")
def test_a_wild_hill_ends_within_its_gradients(likelihood):
    torch.manual_seed(1)
    x = torch.randn(30, 2)
    torch.manual_seed(0)
    net = zoo.mlp(2, 8, 2)
    y = x.sum(1, keepdim=True) if likelihood == jacana.HeteroscedasticGaussian() else torch.poisson(x.exp())
    post = TangentGP(net, 10.0).condition(x, y, likelihood=likelihood, method=GradientFlow(max_gradients=300))
    assert torch.isfinite(post.weights).all()


def test_a_checkpointed_layer_is_computed_where_the_flow_is():
    class Checkpointed(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            torch.manual_seed(0)
            self.checkpointed = checkpointed
            self.first, self.last = nn.Linear(2, 8), nn.Linear(8, C)
            self.middle = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
            self.double()

        def forward(self, x):
            h = self.first(x).tanh()
            h = checkpoint(self.middle, h, use_reentrant=False) if self.checkpointed else self.middle(h)
            return self.last(h)

    x = inputs()
    one, two = (conditioned(std=0.7, net=Checkpointed(flag), x=x).weights for flag in (False, True))
    torch.testing.assert_close(one, two)


def test_a_regression_in_float32_goes_all_its_way():
    """Its log-likelihood has few digits, and goes down by rounding near the top."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2), torch.randn(200, 3)
    y = x @ torch.randn(3, 2) + 0.1 * torch.randn(200, 2)
    weights = [
        TangentGP(net.to(dtype), 1.0).condition(x.to(dtype), y.to(dtype), noise_std=0.1, method=GradientFlow()).weights
        for dtype in (torch.float32, DOUBLE)
    ]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-3)


def test_a_network_that_is_sure_of_every_label_stays():
    torch.manual_seed(0)
    net = nn.Linear(2, C).double()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([500.0, 0.0, 0.0]))
    post = TangentGP(net, 0.7).condition(
        inputs(), torch.zeros(N, dtype=torch.long), likelihood=jacana.Categorical(), method=GradientFlow()
    )
    assert float(post.weights.abs().max()) < 1e-12


def test_a_batch_that_the_parameters_do_not_reach_is_passed_by():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(2, C), nn.Linear(2, C)]).double()

        def forward(self, x):
            right = x[:, 0] > 0
            if right.all():
                return self.experts[0](x)
            if not right.any():
                return self.experts[1](x)
            return torch.where(right.unsqueeze(1), self.experts[0](x), self.experts[1](x))

    torch.manual_seed(0)
    net, x = Experts(), inputs()
    x = x[x[:, 0].argsort()]

    def weights(batch_size):
        gp = TangentGP(jacana.linearize(net, "experts.0", batch_size=batch_size), 0.5)
        return gp.condition(
            x, targets("categorical", x), likelihood=jacana.Categorical(), method=GradientFlow()
        ).weights

    torch.testing.assert_close(weights(5), weights(N), rtol=1e-9, atol=1e-9)


def test_it_flows_on_from_where_a_tangent_is():
    net, x = network(), inputs()
    y = targets("categorical", x)
    gp = TangentGP(net, 0.5, temperature=T)
    again = gp.relinearize(gp.condition(x, y, likelihood=jacana.Categorical()))
    post = again.condition(x, y, likelihood=jacana.Categorical(), method=GradientFlow())
    start, end = (
        nn.utils.parameters_to_vector(one.parameters()).detach()
        for one in (net, post.observations.model.lin.network.module)
    )
    torch.testing.assert_close(post.weights, (end - start) / T)
    torch.testing.assert_close(gp.relinearize(post).linearization(x), post.predict(x).mean * T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused(dtype):
    net, x = network().to(dtype), inputs()
    with pytest.raises(UnsupportedNetwork, match=r"net: got weights in torch\.(b?)float16.*net\.float\(\)"):
        TangentGP(net, 1e-2).condition(
            x, targets("categorical", x), likelihood=jacana.Categorical(), method=GradientFlow()
        )


def test_a_mean_of_zero_is_refused_before_anything_is_computed():
    x = inputs()
    with pytest.raises(InvalidOption, match="mean: got 'zero'"):
        TangentGP(network(), mean="zero").condition(
            x, targets("categorical", x), likelihood=jacana.Categorical(), method=GradientFlow()
        )


@pytest.mark.parametrize("method", [jacana.LastLayer, jacana.OneHotRegression, jacana.DirichletRegression])
def test_methods_that_are_of_the_first_tangent_do_not_take_it(method):
    with pytest.raises(InvalidOption, match="method: got GradientFlow"):
        method(method=GradientFlow())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"time": 0.0}, "time: got 0.0"),
        ({"time": math.inf}, "time: got inf"),
        ({"time": True}, "time: got True"),
        ({"rtol": 1.0}, "rtol: got 1.0"),
        ({"rtol": "a"}, "rtol: got 'a'"),
        ({"max_gradients": 0}, "max_gradients: got 0"),
        ({"max_gradients": 2.0}, "max_gradients: got 2.0"),
        ({"method": jacana.Variational()}, r"method: got Variational"),
        ({"method": FunctionSpace()}, r"method: got FunctionSpace"),
    ],
)
def test_options_that_are_none_are_refused(words, match):
    with pytest.raises(InvalidOption, match=match):
        GradientFlow(**words)


# --- the estimators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_std", [None, 0.7])
def test_the_classifier_learns_its_scales_as_for_the_linear_model(prior_std):
    net, x = network(), inputs(40)
    y = targets("categorical", x)
    plain = jacana.NTKClassifier(net, prior_std=prior_std, progress=False).fit(x, y)
    clf = clone(jacana.NTKClassifier(net, method="flow", prior_std=prior_std, progress=False)).fit(x, y)
    learned = ("prior_std_", "temperature_", "power_", "log_marginal_likelihood_value_")
    assert [getattr(clf, name) for name in learned] == [getattr(plain, name) for name in learned]
    assert isinstance(clf.method_, GradientFlow)
    assert "GradientFlow" in clf.method_reason_
    gp = TangentGP(net, clf.prior_std_, temperature=clf.temperature_)
    method = GradientFlow(method=Laplace(rtol=1e-3))
    post = gp.condition(x, y, likelihood=clf.posterior_.likelihood, method=method)
    torch.testing.assert_close(clf.posterior_.weights, post.weights, rtol=1e-6, atol=1e-8)
    new = inputs(6, seed=8)
    np.testing.assert_allclose(clf.predict_proba(new), post.predict(new).probabilities(), rtol=1e-4)
    there = clf.posterior_.observations.model.lin.network.module
    np.testing.assert_allclose(clf.decision_function(new), (there(new) / clf.temperature_).detach(), rtol=1e-8)
    samples = clf.sample_proba(new, 4_000)
    np.testing.assert_allclose(samples.mean(0), clf.predict_proba(new), atol=0.06)


def noisy(n, seed=5):
    """Labels of which a quarter are anything."""
    x = inputs(n, seed)
    y = targets("categorical", x)
    wrong = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.25
    return x, torch.where(wrong, torch.randint(C, (n,), generator=torch.Generator().manual_seed(seed + 1)), y)


def test_how_sure_it_is_of_labels_is_told_by_the_half_that_it_has_not_seen():
    net, (x, y) = network(20), noisy(60)
    clf = jacana.NTKClassifier(net, method="flow", prior_std=2.0, temperature=1.0, progress=False).fit(x, y)
    linear = jacana.NTKClassifier(net, prior_std=2.0, temperature=1.0, progress=False).fit(x, y)
    new, labels = noisy(400, seed=50)
    scores = {}
    for name, tau in (("learned", clf.sharpness_), ("of the linear model", linear.sharpness_)):
        likelihood = Tempered(jacana.Categorical(), clf.power_, tau)
        post = TangentGP(net, 2.0).condition(x, y, likelihood=likelihood, method=clf.posterior_.method)
        scores[name] = float(post.predict(new).probabilities()[torch.arange(400), labels].log().mean())
    assert scores["learned"] > scores["of the linear model"] + 0.02
    told = clf.predict_proba(new)[np.arange(400), labels.numpy()]
    assert float(np.log(told).mean()) == pytest.approx(scores["learned"], abs=1e-3)


def test_halves_do_not_depend_on_order_or_names_and_keep_copies_together():
    net, (x, y) = network(), noisy(40)
    x, y = torch.cat([x, x[:5]]), torch.cat([y, y[:5]])
    order = torch.randperm(45, generator=torch.Generator().manual_seed(2))

    def fitted(net, x, y):
        return jacana.NTKClassifier(net, method="flow", prior_std=0.7, temperature=1.0, progress=False).fit(x, y)

    want = fitted(net, x, y)
    assert want.sharpness_ != 1.0
    assert fitted(net, x[order], y[order]).sharpness_ == pytest.approx(want.sharpness_, rel=1e-3)
    turned = copy.deepcopy(net)
    last = turned[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[[2, 0, 1]])
        last.bias.copy_(last.bias[[2, 0, 1]])
    assert fitted(turned, x, (y + 1) % C).sharpness_ == pytest.approx(want.sharpness_, rel=1e-3)
    for digits in (1e-15, 2e-15, 4e-15):
        assert fitted(net, x * (1.0 + digits), y).sharpness_ == pytest.approx(want.sharpness_, rel=1e-3)


def test_copies_are_one_example_of_their_weight():
    net, (x, y) = network(), noisy(20)
    options = {"method": "flow", "prior_std": 0.7, "temperature": 1.0, "progress": False}
    copies = jacana.NTKClassifier(net, **options).fit(x.repeat_interleave(3, 0), y.repeat_interleave(3))
    weighted = jacana.NTKClassifier(net, **options).fit(x, y, sample_weight=np.full(20, 3.0))
    assert copies.sharpness_ == pytest.approx(weighted.sharpness_, rel=1e-3)
    np.testing.assert_allclose(copies.predict_proba(x), weighted.predict_proba(x), atol=1e-4)


def test_a_label_that_is_there_once_is_not_asked_of_who_cannot_know_it():
    """One in a hundred, which weighs as much as all others."""
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    x[0] = 3.0
    y = (torch.arange(100) == 0).long()
    torch.manual_seed(0)
    clf = jacana.NTKClassifier(zoo.mlp(2, 8, 1), method="flow", class_weight="balanced", progress=False).fit(x, y)
    assert clf.sharpness_ > 0.2
    p = clf.predict_proba(x)[:, 1]
    assert p[0] > 0.6 > 3 * np.median(p[1:])


def test_the_classifier_refuses_what_cannot_flow():
    x = inputs()
    y = targets("categorical", x)
    with pytest.raises(InvalidOption, match="mean: got 'auto' with GradientFlow"):
        jacana.NTKClassifier(network(), mean="auto", method="flow").fit(x, y)
    with pytest.raises(InvalidOption, match=r"method: got GradientFlow.* with relinearize=2"):
        jacana.NTKClassifier(network(), relinearize=2, method="flow").fit(x, y)


def test_the_regressor_takes_it():
    net, x = network(), inputs()
    y = targets("gaussian", x)
    plain = jacana.NTKRegressor(net, prior_std=0.5, noise_std=0.3, progress=False).fit(x, y)
    reg = jacana.NTKRegressor(net, prior_std=0.5, noise_std=0.3, method=GradientFlow(), progress=False).fit(x, y)
    assert reg.score(x, y) > 0.1
    _, std = reg.predict(inputs(3, seed=2), return_std=True)
    np.testing.assert_allclose(std, plain.predict(inputs(3, seed=2), return_std=True)[1])
