"""Regression on labels: Dirichlet and one-hot targets against dense oracles, and leaving out by really leaving out."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.special
import torch
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import Categorical, DirichletRegression, FunctionSpace, OneHotRegression, Weighted, WeightSpace
from jacana.errors import InsufficientMemory, InvalidData, InvalidOption, NotPositiveDefinite
from jacana.posteriors import ridge
from jacana.posteriors.one_hot_regression import LeftOutLoss
from jacana.posteriors.ridge import Ridge
from tests import oracles, zoo

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64
METHODS = {"Dirichlet": DirichletRegression(), "one-hot": OneHotRegression()}
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
SIDES = pytest.mark.parametrize("hidden", [3, 8], ids=["p < nc", "p > nc"])
MEANS = pytest.mark.parametrize("mean", ["network", "zero"])


@dataclass(frozen=True, eq=False)
class Labelled:
    """Twelve examples of three classes, five new ones, and the Jacobians there."""

    hidden: int
    mean: str = "network"
    n: int = 12
    classes: int = 3
    s: float = 0.8

    @functools.cached_property
    def net(self):
        torch.manual_seed(self.hidden)
        return zoo.mlp(2, self.hidden, self.classes).double()

    @functools.cached_property
    def x(self):
        return torch.randn(self.n, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)

    @functools.cached_property
    def x_new(self):
        return 2.0 * torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)

    @functools.cached_property
    def labels(self):
        """By quadrant, and two of them wrong."""
        y = ((self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()) % self.classes
        y[:2] = (y[:2] + 1) % self.classes
        return y

    @functools.cached_property
    def gp(self):
        return jacana.TangentGP(self.net, self.s, self.mean)

    @functools.cached_property
    def m(self):
        found = oracles.outputs(self.net, self.x)
        return found if self.mean == "network" else np.zeros_like(found)

    @functools.cached_property
    def J(self):
        return oracles.jacobian(self.net, self.x)

    def known(self, targets, sigma):
        """What the dense oracle takes."""
        m_new = oracles.outputs(self.net, self.x_new)
        return {
            "J": self.J, "s": np.full(self.J.shape[1], self.s), "mean": self.m, "y": targets, "sigma": sigma,
            "J_new": oracles.jacobian(self.net, self.x_new),
            "mean_new": m_new if self.mean == "network" else np.zeros_like(m_new),
        }  # fmt: skip

    def condition(self, method, weights=None, some=slice(None)):
        likelihood = Categorical() if weights is None else Weighted(Categorical(), weights)
        return self.gp.condition(self.x[some], self.labels[some], likelihood=likelihood, method=method)


@functools.cache
def labelled(hidden, mean="network", **words):
    return Labelled(hidden, mean, **words)


def alike(got, want, x, rtol=1e-9):
    """Two posteriors of one function."""
    a, b = got.predict(x), want.predict(x)
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=rtol)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=rtol, atol=rtol)
    torch.testing.assert_close(a.marginal_covariance, b.marginal_covariance, rtol=rtol, atol=rtol)
    torch.testing.assert_close(a.variance, b.variance, rtol=rtol, atol=rtol)
    torch.testing.assert_close(a.probabilities(), b.probabilities(), rtol=rtol, atol=rtol)
    assert got.log_evidence == pytest.approx(want.log_evidence, rel=max(rtol, 1e-12))


def is_the_regression(it, post, targets, sigma, condition=1e4):
    """Mean, covariance and evidence are those of the dense oracle."""
    known = it.known(targets, sigma)
    want, prediction = oracles.condition_on_functions(**known), post.predict(it.x_new)
    oracles.assert_close(prediction.mean, want.mean, DOUBLE, condition=condition, what="mean")
    oracles.assert_close(prediction.covariance, want.covariance, DOUBLE, condition=condition, what="covariance")
    oracles.assert_close(prediction.variance, want.variance, DOUBLE, condition=condition, what="variance")
    blocks = want.covariance.reshape(5, it.classes, 5, it.classes)[np.arange(5), :, np.arange(5)]
    oracles.assert_close(prediction.marginal_covariance, blocks, DOUBLE, condition=condition, what="blocks")
    del known["J_new"], known["mean_new"]
    assert post.log_evidence == pytest.approx(oracles.log_evidence(**known), rel=1e-9)


# --- Dirichlet ------------------------------------------------------------------------------------------------------


def dirichlet(it, concentration, weights=1.0):
    """Targets and noise variances, (n, c) each, by the paper."""
    alpha = np.full((it.n, it.classes), float(concentration))
    alpha[np.arange(it.n), it.labels.numpy()] += 1.0
    variances = np.log(1.0 / alpha + 1.0)
    targets = np.log(alpha) - variances / 2.0
    for i in range(it.n if it.mean == "network" else 0):
        targets[i] += np.average(it.m[i] - targets[i], weights=1.0 / variances[i])
    return targets, variances / np.reshape(weights, (-1, 1))


@pytest.mark.parametrize(
    ("concentration", "inner"), [(0.01, None), (1, FunctionSpace()), (0.3, WeightSpace())], ids=str
)
@MEANS
@SIDES
def test_dirichlet_is_regression_with_the_noise_of_each_label(hidden, mean, inner, concentration):
    it = labelled(hidden, mean)
    post = it.condition(DirichletRegression(concentration, inner))
    targets, variances = dirichlet(it, concentration)
    is_the_regression(it, post, targets, np.sqrt(variances))


@SIDES
def test_dirichlet_with_weights(hidden):
    it = labelled(hidden)
    weights = np.linspace(0.2, 3.0, it.n)
    targets, variances = dirichlet(it, 0.01, weights)
    is_the_regression(it, it.condition(DirichletRegression(), weights), targets, np.sqrt(variances))


def test_its_log_normal_has_the_moments_of_the_gamma():
    """Mean α and variance α: what the paper matches."""
    it = labelled(3, "zero")
    observed = it.condition(DirichletRegression(0.2))._state.inner.observations
    y, variance = observed.targets, observed.noise
    alpha = 0.2 + torch.nn.functional.one_hot(it.labels, 3).double()
    torch.testing.assert_close((y + variance / 2).exp(), alpha)
    torch.testing.assert_close(variance.expm1() * (2 * y + variance).exp(), alpha)


@MEANS
def test_a_constant_added_to_the_logits_changes_nothing(mean):
    """Softmax does not see it, nor may the regression: a constant for each example."""
    it = labelled(8, mean)

    def shifted(net, x):
        return net(x) + 5.0 * x[:, :1].sin() - 3.0

    gp = jacana.TangentGP(jacana.linearize(it.net, forward=shifted), it.s, mean)
    for method in METHODS.values():
        post = gp.condition(it.x, it.labels, likelihood=Categorical(), method=method)
        want = it.condition(method).predict(it.x_new).probabilities()
        torch.testing.assert_close(post.predict(it.x_new).probabilities(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_labels_that_the_network_already_gives_change_little_and_others_much(scale):
    """The level is free, so that targets pull towards the label, whatever the logits' own level is."""
    it = labelled(8)
    gp = jacana.TangentGP(jacana.linearize(it.net, output=lambda out: 40.0 + scale * out), 3.0)
    post = gp.condition(it.x, it.labels, likelihood=Categorical(), method=DirichletRegression())
    before, after = gp.predict(it.x).mean.softmax(1), post.predict(it.x).probabilities()
    own = it.labels.unsqueeze(1)
    assert (after.gather(1, own) > before.gather(1, own)).double().mean() > 0.9


