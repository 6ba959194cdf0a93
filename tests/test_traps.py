"""Traps that a hostile reader set, each of which once gave a wrong answer without a word."""

from __future__ import annotations

import copy
import pickle
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import jacana
from jacana.errors import InvalidData, InvalidOption, NotPositiveDefinite, UnsupportedNetwork
from tests import oracles

DOUBLE = torch.float64


def small(width=3, c=1):
    return nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, c)
    ).double()


@pytest.mark.parametrize("seed", [0, 2, 7, 19, 27])
@pytest.mark.parametrize("n", [8, 40])
def test_more_scales_or_noises_never_have_less_evidence(seed, n):
    torch.manual_seed(seed)
    gp, x = jacana.TangentGP(small()), torch.randn(n, 2, dtype=DOUBLE)
    y = torch.sin(2 * x[:, :1]) + 0.1 * torch.randn(n, 1)

    def best(**words):
        learned, likelihood = jacana.maximize_evidence(gp, x, y, **words)
        return learned.condition(x, y, likelihood=likelihood).log_evidence

    shared = best()
    for words in ({"prior_std": "layers"}, {"noise_std": "outputs"}, {"prior_std": "layers", "noise_std": "outputs"}):
        assert best(**words) >= shared - 1e-5 * abs(shared)


@pytest.mark.parametrize("noise", [1e-1, 1e-2])
def test_a_scale_far_away_is_found_at_a_fixed_noise(noise):
    torch.manual_seed(0)
    gp = jacana.TangentGP(nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 1)).double())
    x = torch.linspace(-1, 1, 25, dtype=DOUBLE)[:, None]
    y = torch.sin(9 * x)
    found, likelihood = jacana.maximize_evidence(gp, x, y, noise_std=noise)
    value = found.condition(x, y, likelihood=likelihood, method=jacana.FunctionSpace()).log_evidence
    values, vectors = torch.linalg.eigh(jacana.NTK(gp.linearization, x).to_dense())
    squares = (vectors.T @ (y - gp.predict(x).mean)).square().flatten().numpy()
    spread = np.logspace(-4, 8, 2000)[:, None] ** 2 * values.clamp_min(0).numpy() + noise**2
    grid = -0.5 * ((squares / spread).sum(1) + np.log(spread).sum(1) + 25 * np.log(2 * np.pi))
    assert value >= grid.max() - 1e-3 * abs(grid.max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_means_and_samples_agree_in_low_precision(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 30), nn.Tanh(), nn.Linear(30, 1)).to(dtype)
    x = torch.randn(30, 2)
    post = jacana.TangentGP(net).condition(x, x.sum(1), 0.01, method=jacana.FunctionSpace())
    J = jacana.linearize(net).jacobian(x).double()
    K = J @ J.T + 1e-4 * torch.eye(30, dtype=DOUBLE)
    m = net(x.to(dtype)).double().detach()[:, 0]
    exact = m + J @ J.T @ torch.linalg.solve(K, x.sum(1).double() - m)
    prediction = post.predict(x)
    assert ((prediction.mean - exact).abs() < 0.2 * prediction.std).all()
    samples = prediction.sample(400, generator=torch.Generator().manual_seed(0))
    # 30 means of 400 samples: beyond 5 standard errors once in 60,000 runs.
    assert ((samples.mean(0) - prediction.mean).abs() < 5 * prediction.std / 20).all()


def test_noise_of_old_examples_is_not_put_on_new_ones():
    gp, x = jacana.TangentGP(small()), torch.randn(5, 2)
    post = gp.condition(x, torch.ones(5, 1), noise_std=torch.linspace(0.1, 1, 5)[:, None])
    for others in (torch.randn(5, 2), torch.randn(4, 2)):
        with pytest.raises(InvalidOption, match=r"observed.*latent"):
            post.predict(others, observed=True)


class Caching(nn.Module):
    """Keeps its effective weight from the first pass on, as weight caches of evaluation mode do."""

    def __init__(self):
        super().__init__()
        self.inner, self.kept = nn.Linear(2, 3), None

    def forward(self, x):
        if self.kept is None:
            self.kept = 2 * self.inner.weight
        return functional.linear(x, self.kept, self.inner.bias)


def assert_right(net, x):
    lin = jacana.linearize(net)
    oracles.assert_close(lin.jacobian(x), oracles.jacobian(net, x), x.dtype)


def test_a_network_that_keeps_results_on_itself():
    assert_right(Caching().double(), torch.randn(4, 2, dtype=DOUBLE))


def test_a_forward_that_closes_over_the_original_network_is_refused():
    net = small()
    net[0].forward = lambda x, layer=net[0]: functional.linear(x, layer.weight, layer.bias)
    with pytest.raises(UnsupportedNetwork, match=r"'0'.*method"):
        jacana.linearize(net)
    net[0].forward = MethodType(lambda self, x: functional.linear(x, self.weight, self.bias), net[0])
    assert_right(net, torch.randn(4, 2, dtype=DOUBLE))


class Centring(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 3)

    def forward(self, x):
        x -= 0.5
        return self.inner(x)


