"""Laplace and MAP: the mode by L-BFGS, dense matrices for what is around it, and the laws of labels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import CG, MAP, FunctionSpace, Laplace, Pathwise, TangentGP, Weighted, WeightSpace
from jacana.errors import InvalidData, InvalidOption, NotConverged, NotPositiveDefinite
from jacana.posteriors import mode
from jacana.posteriors.mode import mode_of
from jacana.posteriors.side_choice import side_of
from tests import oracles, zoo

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64
FALSE_ALARM = 1e-6
TIGHT = CG(rtol=1e-8)
KINDS = {
    "categorical": jacana.Categorical(),
    "bernoulli": jacana.Bernoulli(),
    "poisson": jacana.Poisson(),
    "heteroscedastic": jacana.HeteroscedasticGaussian(),
}
SIDES = {"function space": FunctionSpace(), "weight space": WeightSpace(), "products": WeightSpace(TIGHT)}
CATEGORICAL = KINDS["categorical"]


def named(value):
    """Short names of methods in those of tests."""
    return "products" if "CG" in repr(value) else str(value)


KIND = pytest.mark.parametrize("kind", KINDS)
NETWORK = pytest.mark.parametrize("network", ["p < nc", "p > nc"])
SIDE = pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
FACTORISED = pytest.mark.parametrize("side", list(SIDES.values())[:2], ids=list(SIDES)[:2])


@dataclass(frozen=True, eq=False)
class Task:
    """A network, n examples with what was seen there, and others."""

    kind: str
    network: str
    n: int = 14
    s: float = 0.8
    mean: str = "network"

    @functools.cached_property
    def c(self):
        return 3 if self.kind == "categorical" and self.network != "images" else 2

    @functools.cached_property
    def net(self):
        torch.manual_seed(len(self.kind))
        if self.network == "images":
            net = zoo.convolution().double()
            zoo.settle(net)
            return net.eval()
        return zoo.mlp(2, {"p < nc": 3, "p > nc": 8}[self.network], self.c).double()

    def draw(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        shape = (n, 1, 5, 5) if self.network == "images" else (n, 2)
        return torch.randn(shape, generator=generator, dtype=DOUBLE)

    @functools.cached_property
    def x(self):
        return self.draw(self.n, 1)

    @functools.cached_property
    def x_new(self):
        return 2.0 * self.draw(4, 2)

    @functools.cached_property
    def y(self):
        rng, n, c = np.random.default_rng(3), self.n, self.c
        return {
            "categorical": lambda: rng.integers(0, c, n),
            "bernoulli": lambda: rng.integers(0, 2, (n, c)),
            "poisson": lambda: rng.poisson(2.0, (n, c)),
            "heteroscedastic": lambda: rng.normal(size=(n, c // 2)),
            "gaussian": lambda: rng.normal(size=(n, c)),
        }[self.kind]()

    @functools.cached_property
    def gp(self):
        return TangentGP(self.net, self.s, self.mean)

    @functools.cached_property
    def known(self):
        """What the oracle starts from."""
        J, m = oracles.jacobian(self.net, self.x), oracles.outputs(self.net, self.x)
        return {
            "kind": self.kind, "J": J, "s": np.full(J.shape[1], self.s), "y": self.y,
            "mean": m if self.mean == "network" else np.zeros_like(m),
        }  # fmt: skip

    @functools.cached_property
    def elsewhere(self):
        J, m = oracles.jacobian(self.net, self.x_new), oracles.outputs(self.net, self.x_new)
        return J, m if self.mean == "network" else np.zeros_like(m)

    def oracle(self, **words):
        return oracles.laplace(**{**self.known, **words})

    @functools.cache  # noqa: B019 - tasks live as long as the tests; posteriors are immutable
    def whole(self, method):
        return self.gp.condition(self.x, torch.as_tensor(self.y), likelihood=KINDS[self.kind], method=method)

    def condition(self, method=None, weights=None, some=None, likelihood=None):
        """The package's, of all of the data or some."""
        if weights is None and some is None and likelihood is None:
            return self.whole(method)
        some = slice(None) if some is None else some
        likelihood = KINDS[self.kind] if likelihood is None else likelihood
        likelihood = likelihood if weights is None else Weighted(likelihood, weights)
        return self.gp.condition(self.x[some], torch.as_tensor(self.y[some]), likelihood=likelihood, method=method)


@functools.cache
def task(kind="categorical", network="p > nc", **words):
    return Task(kind, network, **words)


