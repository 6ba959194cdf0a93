"""The tangent kernel in GPyTorch's models: the same posterior as ours, in its conventions, and trainable."""

from __future__ import annotations

import copy
import subprocess
import sys

import gpytorch
import numpy as np
import pytest
import torch
from torch import nn

import jacana
from tests import oracles

DOUBLE = torch.float64
Kernel, Scale, RBF = jacana.NeuralTangentKernel, gpytorch.kernels.ScaleKernel, gpytorch.kernels.RBFKernel


def network(c=1, dtype=DOUBLE):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, c)).to(dtype)


def data(n, seed=0, dtype=DOUBLE):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood, mean, kernel):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = mean, kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Multitask(Model):
    def forward(self, x):
        return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


def gaussian(noise):
    bound = gpytorch.constraints.GreaterThan(1e-8)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=bound).double()
    likelihood.noise = torch.tensor(noise**2, dtype=DOUBLE)  # a float would be rounded to float32
    return likelihood


# The kernel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("prior", [1.0, 0.5, {"0": 0.5, "": 2.0}, "layers"])
def test_kernel_is_the_dense_product(c, prior, dtype):
    net, x, z = network(c, dtype), data(6, dtype=dtype), data(4, 1, dtype)
    kernel = Kernel(net, prior_std=prior).to(dtype)
    J, Z = oracles.jacobian(net, x), oracles.jacobian(net, z)
    s = oracles.prior_deviations(net, 1.0 if prior == "layers" else prior)
    scale = 4 * np.abs(J).sum(1).max() ** 2
    for first, second, want in ((x, None, (J * s**2) @ J.T), (x, z, (J * s**2) @ Z.T)):
        got = kernel(first) if second is None else kernel(first, second)
        assert got.shape == want.shape
        assert got.to_dense().dtype == dtype
        oracles.assert_close(got.to_dense(), want, dtype, scale=scale)
        again = kernel(first.clone()) if second is None else kernel(first, second)  # from what is kept
        oracles.assert_close(again.to_dense(), want, dtype, scale=scale)
    oracles.assert_close(kernel(x, diag=True), np.diag((J * s**2) @ J.T), dtype, scale=scale)
    oracles.assert_close(kernel(x).diagonal(), np.diag((J * s**2) @ J.T), dtype, scale=scale)
    if c == 1:
        other = data(6, 2, dtype)
        want = ((J * s**2) @ oracles.jacobian(net, other).T).diagonal()
        oracles.assert_close(kernel(x, other, diag=True), want, dtype, scale=scale)


def test_diagonal_is_direct(monkeypatch):
    kernel, x = Kernel(network()), data(6)

    def refuse(*args, **words):
        raise AssertionError("the whole kernel was computed for its diagonal")

    monkeypatch.setattr("jacana.integrations.gpytorch.group_kernels", refuse)
    kernel(x, diag=True)
    kernel(x).diagonal()


def test_batches_of_sets():
    net = network()
    kernel = Kernel(net)
    x, z = torch.stack([data(4), data(4, 1)]), data(3, 2)
    got = kernel(x, z).to_dense()
    want = np.stack([oracles.jacobian(net, one) @ oracles.jacobian(net, z).T for one in x])
    oracles.assert_close(got, want, DOUBLE, scale=100)
    oracles.assert_close(
        kernel(x, diag=True), (np.stack([oracles.jacobian(net, one) for one in x]) ** 2).sum(2), DOUBLE
    )
    assert kernel(x[:, None], x).shape == (2, 2, 4, 4)


def test_images_and_tokens():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 1)).double()
        words = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 1)).double()
    x = torch.randn(4, 2, 5, 5, dtype=DOUBLE)
    J = oracles.jacobian(images, x)
    kernel = Kernel(images, input_shape=(2, 5, 5))
    oracles.assert_close(kernel(x.flatten(1)).to_dense(), J @ J.T, DOUBLE, scale=100)
    mean = jacana.NetworkMean(images, input_shape=(2, 5, 5))(x.flatten(1))
    oracles.assert_close(mean, images(x)[:, 0], DOUBLE, scale=10)
    ids = torch.randint(0, 7, (5, 4))
    J = oracles.jacobian(words, ids)
    oracles.assert_close(Kernel(words).double()(ids).to_dense(), J @ J.T, DOUBLE, scale=100)
    as_numbers = Kernel(words, input_dtype=torch.long)(ids.double())
    oracles.assert_close(as_numbers.to_dense(), J @ J.T, DOUBLE, scale=100)
    with pytest.raises(jacana.errors.InvalidData, match="50"):
        kernel(x.flatten(1)[:, :20]).to_dense()


# Models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["network", "zero"])
def test_an_exact_gp_is_the_tangent_gp(mean):
    net, x, z = network(), data(40), data(7, 1)
    y = torch.sin(x.sum(1)) + 0.1 * data(40, 3)[:, 0]
    post = jacana.TangentGP(net, prior_std=0.7, mean=mean).condition(x, y, noise_std=0.2)
    module = jacana.NetworkMean(net) if mean == "network" else gpytorch.means.ZeroMean()
    model = Model(x, y, gaussian(0.2), module, Kernel(net, prior_std=0.7)).double().eval()
    with torch.no_grad():
        found = model(z)
        observed = model.likelihood(found)
    want = post.predict(z)
    oracles.assert_close(found.mean, want.mean, DOUBLE, condition=1e5)
    oracles.assert_close(found.covariance_matrix, want.covariance, DOUBLE, condition=1e6)
    oracles.assert_close(observed.variance, post.predict(z, observed=True).variance, DOUBLE, condition=1e5)
    model.train()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)(model(x), y) * len(x)
    oracles.assert_close(float(evidence.detach()), post.log_evidence, DOUBLE, condition=1e5)


