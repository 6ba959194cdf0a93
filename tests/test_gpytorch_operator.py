"""The tangent kernel as an operator in GPyTorch: never formed, the same posterior, solved by our own solvers."""

from __future__ import annotations

import copy
import warnings

import gpytorch
import pytest
import torch

import jacana
from jacana.integrations.gpytorch_operator import NoisyTangentOperator, TangentOperator
from tests import oracles
from tests.test_gpytorch import DOUBLE, RBF, Kernel, Model, Multitask, Scale, data, gaussian, network

EXACT = jacana.CG(rtol=1e-10)


@pytest.fixture
def formed(monkeypatch):
    """Which dense matrices were formed between more than ten examples."""
    found = []

    def record(self):
        found.append(self.shape)
        return original(self)

    original = TangentOperator.to_dense
    monkeypatch.setattr(TangentOperator, "to_dense", record)
    return found


@pytest.fixture
def no_cholesky():
    with gpytorch.settings.max_cholesky_size(0):
        yield


@pytest.mark.parametrize("c", [1, 2])
@pytest.mark.parametrize("prior", [0.5, "layers", {"0": 0.5, "": 2.0}])
def test_products_diagonal_and_parts(c, prior):
    net, x, z = network(c), data(6), data(4, 1)
    kernel, dense = (Kernel(net, prior_std=prior, matrix_free=free).double() for free in (True, False))
    operator, want = kernel(x), dense(x).to_dense()
    assert isinstance(operator, TangentOperator)
    right = data(6 * c, 3)
    torch.testing.assert_close(operator @ right, want @ right)
    torch.testing.assert_close(operator @ right[:, 0], want @ right[:, 0])
    torch.testing.assert_close(operator.diagonal(), want.diagonal())
    torch.testing.assert_close(operator.to_dense(), want)
    torch.testing.assert_close(operator.mT.to_dense(), want.T)
    torch.testing.assert_close((3.0 * operator).to_dense(), 3.0 * want)
    torch.testing.assert_close(operator[: 2 * c, 2 * c :].to_dense(), want[: 2 * c, 2 * c :])
    torch.testing.assert_close(operator[1:5:2, :3].to_dense(), want[1:5:2, :3])
    torch.testing.assert_close(operator[2].to(DOUBLE), want[2])
    cross = kernel(x, z)
    torch.testing.assert_close(cross @ right[: 4 * c], dense(x, z).to_dense() @ right[: 4 * c])
    torch.testing.assert_close(cross.mT @ right, dense(x, z).to_dense().T @ right)
    torch.testing.assert_close(kernel(x, diag=True), want.diagonal())


def test_an_operator_gives_itself_back():
    operator = Kernel(network(), matrix_free=True).double()(data(5))
    tree, tensors = operator.representation_tree(), operator.representation()
    assert tree(*tensors) is operator
    assert len(tensors) == 1
    assert tensors[0].requires_grad
    noisy = operator.add_diagonal(torch.ones(5, dtype=DOUBLE))
    assert isinstance(noisy, NoisyTangentOperator)
    assert noisy.representation_tree()(*noisy.representation()) is noisy
    assert len(noisy.detach().representation()) == 0


def test_solves_and_determinants_with_gradients():
    net, x = network(), data(40)
    right = data(40, 3)
    values = []
    for free in (True, False):
        kernel = Kernel(net, prior_std="layers", matrix_free=free, solver=EXACT).double()
        noise = torch.full((40,), 0.3, dtype=DOUBLE, requires_grad=True)
        operator = kernel(x).add_diagonal(noise)
        with gpytorch.settings.max_cholesky_size(0 if free else 100):
            fit, determinant = operator.inv_quad_logdet(right, logdet=True)
            solved = operator.solve(right)
            (fit + (solved * right.flip(0)).sum()).backward(retain_graph=True)
            first = [kernel.raw_prior_std.grad.clone(), noise.grad.clone()]
            kernel.raw_prior_std.grad, noise.grad = None, None
            determinant.backward()
        values.append((fit, solved, *first, determinant, kernel.raw_prior_std.grad, noise.grad))
    for got, want in zip(values[0][:4], values[1][:4], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    for got, want in zip(values[0][4:], values[1][4:], strict=True):  # estimates from sixteen probes
        torch.testing.assert_close(got.sum(), want.sum(), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("mean", ["network", "zero"])
def test_an_exact_gp_is_the_tangent_gp_and_nothing_large_is_formed(mean, formed, no_cholesky):
    net, x, z = network(), data(300), data(7, 1)
    y = torch.sin(x.sum(1)) + 0.1 * data(300, 3)[:, 0]
    post = jacana.TangentGP(net, prior_std=0.7, mean=mean).condition(x, y, noise_std=0.2)
    module = jacana.NetworkMean(net) if mean == "network" else gpytorch.means.ZeroMean()
    kernel = Kernel(net, prior_std=0.7, matrix_free=True, solver=EXACT)
    model = Model(x, y, gaussian(0.2), module, kernel).double().eval()
    with torch.no_grad():
        found = model(z)
        want = post.predict(z)
        oracles.assert_close(found.mean, want.mean, DOUBLE, condition=1e9)
        oracles.assert_close(found.covariance_matrix, want.covariance, DOUBLE, condition=1e9)
    assert all(min(shape) <= 7 for shape in formed)
    model.train()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)(model(x), y) * len(x)
    assert abs(float(evidence.detach()) - post.log_evidence) < 0.5


def test_several_outputs(no_cholesky):
    net, x, z = network(2), data(12), data(3, 1)
    y = torch.stack([x[:, 0].sin(), x[:, 1].cos()], 1)
    post = jacana.TangentGP(net).condition(x, y, noise_std=0.3)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2, has_task_noise=False)
    kernel = Kernel(net, matrix_free=True, solver=EXACT)
    model = Multitask(x, y, likelihood, jacana.NetworkMean(net), kernel).double().eval()
    likelihood.noise = torch.tensor(0.09, dtype=DOUBLE)
    with torch.no_grad():
        oracles.assert_close(model(z).mean, post.predict(z).mean, DOUBLE, condition=1e9)