# --- one-hot --------------------------------------------------------------------------------------------------------


def residual(it):
    return np.eye(it.classes)[it.labels.numpy()] - scipy.special.softmax(it.m, axis=1)


def learned(post):
    """σ, and the factor from r to the targets."""
    observed = post._state.inner.observations
    r = Categorical().gradient(observed.offset, post._state.observations.targets)
    ratio = (observed.targets - observed.offset) / r
    assert ratio.std() < 1e-9 * ratio.mean().abs()
    return float(observed.likelihood.noise_std), float(ratio.mean())


def left_out_by_refitting(it, r, sigma):
    """Mean and covariance of g at each example from n − 1 others, one regression for each."""
    found = oracles.leave_one_out_by_refitting(it.J, np.full(it.J.shape[1], it.s), np.zeros_like(r), r, sigma)
    noise = np.broadcast_to(np.asarray(sigma, dtype=float), r.shape)
    return found.mean, found.covariance - np.stack([np.diag(row**2) for row in noise])


def loss(it, r_mean, covariance, scale):
    """By loops: −Σ log p of the labels left out, and of one more that may be any."""
    total = 0.0
    for i in range(it.n):
        f, V = it.m[i] + scale * r_mean[i], covariance[i]
        odds = np.zeros(it.classes)
        for k in range(it.classes):
            gaps = [(f[k] - f[j]) / np.sqrt(1 + np.pi / 8 * (V[k, k] + V[j, j] - 2 * V[k, j])) for j in range(len(f))]
            odds[k] = 1.0 / np.sum(np.exp(-np.array(gaps)))
        p = odds / odds.sum()
        total -= np.log(p[it.labels[i]]) + np.mean(np.log(p)) / it.n
    return total