def close(got, want, rtol=1e-6, what="value"):
    """To a share of the largest."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert np.isfinite(got).all(), what
    off = np.abs(got - want).max() / np.abs(want).max()
    assert off <= rtol, f"{what}: off by {off:.1e} of the largest"


def alike(one, two, x, rtol=1e-6):
    """Two posteriors of one function."""
    a, b = one.predict(x), two.predict(x)
    for what in ("mean", "variance", "covariance", "marginal_covariance"):
        close(getattr(a, what), getattr(b, what), rtol, what)
    assert one.log_evidence == pytest.approx(two.log_evidence, rel=rtol)


def blocks_of(covariance, m):
    c = len(covariance) // m
    return covariance.reshape(m, c, m, c)[np.arange(m), :, np.arange(m)]


# --- the oracle itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "gaussian"])
def test_the_oracles_score_is_the_slope_of_its_density(kind):
    it, step = task(kind), 1e-5
    f = it.known["mean"]
    for k in range(it.c):
        e = step * np.eye(it.c)[k]
        slope = (oracles.log_likelihood(kind, f + e, it.y) - oracles.log_likelihood(kind, f - e, it.y)) / (2 * step)
        np.testing.assert_allclose(oracles.score(kind, f, it.y)[:, k], slope, atol=1e-8 * (1 + np.abs(slope).max()))


def test_the_oracle_is_the_textbooks_regression_where_the_noise_is_gaussian():
    it = task("gaussian")
    std = np.array([0.4, 0.9])
    found = it.oracle(std=std)
    rest = {key: value for key, value in it.known.items() if key != "kind"} | {"sigma": std}
    J_new, mean_new = it.elsewhere
    want = oracles.condition_on_functions(**rest, J_new=J_new, mean_new=mean_new)
    mean, covariance = found.at(J_new, mean_new)
    close(mean, want.mean)
    close(covariance, want.covariance, 1e-10)
    assert found.log_evidence == pytest.approx(oracles.log_evidence(**rest), rel=1e-10)


# --- the mode and what is around it ---------------------------------------------------------------------------------


CASES = [
    (kind, network, side)
    for kind in KINDS
    for network in ("p < nc", "p > nc")
    for name, side in SIDES.items()
    if name != "products" or (network == "p > nc" and kind != "heteroscedastic")  # where scoring takes dozens of steps
]


@pytest.mark.parametrize(("kind", "network", "side"), CASES, ids=named)
def test_it_is_the_oracles(kind, network, side):
    """Weights, mean, variances, covariances, evidence: on each side, against L-BFGS and p by p matrices."""
    it = task(kind, network)
    want = it.oracle()
    mean, covariance = want.at(*it.elsewhere)
    post = it.condition(Laplace(side))
    prediction = post.predict(it.x_new)
    close(post.weights, want.weights, what="weights")
    close(prediction.mean, mean, what="mean")
    close(prediction.covariance, covariance, what="covariance")
    close(prediction.variance, np.diag(covariance).reshape(mean.shape), what="variance")
    close(prediction.marginal_covariance, blocks_of(covariance, 4), what="blocks")
    assert post.log_evidence == pytest.approx(want.log_evidence, rel=1e-6)
    point = it.condition(MAP(side))
    close(point.weights, want.weights, what="weights of the point")
    close(point.predict(it.x_new).mean, mean, what="mean of the point")


def test_it_is_the_oracles_where_the_curvature_is_not_that_of_the_objective_by_products():
    it = task("heteroscedastic", "p < nc", n=8)
    want, post = it.oracle(), it.condition(Laplace(WeightSpace(CG(rtol=1e-5))))
    mean, covariance = want.at(*it.elsewhere)
    close(post.predict(it.x_new).mean, mean, 1e-4)
    close(post.predict(it.x_new).covariance, covariance, 1e-4)
    assert post.log_evidence == pytest.approx(want.log_evidence, rel=1e-4)


@SIDE
def test_it_is_the_oracles_for_a_convolutional_network(side):
    it = task(network="images", n=10)
    want = it.oracle()
    mean, covariance = want.at(*it.elsewhere)
    post = it.condition(Laplace(side))
    close(post.weights, want.weights, what="weights")
    close(post.predict(it.x_new).mean, mean, what="mean")
    close(post.predict(it.x_new).covariance, covariance, what="covariance")
    assert post.log_evidence == pytest.approx(want.log_evidence, rel=1e-6)


@FACTORISED
@pytest.mark.parametrize("kind", ["categorical", "poisson"])
def test_it_is_the_oracles_with_mean_zero_and_a_prior_each_layer(kind, side):
    it = task(kind, mean="zero")
    scales = {"0": 0.4, "2": 1.3}
    want = it.oracle(s=oracles.prior_deviations(it.net, scales))
    gp = TangentGP(it.net, scales, "zero")
    post = gp.condition(it.x, it.y, likelihood=KINDS[kind], method=Laplace(side))
    mean, covariance = want.at(*it.elsewhere)
    close(post.predict(it.x_new).mean, mean, what="mean")
    close(post.predict(it.x_new).covariance, covariance, what="covariance")
    assert post.log_evidence == pytest.approx(want.log_evidence, rel=1e-6)


@FACTORISED
@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "poisson"])
def test_newton_ends_at_digits_that_the_objective_does_not_show(kind, side):
    """The slope at δ̂, δ̂ − S Jᵀ ∇ log p, vanishes: by the oracle's formulas, not those of the package."""
    it = task(kind)
    delta, known = it.condition(Laplace(side)).weights.numpy(), it.known
    f = known["mean"] + (known["J"] @ delta).reshape(known["mean"].shape)
    pulled = known["s"] ** 2 * (known["J"].T @ oracles.score(kind, f, it.y).reshape(-1))
    assert np.abs(delta - pulled).max() < 1e-11 * np.abs(pulled).max()


