"""Traces, log-determinants, eigenpairs and similarities from products, against dense linear algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

import jacana
from jacana.operators import Operator
from tests import oracles

DOUBLE = torch.float64


class Dense(Operator):
    """A matrix as an operator that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.products = matrix, 0

    @property
    def shape(self):
        return self.matrix.shape

    @property
    def dtype(self):
        return self.matrix.dtype

    @property
    def device(self):
        return self.matrix.device

    def times(self, matrix):
        self.products += matrix.shape[1]
        return self.matrix @ matrix

    def transposed_times(self, matrix):
        return self.matrix.T @ matrix


def symmetric(values, seed=0):
    values = torch.as_tensor(values, dtype=DOUBLE)
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=DOUBLE)).Q
    return (Q * values) @ Q.T


DECAYS = {
    "fast": 10.0 ** torch.linspace(2, -8, 60, dtype=DOUBLE),
    "slow": torch.linspace(3, 1, 60, dtype=DOUBLE),
    "both signs": torch.linspace(-3, 5, 60, dtype=DOUBLE),
    "step": torch.cat([torch.full((5,), 100.0), torch.full((55,), 0.01)]).double(),
}


# Traces -------------------------------------------------------------------------------------------


def by_definition(A, omega):
    """XTrace as it is defined: one basis for each left-out column, by its own factorisation."""
    n, m = omega.shape
    found = []
    for i in range(m):
        kept = [j for j in range(m) if j != i]
        Q = np.linalg.qr(A @ omega[:, kept])[0]
        rest = omega[:, i] - Q @ (Q.T @ omega[:, i])
        rest *= math.sqrt((n - m + 1) / (rest @ rest))
        found.append(np.trace(Q.T @ A @ Q) + rest @ A @ rest)
    return np.array(found)


@pytest.mark.parametrize("values", DECAYS.values(), ids=DECAYS)
def test_trace_is_xtrace(values):
    A = symmetric(values) + 0.1 * torch.tril(torch.ones(60, 60, dtype=DOUBLE), -1)  # it need not be symmetric
    operator = Dense(A)
    got = jacana.estimate_trace(operator, 20, generator=torch.Generator().manual_seed(3))
    omega = torch.randn(60, 10, generator=torch.Generator().manual_seed(3), dtype=DOUBLE).numpy()
    omega *= math.sqrt(60) / np.linalg.norm(omega, axis=0)
    want = by_definition(A.numpy(), omega)
    oracles.assert_close(got.value, want.mean(), DOUBLE, scale=1e4)
    oracles.assert_close(got.std_error, want.std(ddof=1) / math.sqrt(10), DOUBLE, scale=1e4)
    assert got.products == operator.products == 20


@pytest.mark.parametrize("values", DECAYS.values(), ids=DECAYS)
def test_trace_has_no_bias_and_an_honest_error(values):
    A = Dense(symmetric(values))
    found = [jacana.estimate_trace(A, 16, generator=torch.Generator().manual_seed(s)) for s in range(400)]
    off = np.array([one.value for one in found]) - float(values.sum())
    assert abs(off.mean()) <= 4.5 * off.std() / math.sqrt(400) + 1e-9
    stated = math.sqrt(np.mean([one.std_error**2 for one in found]))
    assert 0.5 * off.std() <= stated + 1e-9
    assert stated <= 3 * off.std() + 1e-9


def test_trace_of_low_rank_and_of_small_matrices_is_exact():
    low = Dense(symmetric([3.0, 2.0, 1.0] + [0.0] * 57))
    found = jacana.estimate_trace(low, 10)
    oracles.assert_close(found.value, 6.0, DOUBLE, factor=1e4)
    assert found.std_error <= 1e-9
    small = jacana.estimate_trace(Dense(symmetric(range(6))), 60)
    oracles.assert_close(small.value, 15.0, DOUBLE)
    assert small.std_error == 0.0
    assert jacana.estimate_trace(Dense(torch.zeros(50, 50, dtype=DOUBLE)), 6).value == 0.0


# Log-determinants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fast", "slow", "step"])
def test_log_determinants(name):
    A = symmetric(DECAYS[name])
    shift = 0.05
    want = float(torch.logdet(A + shift * torch.eye(60, dtype=DOUBLE)))
    found = [
        jacana.estimate_log_determinant(Dense(A), shift, generator=torch.Generator().manual_seed(s)) for s in range(40)
    ]
    off = np.array([one.value for one in found]) - want
    assert abs(off.mean()) <= 4.5 * off.std() / math.sqrt(40) + 1e-9
    stated = math.sqrt(np.mean([one.std_error**2 for one in found]))
    assert 0.6 * off.std() <= stated <= 1.7 * off.std() + 1e-9


def test_log_determinants_that_are_none():
    with pytest.raises(jacana.errors.InvalidOption, match="positive"):
        jacana.estimate_log_determinant(Dense(symmetric(DECAYS["both signs"])), 0.1)
    for words in ({"shift": -1.0}, {"n_probes": 1}, {"n_steps": 0}):
        with pytest.raises(jacana.errors.InvalidOption):
            jacana.estimate_log_determinant(Dense(torch.eye(3, dtype=DOUBLE)), **words)


# Eigenpairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("k", [1, 4, 60])
def test_eigenpairs_are_those_of_the_dense_matrix(values, k):
    A = symmetric(values)
    operator = Dense(A)
    found = jacana.top_eigenpairs(operator, k, rtol=1e-10)
    want = torch.linalg.eigvalsh(A).flip(0)[:k]
    oracles.assert_close(found.values, want, DOUBLE, scale=100, factor=1e5)
    oracles.assert_close(found.vectors.T @ found.vectors, np.eye(k), DOUBLE, factor=1e3)
    residual = (A @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert bool((residual <= found.residuals + 1e-8).all())
    assert found.products == operator.products - 1 <= 60  # one to see that it is symmetric


def test_an_eigenvalue_that_is_several_comes_as_often():
    found = jacana.top_eigenpairs(Dense(torch.diag(torch.tensor([5.0, 5, 5, 1, 1])).double()), 4)
    oracles.assert_close(found.values, [5.0, 5.0, 5.0, 1.0], DOUBLE, factor=1e4)


def test_eigenpairs_of_a_fisher_in_single_precision():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 3)), torch.randn(40, 2)
    fisher = jacana.Fisher(net, x, jacana.Categorical())
    found = jacana.top_eigenpairs(fisher, 5)
    J = oracles.jacobian(net, x)
    want = np.linalg.eigvalsh(oracles.gauss_newton(J, oracles.curvature("categorical", oracles.outputs(net, x))))
    oracles.assert_close(found.values, want[::-1][:5], torch.float32, factor=1e3)


def test_eigenpairs_wants_a_square_operator_and_a_number():
    with pytest.raises(jacana.errors.InvalidData, match="square"):
        jacana.top_eigenpairs(Dense(torch.ones(3, 4, dtype=DOUBLE)), 1)
    for k in (0, 4):
        with pytest.raises(jacana.errors.InvalidOption, match="k"):
            jacana.top_eigenpairs(Dense(torch.eye(3, dtype=DOUBLE)), k)


# Similarity ---------------------------------------------------------------------------------------


def network(seed, c=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, c)).double()


def data(n, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def fidelity(A, B):
    root = scipy.linalg.sqrtm(A).real
    return np.trace(scipy.linalg.sqrtm(root @ B @ root).real) / math.sqrt(np.trace(A) * np.trace(B))


def cosine(A, B):
    return np.sum(A * B) / (np.linalg.norm(A) * np.linalg.norm(B))


def test_tasks_are_compared_by_their_fisher_matrices():
    net = network(0)
    J1, J2 = oracles.jacobian(net, data(9)), oracles.jacobian(net, data(6, 1))
    found = jacana.compare_tasks(net, data(9), data(6, 1))
    oracles.assert_close(found.cosine, cosine(J1.T @ J1, J2.T @ J2), DOUBLE)
    oracles.assert_close(found.bures, fidelity(J1.T @ J1, J2.T @ J2), DOUBLE, factor=1e9)
    of_layer = jacana.compare_tasks(net, data(9), data(6, 1), layers=True)["2"]
    oracles.assert_close(of_layer.cosine, cosine(J1[:, 21:].T @ J1[:, 21:], J2[:, 21:].T @ J2[:, 21:]), DOUBLE)
    assert 0 < found.bures < 1


def test_networks_are_compared_by_their_kernels():
    a, b, x = network(0), network(1), data(8)
    K1, K2 = (J @ J.T for J in (oracles.jacobian(net, x) for net in (a, b)))
    C = np.eye(16) - 1 / 16
    found = jacana.compare_networks(a, b, x)
    oracles.assert_close(found.cosine, cosine(K1, K2), DOUBLE)
    oracles.assert_close(found.cka, cosine(C @ K1 @ C, C @ K2 @ C), DOUBLE)
    oracles.assert_close(found.bures, fidelity(K1, K2), DOUBLE, factor=1e9)
    same = jacana.compare_networks(a, a, x, layers=True)
    assert list(same) == ["0", "2"]
    for one in same.values():
        oracles.assert_close([one.cosine, one.cka, one.bures], [1.0, 1.0, 1.0], DOUBLE, factor=1e6)
    with pytest.raises(jacana.errors.InvalidData, match="outputs"):
        jacana.compare_networks(a, network(0, c=3), x)
    with pytest.raises(jacana.errors.InvalidOption, match="outputs"):
        jacana.compare_networks(a, b, x, outputs="some")
    traces = [np.einsum("nkmk->nm", K.reshape(8, 2, 8, 2)) for K in (K1, K2)]
    oracles.assert_close(jacana.compare_networks(a, b, x, outputs="trace").cosine, cosine(*traces), DOUBLE)


def test_nothing_has_nothing_in_common():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    found = jacana.compare_tasks(net, data(4), data(4, 1), layers=True)
    assert found["0"] == jacana.Similarity(0.0, 0.0)
    assert found["2"].cosine == pytest.approx(1.0)


def test_what_is_not_symmetric_is_refused():
    A = Dense(torch.triu(torch.ones(5, 5, dtype=DOUBLE)))
    for call in (lambda: jacana.top_eigenpairs(A, 2), lambda: jacana.estimate_log_determinant(A, 1.0)):
        with pytest.raises(jacana.errors.InvalidData, match="symmetric"):
            call()


def test_trace_in_single_precision_claims_no_more_than_it_knows():
    values = torch.full((30_000,), 8e-5)
    values[:10] = 1.0

    class Diagonal(Dense):
        @property
        def shape(self):
            return torch.Size((30_000, 30_000))

        def times(self, matrix):
            return self.matrix[:, None] * matrix

    found = jacana.estimate_trace(Diagonal(values), 60)
    want = float(values.double().sum())
    assert abs(found.value - want) <= max(5 * found.std_error, 1e-4 * want)
