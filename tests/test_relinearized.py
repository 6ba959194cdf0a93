"""Relinearized: where the network's own log posterior has no slope, and the dense Gaussian around it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import CG, MAP, FunctionSpace, Laplace, Pathwise, Relinearized, TangentGP, Tempered, Weighted, WeightSpace
from jacana.errors import InvalidOption, UnsupportedNetwork
from tests import zoo

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64
TIGHT = CG(rtol=1e-7)
SIDES = {"function space": FunctionSpace(), "weight space": WeightSpace(), "products": WeightSpace(TIGHT)}
SIDE = pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
MOST = 60
"""Steps that are enough for every digit that is asked for here."""

N, C, T = 20, 3, 0.8
POWER = 1.7

LIKELIHOODS = {
    "categorical": jacana.Categorical(),
    "tempered": Tempered(jacana.Categorical(), POWER),
    "poisson": jacana.Poisson(),
    "gaussian": jacana.Gaussian(0.3),
}
CASES = [
    (kind, side)
    for kind in LIKELIHOODS
    for name, side in SIDES.items()
    if name != "products" or kind == "categorical"  # where each step is a hundred products
]
CASE = pytest.mark.parametrize(
    ("kind", "side"), CASES, ids=[f"{kind}, {'products' if 'CG' in repr(side) else side}" for kind, side in CASES]
)
SCORES = {
    "categorical": lambda f, y: -nn.functional.cross_entropy(f, y, reduction="sum"),
    "tempered": lambda f, y: -POWER * nn.functional.cross_entropy(f, y, reduction="sum"),
    "poisson": lambda f, y: (y * f - f.exp() - torch.lgamma(y + 1.0)).sum(),
    "gaussian": lambda f, y: torch.distributions.Normal(f, 0.3).log_prob(y).sum(),
}


def network(hidden=6, std=1.0):
    torch.manual_seed(3)
    net = zoo.mlp(2, hidden, C).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(std)
    return net


def inputs(n=N, seed=0):
    return torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def targets(kind, x):
    classes = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 1] > 0.7).long()
    if kind in ("categorical", "tempered"):
        return classes
    counts = nn.functional.one_hot(classes, C).to(DOUBLE)
    return 3.0 * counts if kind == "poisson" else counts


def objective(kind, net, x, y, stds, temperature=T):
    """Ψ as a function of all weights in a row, written anew."""
    start = nn.utils.parameters_to_vector(net.parameters()).detach()
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}

    def outputs(theta, x):
        parts = torch.split(theta, [math.prod(shape) for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(net, named, (x,)) / temperature

    def psi(theta):
        change = (theta - start) / (temperature * stds)
        return SCORES[kind](outputs(theta, x), y) - 0.5 * change.square().sum()

    return psi, outputs, start


def conditioned(kind="categorical", method=None, std=1.5, net=None, x=None):
    net, x = network() if net is None else net, inputs() if x is None else x
    gp = TangentGP(net, std, temperature=T)
    return gp.condition(x, targets(kind, x), likelihood=LIKELIHOODS[kind], method=method)


def reached(post):
    """The weights of the network at the last point."""
    return nn.utils.parameters_to_vector(post.observations.model.lin.network.module.parameters()).detach()


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_log_posterior_of_the_network_has_no_slope_where_steps_end(kind):
    net, x = network(), inputs()
    psi, _, start = objective(kind, net, x, targets(kind, x), 1.5)
    post = conditioned(kind, Relinearized(MOST, rtol=0.0))
    theta = reached(post)
    slope = torch.func.grad(psi)
    assert float(slope(theta).norm()) <= 1e-3 * float(slope(start).norm())
    assert float(psi(theta)) > float(psi(start)) + 5.0
    assert post.observations.model.lin.network.module is not net
    torch.testing.assert_close(post.weights, (theta - start) / T)


@pytest.mark.parametrize("kind", ["categorical", "poisson"])
def test_all_sides_go_the_same_way(kind):
    one, two, three = (conditioned(kind, Relinearized(4, MAP(side), rtol=0.0)) for side in SIDES.values())
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(three.weights, two.weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
@CASE
def test_it_is_the_dense_gaussian_about_the_network_there(kind, steps, side):
    """Mean: the network; covariance and evidence by p by p matrices, at a point that is no mode yet."""
    net, x, new = network(), inputs(), 2.0 * inputs(5, seed=9)
    y = targets(kind, x)
    psi, outputs, _ = objective(kind, net, x, y, 1.5)
    post = conditioned(kind, Relinearized(steps, Laplace(side), rtol=0.0))
    theta = reached(post)

    def tangent(x):  # of δ = (θ − θ0) / T
        return T * jacrev(outputs)(theta, x).reshape(-1, len(theta))

    f = outputs(theta, x)
    curvature = torch.zeros(N * C, N * C, dtype=DOUBLE)
    for i in range(N):
        rows = slice(i * C, (i + 1) * C)
        own = torch.func.hessian(lambda g, i=i: SCORES[kind](g.unsqueeze(0), y[i : i + 1]))(f[i])
        curvature[rows, rows] = -own
    J = tangent(x)
    precision = torch.eye(len(theta), dtype=DOUBLE) / 1.5**2 + J.T @ curvature @ J
    J_new = tangent(new)
    covariance = J_new @ torch.linalg.solve(precision, J_new.T)
    evidence = float(psi(theta)) - 0.5 * float(torch.logdet(1.5**2 * precision))

    prediction = post.predict(new)
    loose = isinstance(side, WeightSpace) and side.solver is not None
    torch.testing.assert_close(prediction.mean, outputs(theta, new), rtol=1e-9, atol=1e-9)
    rtol = 0.011 if loose else 1e-7
    torch.testing.assert_close(prediction.covariance, covariance, rtol=0, atol=rtol * float(covariance.max()))
    torch.testing.assert_close(prediction.variance, covariance.diagonal().view(5, C), rtol=rtol, atol=1e-9)
    torch.testing.assert_close(
        prediction.marginal_covariance.diagonal(dim1=1, dim2=2), covariance.diagonal().view(5, C), rtol=rtol, atol=1e-9
    )
    assert post.log_evidence == pytest.approx(evidence, rel=1e-3 if loose else 1e-8)


@pytest.mark.parametrize("std", [0.3, 1.5, 20.0])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_no_step_makes_the_log_posterior_worse(kind, std):
    net, x = network(10), inputs()
    psi, _, start = objective(kind, net, x, targets(kind, x), std)
    values = [float(psi(start))]
    for steps in (1, 2, 3, 5, 8):
        post = conditioned(kind, Relinearized(steps, MAP(), rtol=0.0), std, net)
        values.append(float(psi(reached(post))))
    assert all(later >= earlier - 1e-9 * abs(earlier) for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[1] - 1e-9
    assert values[1] > values[0]


@SIDE
def test_a_linear_network_is_there_at_once(side):
    torch.manual_seed(0)
    net = nn.Linear(2, C).double()
    one, two = (
        conditioned("categorical", method, 0.7, net) for method in (Laplace(side), Relinearized(5, Laplace(side)))
    )
    x = inputs(4, seed=5)
    torch.testing.assert_close(two.weights, one.weights, rtol=1e-5, atol=1e-6)
    for name in ("mean", "variance", "covariance"):
        torch.testing.assert_close(
            getattr(two.predict(x), name),
            getattr(one.predict(x), name),
            rtol=2e-2 if "CG" in repr(side) else 1e-6,
            atol=1e-6,
        )
    assert two.log_evidence == pytest.approx(one.log_evidence, rel=1e-6)


def test_the_prior_stays_about_the_weights_that_were_given_a_layer_each():
    net, x = network(), inputs()
    stds = {"0": 0.2, "": 1.5}
    each = torch.cat([
        torch.full((p.numel(),), stds["0" if name.startswith("0.") else ""], dtype=DOUBLE)
        for name, p in net.named_parameters()
    ])  # fmt: skip
    psi, _, start = objective("categorical", net, x, targets("categorical", x), each)
    post = conditioned("categorical", Relinearized(MOST, rtol=0.0), stds, net)
    assert float(torch.func.grad(psi)(reached(post)).norm()) <= 1e-3 * float(torch.func.grad(psi)(start).norm())
    assert post.observations.model.prior.given == stds


def test_steps_end_where_one_gains_little():
    few = [conditioned("categorical", Relinearized(MOST, rtol=rtol)) for rtol in (0.5, 1e-2, 0.0)]
    net, x = network(), inputs()
    psi, _, _ = objective("categorical", net, x, targets("categorical", x), 1.5)
    values = [float(psi(reached(post))) for post in few]
    assert values[0] < values[1] < values[2]
    assert values[2] - values[1] < 0.1 * abs(values[2])


def test_samples_have_its_mean_and_covariance():
    post = conditioned("categorical", Relinearized(3))
    x = inputs(3, seed=4)
    prediction = post.predict(x)
    samples = prediction.sample(20_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    standardised = torch.linalg.solve_triangular(
        torch.linalg.cholesky(prediction.covariance + 1e-9 * torch.eye(9, dtype=DOUBLE)),
        (samples - prediction.mean.flatten()).T, upper=False,
    )  # fmt: skip
    assert float(standardised.mean(1).abs().max()) < 6.0 / math.sqrt(20_000)  # false alarm 2e-8 a number
    assert float((standardised @ standardised.T / 20_000 - torch.eye(9, dtype=DOUBLE)).abs().max()) < 9.0 / math.sqrt(
        20_000
    )


def test_a_point_is_the_network_and_nothing_else():
    post = conditioned("categorical", Relinearized(5, MAP()))
    x = inputs(4, seed=5)
    network_there = post.observations.model.lin.network.module
    torch.testing.assert_close(post.predict(x).probabilities(), (network_there(x) / T).softmax(1).detach())
    with pytest.raises(InvalidOption, match=r"MAP\(\) is a point"):
        _ = post.predict(x).variance


def test_more_data_are_followed_to_their_mode():
    net, x = network(), inputs()
    y = targets("categorical", x)
    psi, _, start = objective("categorical", net, x, y, 1.5)
    gp = TangentGP(net, 1.5, temperature=T)
    method = Relinearized(MOST, rtol=0.0)
    post = gp.condition(x[:10], y[:10], likelihood=jacana.Categorical(), method=method).condition(x[10:], y[10:])
    assert post.n_examples == N
    assert post.method == method
    assert float(torch.func.grad(psi)(reached(post)).norm()) <= 1e-3 * float(torch.func.grad(psi)(start).norm())


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_more_data_come_to_the_same_end_as_all_at_once(kind):
    """There are several modes: what was conditioned on first must not choose one."""
    net, x = network(std=2.0), inputs()
    y, likelihood = targets(kind, x), LIKELIHOODS[kind]
    method = Relinearized(4)
    gp = TangentGP(net, 1.5, temperature=T)
    want = gp.condition(x, y, likelihood=likelihood, method=method)
    got = gp.condition(x[:10], y[:10], likelihood=likelihood, method=method).condition(x[10:], y[10:])
    torch.testing.assert_close(got.weights, want.weights, rtol=1e-9, atol=1e-9)
    assert got.log_evidence == pytest.approx(want.log_evidence, rel=1e-9)


@pytest.mark.parametrize("side", [Pathwise(6, TIGHT), WeightSpace(TIGHT)], ids=["pathwise", "weight space"])
def test_a_loader_and_a_memory_map_are_the_tensor(side, tmp_path):
    net, x = network(), inputs()
    y = targets("categorical", x)
    method = Relinearized(3, Laplace(side), rtol=0.0)
    assert method.streams
    np.save(tmp_path / "x.npy", x.numpy())
    gp = TangentGP(net, 1.5, temperature=T)
    want = gp.condition(x, y, likelihood=jacana.Categorical(), method=method).predict(x[:4])
    for given in ((DataLoader(TensorDataset(x, y), 5),), (np.load(tmp_path / "x.npy", mmap_mode="r"), y)):
        got = gp.condition(*given, likelihood=jacana.Categorical(), method=method).predict(x[:4])
        torch.testing.assert_close(got.mean, want.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.variance, want.variance, rtol=1e-5, atol=1e-6)


def test_a_weight_of_two_is_a_second_time():
    net, x = network(), inputs()
    y = targets("categorical", x)
    gp, method = TangentGP(net, 1.5, temperature=T), Relinearized(4, rtol=0.0)
    twice = gp.condition(torch.cat([x, x[:6]]), torch.cat([y, y[:6]]), likelihood=jacana.Categorical(), method=method)
    weights = np.array([2.0] * 6 + [1.0] * (N - 6))
    weighted = gp.condition(x, y, likelihood=Weighted(jacana.Categorical(), weights), method=method)
    torch.testing.assert_close(weighted.weights, twice.weights, rtol=1e-6, atol=1e-8)


def test_single_precision_ends_where_double_does():
    x = inputs()
    y = targets("categorical", x)
    want = conditioned("categorical", Relinearized(MOST, rtol=0.0))
    single = TangentGP(network().float(), 1.5, temperature=T)
    got = single.condition(x.float(), y, likelihood=jacana.Categorical(), method=Relinearized(MOST, rtol=0.0))
    new = inputs(5, seed=6)
    assert got.log_evidence == pytest.approx(want.log_evidence, abs=1e-2)
    torch.testing.assert_close(
        got.predict(new.float()).probabilities(), want.predict(new).probabilities(), rtol=0, atol=1e-3
    )


def test_where_the_modes_of_tangents_are_hard_to_find_steps_are_made_all_the_same():
    torch.manual_seed(0)
    net, x = zoo.mlp(2, 6, 2).double(), inputs()
    y = x[:, :1] ** 2
    gp, likelihood = TangentGP(net, 3.0), jacana.HeteroscedasticGaussian()

    def fit(net):
        f = net(x).detach()
        return float(likelihood.log_prob(f, y).sum())

    post = gp.condition(x, y, likelihood=likelihood, method=Relinearized(20))
    assert fit(post.observations.model.lin.network.module) > fit(net) + 5.0
    assert math.isfinite(post.log_evidence)


@pytest.mark.parametrize("side", [FunctionSpace(), WeightSpace()], ids=repr)
@pytest.mark.parametrize("std", [3.0, 10.0])
def test_where_no_mode_was_found_it_is_tried_closer(side, std):
    """A proposal that promises a loss is of a tangent whose mode was missed, and no sign of an end."""
    torch.manual_seed(0)
    net = zoo.mlp(2, 8, 2).double()
    x = inputs()
    gp = TangentGP(net, std)
    post = gp.condition(
        x, x[:, :1] ** 2, likelihood=jacana.HeteroscedasticGaussian(), method=Relinearized(10, Laplace(side), rtol=0.0)
    )
    assert float(post.weights.norm()) > 1.0
    f = post.observations.model.lin.network.module(x).detach()
    start = net(x).detach()
    likelihood = jacana.HeteroscedasticGaussian()
    fit, before = (float(likelihood.log_prob(g, x[:, :1] ** 2).sum()) for g in (f, start))
    assert fit - 0.5 * float(post.weights.square().sum()) / std**2 > before + 5.0


def test_a_short_step_is_no_sign_of_an_end():
    """A temperature of 20 makes the network twenty times as curved: it begins with damped steps that gain little."""
    torch.manual_seed(2)
    net, x = zoo.mlp(2, 8, 1).double(), inputs()
    y = x.prod(1, keepdim=True)
    gp = TangentGP(net, 1.0, temperature=20.0)
    values = [
        gp.condition(x, y, noise_std=0.05, method=Relinearized(60, rtol=rtol))._state.inner.mode.value
        for rtol in (1e-2, 0.0)
    ]
    start = float(-0.5 * ((net(x) / 20.0 - y) / 0.05).square().sum().detach())
    assert values[1] - values[0] < 0.05 * (values[1] - start)


def test_the_unit_of_the_targets_does_not_matter():
    net, x = network(), inputs()
    found = []
    for unit in (1e-6, 1.0, 1e6):

        class Scaled(nn.Module):
            def __init__(self, unit):
                super().__init__()
                self.net, self.unit = net, unit

            def forward(self, x):
                return self.unit * self.net(x)

        y = unit * targets("gaussian", x)
        post = TangentGP(Scaled(unit), 1.5).condition(x, y, noise_std=0.3 * unit, method=Relinearized())
        found.append(post.weights)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[2], found[1], rtol=1e-6, atol=1e-8)


def test_a_network_that_fails_on_the_way_is_tried_closer():
    torch.manual_seed(0)
    x = inputs()
    y = 20.0 * x.prod(1, keepdim=True)
    post = TangentGP(zoo.Correlated(), 10.0).condition(x, y, noise_std=0.1, method=Relinearized())
    assert torch.isfinite(post.predict(x).mean).all()
    assert float(post.weights.norm()) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused(dtype):
    net, x = network().to(dtype), inputs()
    gp = TangentGP(net, 1e-2)
    with pytest.raises(UnsupportedNetwork, match=r"net: got weights in torch\.(b?)float16.*net\.float\(\)"):
        gp.condition(x, targets("categorical", x), likelihood=jacana.Categorical(), method=Relinearized())


@pytest.mark.parametrize("method", [jacana.LastLayer, jacana.OneHotRegression, jacana.DirichletRegression])
def test_methods_that_are_of_the_first_tangent_do_not_take_it(method):
    with pytest.raises(InvalidOption, match="method: got Relinearized"):
        method(method=Relinearized())


def test_a_network_that_overflows_is_left_before_it_does():
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.exp(60.0 * self.w) * x

    x = torch.linspace(0.5, 1.0, 6).unsqueeze(1)
    post = TangentGP(Steep(), 100.0).condition(x, 50.0 * x, noise_std=0.1, method=Relinearized(50))
    assert torch.isfinite(post.predict(x).mean).all()
    torch.testing.assert_close(post.predict(x).mean, 50.0 * x.double(), rtol=0.05, atol=0.0)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"steps": True}, "steps: got True"),
        ({"steps": 2.0}, "steps: got 2.0"),
        ({"method": jacana.Variational()}, r"method: got Variational.*gp\.relinearize"),
        ({"method": jacana.FunctionSpace()}, r"method: got FunctionSpace"),
        ({"rtol": -0.1}, "rtol: got -0.1"),
        ({"rtol": 1.0}, "rtol: got 1.0"),
        ({"rtol": math.nan}, "rtol: got nan"),
    ],
)
def test_options_that_are_none_are_refused(words, match):
    with pytest.raises(InvalidOption, match=match):
        Relinearized(**words)


def test_a_mean_of_zero_is_refused_before_anything_is_computed():
    x = inputs()
    with pytest.raises(InvalidOption, match="mean: got 'zero'"):
        TangentGP(network(), mean="zero").condition(
            x, targets("categorical", x), likelihood=jacana.Categorical(), method=Relinearized()
        )


# --- the estimators -------------------------------------------------------------------------------------------------


def test_the_classifier_says_what_its_network_at_the_mode_says():
    net, x = network(), inputs()
    y = targets("categorical", x)
    before = nn.utils.parameters_to_vector(net.parameters()).clone()
    clf = jacana.NTKClassifier(net, relinearize=20, prior_std=1.5, temperature=T, progress=False).fit(x, y)
    there = clf.posterior_.observations.model.lin.network.module
    new = inputs(6, seed=8)
    np.testing.assert_allclose(clf.decision_function(new), (there(new) / T).detach(), rtol=1e-8, atol=1e-9)
    assert isinstance(clf.method_, Relinearized)
    assert isinstance(clf.log_marginal_likelihood_value_, float)
    assert torch.equal(nn.utils.parameters_to_vector(net.parameters()), before)
    same = jacana.NTKClassifier(
        net, method=Relinearized(20, Laplace(rtol=1e-3)), prior_std=1.5, temperature=T, progress=False
    ).fit(x, y)
    np.testing.assert_array_equal(same.predict_proba(new), clf.predict_proba(new))


@pytest.mark.parametrize("prior_std", [None, "layers"])
def test_what_the_search_had_computed_is_taken_and_changes_nothing(prior_std):
    """The scales are learned as without steps, and the steps are those of the same model conditioned anew."""
    net, x = network(), inputs(40)
    y = targets("categorical", x)
    plain = jacana.NTKClassifier(net, prior_std=prior_std, progress=False).fit(x, y)
    clf = jacana.NTKClassifier(net, prior_std=prior_std, relinearize=3, progress=False).fit(x, y)
    assert (clf.prior_std_, clf.temperature_, clf.power_) == (plain.prior_std_, plain.temperature_, plain.power_)
    gp = TangentGP(net, clf.prior_std_, temperature=clf.temperature_)
    post = gp.condition(x, y, likelihood=clf.posterior_.likelihood, method=Relinearized(3, Laplace(rtol=1e-3)))
    torch.testing.assert_close(clf.posterior_.weights, post.weights, rtol=1e-5, atol=1e-6)
    new = inputs(6, seed=8)
    np.testing.assert_allclose(clf.predict_proba(new), post.predict(new).probabilities(), rtol=1e-4)


@pytest.mark.parametrize("method", ["map", jacana.LastLayer()], ids=repr)
def test_the_classifier_relinearizes_points_and_layers(method):
    x = inputs()
    clf = jacana.NTKClassifier(network(), relinearize=2, method=method, prior_std=1.0, progress=False)
    p = clf.fit(x, targets("categorical", x)).predict_proba(x)
    np.testing.assert_allclose(p.sum(1), 1.0)
    assert (clf.log_marginal_likelihood_value_ is None) == (method == "map")
    assert clf.sharpness_ == 1.0 or method != "map"


@pytest.mark.parametrize("method", ["variational", "one-hot", "dirichlet", jacana.StochasticMAP()], ids=repr)
def test_the_classifier_refuses_what_is_not_made_at_a_point(method):
    x = inputs()
    with pytest.raises(InvalidOption, match=r"method: got .* with relinearize=2; expected 'laplace' or 'map'"):
        jacana.NTKClassifier(network(), relinearize=2, method=method).fit(x, targets("categorical", x))


def test_the_classifier_refuses_a_mean_that_cannot_be_followed():
    x = inputs()
    with pytest.raises(InvalidOption, match="mean: got 'auto'"):
        jacana.NTKClassifier(network(), mean="auto", method=Relinearized()).fit(x, targets("categorical", x))


def test_the_regressor_takes_it():
    net, x = network(), inputs()
    y = targets("gaussian", x)
    plain = jacana.NTKRegressor(net, prior_std=1.5, noise_std=0.3, progress=False).fit(x, y)
    reg = jacana.NTKRegressor(net, prior_std=1.5, noise_std=0.3, method=Relinearized(20), progress=False).fit(x, y)
    assert reg.score(x, y) > plain.score(x, y)
    _, std = reg.predict(inputs(3, seed=2), return_std=True)
    assert (std > 0).all()