@pytest.mark.parametrize(
    ("kind", "side"),
    [*((kind, side) for kind in ("categorical", "bernoulli", "poisson") for side in list(SIDES.values())[:2]),
     ("categorical", SIDES["products"])], ids=named,
)  # fmt: skip
def test_the_mode_is_the_same_from_anywhere(kind, side):
    """log p is concave: there is one mode. Starts where the objective overflows are no starts."""
    it = task(kind)
    post = it.condition(Laplace(side))
    where = side_of(post._state.observations, side, progress=False)
    zero = where.zero()
    for seed, size in enumerate((1.0, 1e4) if side is SIDES["products"] else (0.1, 1.0, 30.0, 1e4)):
        start = size * torch.randn(zero.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
        found = mode_of(where, start)
        close(where.weights(found.u), post.weights, what=f"from {size}")
        assert found.value == pytest.approx(post._state.mode.value, rel=1e-9)


@FACTORISED
def test_the_objective_grows_at_every_step(side, monkeypatch):
    it = task("poisson")
    observations = it.condition(Laplace(side))._state.observations
    values = []
    for most in range(1, 6):
        monkeypatch.setattr(mode, "_MOST", most)
        where = side_of(observations, side, progress=False)
        if most < 5:
            with pytest.warns(NotConverged, match=rf"after {most} steps? a further one could gain .* nats"):
                values.append(mode_of(where).value)
        else:
            values.append(mode_of(where).value)
    assert values == sorted(values)
    assert values[0] < values[-1] - 0.01


NOISES = {"()": 0.4, "(c,)": np.array([0.2, 0.7]), "(n, c)": np.random.default_rng(0).uniform(0.2, 0.9, (14, 2))}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@SIDE
@NETWORK
def test_with_gaussian_noise_it_is_exact(network, side, noise):
    it = task("gaussian", network)
    want = it.condition(FunctionSpace(), likelihood=jacana.Gaussian(noise))
    got = it.condition(Laplace(side), likelihood=jacana.Gaussian(noise))
    alike(got, want, it.x_new, 1e-8)
    close(got.weights, want.weights, 1e-8)
    point = it.condition(MAP(side), likelihood=jacana.Gaussian(noise))
    close(point.weights, want.weights, 1e-8)
    if np.ndim(noise) < 2:
        close(got.predict(it.x_new, observed=True).variance, want.predict(it.x_new, observed=True).variance, 1e-8)


@FACTORISED
@pytest.mark.parametrize("logits", ["(f, 0)", "two"])
def test_two_classes_are_a_label_on_the_difference_of_their_logits(logits, side):
    net = zoo.mlp(2, 6, 1 if logits == "(f, 0)" else 2).double()
    x, x_new = task().x, task().x_new
    y = torch.arange(len(x)) % 2

    def pair(out):
        return torch.cat([0.0 * out, out], 1) if logits == "(f, 0)" else out

    def difference(out):
        return pair(out)[:, 1:] - pair(out)[:, :1]

    def condition(output, likelihood, labels):
        gp = TangentGP(jacana.linearize(net, output=output), 0.9)
        return gp.condition(x, labels, likelihood=likelihood, method=Laplace(side))

    classes = condition(pair, CATEGORICAL, y)
    labels = condition(difference, jacana.Bernoulli(), y.double())
    close(classes.weights, labels.weights, 1e-8)
    assert classes.log_evidence == pytest.approx(labels.log_evidence, rel=1e-9)
    one, two = classes.predict(x_new), labels.predict(x_new)
    p = two.probabilities().reshape(-1)
    torch.testing.assert_close(one.probabilities(), torch.stack([1 - p, p], 1), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(one.mean[:, 1] - one.mean[:, 0], two.mean.reshape(-1), rtol=1e-8, atol=1e-10)
    q = two.probabilities(jacana.MonteCarlo()).reshape(-1)
    torch.testing.assert_close(one.probabilities(jacana.MonteCarlo())[:, 1], q, rtol=0, atol=0.002)


# --- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "side"),
    [("categorical", FunctionSpace()), ("poisson", FunctionSpace()), ("categorical", WeightSpace()),
     ("poisson", WeightSpace()), ("categorical", Pathwise(6, TIGHT))], ids=named,
)  # fmt: skip
def test_samples_have_the_covariance_of_the_curvature(kind, side):
    """Three tests on 2,000 samples, with one false alarm in a million."""
    it = task(kind)
    mean, covariance = it.oracle().at(*it.elsewhere)
    post = it.condition(Laplace(side))
    samples = post.predict(it.x_new[:2]).sample(2000, torch.Generator().manual_seed(0)).reshape(2000, -1)
    k = samples.shape[1]
    oracles.assert_gaussian_samples(samples, mean[:2], covariance[:k, :k], false_alarm=FALSE_ALARM)
    few = [post.predict(it.x_new[:2]).sample(3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])


MANY = Pathwise(2000, TIGHT)


def test_pathwise_variances_are_those_of_its_samples():
    """s squares of deviations: relative standard errors √(2/s), six of which one number in 10⁸ is off by."""
    it, s = task(), MANY.n_samples
    want = it.condition(Laplace(FunctionSpace()))
    got = it.condition(Laplace(MANY))
    close(got.weights, want.weights)
    a, b = want.predict(it.x_new), got.predict(it.x_new)
    close(b.mean, a.mean)
    std = a.std.flatten()
    assert float(((b.covariance - a.covariance) / torch.outer(std, std)).abs().max()) < 6 * math.sqrt(2 / s)
    torch.testing.assert_close(b.covariance.diagonal(), b.variance.flatten())
    torch.testing.assert_close(b.marginal_covariance, torch.from_numpy(blocks_of(b.covariance.numpy(), 4)))
    assert abs(got.log_evidence - want.log_evidence) < 5 * got.evidence.std_error + 1e-6
    torch.testing.assert_close(b.probabilities(), a.probabilities(), rtol=0, atol=0.02)
    one, two, other = (it.condition(Laplace(Pathwise(5, TIGHT, seed))).predict(it.x_new).variance for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


# --- what must not change anything ----------------------------------------------------------------------------------

EVERY = {
    "Laplace": Laplace(), "MAP": MAP(), "weight space": Laplace(WeightSpace()), "products": Laplace(WeightSpace(TIGHT)),
}  # fmt: skip
METHOD = pytest.mark.parametrize("method", list(EVERY.values())[:3], ids=list(EVERY)[:3])
WITH_PRODUCTS = pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)


@WITH_PRODUCTS
def test_probabilities_sum_to_one_and_do_not_depend_on_batches_names_or_order(method):
    it = task()
    want = it.condition(method).predict(it.x_new).probabilities()
    assert (want > 0).all()
    torch.testing.assert_close(want.sum(1), torch.ones(4, dtype=DOUBLE))

    def probabilities(x, y, **words):
        gp = TangentGP(jacana.linearize(it.net, **words), it.s)
        return gp.condition(x, y, likelihood=CATEGORICAL, method=method).predict(it.x_new).probabilities()

    y = torch.from_numpy(it.y)
    names = torch.tensor([2, 0, 1])
    torch.testing.assert_close(probabilities(it.x, y, batch_size=5), want, rtol=1e-8, atol=1e-9)
    permuted = probabilities(it.x, names.argsort()[y], output=lambda out: out[:, names])
    torch.testing.assert_close(permuted, want[:, names], rtol=1e-8, atol=1e-9)
    order = torch.randperm(it.n)
    torch.testing.assert_close(probabilities(it.x[order], y[order]), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("categorical", method) for method in EVERY.values()), ("poisson", Laplace()), ("poisson", MAP())],
    ids=named,
)
def test_a_weight_of_two_is_a_second_time_and_of_zero_none(kind, method):
    it = task(kind)
    weights = np.array([2.0] * 4 + [0.0] * 3 + [1.0] * 7)
    which = np.array([0, 1, 2, 3, 0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13])
    got, want = it.condition(method, weights), it.condition(method, some=which)
    close(got.weights, want.weights, 1e-8)
    close(it.condition(method, np.ones(it.n)).weights, it.condition(method).weights, 1e-12)
    with pytest.raises(InvalidOption, match="weights for each old example"):
        got.condition(it.x, torch.as_tensor(it.y))
    if isinstance(method, MAP):
        return
    alike(got, want, it.x_new, 1e-8)
    expected = it.oracle(weights=weights)
    close(got.weights, expected.weights)
    assert got.log_evidence == pytest.approx(expected.log_evidence, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in KINDS for name, method in EVERY.items() if name != "products" or kind == "categorical"],
    ids=named,
)
def test_more_data_are_the_same_as_all_at_once(kind, method):
    it = task(kind)
    post = it.condition(method, some=slice(6))
    for start, stop in ((6, 9), (9, 14)):
        post = post.condition(it.x[start:stop], torch.as_tensor(it.y[start:stop]))
    whole = it.condition(method)
    close(post.weights, whole.weights)
    assert post.n_examples == 14
    assert post.method == method
    if not isinstance(method, MAP):
        alike(post, whole, it.x_new)