def test_it_trains(no_cholesky):
    net, x = network(), data(60)
    y = torch.sin(2 * x[:, 0])
    kernel = Kernel(net, prior_std="layers", matrix_free=True)
    model = Model(x, y, gaussian(0.3), gpytorch.means.ConstantMean(), kernel).double()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = -mll(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    copy.deepcopy(model)


def test_in_sums_and_products_it_is_gpytorch_that_solves():
    net, x = network(), data(50)
    y = torch.sin(2 * x[:, 0])
    sums = [Scale(Kernel(net, matrix_free=free)) + Scale(RBF()) for free in (True, False)]
    means = []
    for kernel in sums:
        model = Model(x, y, gaussian(0.3), gpytorch.means.ZeroMean(), kernel).double().eval()
        with torch.no_grad(), gpytorch.settings.max_cholesky_size(100):
            means.append(model(data(5, 1)).mean)
    torch.testing.assert_close(*means, rtol=1e-6, atol=1e-8)


def test_small_models_have_exact_evidence_and_gradients():
    slopes = []
    for free in (True, False):
        kernel = Kernel(network(), prior_std="layers", matrix_free=free).double()
        model = Model(data(40), torch.sin(data(40).sum(1)), gaussian(0.1), gpytorch.means.ZeroMean(), kernel)
        model = model.double()
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        mll(model(data(40)), torch.sin(data(40).sum(1))).backward()
        slopes.append(kernel.raw_prior_std.grad)
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-9)


def test_gradients_average_out():
    """What probes cannot tell at once, many evaluations do: their mean is the exact gradient."""
    kernel, dense = (Kernel(network(), matrix_free=free).double() for free in (True, False))
    x = data(50)
    noise = torch.full((50,), 0.1, dtype=DOUBLE)
    with gpytorch.settings.max_cholesky_size(100):
        (want,) = torch.autograd.grad(dense(x).add_diagonal(noise).logdet(), dense.raw_prior_std)
    with gpytorch.settings.max_cholesky_size(0):
        drawn = []
        for _ in range(30):
            determinant = kernel(x).add_diagonal(noise).inv_quad_logdet(logdet=True)[1]
            drawn.append(torch.autograd.grad(determinant, kernel.raw_prior_std)[0])
    drawn = torch.stack(drawn)
    assert float(drawn.std()) > 0.0
    assert abs(float(drawn.mean() - want)) < 5 * float(drawn.std()) / 30**0.5
    copy.deepcopy(kernel)(x)


def test_an_operator_in_a_sum_warns():
    x = data(30)
    with gpytorch.settings.max_cholesky_size(10):
        for kernel in (
            Scale(Kernel(network(), matrix_free=True)) + Scale(RBF()),
            Kernel(network(), matrix_free=True) + RBF(),
        ):
            with pytest.warns(UserWarning, match="max_cholesky_size"):
                kernel.double()(x).evaluate_kernel()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Kernel(network(), matrix_free=True).double()(x).add_diagonal(torch.ones(30, dtype=DOUBLE))


def test_size_decides(monkeypatch):
    kernel, x = Kernel(network()).double(), data(6)
    assert not isinstance(kernel(x).evaluate_kernel(), TangentOperator)
    monkeypatch.setattr("jacana.integrations.gpytorch.fits", lambda *_: False)
    assert isinstance(kernel(x), TangentOperator)


def test_options_are_checked():
    with pytest.raises(jacana.errors.InvalidOption, match="matrix_free"):
        Kernel(network(), matrix_free=True, learn_weights=True)
