"""Laws over every operator there is: each concrete class of `jacana.operators`, found by looking, not by a list.

A new operator that no example below produces makes `test_every_operator_is_on_trial` fail: add its example.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil

import pytest
import torch

import jacana
import jacana.operators
from jacana.linearization import Prior, Products
from tests import oracles, zoo

DOUBLE = torch.float64


@functools.cache
def pieces():
    case = zoo.BY_NAME["residual"]
    net, x1, x2 = case.net(), case.x(4), case.x(3)
    lin = jacana.linearize(net, parameters=["second", "head"])
    scales = {"second": 0.5, "head": 2.0}
    at = torch.zeros(4, 2, dtype=DOUBLE)
    prior = Prior.of(lin.network, scales)
    fisher = jacana.operators.WhitenedFisher(Products(lin, x1), prior, jacana.Gaussian([0.5, 2.0]).curvature_root(at))
    return {
        "W": fisher,
        "J": jacana.Jacobian(lin, x1),
        "K": jacana.NTK(lin, x1, prior_std=scales),
        "C": jacana.NTK(lin, x1, x2, prior_std=scales),
        "D": jacana.NTK(lin, x1, x2),
        "F": jacana.Fisher(lin, x1, jacana.Gaussian([0.5, 2.0])),
        "E": jacana.EmpiricalFisher(lin, x1, torch.linspace(-1, 1, 8, dtype=DOUBLE).view(4, 2), jacana.Gaussian(0.5)),
    }


EXAMPLES = {
    "Jacobian": lambda o: o["J"],
    "kernel": lambda o: o["K"],
    "cross-kernel": lambda o: o["C"],
    "transposed Jacobian": lambda o: o["J"].T,
    "transposed kernel": lambda o: o["K"].T,
    "transposed cross-kernel": lambda o: o["C"].T,
    "sum": lambda o: o["C"] + o["D"],
    "difference": lambda o: o["C"] - o["D"],
    "scaled": lambda o: 2.5 * o["K"],
    "negative": lambda o: -o["J"],
    "sum of sums": lambda o: (o["C"] + o["D"]) + 0.5 * (o["C"] - o["D"]),
    "transposed sum": lambda o: (o["C"] + 3.0 * o["D"]).T,
    "Fisher": lambda o: o["F"],
    "empirical Fisher": lambda o: o["E"],
    "sum of Fishers": lambda o: o["F"] + 2.0 * o["E"],
    "product": lambda o: o["J"].T @ o["J"],
    "transposed product": lambda o: (o["J"] @ o["F"]).T,
    "nothing left": lambda o: o["K"] - o["K"],
    "whitened Fisher": lambda o: o["W"],
    "root of a Fisher": lambda o: o["W"].root(torch.tensor([0, 2])),
    "root of a kernel": lambda o: next(root for _, root in o["K"].roots()),
    "covariance": lambda o: jacana.operators.Covariance(o["K"], torch.linspace(0.1, 2.0, 8, dtype=DOUBLE)),
}
OPERATORS = pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)


def base() -> type:
    """The class that every operator of the package descends from."""
    ours = [kind for kind in jacana.Jacobian.__mro__ if kind.__module__.startswith("jacana")]
    return ours[-1]


def concrete(kind: type) -> set[type]:
    found = set() if inspect.isabstract(kind) else {kind}
    return found.union(*(concrete(child) for child in kind.__subclasses__()))


def test_every_operator_is_on_trial():
    for module in pkgutil.walk_packages(jacana.operators.__path__, "jacana.operators."):
        importlib.import_module(module.name)
    tried = {ancestor for make in EXAMPLES.values() for ancestor in type(make(pieces())).__mro__}
    ours = {kind for kind in concrete(base()) if kind.__module__.startswith("jacana")}
    assert jacana.Jacobian in ours
    assert jacana.NTK in ours
    assert ours <= tried, f"no example of {sorted(kind.__name__ for kind in ours - tried)}"


@OPERATORS
def test_products_are_those_of_the_dense_matrix(make):
    A = make(pieces())
    dense = A.to_dense()
    rows, columns = A.shape
    assert tuple(dense.shape) == (rows, columns)
    assert dense.dtype == DOUBLE
    assert not dense.requires_grad
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(columns, 3, generator=generator, dtype=DOUBLE)
    W = torch.randn(rows, 3, generator=generator, dtype=DOUBLE)
    oracles.assert_close(A @ V, dense @ V, DOUBLE, scale=100)
    oracles.assert_close(A @ V[:, 0], dense @ V[:, 0], DOUBLE, scale=100)
    oracles.assert_close(A.T @ W, dense.T @ W, DOUBLE, scale=100)
    oracles.assert_close(A.T @ W[:, 0], dense.T @ W[:, 0], DOUBLE, scale=100)


@OPERATORS
def test_products_are_adjoint(make):
    A = make(pieces())
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(A.shape[1], generator=generator, dtype=DOUBLE)
    w = torch.randn(A.shape[0], generator=generator, dtype=DOUBLE)
    oracles.assert_close(torch.dot(w, A @ v), torch.dot(A.T @ w, v), DOUBLE, scale=1e3)


@OPERATORS
def test_products_are_linear(make):
    A = make(pieces())
    v, w = torch.randn(2, A.shape[1], generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    oracles.assert_close(A @ (v - 2 * w), (A @ v) - 2 * (A @ w), DOUBLE, scale=1e3)
    assert not (A @ torch.zeros_like(v)).any()
    assert (A @ torch.zeros(A.shape[1], 0, dtype=DOUBLE)).shape == (A.shape[0], 0)


@OPERATORS
def test_transposed_twice_it_is_itself(make):
    A = make(pieces())
    assert tuple(A.T.shape) == tuple(reversed(tuple(A.shape)))
    oracles.assert_close(A.T.to_dense(), A.to_dense().T, DOUBLE, scale=10)
    oracles.assert_close(A.T.T.to_dense(), A.to_dense(), DOUBLE, scale=10)


@OPERATORS
def test_diagonal_is_that_of_the_dense_matrix(make):
    A = make(pieces())
    if A.shape[0] == A.shape[1]:
        oracles.assert_close(A.diagonal(), A.to_dense().diagonal(), DOUBLE, scale=10)
    else:
        with pytest.raises(jacana.errors.JacanaError):
            A.diagonal()


@OPERATORS
def test_sums_and_scalings_are_operators_again(make):
    A = make(pieces())
    dense = A.to_dense()
    for got, want in ((A + A, 2 * dense), (A - 0.5 * A, dense / 2), (-A, -dense), (2.0 * (-A).T, -2 * dense.T)):
        assert isinstance(got, base())
        oracles.assert_close(got.to_dense(), want, DOUBLE, scale=10)


@OPERATORS
def test_columns_and_precise_products(make):
    A = make(pieces())
    dense = A.to_dense()
    index = torch.tensor([A.shape[1] - 1, 0, 1])
    oracles.assert_close(A.columns(index), dense[:, index], DOUBLE, scale=100)
    V = torch.randn(A.shape[1], 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    oracles.assert_close(A.precise_times(V), dense @ V, DOUBLE, scale=100)


@OPERATORS
def test_products_are_the_same_every_time(make):
    A = make(pieces())
    v = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    kept = v.clone()
    for _ in range(20):  # what is kept for long may change once to what is faster
        A @ v
    assert torch.equal(A @ v, A @ v)
    assert torch.equal(v, kept)


@OPERATORS
def test_vectors_that_do_not_fit_are_refused(make):
    A = make(pieces())
    for wrong in (torch.ones(A.shape[1] + 1, dtype=DOUBLE), torch.ones(A.shape[1] - 1, 2, dtype=DOUBLE)):
        with pytest.raises(jacana.errors.InvalidData):
            A @ wrong