def ridge_of(it, r, weights=None):
    observed = it.condition(OneHotRegression(1.0, 1.0))._state.observations
    weights = torch.ones(it.n, dtype=DOUBLE) if weights is None else torch.from_numpy(weights)
    return Ridge.of(observed, torch.from_numpy(r), weights, progress=False, cure="")


@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("weighted", [False, True])
@SIDES
def test_leaving_out_in_closed_form_is_leaving_out(hidden, weighted, sigma):
    it = labelled(hidden)
    r = residual(it)
    weights = np.linspace(0.3, 2.0, it.n) if weighted else None
    mean, covariance = ridge_of(it, r, weights).left_out(sigma)
    noise = np.full_like(r, sigma) / np.sqrt(np.reshape(1.0 if weights is None else weights, (-1, 1)))
    want_mean, want_covariance = left_out_by_refitting(it, r, noise)
    size = np.abs(want_covariance).max()
    oracles.assert_close(mean, want_mean, DOUBLE, condition=1e5, scale=1.0)
    # the oracle takes the noise off what it was added to
    oracles.assert_close(covariance, want_covariance, DOUBLE, condition=1e5, scale=max(size, sigma**2))
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12 * size


@MEANS
@SIDES
def test_scale_and_noise_are_the_best_there_are(hidden, mean):
    """Against refitting n times for each candidate, and a fine grid of scales."""
    it = labelled(hidden, mean)
    r = residual(it)
    noise_std, scale = learned(it.condition(OneHotRegression()))
    size = np.sqrt(np.mean(np.diag((it.J * it.s**2) @ it.J.T)))
    candidates = size * 10.0 ** (np.arange(-9, 7) / 3)
    assert np.abs(candidates / noise_std - 1).min() < 1e-9
    best = loss(it, *left_out_by_refitting(it, r, noise_std), scale)
    for sigma in candidates:
        mean_of_g, covariance = left_out_by_refitting(it, r, sigma)
        grid = scale * np.geomspace(0.05, 20.0, 41) if sigma > 0.05 * size else [scale]  # the oracle loses digits
        assert min(loss(it, mean_of_g, covariance, s) for s in grid) > best - 1e-6 * best
    assert best < loss(it, *left_out_by_refitting(it, r, noise_std), 0.0)


@MEANS
def test_with_a_given_noise_the_scale_alone_is_learned(mean):
    it = labelled(8, mean)
    noise_std, scale = learned(it.condition(OneHotRegression(noise_std=0.5)))
    assert noise_std == 0.5
    left = left_out_by_refitting(it, residual(it), 0.5)
    losses = [loss(it, *left, scale * ratio) for ratio in (0.99, 1.0, 1.01)]
    assert losses[1] < min(losses[0], losses[2])
    with_scale = learned(it.condition(OneHotRegression(scale=2.5)))
    assert with_scale[1] == pytest.approx(2.5)