def test_above_eight_hundred_rows_inside_the_setting():
    net, x, z = network(), data(850), data(5, 1)
    y = torch.sin(x.sum(1))
    want = jacana.TangentGP(net, mean="zero").condition(x, y, noise_std=0.1).predict(z)
    kernel = Kernel(net)
    model = Model(x, y, gaussian(0.1), gpytorch.means.ZeroMean(), kernel).double().eval()
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(900):
        found = model(z)
        oracles.assert_close(found.mean, want.mean, DOUBLE, condition=1e7)
    with pytest.warns(UserWarning, match="max_cholesky_size"):
        kernel(x).to_dense()
    kernel(x).to_dense()  # once


def test_several_outputs():
    net, x, z = network(2), data(12), data(3, 1)
    y = torch.stack([x[:, 0].sin(), x[:, 1].cos()], 1)
    post = jacana.TangentGP(net).condition(x, y, noise_std=0.3)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2, has_task_noise=False)
    likelihood.noise = 0.09
    model = Multitask(x, y, likelihood, jacana.NetworkMean(net), Kernel(net)).double().eval()
    likelihood.noise = torch.tensor(0.09, dtype=DOUBLE)
    with torch.no_grad():
        found = model(z)
    oracles.assert_close(found.mean, post.predict(z).mean, DOUBLE, condition=1e5)
    oracles.assert_close(found.covariance_matrix, post.predict(z).covariance, DOUBLE, condition=1e6)


def test_a_sum_of_scaled_kernels_trains_and_leaves_the_network_alone():
    net, x = network(), data(30)
    before = oracles.Snapshot(net)
    y = torch.sin(2 * x[:, 0])
    kernel = Scale(Kernel(net, prior_std="layers")) + Scale(RBF())
    model = Model(x, y, gaussian(0.3), gpytorch.means.ConstantMean(), kernel).double()
    names = dict(model.named_parameters())
    assert names["covar_module.kernels.0.base_kernel.raw_prior_std"].shape == (3,)
    assert not any("weight" in name for name in names)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -mll(model(x), y)
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    before.assert_unchanged()


def test_gradients_of_prior_scales_are_those_of_differences():
    kernel, x = Kernel(network(), prior_std="layers").double(), data(5)
    weights = data(25, 4)[:, :1].view(5, 5)

    def value():
        return (weights * kernel(x).to_dense()).sum()

    (slope,) = torch.autograd.grad(value(), kernel.raw_prior_std)
    for i in range(3):
        found = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                kernel.raw_prior_std[i] += step
                found.append(value())
                kernel.raw_prior_std[i] -= step
        oracles.assert_close(slope[i], (found[0] - found[1]) / 2e-5, DOUBLE, scale=100, factor=1e6)


def test_gradients_with_respect_to_inputs():
    net, z = network(), data(3, 1)
    kernel, mean = Kernel(net, prior_std="layers"), jacana.NetworkMean(net)
    x = data(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel(x, z).to_dense(), (x,))
    assert torch.autograd.gradcheck(lambda x: kernel(x).to_dense(), (x,))
    assert torch.autograd.gradcheck(lambda x: kernel(x, diag=True), (x,))
    assert torch.autograd.gradcheck(mean, (x,))


def test_weights_are_hyper_parameters_where_it_is_asked():
    net, x = network(), data(4)
    kernel = Kernel(net, learn_weights=True).double()
    assert len(kernel.weights) == 6
    kernel(x).to_dense().sum().backward()
    assert all(weight.grad is not None for weight in kernel.weights[:-1])  # the last bias is in no gradient
    with torch.no_grad():
        kernel.weights[0].mul_(2.0)
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed[0].weight.mul_(2.0)
    J = oracles.jacobian(changed, x)
    oracles.assert_close(kernel(x).to_dense(), J @ J.T, DOUBLE, scale=100)
    with torch.no_grad():
        oracles.assert_close(kernel(x).to_dense(), J @ J.T, DOUBLE, scale=100)


def test_state_is_saved_and_loaded():
    kernel, other = Kernel(network(), prior_std="layers"), Kernel(network(), prior_std="layers")
    kernel.prior_std = torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE)
    other.load_state_dict(kernel.state_dict())
    torch.testing.assert_close(other.prior_std, torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE))
    torch.testing.assert_close(copy.deepcopy(kernel)(data(3)).to_dense(), kernel(data(3)).to_dense())


@pytest.mark.parametrize(
    "words",
    [{"prior_std": "layer"}, {"prior_std": -1.0}, {"prior_std": {"none": 1.0}}, {"input_shape": (2, -1)},
     {"batch_shape": torch.Size([2])}],
)  # fmt: skip
def test_options_are_checked(words):
    with pytest.raises(jacana.errors.InvalidOption, match=next(iter(words))):
        Kernel(network(), **words)


def test_without_the_extra_the_rest_works_and_says_what_is_missing():
    code = (
        "import sys; sys.modules['gpytorch'] = None\n"
        "import jacana\n"
        "try:\n    jacana.NeuralTangentKernel\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "jacana[gpytorch]" in done.stdout
    with pytest.raises(AttributeError, match="nothing"):
        jacana.nothing  # noqa: B018
