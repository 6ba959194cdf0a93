"""J and K as operators: products, transposes, sums, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from tests import oracles, zoo

DOUBLE = torch.float64
ZOO = pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)


def kernel(J1, J2, s):
    return (J1 * s**2) @ J2.T


@ZOO
def test_kernel_is_the_dense_product(case, dtype):
    """K = J S Jᵀ with S of one scale, symmetric and positive semidefinite."""
    net, x = case.net(dtype), case.x(4, dtype)
    lin = jacana.linearize(net, **case.reading)
    J = case.jacobian(net, x)
    K = jacana.NTK(lin, x, prior_std=0.7)
    want = kernel(J, J, np.full(J.shape[1], 0.7))
    assert tuple(K.shape) == want.shape
    dense = K.to_dense()
    oracles.assert_close(dense, want, dtype, scale=0.49 * (np.abs(J) @ np.abs(J).T).max())
    oracles.assert_close(K.diagonal(), np.diag(want), dtype)
    assert torch.equal(dense, dense.T)
    least = torch.linalg.eigvalsh(dense.double()).min().item()
    assert least >= -64 * oracles.eps(dtype) * want.trace()


@ZOO
def test_cross_kernels(case, dtype):
    net, x1, x2 = case.net(dtype), case.x(3, dtype), case.x(2, dtype)
    lin = jacana.linearize(net, **case.reading)
    J1, J2 = case.jacobian(net, x1), case.jacobian(net, x2)
    K = jacana.NTK(lin, x1, x2)
    want = J1 @ J2.T
    assert tuple(K.shape) == want.shape
    scale = (np.abs(J1) @ np.abs(J2).T).max()
    oracles.assert_close(K.to_dense(), want, dtype, scale=scale)
    oracles.assert_close(K.T.to_dense(), want.T, dtype, scale=scale)
    u = np.random.default_rng(0).normal(size=(want.shape[1], 2))
    oracles.assert_close(K @ torch.from_numpy(u).to(dtype), want @ u, dtype, scale=scale * np.abs(u).sum())
    w = np.random.default_rng(1).normal(size=want.shape[0])
    oracles.assert_close(K.T @ torch.from_numpy(w).to(dtype), want.T @ w, dtype, scale=scale * np.abs(w).sum())


@ZOO
def test_jacobian_operator(case, dtype):
    net, x = case.net(dtype), case.x(3, dtype)
    lin = jacana.linearize(net, **case.reading)
    want = case.jacobian(net, x)
    J = jacana.Jacobian(lin, x)
    rng = np.random.default_rng(0)
    v, V = rng.normal(size=want.shape[1]), rng.normal(size=(want.shape[1], 2))
    u, U = rng.normal(size=want.shape[0]), rng.normal(size=(want.shape[0], 2))
    size = np.abs(want).max() * 4 * want.shape[1]
    assert tuple(J.shape) == want.shape
    assert tuple(J.T.shape) == want.T.shape
    for operator, dense, vector, matrix in ((J, want, v, V), (J.T, want.T, u, U)):
        oracles.assert_close(operator @ torch.from_numpy(vector).to(dtype), dense @ vector, dtype, scale=size)
        oracles.assert_close(operator @ torch.from_numpy(matrix).to(dtype), dense @ matrix, dtype, scale=size)
        oracles.assert_close(operator.to_dense(), dense, dtype)


def test_the_network_itself_serves_in_place_of_its_linearization():
    case = zoo.BY_NAME["mlp"]
    net, x = case.net(), case.x(3)
    J = case.jacobian(net, x)
    oracles.assert_close(jacana.Jacobian(net, x).to_dense(), J, DOUBLE)
    oracles.assert_close(jacana.NTK(net, x).to_dense(), J @ J.T, DOUBLE)


PRIORS = {
    "one": (1.3, None),
    "by layer": ({"first": 0.2, "second": 1.0, "head": 3.0}, None),
    "the longest prefix wins": ({"": 0.5, "first": 0.2, "first.bias": 2.0}, None),
    "a full name": ({"first.weight": 0.3, "first.bias": 0.6, "second": 1.0, "head": 2.0}, None),
}


@pytest.mark.parametrize("prior", [value for value, _ in PRIORS.values()], ids=PRIORS)
def test_kernel_includes_the_prior(prior, dtype):
    case = zoo.BY_NAME["residual"]
    net, x1, x2 = case.net(dtype), case.x(3, dtype), case.x(4, dtype)
    s = oracles.prior_deviations(net, prior)
    J1, J2 = case.jacobian(net, x1), case.jacobian(net, x2)
    for K, want in (
        (jacana.NTK(net, x1, prior_std=prior), kernel(J1, J1, s)),
        (jacana.NTK(net, x1, x2, prior_std=prior), kernel(J1, J2, s)),
    ):
        oracles.assert_close(K.to_dense(), want, dtype, scale=np.abs(kernel(J1, J1, s)).max())


def test_kernel_of_a_selection_of_parameters():
    case = zoo.BY_NAME["residual"]
    net, x = case.net(), case.x(3)
    J = oracles.jacobian(net, x, ["first.bias", "head.weight", "head.bias"])
    lin = jacana.linearize(net, parameters=["head", "first.bias"])
    s = oracles.prior_deviations(net, {"head": 2.0, "first": 0.5}, ["first.bias", "head.weight", "head.bias"])
    oracles.assert_close(jacana.NTK(lin, x, prior_std={"head": 2.0, "first": 0.5}).to_dense(), kernel(J, J, s), DOUBLE)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_kernels_do_not_depend_on_batch_size(batch_size):
    for name in ("conv, BatchNorm, in-place ReLU", "tied embedding and head", "GRU"):
        case = zoo.BY_NAME[name]
        net, x1, x2 = case.net(), case.x(5), case.x(3)
        J1, J2 = case.jacobian(net, x1), case.jacobian(net, x2)
        lin = jacana.linearize(net, batch_size=batch_size)
        scale = (np.abs(J1) @ np.abs(J1).T).max()
        oracles.assert_close(jacana.NTK(lin, x1, x2).to_dense(), J1 @ J2.T, DOUBLE, scale=scale)
        oracles.assert_close(jacana.NTK(lin, x1).to_dense(), J1 @ J1.T, DOUBLE, scale=scale)
        oracles.assert_close(jacana.NTK(lin, x1).diagonal(), np.diag(J1 @ J1.T), DOUBLE, scale=scale)
        oracles.assert_close(jacana.Jacobian(lin, x1).to_dense(), J1, DOUBLE)


def test_kernels_of_loaders(generators_untouched):
    case = zoo.BY_NAME["mlp"]
    net, x1, x2 = case.net(), case.x(5), case.x(3)
    J1, J2 = case.jacobian(net, x1), case.jacobian(net, x2)
    one, two = DataLoader(TensorDataset(x1, torch.zeros(5)), batch_size=2), DataLoader(x2, batch_size=2)
    oracles.assert_close(jacana.NTK(net, one, two).to_dense(), J1 @ J2.T, DOUBLE)
    oracles.assert_close(jacana.NTK(net, one, x2).to_dense(), J1 @ J2.T, DOUBLE)
    oracles.assert_close(jacana.NTK(net, one).to_dense(), J1 @ J1.T, DOUBLE)
    oracles.assert_close(jacana.Jacobian(net, one) @ torch.ones(J1.shape[1], dtype=DOUBLE), J1.sum(1), DOUBLE, scale=10)


def test_many_positions_and_few_positions():
    """Both sides of the choice between contracting positions and forming per-example gradients."""
    wide = zoo.Case("wide", lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Conv2d(3, 2, 6)), zoo.images(2, 6))
    layers = nn.Conv2d(9, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)
    deep = zoo.Case("deep", lambda: nn.Sequential(*layers), zoo.images(9, 3))
    for case in (wide, deep):
        net, x = case.net(), case.x(3)
        flat = {"forward": lambda net, x: net(x).flatten(1)}
        J = oracles.jacobian(net, x, **flat)
        K = jacana.NTK(jacana.linearize(net, **flat), x).to_dense()
        oracles.assert_close(K, J @ J.T, DOUBLE)


# Algebra ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces():
    case = zoo.BY_NAME["mlp"]
    net, x1, x2 = case.net(), case.x(3), case.x(4)
    lin = jacana.linearize(net)
    J1, J2 = case.jacobian(net, x1), case.jacobian(net, x2)
    return {
        "A": (jacana.NTK(lin, x1, x2), J1 @ J2.T),
        "B": (jacana.NTK(lin, x1, x2, prior_std={"0": 0.5, "2": 2.0}), None),
        "S": (jacana.NTK(lin, x1), J1 @ J1.T),
        "J": (jacana.Jacobian(lin, x1), J1),
    }


EXPRESSIONS = {
    "A + B": lambda o: o["A"] + o["B"],
    "A - B": lambda o: o["A"] - o["B"],
    "2 A": lambda o: 2.0 * o["A"],
    "-A": lambda o: -o["A"],
    "(A + 2 B)ᵀ": lambda o: (o["A"] + 2.0 * o["B"]).T,
    "Aᵀᵀ": lambda o: o["A"].T.T,
    "2 J - J": lambda o: 2.0 * o["J"] - o["J"],
    "(-J)ᵀ": lambda o: (-o["J"]).T,
    "S + S": lambda o: o["S"] + o["S"],
    "3 S - S": lambda o: 3.0 * o["S"] - o["S"],
    "A - A": lambda o: o["A"] - o["A"],
    "0 A": lambda o: 0.0 * o["A"],
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_sums_and_scalings_are_those_of_dense_matrices(pieces, name):
    operators = {key: operator for key, (operator, _) in pieces.items()}
    dense = {key: operator.to_dense() for key, operator in operators.items()}
    got, want = EXPRESSIONS[name](operators), EXPRESSIONS[name](dense)
    assert tuple(got.shape) == tuple(want.shape)
    oracles.assert_close(got.to_dense(), want, DOUBLE, scale=10)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(want.shape[1], generator=generator, dtype=DOUBLE)
    V = torch.randn(want.shape[1], 3, generator=generator, dtype=DOUBLE)
    w = torch.randn(want.shape[0], generator=generator, dtype=DOUBLE)
    oracles.assert_close(got @ v, want @ v, DOUBLE, scale=100)
    oracles.assert_close(got @ V, want @ V, DOUBLE, scale=100)
    oracles.assert_close(got.T @ w, want.T @ w, DOUBLE, scale=100)
    oracles.assert_close(got.T.to_dense(), want.T, DOUBLE, scale=10)
    if want.shape[0] == want.shape[1]:
        oracles.assert_close(got.diagonal(), want.diagonal(), DOUBLE, scale=10)


def test_dense_pieces_are_right(pieces):
    for operator, want in pieces.values():
        if want is not None:
            oracles.assert_close(operator.to_dense(), want, DOUBLE)


def test_whole_numbers_scale_too(pieces, as_users_run_it):
    K, dense = pieces["S"]
    oracles.assert_close((3 * K).to_dense(), 3 * dense, DOUBLE)


def test_zero_and_no_right_hand_sides(pieces):
    for operator, _ in pieces.values():
        rows, columns = operator.shape
        assert not (operator @ torch.zeros(columns, dtype=DOUBLE)).any()
        assert (operator @ torch.zeros(columns, 0, dtype=DOUBLE)).shape == (rows, 0)
        assert (operator.T @ torch.zeros(rows, 0, dtype=DOUBLE)).shape == (columns, 0)


@given(seed=st.integers(0, 10_000), scale=st.floats(-3, 3), columns=st.integers(1, 3))
def test_products_are_linear_and_adjoint(seed, scale, columns):
    """A (a v + w) = a A v + A w and ⟨w, A v⟩ = ⟨Aᵀ w, v⟩ for A a cross-kernel."""
    case = zoo.BY_NAME["mlp"]
    A = jacana.NTK(case.net(), case.x(3), case.x(2), prior_std=0.6)
    generator = torch.Generator().manual_seed(seed)
    v, w = torch.randn(2, 4, columns, generator=generator, dtype=DOUBLE)
    u = torch.randn(6, columns, generator=generator, dtype=DOUBLE)
    size = A.to_dense().abs().sum().item() * (1 + abs(scale)) * 4
    oracles.assert_close(A @ (scale * v + w), scale * (A @ v) + A @ w, DOUBLE, scale=size)
    oracles.assert_close((u * (A @ v)).sum(), ((A.T @ u) * v).sum(), DOUBLE, scale=size * 20)


@pytest.mark.parametrize("n", [1, 2])
def test_one_example_and_one_output(n, dtype):
    case = zoo.BY_NAME["one output, (n,)"]
    net, x = case.net(dtype), case.x(n, dtype)
    J = case.jacobian(net, x)
    K = jacana.NTK(net, x)
    assert tuple(K.shape) == (n, n)
    oracles.assert_close(K.to_dense(), J @ J.T, dtype)
    oracles.assert_close(K @ torch.ones(n, dtype=dtype), (J @ J.T).sum(1), dtype, scale=4 * (J @ J.T).max())