@pytest.mark.parametrize("inner", [None, WeightSpace()], ids=str)
@MEANS
@SIDES
def test_one_hot_is_ridge_regression(hidden, mean, inner):
    it = labelled(hidden, mean)
    for method in (OneHotRegression(0.3, 2.0, inner), OneHotRegression(method=inner)):
        post = it.condition(method)
        noise_std, scale = learned(post)
        is_the_regression(it, post, it.m + scale * residual(it), noise_std, condition=1e5)


def test_with_mean_zero_the_targets_are_centred_indicators():
    it = labelled(8, "zero")
    observed = it.condition(OneHotRegression(0.3, 1.0))._state.inner.observations
    torch.testing.assert_close(observed.targets, torch.eye(3).double()[it.labels] - 1 / 3)


@MEANS
def test_where_all_left_out_are_right_the_scale_stays_finite(mean):
    """Two clusters far apart: without the added label the best scale would be infinite."""
    it = labelled(8, mean)
    x = torch.cat([torch.tensor([2.0, 0.0]) + 0.01 * it.x, torch.tensor([-2.0, 0.0]) + 0.01 * it.x]).double()
    y = torch.tensor([0] * it.n + [1] * it.n)
    post = it.gp.condition(x, y, likelihood=Categorical(), method=OneHotRegression())
    _, scale = learned(post)
    p = post.predict(x).probabilities().gather(1, y.unsqueeze(1))
    assert 0.0 < scale < 1e3
    assert p.min() > 0.8
    assert p.max() < 1.0 - 1e-4


def test_where_leaving_out_says_nothing_the_scale_is_the_number_of_classes():
    it = labelled(8)
    post = it.condition(OneHotRegression(), some=slice(1))
    assert learned(post)[1] == pytest.approx(3.0)
    assert post.predict(it.x[:1]).probabilities()[0, it.labels[0]] > it.gp.predict(it.x[:1]).mean.softmax(1).max() / 2


def test_where_leaving_out_is_worse_than_the_network_it_says_so():
    """Labels that contradict their neighbours: the best scale is zero, and the variances stay."""
    it = labelled(8, "zero")
    x = torch.cat([it.x, it.x + 1e-3])
    y = torch.cat([torch.zeros(it.n), torch.ones(it.n)]).long()
    post = it.gp.condition(x, y, likelihood=Categorical(), method=OneHotRegression(noise_std=0.1))
    observed = post._state.inner.observations
    assert torch.equal(observed.targets, observed.offset)
    assert not post.weights.any()
    assert (post.predict(it.x_new).variance > 0.0).all()


def test_the_loss_is_finite_however_far_off():
    it = labelled(3)
    observed = it.condition(OneHotRegression(1.0, 1.0))._state.observations
    mean, covariance = torch.full((it.n, 3), 0.0, dtype=DOUBLE), torch.zeros(it.n, 3, 3, dtype=DOUBLE)
    mean[:, 0] = 1.0
    found = LeftOutLoss(observed, torch.ones(it.n, dtype=DOUBLE), mean, covariance)
    assert np.isfinite(found(1e6))
    assert found(1e6) > found(1.0)


# --- both -----------------------------------------------------------------------------------------------------------


@BOTH
def test_the_two_sides_agree(method):
    it = labelled(8, n=25)
    one, two = (it.condition(type(method)(method=inner)) for inner in (FunctionSpace(), WeightSpace()))
    alike(one, two, it.x_new, rtol=1e-8)
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-8, atol=1e-8)


