"""Nodes: moments of the normal distribution, roots of covariances that are singular, expectations in pieces."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods import Nodes
from tests import oracles

DOUBLE = torch.float64


def covariances(m, c, rank, seed=0):
    A = torch.randn(m, c, rank, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return A @ A.mT


@pytest.mark.parametrize(
    "nodes", [Nodes.standard(1), Nodes.standard(1, 7), Nodes.trapezoidal(), Nodes.standard(2), Nodes.standard(10)]
)
def test_mean_and_covariance_are_those_of_the_normal_distribution(nodes):
    z, w = nodes.nodes, nodes.weights
    assert z.dtype == w.dtype == DOUBLE
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-14)
    assert bool((w >= 0.0).all())
    oracles.assert_close(w @ z, np.zeros(z.shape[1]), DOUBLE, scale=1.0)
    oracles.assert_close((w * z.T) @ z, np.eye(z.shape[1]), DOUBLE, factor=1e3)
    oracles.assert_close(torch.einsum("q,qa,qb,qd->abd", w, z, z, z), np.zeros((z.shape[1],) * 3), DOUBLE, scale=10.0)


@pytest.mark.parametrize("degree", range(0, 20, 2))
def test_polynomials_are_integrated_exactly(degree):
    nodes = Nodes.standard(1, 10)
    got = float((nodes.weights * nodes.nodes[:, 0] ** degree).sum())
    assert got == pytest.approx(float(scipy.special.factorial2(degree - 1)) if degree else 1.0, rel=1e-12)


def test_too_few_for_a_covariance_have_the_variances():
    nodes = Nodes.standard(40, 64)
    assert nodes.nodes.shape == (64, 40)
    oracles.assert_close(nodes.nodes.mean(0), np.zeros(40), DOUBLE, scale=1.0)
    oracles.assert_close(nodes.nodes.square().mean(0), np.ones(40), DOUBLE)


def test_seeds_are_of_the_scrambling():
    assert torch.equal(Nodes.standard(3, seed=1).nodes, Nodes.standard(3, seed=1).nodes)
    assert not torch.equal(Nodes.standard(3, seed=1).nodes, Nodes.standard(3, seed=2).nodes)


def test_no_generator_of_others_is_drawn_from(generators_untouched):
    Nodes.standard(3)


def test_sobol_points_are_spread_as_the_normal_distribution():
    """Each coordinate is within a few points of the distribution, which pseudo-random ones are not."""
    for column in Nodes.standard(4, 1024).nodes.T:
        assert scipy.stats.kstest(column.numpy(), "norm").statistic < 0.01  # √n D = 0.32; a random one has 0.8


@pytest.mark.parametrize("s", [0.1, 1.0, 5.0, 20.0, 50.0])
def test_the_trapezoidal_rule_is_right_for_steep_functions(s):
    mean, covariance = torch.tensor([[0.3 * s]], dtype=DOUBLE), torch.tensor([[[s * s]]], dtype=DOUBLE)
    got = float(Nodes.trapezoidal().expect(torch.sigmoid, mean, covariance))

    def density(f):
        return scipy.special.expit(f) * scipy.stats.norm.pdf(f, 0.3 * s, s)

    cuts = [-40.0, -5.0, 0.0, 5.0, 40.0]
    edges = [-9.0 * s, *(cut for cut in cuts if abs(cut) < 9.0 * s), 9.6 * s]
    pieces = itertools.pairwise(edges)
    want = sum(scipy.integrate.quad(density, a, b, epsabs=1e-14, epsrel=1e-13)[0] for a, b in pieces)
    assert got == pytest.approx(want, abs=1e-11)


def test_gauss_and_hermites_rule_is_right_for_growing_functions():
    mean = torch.tensor([[0.5], [-2.0]], dtype=DOUBLE)
    covariance = torch.tensor([[[4.0]], [[0.25]]], dtype=DOUBLE)
    got = Nodes.standard(1).expect(torch.exp, mean, covariance)
    oracles.assert_close(got[:, 0], [math.exp(2.5), math.exp(-1.875)], DOUBLE, factor=1e3)


@pytest.mark.parametrize(("c", "rank"), [(1, 1), (3, 3), (3, 1), (4, 2), (3, 0)])
def test_values_have_the_mean_and_the_covariance_that_were_asked_for(c, rank):
    nodes = Nodes.standard(c)
    mean, covariance = torch.randn(5, c, dtype=DOUBLE), covariances(5, c, rank)
    f = nodes.at(mean, covariance)
    assert f.shape == (len(nodes.nodes), 5, c)
    oracles.assert_close(torch.einsum("q,qmc->mc", nodes.weights, f), mean, DOUBLE, factor=1e3)
    centred = f - mean
    found = torch.einsum("q,qma,qmb->mab", nodes.weights, centred, centred)
    oracles.assert_close(found, covariance, DOUBLE, scale=max(float(covariance.abs().max()), 1e-300), factor=1e4)
    if rank == 0:
        assert torch.equal(f, mean.expand_as(f))


def test_the_first_coordinate_goes_with_the_largest_eigenvalue():
    alone = Nodes(
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=DOUBLE), torch.tensor([0.5, 0.5], dtype=DOUBLE)
    )
    covariance = covariances(4, 3, 3)
    found = alone.at(torch.zeros(4, 3, dtype=DOUBLE), covariance).square().sum(2)
    values = np.linalg.eigvalsh(covariance.numpy())
    oracles.assert_close(found, values[:, [2, 0]].T, DOUBLE, factor=1e3)


def test_expectations_do_not_depend_on_the_pieces():
    mean, covariance = torch.randn(5, 3, dtype=DOUBLE), covariances(5, 3, 3)
    nodes = Nodes.standard(3)

    seen = []

    def function(f):
        seen.append(len(f))
        return torch.stack([f.sin(), f.square()], 2)

    values = function(nodes.at(mean, covariance).flatten(0, 1)).view(256, 5, 3, 2)
    want = torch.einsum("q,qmcd->mcd", nodes.weights, values)
    seen.clear()
    for chunk in (1, 100, 256, 1000, None):
        oracles.assert_close(nodes.expect(function, mean, covariance, chunk), want, DOUBLE, factor=1e3)
    assert max(seen[:256]) == 5  # one node at once: memory is as small as was asked for
    assert seen[256:259] == [500, 500, 280]


def test_single_precision_stays_single():
    mean, covariance = torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)
    got = Nodes.standard(3).expect(lambda f: f.square(), mean, covariance)
    assert got.dtype == torch.float32
    oracles.assert_close(got, np.ones((2, 3)), torch.float32)


def test_rounding_below_zero_is_nothing():
    nodes, mean = Nodes.standard(3), torch.zeros(1, 3, dtype=DOUBLE)
    covariance = covariances(1, 3, 1)
    shift = 4.0 * torch.finfo(DOUBLE).eps * float(covariance.diagonal(dim1=1, dim2=2).sum())
    values = nodes.at(mean, covariance - shift * torch.eye(3, dtype=DOUBLE))
    assert bool(torch.isfinite(values).all())


def test_covariances_that_are_none_are_refused():
    nodes, mean = Nodes.standard(2), torch.zeros(2, 2, dtype=DOUBLE)
    good = torch.eye(2, dtype=DOUBLE)
    for wrong, message in (
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=DOUBLE), "example 1"),
        (torch.tensor([[1.0, 0.0], [0.0, -1e-12]], dtype=DOUBLE), "example 1"),
        (-good, "example 1"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]], dtype=DOUBLE), "symmetric"),
        (good * math.nan, "finite"),
        (good * math.inf, "finite"),
    ):
        with pytest.raises(InvalidData, match=message):
            nodes.at(mean, torch.stack([good, wrong]))
    with pytest.raises(InvalidData, match="eigenvalue"):
        Nodes.standard(1).at(torch.zeros(1, 1, dtype=DOUBLE), -torch.ones(1, 1, 1, dtype=DOUBLE))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Nodes.standard(0),
        lambda: Nodes.standard(True),
        lambda: Nodes.standard(2.0),
        lambda: Nodes.standard(2, 100),
        lambda: Nodes.standard(2, 1),
        lambda: Nodes.standard(1, 101),
        lambda: Nodes.standard(2, seed=-1),
        lambda: Nodes.standard(30_000),
        lambda: Nodes.trapezoidal(1),
        lambda: Nodes.standard(2).at(torch.zeros(1, 3).double(), torch.eye(3).double().unsqueeze(0)),
        lambda: Nodes.standard(1).expect(torch.exp, torch.zeros(1, 1), torch.ones(1, 1, 1), 0),
    ],
)
def test_what_is_no_option_is_refused(wrong):
    with pytest.raises(InvalidOption, match="got"):
        wrong()