@pytest.mark.parametrize("side", [Pathwise(6, TIGHT), WeightSpace(TIGHT)], ids=["pathwise", "weight space"])
@pytest.mark.parametrize("method", [Laplace, MAP])
def test_a_loader_and_a_memory_map_are_the_tensor(method, side, tmp_path):
    it, method = task(), method(side)
    assert method.streams
    np.save(tmp_path / "x.npy", it.x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = torch.from_numpy(it.y)
    want = it.condition(method)
    loader = DataLoader(TensorDataset(it.x, y), batch_size=5)
    posts = [
        it.gp.condition(loader, likelihood=CATEGORICAL, method=method),
        it.gp.condition(mapped, y, likelihood=CATEGORICAL, method=method),
    ]
    for post in posts:
        torch.testing.assert_close(post.weights, want.weights, rtol=1e-8, atol=1e-9)
        a, b = post.predict(it.x_new), want.predict(it.x_new)
        torch.testing.assert_close(a.probabilities(), b.probabilities(), rtol=1e-8, atol=1e-9)
    assert not Laplace().streams
    assert not MAP(FunctionSpace()).streams


def test_a_loader_is_read_into_memory_where_a_side_is_factorised():
    it = task()
    loader = DataLoader(TensorDataset(it.x, torch.from_numpy(it.y)), batch_size=5)
    post = it.gp.condition(loader, likelihood=CATEGORICAL)
    alike(post, it.condition(), it.x_new, 1e-10)


@SIDE
def test_a_network_in_float32(side):
    it = task()
    gp = TangentGP(zoo.mlp(2, 8, 3), it.s)
    gp.linearization.network.module.load_state_dict(it.net.state_dict())
    post = gp.condition(it.x.float(), it.y, likelihood=CATEGORICAL, method=Laplace(side))
    want = it.condition(Laplace(side))
    a, b = post.predict(it.x_new.float()), want.predict(it.x_new)
    assert a.mean.dtype == a.variance.dtype == a.probabilities().dtype == DOUBLE
    torch.testing.assert_close(a.probabilities(), b.probabilities(), rtol=1e-4, atol=1e-5)
    assert post.log_evidence == pytest.approx(want.log_evidence, rel=1e-4)


# --- labels as they come --------------------------------------------------------------------------------------------


@METHOD
def test_a_class_that_no_label_has_keeps_what_the_network_says_of_it_far_away(method):
    """It becomes less likely where there are labels; where nothing can be learned it is as the network says."""
    it = task(n=30)
    y = torch.from_numpy(it.y % 2)
    post = it.gp.condition(it.x, y, likelihood=CATEGORICAL, method=method)
    p, before = post.predict(it.x).probabilities(), it.gp.predict(it.x).mean.softmax(1)
    assert ((p > 0) & (p < 1)).all()
    assert p[:, 2].mean() < 0.5 * before[:, 2].mean()
    narrow = TangentGP(it.net, 1e-4).condition(it.x, y, likelihood=CATEGORICAL, method=method)
    torch.testing.assert_close(narrow.predict(it.x).probabilities(), before, rtol=0, atol=1e-4)


@METHOD
def test_one_class_alone(method):
    it = task()
    post = it.gp.condition(it.x, np.ones(it.n, dtype=int), likelihood=CATEGORICAL, method=method)
    p = post.predict(it.x).probabilities()
    assert ((p > 0) & (p < 1)).all()
    assert (p.argmax(1) == 1).all()


@METHOD
def test_one_example_alone(method):
    it = task()
    post = it.condition(method, some=slice(1))
    before, after = it.gp.predict(it.x[:1]).mean.softmax(1), post.predict(it.x[:1]).probabilities()
    assert after[0, it.y[0]] > before[0, it.y[0]]


@functools.cache
def rare():
    """A class with one example of 1,001: the network's last layer, data, and the oracle."""
    net = task(network="p < nc").net
    x = torch.cat([0.3 * task(n=1000).x, torch.tensor([[3.0, 3.0]], dtype=DOUBLE)])
    y = np.array([0] * 1000 + [1])
    with torch.no_grad():
        features, m = net[:2](x).numpy(), net(x)[:, :2].numpy()
    J = np.zeros((len(x), 2, 12))  # of logit k are weights 3 k to 3 k + 2, and bias 9 + k
    for k in range(2):
        J[:, k, 3 * k : 3 * k + 3], J[:, k, 9 + k] = features, 1.0
    lin = jacana.linearize(net, "2", output=lambda out: out[:, :2])
    return lin, x, y, oracles.laplace("categorical", J.reshape(-1, 12), np.ones(12), m, y)


@FACTORISED
def test_a_thousand_to_one(side):
    lin, x, y, want = rare()
    post = TangentGP(lin).condition(x, y, likelihood=CATEGORICAL, method=Laplace(side))
    close(post.weights, want.weights, 1e-5)
    assert post.log_evidence == pytest.approx(want.log_evidence, rel=1e-6)
    p = post.predict(x).probabilities()
    assert torch.isfinite(p).all()
    assert (p[:1000, 1] < 0.05).all()
    assert p[-1, 1] > 5 * p[:1000, 1].mean()


BAD = {
    "out of range": (lambda n: np.full(n, 3), "labels from 3 to 3; expected 0 to 2"),
    "negative": (lambda n: np.full(n, -1), "labels from -1"),
    "fractions": (lambda n: np.full(n, 0.5), "no whole numbers"),
    "words": (lambda n: ["cat"] * n, "y: "),
    "arrays of words": (lambda n: np.array(["cat"] * n), "y: "),
    "NaN": (lambda n: np.full(n, np.nan), "y: "),
    "too few": (lambda n: np.zeros(n - 1, dtype=int), "13 targets for 14 examples"),
    "none": (lambda n: None, "y: got None"),
    "one-hot": (lambda n: np.eye(3)[np.zeros(n, dtype=int)], r"shape \(14, 3\); expected \(14,\)"),
    "nested": (lambda n: np.zeros((n, 1, 1)), "y: got shape"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_labels_are_refused_with_the_cure(make, message):
    it = task()
    with pytest.raises(InvalidData, match=message):
        it.gp.condition(it.x, make(it.n), likelihood=CATEGORICAL)
    post = it.condition()
    with pytest.raises(InvalidData, match=message.replace("got None", "")):
        post.condition(it.x, make(it.n))
    assert post.n_examples == it.n


def test_whole_numbers_in_any_dtype_are_labels():
    it = task()
    want = it.condition().weights
    for y in (it.y.astype(float), it.y.astype("uint8"), it.y.tolist(), torch.from_numpy(it.y).to(torch.int32)):
        assert torch.equal(it.gp.condition(it.x, y, likelihood=CATEGORICAL).weights, want)


# --- predictions of labels ------------------------------------------------------------------------------------------


@METHOD
def test_what_is_observed_are_labels(method):
    it = task()
    post = it.condition(method)
    latent, observed = post.predict(it.x_new), post.predict(it.x_new, observed=True)
    p = latent.probabilities()
    torch.testing.assert_close(observed.mean, p)
    torch.testing.assert_close(observed.variance, p * (1 - p))
    for ask in (lambda: observed.covariance, lambda: observed.interval(0.9)):
        with pytest.raises(InvalidOption, match="observed: got True"):
            ask()
    if isinstance(method, MAP):
        return
    draws = observed.sample(7, torch.Generator().manual_seed(0))
    assert draws.shape == (7, 4)
    assert draws.dtype == torch.int64
    assert ((draws >= 0) & (draws < 3)).all()
    assert latent.sample(7, torch.Generator().manual_seed(0)).shape == (7, 4, 3)
    assert latent.interval(0.9)[0].shape == (4, 3)


def test_observed_samples_are_as_frequent_as_they_are_probable():
    """Six standard errors: one false alarm in 30 million numbers."""
    it, count = task(), 3000
    prediction = it.condition().predict(it.x_new, observed=True)
    draws = prediction.sample(count, torch.Generator().manual_seed(0))
    p = prediction.probabilities(jacana.MonteCarlo())
    shares = torch.stack([(draws == k).double().mean(0) for k in range(3)], 1)
    assert ((shares - p).abs() < 6 * (p * (1 - p) / count).sqrt() + 0.002).all()


@KIND
def test_shapes_of_every_likelihood(kind):
    it = task(kind)
    observed = it.condition().predict(it.x_new, observed=True)
    d = {"categorical": 3, "heteroscedastic": 1}.get(kind, 2)
    assert observed.mean.shape == observed.variance.shape == observed.std.shape == (4, d)
    assert observed.sample(5).shape == ((5, 4) if kind == "categorical" else (5, 4, d))
    latent = it.condition().predict(it.x_new)
    assert latent.mean.shape == (4, it.c)
    if kind == "poisson":
        expected = (latent.mean + 0.5 * latent.variance).exp()
        torch.testing.assert_close(observed.mean, expected)
    if kind in ("poisson", "heteroscedastic"):
        with pytest.raises(InvalidOption, match="has no probit"):
            latent.probabilities()


def test_one_label_of_one_output_is_flat():
    x, y = task().x, torch.arange(14) % 2
    gp = TangentGP(zoo.mlp(2, 6, 1).double())
    post = gp.condition(x, y, likelihood=jacana.Bernoulli())
    latent, observed = post.predict(x), post.predict(x, observed=True)
    assert latent.mean.shape == latent.variance.shape == observed.mean.shape == observed.variance.shape == (14,)
    assert observed.sample(3).shape == latent.sample(3).shape == (3, 14)
    assert latent.probabilities().shape == (14, 1)
    torch.testing.assert_close(observed.mean, latent.probabilities().squeeze(1))
    column = gp.condition(x, y.unsqueeze(1), likelihood=jacana.Bernoulli()).predict(x, observed=True)
    assert column.mean.shape == (14, 1)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
@pytest.mark.parametrize("method", [EVERY["Laplace"], EVERY["MAP"]], ids=repr)
def test_information_is_positive_and_no_more_than_the_entropy(kind, method):
    it = task(kind)
    prediction = it.condition(method).predict(it.x_new)
    information, total = prediction.mutual_information(), prediction.entropy(jacana.MonteCarlo())
    assert information.shape == total.shape == (4,)
    assert (information >= -1e-12).all()
    assert (information <= total + 1e-12).all()
    if isinstance(method, MAP):
        torch.testing.assert_close(information, torch.zeros(4, dtype=DOUBLE), rtol=0, atol=1e-12)
    else:
        assert (information > 1e-4).all()


def test_a_prior_has_no_probabilities():
    prior = task().gp.predict(task().x_new)
    for ask in (prior.probabilities, prior.entropy, prior.mutual_information):
        with pytest.raises(InvalidOption, match="this is the prior"):
            ask()


def test_leaving_out_is_refused_with_the_cure():
    for method in EVERY.values():
        with pytest.raises(InvalidOption, match="leave_one_out: got a Categorical likelihood"):
            task().condition(method).leave_one_out()


# --- temperature ----------------------------------------------------------------------------------------------------


@FACTORISED
def test_temperature_divides_the_mean(side):
    it = task()
    gp = TangentGP(it.net, it.s, temperature=2)
    torch.testing.assert_close(gp.predict(it.x_new).mean, it.gp.predict(it.x_new).mean / 2)
    torch.testing.assert_close(gp.predict(it.x_new).covariance, it.gp.predict(it.x_new).covariance)
    assert gp.temperature == 2.0
    assert "temperature=2" in repr(gp)
    post = gp.condition(it.x, it.y, likelihood=CATEGORICAL, method=Laplace(side))
    want = it.oracle(mean=it.known["mean"] / 2)
    mean, covariance = want.at(it.elsewhere[0], it.elsewhere[1] / 2)
    close(post.predict(it.x_new).mean, mean, what="mean")
    close(post.predict(it.x_new).covariance, covariance, what="covariance")
    more = gp.condition(it.x[:5], it.y[:5], likelihood=CATEGORICAL, method=Laplace(side)).condition(it.x[5:], it.y[5:])
    close(more.predict(it.x_new).mean, mean, what="in two parts")


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(InvalidOption, match="temperature"):
        TangentGP(task().net, temperature=temperature)


# --- every state ----------------------------------------------------------------------------------------------------

GAUSSIAN = {
    "function space": FunctionSpace(), "weight space": WeightSpace(), "function space, CG": FunctionSpace(CG(1e-8)),
    "weight space, CG": WeightSpace(TIGHT), "pathwise": Pathwise(20, TIGHT), "landmarks": jacana.NystromFeatures(40),
    "last layer": jacana.LastLayer(), "Laplace": Laplace(),
}  # fmt: skip
LABELS = {
    **{name: method for name, method in EVERY.items() if name != "MAP"},
    "Laplace, pathwise": Laplace(Pathwise(20, TIGHT)), "last layer, labels": jacana.LastLayer(),
    "Dirichlet": jacana.DirichletRegression(), "one-hot": jacana.OneHotRegression(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("gaussian", m) for m in GAUSSIAN.values()), *(("categorical", m) for m in LABELS.values())],
    ids=[*GAUSSIAN, *LABELS],
)
def test_blocks_are_those_of_the_covariance(kind, method):
    """More examples than are taken at once; a solver's variances are at most a hundredth too large."""
    it = task(kind)
    post = it.condition(method, likelihood=jacana.Gaussian(0.4) if kind == "gaussian" else None)
    x = torch.cat([it.draw(19, 7), it.x[:3]])
    prediction = post.predict(x)
    blocks, covariance = prediction.marginal_covariance, prediction.covariance.numpy()
    assert blocks.shape == (22, it.c, it.c)
    tolerance = 0.011 if "CG" in repr(method) and "Pathwise" not in repr(method) else 1e-9
    scale = prediction.variance.max()
    for got, want in ((blocks, blocks_of(covariance, 22)), (blocks.diagonal(dim1=1, dim2=2), prediction.variance)):
        np.testing.assert_allclose(got, want, rtol=0, atol=float(tolerance * scale))


def test_a_point_has_blocks_of_zero_and_no_variance():
    it = task()
    post = it.condition(MAP())
    prediction = post.predict(it.x_new)
    assert not prediction.marginal_covariance.any()
    torch.testing.assert_close(prediction.probabilities(), prediction.mean.softmax(1))
    close(post.weights, it.condition(Laplace()).weights, 1e-10)
    for ask in (
        lambda: prediction.variance, lambda: prediction.std, lambda: prediction.covariance, prediction.sample,
        post.sample_weights, lambda: post.log_evidence, lambda: post.evidence, prediction.interval,
    ):  # fmt: skip
        with pytest.raises(InvalidOption, match=r"MAP\(\) is a point.*jacana\.Laplace"):
            ask()


@pytest.mark.parametrize(("kind", "rtol"), [("categorical", 1e-6), ("bernoulli", 1e-6), ("poisson", 1e-4)])
@NETWORK
def test_a_wide_prior_keeps_variances_positive_and_the_same_on_both_sides(kind, network, rtol):
    """prior_std = 10⁴: fourteen digits of the prior's variance cancel."""
    it = task(kind, network, s=1e4)
    x = torch.cat([it.x_new, it.x])
    one, two = (it.condition(Laplace(side)) for side in (FunctionSpace(), WeightSpace()))
    assert one._state.mode.steps < 50  # rounding does not hold up Newton's steps
    a, b = one.predict(x), two.predict(x)
    for prediction in (a, b):
        assert (prediction.variance > 0).all()
        assert (torch.linalg.eigvalsh(prediction.marginal_covariance) > 0).all()
        assert torch.linalg.eigvalsh(prediction.covariance).min() > -1e-9 * prediction.variance.max()
    torch.testing.assert_close(a.variance, b.variance, rtol=rtol, atol=0)
    close(a.mean, b.mean, rtol)
    close(one._state.mode.precision.fitted(), two._state.mode.precision.fitted(), rtol)
    assert one.log_evidence == pytest.approx(two.log_evidence, rel=1e-6)


def test_a_prior_too_wide_for_the_side_of_the_data_says_so():
    it = task(network="p < nc", s=1e9)
    with pytest.raises(NotPositiveDefinite, match=r"prior_std: .*Laplace\(WeightSpace\(\)\)"):
        it.condition(Laplace(FunctionSpace()))


@FACTORISED
def test_data_never_add_variance(side):
    it = task()
    lost = it.gp.predict(it.x_new).covariance - it.condition(Laplace(side)).predict(it.x_new).covariance
    assert torch.linalg.eigvalsh((lost + lost.T) / 2).min() > -1e-10 * lost.abs().max()


@SIDE
def test_freedom_and_fitted_are_those_of_the_dense_precision(side):
    it = task()
    want, known = it.oracle(), it.known
    post = it.condition(Laplace(side if side is not SIDES["products"] else MANY))
    precision = post._state.mode.precision
    mean, covariance = want.at(known["J"], known["mean"])
    f = torch.from_numpy(mean)
    H = scipy.linalg.block_diag(*oracles.curvature("categorical", f.numpy()))
    freedom = np.trace(covariance @ H)
    tolerance = 1e-6 if side is not SIDES["products"] else 0.15
    close(precision.fitted(), blocks_of(covariance, it.n), tolerance, "fitted")
    assert float(precision.freedom.sum()) == pytest.approx(freedom, rel=tolerance)


# --- one layer ------------------------------------------------------------------------------------------------------

INNER = {"default": None, "function space": Laplace(FunctionSpace()), "weight space": Laplace(WeightSpace())}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("kind", ["categorical", "poisson"])
def test_the_last_layer_of_a_classifier(kind, inner):
    it = task(kind)
    head = TangentGP(jacana.linearize(it.net, "2"), it.s)
    want = head.condition(it.x, it.y, likelihood=KINDS[kind], method=inner)
    got = it.condition(jacana.LastLayer(method=inner))
    alike(got, want, it.x_new, 1e-9)
    assert got.weights.shape == (it.known["J"].shape[1],)
    assert not got.weights[: -len(want.weights)].any()
    more = it.condition(jacana.LastLayer(method=inner), some=slice(6)).condition(it.x[6:], it.y[6:])
    alike(more, want, it.x_new)
    full = it.condition().predict(it.x_new).covariance
    assert got.predict(it.x_new).variance.max() < full.diagonal().max()


def test_the_mode_of_the_last_layer():
    it = task()
    post = it.condition(jacana.LastLayer(method=MAP()))
    want = it.condition(jacana.LastLayer())
    close(post.weights, want.weights, 1e-9)
    p = post.predict(it.x_new).probabilities()
    torch.testing.assert_close(p, post.predict(it.x_new).mean.softmax(1))


def test_the_last_layer_takes_what_its_method_takes():
    it = task()
    with pytest.raises(InvalidOption, match="FunctionSpace is for Gaussian noise, and the likelihood is Categorical"):
        it.condition(jacana.LastLayer(method=FunctionSpace()))


# --- choices and options --------------------------------------------------------------------------------------------


def test_it_is_what_is_taken_by_default():
    wide, deep = task().condition(), task(network="p < nc").condition()
    assert wide.method == Laplace(FunctionSpace())
    assert deep.method == Laplace(WeightSpace())
    assert "the likelihood is Categorical: the Laplace approximation, by FunctionSpace for 42 function" in wide.reason
    assert task().condition(Laplace()).reason == "as asked"
    assert wide.condition(task().x, task().y).reason == wide.reason


@pytest.mark.parametrize("kind", [Laplace, MAP])
def test_options_are_checked(kind):
    with pytest.raises(InvalidOption, match="method: got 'exact'"):
        kind("exact")
    for inner in (jacana.NystromFeatures(), FunctionSpace(CG()), jacana.LastLayer(), Laplace()):
        with pytest.raises(InvalidOption, match=r"method: got .*expected jacana\.FunctionSpace\(\)"):
            task().condition(kind(inner))


@pytest.mark.parametrize("method", [FunctionSpace(), WeightSpace(), Pathwise(), jacana.NystromFeatures()], ids=repr)
def test_methods_for_gaussian_noise_refuse_labels_with_the_cure(method):
    with pytest.raises(InvalidOption, match=f"{type(method).__name__} is for Gaussian noise.*Laplace"):
        task().condition(method)


def test_noise_is_of_gaussian_observations():
    it = task()
    with pytest.raises(InvalidOption, match=r"noise_std: got 0\.1 for a Categorical likelihood"):
        it.condition().condition(it.x, it.y, 0.1)
    with pytest.raises(InvalidOption, match="got both"):
        it.gp.condition(it.x, it.y, 0.1, likelihood=CATEGORICAL)


def test_outputs_that_do_not_fit_are_refused():
    net = nn.Linear(2, 1).double()
    with pytest.raises(InvalidOption, match="two outputs or more, got 1"):
        TangentGP(net).condition(task().x, task().y, likelihood=CATEGORICAL)