@BOTH
@MEANS
def test_probabilities_do_not_depend_on_the_names_of_classes_nor_on_the_order(method, mean):
    it = labelled(8, mean)
    want = it.condition(method).predict(it.x_new).probabilities()
    assert (want > 0).all()
    torch.testing.assert_close(want.sum(1), torch.ones(5, dtype=DOUBLE))
    names = torch.tensor([2, 0, 1])
    other = jacana.TangentGP(jacana.linearize(it.net, output=lambda out: out[:, names]), it.s, mean)
    post = other.condition(it.x, names.argsort()[it.labels], likelihood=Categorical(), method=method)
    torch.testing.assert_close(post.predict(it.x_new).probabilities(), want[:, names], rtol=1e-6, atol=1e-7)
    order = torch.randperm(it.n)
    post = it.gp.condition(it.x[order], it.labels[order], likelihood=Categorical(), method=method)
    torch.testing.assert_close(post.predict(it.x_new).probabilities(), want, rtol=1e-6, atol=1e-7)


@BOTH
@MEANS
def test_a_class_that_no_label_has(method, mean):
    it = labelled(8, mean, n=30)
    y = it.labels % 2
    post = it.gp.condition(it.x, y, likelihood=Categorical(), method=method)
    p = post.predict(it.x).probabilities()
    assert ((p > 0) & (p < 1)).all()
    assert p[:, 2].mean() < it.gp.predict(it.x).mean.softmax(1)[:, 2].mean()


@BOTH
@MEANS
def test_one_class_alone(method, mean):
    it = labelled(8, mean)
    post = it.gp.condition(it.x, torch.ones(it.n).long(), likelihood=Categorical(), method=method)
    p = post.predict(it.x).probabilities()
    assert ((p > 0) & (p < 1)).all()
    assert (p.argmax(1) == 1).all()


@BOTH
@pytest.mark.parametrize("given", [{}, {"noise_std": 0.4, "scale": 3.0}], ids=["learned", "given"])
@SIDES
def test_more_labels_are_the_same_as_all_at_once(hidden, method, given):
    it = labelled(hidden)
    method = type(method)(**given) if isinstance(method, OneHotRegression) else method
    post = it.condition(method, some=slice(5)).condition(it.x[5:9], it.labels[5:9]).condition(it.x[9:], it.labels[9:])
    alike(post, it.condition(method), it.x_new)
    assert post.n_examples == it.n
    assert post.method == method
    assert isinstance(post.likelihood, Categorical)