@pytest.mark.parametrize("net", [Centring().double(), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 3)).double()])
def test_a_first_operation_in_place_leaves_the_data_alone(net):
    x = torch.randn(4, 2, dtype=DOUBLE)
    before, y = x.clone(), torch.ones(4, 3)
    jacana.TangentGP(net).condition(x, y, 0.1).predict(x, observed=True).covariance  # noqa: B018
    jacana.NTKRegressor(net).fit(x, y).predict(x)
    assert torch.equal(x, before)


def test_precision_may_differ_inside_a_network():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 40), nn.Linear(40, 2).double()

        def forward(self, x):
            return self.head(torch.tanh(self.body(x)).double())

    torch.manual_seed(0)
    x = torch.randn(30, 2)
    for net, output in ((Mixed(), None), (small(40).float(), torch.Tensor.double)):
        lin = jacana.linearize(net, output=output)
        assert lin(x).dtype == DOUBLE
        assert lin.route(x) == "forward"
        J = lin.jacobian(x).double()
        v = torch.randn(lin.n_parameters)
        oracles.assert_close(lin.jvp(x, v).flatten(), J @ v.double(), torch.float32, factor=1e3)


def test_embeddings_whose_gradient_depends_on_the_batch_are_refused():
    with pytest.raises(UnsupportedNetwork, match=r"'0'.*scale_grad_by_freq=True.*set it"):
        jacana.linearize(nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True), nn.Flatten()))


def test_sparse_gradients_are_the_same_gradients():
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).double()
    x = torch.randint(0, 5, (4, 2))
    dense = copy.deepcopy(net)
    dense[0].sparse = False
    oracles.assert_close(jacana.linearize(net).jacobian(x), oracles.jacobian(dense, x), DOUBLE)
    assert net[0].sparse


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_what_is_fitted_can_be_copied(clone):
    x = torch.randn(20, 2)
    reg = jacana.NTKRegressor(small().float()).fit(x, x.sum(1))
    mean, std = clone(reg).predict(x, return_std=True)
    np.testing.assert_array_equal(mean, reg.predict(x))
    assert (std > 0).all()
    more = clone(reg.posterior_).condition(x + 1, x.sum(1) + 2)
    np.testing.assert_allclose(more.predict(x).mean, reg.posterior_.condition(x + 1, x.sum(1) + 2).predict(x).mean)


@pytest.mark.parametrize("prior", [None, "layers"])
def test_no_noise_where_the_kernel_has_not_full_rank(prior):
    x = torch.randn(6, 2, dtype=DOUBLE).repeat(8, 1)
    with pytest.raises(NotPositiveDefinite, match="noise_std"):
        jacana.NTKRegressor(small(), noise_std=0.0, prior_std=prior).fit(x, x.sum(1))


def test_a_network_that_branches_on_the_shape():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 2)

        def forward(self, x):
            total = self.inner(x.sum(1, keepdim=True))
            return total * total.sum().sign().abs().item() if x.shape[1] > 3 else total

    net = Branching().double()
    lin = jacana.linearize(net)
    for width in (2, 5, 3):
        x = torch.randn(4, width, dtype=DOUBLE)
        oracles.assert_close(lin.jacobian(x), oracles.jacobian(net, x), DOUBLE)
        oracles.assert_close(lin.jvp(x, torch.ones(4)).flatten(), oracles.jacobian(net, x).sum(1), DOUBLE)


def test_little_randomness_is_randomness():
    class Little(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 8)

        def forward(self, x):
            return functional.dropout(self.inner(x), 0.01)

    net = Little()
    state = torch.random.get_rng_state()
    with pytest.raises(UnsupportedNetwork, match="each pass"):
        jacana.linearize(net)(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("noise", [1e-3, 1e-6])
def test_both_spaces_agree_at_little_noise(noise):
    torch.manual_seed(0)
    x = 2 * torch.randn(12, 2, dtype=DOUBLE)
    gp = jacana.TangentGP(nn.Sequential(nn.Linear(2, 30), nn.Tanh(), nn.Linear(30, 1)).double())
    one, other = (gp.condition(x, x.sum(1), noise, method=m) for m in (jacana.FunctionSpace(), jacana.WeightSpace()))
    points = torch.randn(5, 2, dtype=DOUBLE)
    torch.testing.assert_close(one.predict(points).mean, other.predict(points).mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(one.predict(points).covariance, other.predict(points).covariance, rtol=0, atol=1e-8)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-6)


def test_targets_beyond_the_squares_of_float64_are_refused():
    x = torch.randn(6, 2, dtype=DOUBLE)
    for size in (1e200, 1e-200):
        with pytest.raises(InvalidData, match=r"y: .*rescale"):
            jacana.maximize_evidence(jacana.TangentGP(small(), mean="zero"), x, size * x[:, :1])


def test_a_torchscript_module_is_refused():
    with pytest.warns(DeprecationWarning, match="script"):
        net = torch.jit.script(nn.Linear(2, 1))
    with pytest.raises(UnsupportedNetwork, match=r"net: .*TorchScript.*pass"):
        jacana.linearize(net)