@pytest.mark.parametrize("method", [DirichletRegression(), OneHotRegression(0.4, 3.0)], ids=repr)
def test_a_weight_of_two_is_a_second_time(method):
    it = labelled(8)
    weights = np.ones(it.n)
    weights[:4] = 2.0
    x, y = torch.cat([it.x, it.x[:4]]), torch.cat([it.labels, it.labels[:4]])
    twice = it.gp.condition(x, y, likelihood=Categorical(), method=method).predict(it.x_new)
    once = it.condition(method, weights).predict(it.x_new)
    torch.testing.assert_close(once.mean, twice.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(once.covariance, twice.covariance, rtol=1e-8, atol=1e-8)


@BOTH
@pytest.mark.parametrize("inner", [None, jacana.Pathwise(4, jacana.CG(rtol=1e-10))], ids=["default", "streams"])
def test_a_weight_of_zero_is_an_example_less(method, inner):
    it = labelled(8)
    weights = np.array([0.0, 1.0, 0.0] + [1.0] * 9)
    kept = weights > 0
    method = type(method)(method=inner)
    got = it.condition(method, weights)
    want = it.condition(method, some=torch.from_numpy(kept.nonzero()[0]))
    torch.testing.assert_close(got.predict(it.x_new).mean, want.predict(it.x_new).mean, rtol=1e-6, atol=1e-6)
    assert got.n_examples == it.n
    nested = Weighted(Weighted(Categorical(), 0.5 * weights), 2.0 * np.ones(it.n))
    post = it.gp.condition(it.x, it.labels, likelihood=nested, method=method)
    torch.testing.assert_close(post.predict(it.x_new).mean, got.predict(it.x_new).mean, rtol=1e-9, atol=1e-9)


def test_labels_that_come_later_cannot_have_weights():
    it = labelled(8)
    for method in METHODS.values():
        post = it.condition(method, np.ones(it.n))
        with pytest.raises(InvalidOption, match="weights for each old example"):
            post.condition(it.x, it.labels)


@pytest.mark.parametrize("method", [DirichletRegression, lambda method: OneHotRegression(0.4, 3.0, method)])
@pytest.mark.parametrize(
    "inner", [jacana.Pathwise(8, jacana.CG(rtol=1e-10)), FunctionSpace(jacana.CG(rtol=1e-10)),
              WeightSpace(jacana.CG(rtol=1e-10))], ids=["Pathwise", "function space", "weight space"],
)  # fmt: skip
def test_data_may_stay_in_a_loader(method, inner):
    it = labelled(8)
    method = method(method=inner)
    assert method.streams
    loader = DataLoader(TensorDataset(it.x, it.labels), batch_size=5)
    post = it.gp.condition(loader, likelihood=Categorical(), method=method)
    want = it.condition(type(method)(**{**vars(method), "method": None}))
    torch.testing.assert_close(post.predict(it.x_new).mean, want.predict(it.x_new).mean, rtol=1e-6, atol=1e-6)
    assert post.solution.converged
    assert post.predict(it.x_new).probabilities().shape == (5, 3)


def test_what_is_learned_from_a_loader_is_what_is_learned_from_memory():
    it = labelled(8)
    loader = DataLoader(TensorDataset(it.x, it.labels), batch_size=5)
    method = OneHotRegression(method=jacana.Pathwise(8, jacana.CG(rtol=1e-10)))
    got = it.gp.condition(loader, likelihood=Categorical(), method=method).predict(it.x_new).mean
    torch.testing.assert_close(got, it.condition(OneHotRegression()).predict(it.x_new).mean, rtol=1e-5, atol=1e-5)


@BOTH
def test_of_one_layer_inside_and_outside(method):
    """`LastLayer` around it is it in that layer's linearization; inside, it computes the regression."""
    it = labelled(8)
    head = jacana.TangentGP(jacana.linearize(it.net, "2"), it.s)
    want = head.condition(it.x, it.labels, likelihood=Categorical(), method=method)
    post = it.condition(jacana.LastLayer(method=method))
    alike(post, want, it.x_new)
    assert post.weights.shape == (it.J.shape[1],)
    assert not post.weights[: -want.weights.numel()].any()
    more = it.condition(jacana.LastLayer(method=method), some=slice(7)).condition(it.x[7:], it.labels[7:])
    alike(more, want, it.x_new)
    if isinstance(method, DirichletRegression):
        alike(it.condition(DirichletRegression(method=jacana.LastLayer())), want, it.x_new)


@BOTH
def test_predictions_are_of_labels(method):
    it = labelled(8)
    post = it.condition(method)
    latent, observed = post.predict(it.x_new), post.predict(it.x_new, observed=True)
    assert latent.mean.shape == latent.variance.shape == (5, 3)
    torch.testing.assert_close(observed.mean, latent.probabilities())
    draws = observed.sample(1000, torch.Generator().manual_seed(0))
    assert draws.shape == (1000, 5)
    assert draws.dtype == torch.int64
    shares = torch.stack([(draws == k).double().mean(0) for k in range(3)], 1)
    want = latent.probabilities(jacana.MonteCarlo())  # six standard errors: one false alarm in 30 million draws
    assert ((shares - want).abs() < 6.0 * (want * (1.0 - want) / 1000).sqrt() + 0.002).all()
    information = latent.mutual_information()
    assert ((information >= 0) & (information <= latent.entropy(jacana.MonteCarlo()) + 1e-3)).all()
    drawn = latent.sample(3, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 5, 3)
    with pytest.raises(InvalidOption, match="leave_one_out"):
        post.leave_one_out()


@BOTH
def test_no_data_add_variance(method):
    it = labelled(8)
    lost = it.gp.predict(it.x_new).covariance - it.condition(method).predict(it.x_new).covariance
    assert torch.linalg.eigvalsh((lost + lost.T) / 2).min() > -1e-10 * lost.abs().max()


@BOTH
def test_a_network_in_float32(method):
    it = labelled(8)
    gp = jacana.TangentGP(zoo.mlp(2, 8, 3), it.s)
    gp.linearization.network.module.load_state_dict(it.net.state_dict())
    post = gp.condition(it.x.float(), it.labels, likelihood=Categorical(), method=method)
    want = it.condition(method).predict(it.x_new).probabilities()
    torch.testing.assert_close(post.predict(it.x_new.float()).probabilities(), want, rtol=1e-3, atol=1e-4)


# --- what is refused ------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("likelihood", [jacana.Gaussian(0.1), jacana.Bernoulli(), jacana.Poisson()], ids=repr)
def test_other_likelihoods_are_refused_with_the_cure(method, likelihood):
    it = labelled(8)
    y = torch.ones(it.n, 3)
    with pytest.raises(InvalidOption, match=f"{type(method).__name__} is for class labels.*Laplace"):
        it.gp.condition(it.x, y, likelihood=likelihood, method=method)
    weighted = Weighted(likelihood, np.ones(it.n))
    with pytest.raises(InvalidOption, match=f"the likelihood is {type(likelihood).__name__}"):
        it.gp.condition(it.x, y, likelihood=weighted, method=method)


@BOTH
@pytest.mark.parametrize(
    ("y", "message"),
    [(torch.full((12,), 3), "labels from 3 to 3; expected 0 to 2"), (torch.full((12,), 0.5), "no whole numbers"),
     (["cat"] * 12, "y: "), (torch.zeros(11), "11 targets for 12"), (torch.zeros(12, 3), "a label for each")],
    ids=["out of range", "fractions", "words", "too few", "one-hot"],
)  # fmt: skip
def test_bad_labels_are_refused(method, y, message):
    it = labelled(8)
    with pytest.raises(InvalidData, match=message):
        it.gp.condition(it.x, y, likelihood=Categorical(), method=method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DirichletRegression(0.0), "concentration: got 0.0"),
        (lambda: DirichletRegression(True), "concentration"),
        (lambda: DirichletRegression(float("inf")), "concentration"),
        (lambda: DirichletRegression(method="exact"), "method: got 'exact'"),
        (lambda: DirichletRegression(method=OneHotRegression()), "method: got OneHotRegression"),
        (lambda: OneHotRegression(method=DirichletRegression()), "method: got DirichletRegression"),
        (lambda: OneHotRegression(method=jacana.LastLayer()), r"write LastLayer\(method=OneHotRegression"),
        (lambda: OneHotRegression(0.0), "noise_std: got zero"),
        (lambda: OneHotRegression(-1.0), "noise_std: got -1.0"),
        (lambda: OneHotRegression(scale=-1.0), "scale: got -1.0; expected a number, zero or larger"),
        (lambda: OneHotRegression(scale="1"), "scale: got '1'"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(InvalidOption, match=message):
        make()


def test_a_noise_too_small_to_leave_out_is_refused_with_the_cure():
    """One example with a direction of its own, which nothing else says anything of."""
    x, y = torch.eye(2, dtype=DOUBLE)[[0] * 10 + [1]], [0, 1] * 5 + [0]
    gp = jacana.TangentGP(torch.nn.Linear(2, 2, bias=False).double())
    with pytest.raises(NotPositiveDefinite, match="too small to leave an example out"):
        gp.condition(x, y, likelihood=Categorical(), method=OneHotRegression(1e-8))
    gp.condition(x, y, likelihood=Categorical(), method=OneHotRegression(1e-4))
    gp.condition(x, y, likelihood=Categorical(), method=OneHotRegression(1e-8, 1.0, WeightSpace()))


def test_what_does_not_fit_is_refused_with_the_cure(monkeypatch):
    def require(nbytes, device, what, cure):
        raise InsufficientMemory(f"{what} takes {nbytes}; {cure}")

    monkeypatch.setattr(ridge, "require", require)
    it = labelled(8)
    with pytest.raises(InsufficientMemory, match=r"36 function values .*give both noise_std and scale"):
        it.condition(OneHotRegression())
    it.condition(OneHotRegression(0.4, 2.0))
