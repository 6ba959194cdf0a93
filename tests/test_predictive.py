"""Class probabilities from a Gaussian latent: against dense integration, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch

import jacana
from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods import Nodes
from jacana.predictive import entropy, mutual_information
from tests import oracles

DOUBLE = torch.float64
CATEGORICAL, BERNOULLI = jacana.Categorical(), jacana.Bernoulli()
PREDICTIVES = {"probit": jacana.Probit(), "Monte Carlo": jacana.MonteCarlo(), "bridge": jacana.LaplaceBridge()}
ALL = pytest.mark.parametrize("predictive", PREDICTIVES.values(), ids=PREDICTIVES)


def latent(m, c, scale=1.0, seed=0, alike=False):
    """Means, and covariances of full rank or equal variances."""
    generator = torch.Generator().manual_seed(seed)
    mean = 1.5 * torch.randn(m, c, generator=generator, dtype=DOUBLE)
    A = torch.randn(m, c, c, generator=generator, dtype=DOUBLE)
    V = torch.eye(c, dtype=DOUBLE).expand(m, c, c) if alike else (A @ A.mT) / c
    return mean, scale**2 * V.contiguous()


def integral(function, mean, covariance, steps=81, reach=7.0):
    """E g(f) by the trapezoidal rule in every direction, (m, ...): with numpy, one example at a time."""
    c = mean.shape[1]
    line = np.linspace(-reach, reach, steps)
    z = np.stack(np.meshgrid(*[line] * c, indexing="ij"), -1).reshape(-1, c)
    weights = np.exp(-0.5 * (z**2).sum(1))
    weights /= weights.sum()
    found = []
    for m, V in zip(mean.numpy(), covariance.numpy(), strict=True):
        found.append(np.tensordot(weights, function(m + z @ np.linalg.cholesky(V).T), 1))
    return np.stack(found)


def softmax(f):
    return scipy.special.softmax(f, axis=1)


def largest(got, want):
    return float(np.abs(got.numpy() - want).max())


# Against the integral -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictive", "c", "scale", "alike", "error"),
    [
        (jacana.Probit(), 2, 4.0, False, 0.02),
        (jacana.Probit(), 3, 1.0, True, 0.03),
        (jacana.Probit(), 3, 1.0, False, 0.1),
        (jacana.Probit(), 3, 4.0, False, 0.25),
        (jacana.MonteCarlo(), 2, 1.0, False, 0.0005),
        (jacana.MonteCarlo(), 2, 4.0, False, 0.002),
        (jacana.MonteCarlo(), 3, 1.0, False, 0.001),
        (jacana.MonteCarlo(), 3, 4.0, False, 0.004),
        (jacana.MonteCarlo(8192, seed=1), 3, 4.0, False, 0.0005),
        (jacana.LaplaceBridge(), 3, 0.5, True, 0.15),
        (jacana.LaplaceBridge(), 3, 1.0, True, 0.15),
        (jacana.LaplaceBridge(), 3, 4.0, True, 0.35),
    ],
)
def test_classes_are_integrated_to_the_error_that_is_stated(predictive, c, scale, alike, error):
    mean, covariance = latent(8, c, scale, alike=alike)
    want = integral(softmax, mean, covariance)
    got = predictive.probabilities(CATEGORICAL, mean, covariance)
    assert largest(got, want) < error
    plugged = float(np.abs(softmax(mean.numpy()) - want).max())
    if isinstance(predictive, jacana.Probit | jacana.MonteCarlo):
        assert largest(got, want) < 0.6 * plugged  # better than to ignore the covariance


@pytest.mark.parametrize(("predictive", "error"), [(jacana.Probit(), 0.02), (jacana.MonteCarlo(), 1e-11)])
def test_labels_are_integrated_to_the_error_that_is_stated(predictive, error):
    mean = torch.linspace(-6, 30, 40, dtype=DOUBLE).view(20, 2)
    std = torch.cat([torch.linspace(0.1, 5, 20, dtype=DOUBLE), torch.linspace(5, 40, 20, dtype=DOUBLE)]).view(20, 2)
    correlation = torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=DOUBLE)
    covariance = std.unsqueeze(2) * correlation * std.unsqueeze(1)
    one = integral(
        scipy.special.expit, mean.view(-1, 1), covariance.diagonal(dim1=1, dim2=2).reshape(-1, 1, 1), 4001, 9.0
    )
    assert largest(predictive.probabilities(BERNOULLI, mean, covariance), one.reshape(20, 2)) < error


def test_samples_are_of_the_seed_and_as_many_as_asked_for():
    mean, covariance = latent(4, 3, 4.0)
    first = jacana.MonteCarlo(64).probabilities(CATEGORICAL, mean, covariance)
    assert torch.equal(first, jacana.MonteCarlo(64).probabilities(CATEGORICAL, mean, covariance))
    assert not torch.equal(first, jacana.MonteCarlo(64, seed=1).probabilities(CATEGORICAL, mean, covariance))
    want = integral(softmax, mean, covariance)
    errors = [
        np.mean([largest(jacana.MonteCarlo(n, s).probabilities(CATEGORICAL, mean, covariance), want) for s in range(4)])
        for n in (64, 4096)
    ]
    assert errors[1] < errors[0] / 8.0  # pseudo-random samples would give 8, these about 64


def test_probit_is_the_formula():
    mean, covariance = latent(5, 4, 2.0)
    want = []
    for m, V in zip(mean.numpy(), covariance.numpy(), strict=True):
        p = [
            1
            / sum(
                math.exp(-(m[k] - m[j]) / math.sqrt(1 + math.pi / 8 * (V[k, k] + V[j, j] - 2 * V[k, j])))
                for j in range(4)
            )
            for k in range(4)
        ]
        want.append(np.array(p) / sum(p))
    oracles.assert_close(jacana.Probit().probabilities(CATEGORICAL, mean, covariance), np.stack(want), DOUBLE)


@pytest.mark.parametrize("c", [2, 3, 6])
def test_the_bridge_is_the_formula(c):
    mean, covariance = latent(5, c, 1.5)
    want = []
    for m, V in zip(mean.numpy(), covariance.numpy(), strict=True):
        one = np.ones(c)
        S = V - V @ np.outer(one, one) @ V / (one @ V @ one)
        mu = m - V @ one * (one @ m) / (one @ V @ one)
        assert abs(mu.sum()) < 1e-9
        alpha = (1 - 2 / c + np.exp(mu) * np.exp(-mu).sum() / c**2) / np.diag(S)
        want.append(alpha / alpha.sum())
    got = jacana.LaplaceBridge().probabilities(CATEGORICAL, mean, covariance)
    oracles.assert_close(got, np.stack(want), DOUBLE, factor=1e5)


@pytest.mark.parametrize("c", [3, 5])
def test_the_bridge_comes_back_from_a_dirichlet_distribution(c):
    """Its own map there, from α to the logits' Gaussian, and back."""
    alpha = 0.5 + 5.0 * torch.rand(4, c, dtype=DOUBLE)
    mean = alpha.log() - alpha.log().mean(1, keepdim=True)
    inverse = 1.0 / alpha
    pairs = inverse.unsqueeze(2) + inverse.unsqueeze(1) - inverse.mean(1)[:, None, None]
    covariance = torch.diag_embed(inverse) - pairs / c
    got = jacana.LaplaceBridge().probabilities(CATEGORICAL, mean, covariance)
    oracles.assert_close(got, alpha / alpha.sum(1, keepdim=True), DOUBLE, factor=1e4)


# What must hold -----------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("c", [2, 3, 10])
def test_probabilities_sum_to_one(predictive, c):
    p = predictive.probabilities(CATEGORICAL, *latent(6, c, 3.0))
    assert p.shape == (6, c)
    assert p.dtype == DOUBLE
    assert bool((p >= 0.0).all())
    oracles.assert_close(p.sum(1), np.ones(6), DOUBLE)


@ALL
@pytest.mark.parametrize("c", [2, 3, 10])
def test_without_covariance_it_is_the_plug_in(predictive, c):
    mean, covariance = latent(6, c, 0.0)
    got = predictive.probabilities(CATEGORICAL, mean, covariance)
    oracles.assert_close(got, softmax(mean.numpy()), DOUBLE, factor=1e3)
    got = predictive.probabilities(BERNOULLI, mean, covariance)
    oracles.assert_close(got, scipy.special.expit(mean.numpy()), DOUBLE, factor=1e3)


@ALL
def test_classes_may_be_permuted(predictive):
    mean, covariance = latent(6, 4, 2.0)
    order = torch.tensor([2, 0, 3, 1])
    p = predictive.probabilities(CATEGORICAL, mean, covariance)
    permuted = predictive.probabilities(CATEGORICAL, mean[:, order], covariance[:, order][:, :, order])
    if isinstance(predictive, jacana.MonteCarlo):
        assert largest(permuted, p[:, order].numpy()) < 0.004  # to the error of each: the samples are not permuted
    else:
        oracles.assert_close(permuted, p[:, order], DOUBLE, factor=1e4)


@pytest.mark.parametrize("predictive", [jacana.Probit(), jacana.MonteCarlo()])
def test_a_constant_added_to_all_logits_changes_nothing(predictive):
    mean, covariance = latent(6, 3, 2.0)
    p = predictive.probabilities(CATEGORICAL, mean, covariance)
    oracles.assert_close(predictive.probabilities(CATEGORICAL, mean + 7.0, covariance), p, DOUBLE, factor=1e3)


def test_an_uncertain_constant_changes_nothing():
    mean, covariance = latent(6, 3, 2.0)
    p = jacana.Probit().probabilities(CATEGORICAL, mean, covariance)
    for size in (1.0, 1e6):
        moved = jacana.Probit().probabilities(CATEGORICAL, mean, covariance + size)
        oracles.assert_close(moved, p, DOUBLE, factor=64.0 * max(size, 1.0))
    certain = jacana.Probit().probabilities(CATEGORICAL, mean, torch.full((6, 3, 3), 1e20, dtype=DOUBLE))
    oracles.assert_close(certain, softmax(mean.numpy()), DOUBLE)


def test_the_bridge_depends_on_a_constant_as_it_says():
    mean, alike = latent(6, 3, 2.0, alike=True)
    bridge = jacana.LaplaceBridge()
    p = bridge.probabilities(CATEGORICAL, mean, alike)
    oracles.assert_close(bridge.probabilities(CATEGORICAL, mean + 7.0, alike), p, DOUBLE, factor=1e4)
    _, other = latent(6, 3, 2.0)
    p = bridge.probabilities(CATEGORICAL, mean, other)
    assert largest(bridge.probabilities(CATEGORICAL, mean + 7.0, other), p.numpy()) > 0.1


@ALL
def test_two_classes_are_a_label_on_their_difference(predictive):
    mean, covariance = latent(6, 2, 2.0, alike=isinstance(predictive, jacana.LaplaceBridge))
    difference = mean[:, 1:] - mean[:, :1]
    sign = torch.tensor([-1.0, 1.0], dtype=DOUBLE)
    variance = torch.einsum("a,mab,b->m", sign, covariance, sign).view(6, 1, 1)
    label = predictive.probabilities(BERNOULLI, difference, variance)
    classes = predictive.probabilities(CATEGORICAL, mean, covariance)
    if isinstance(predictive, jacana.MonteCarlo):
        assert largest(classes[:, 1:], label.numpy()) < 0.001
    else:
        oracles.assert_close(classes, torch.cat([1.0 - label, label], 1), DOUBLE, factor=1e3)


@ALL
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e8])
def test_extreme_logits_are_finite(predictive, scale):
    mean = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, 0.0, 0.0]], dtype=DOUBLE)
    _, covariance = latent(3, 3, scale)
    for likelihood in (CATEGORICAL, BERNOULLI):
        p = predictive.probabilities(likelihood, mean, covariance)
        assert bool(torch.isfinite(p).all())
        assert bool(((p >= 0.0) & (p <= 1.0 + 1e-12)).all())
    if scale <= 1.0 and not isinstance(predictive, jacana.LaplaceBridge):
        p = predictive.probabilities(CATEGORICAL, mean, covariance)
        oracles.assert_close(p[0], [1.0, 0.0, 0.0], DOUBLE, factor=1e3)


@ALL
def test_covariances_of_lower_rank_are_taken(predictive):
    """One logit is certain, one example has but a common constant, one has but a single direction."""
    mean = torch.tensor([[0.0, 1.0, 2.0]] * 3, dtype=DOUBLE)
    direction = torch.tensor([1.0, -2.0, 1.0], dtype=DOUBLE)
    covariance = torch.stack(
        [
            torch.diag(torch.tensor([0.0, 1.0, 1.0])).double(),
            torch.ones(3, 3).double(),
            torch.outer(direction, direction),
        ]
    )
    p = predictive.probabilities(CATEGORICAL, mean, covariance)
    assert bool(torch.isfinite(p).all())
    oracles.assert_close(p.sum(1), np.ones(3), DOUBLE)
    oracles.assert_close(p[1], softmax(mean.numpy())[1], DOUBLE, factor=1e4)


@ALL
def test_weights_of_the_data_say_nothing_of_other_examples(predictive):
    mean, covariance = latent(6, 3)
    for likelihood in (CATEGORICAL, BERNOULLI):
        weighted = jacana.Weighted(jacana.Weighted(likelihood, [1.0, 5.0]), [3.0, 2.0])
        p = predictive.probabilities(weighted, mean, covariance)
        assert torch.equal(p, predictive.probabilities(likelihood, mean, covariance))


@ALL
@pytest.mark.parametrize("likelihood", [jacana.Gaussian(1.0), jacana.Poisson(), jacana.HeteroscedasticGaussian()])
def test_likelihoods_without_classes_are_refused(predictive, likelihood):
    with pytest.raises(InvalidOption, match=type(likelihood).__name__):
        predictive.probabilities(likelihood, *latent(3, 2))


@ALL
def test_latents_that_are_none_are_refused(predictive):
    mean, covariance = latent(3, 3)
    for m, V in (
        (mean * math.nan, covariance),
        (mean, covariance * math.inf),
        (mean, -covariance),
        (mean, covariance + 100.0 * (1.0 - torch.eye(3, dtype=DOUBLE))),
    ):
        with pytest.raises(InvalidData, match="covariance"):
            predictive.probabilities(CATEGORICAL, m, V)


@ALL
@pytest.mark.usefixtures("as_users_run_it")
def test_shapes_that_do_not_fit_are_refused(predictive):
    mean, covariance = latent(3, 3)
    for m, V in ((mean[0], covariance), (mean[:2], covariance), (mean, covariance[0]), (mean[:, :2], covariance)):
        with pytest.raises(InvalidData, match="shape"):
            predictive.probabilities(CATEGORICAL, m, V)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "options", [{"n_samples": 1000}, {"n_samples": 1}, {"n_samples": 64.0}, {"seed": -1}, {"seed": True}]
)
def test_samples_that_cannot_be_are_refused(options):
    with pytest.raises(InvalidOption, match="got"):
        jacana.MonteCarlo(**options)


# Information --------------------------------------------------------------------------------------------


def test_entropy_is_that_of_scipy():
    p = torch.cat([torch.rand(5, 4, dtype=DOUBLE).softmax(1), torch.eye(4, dtype=DOUBLE)])
    oracles.assert_close(entropy(p), scipy.special.entr(p.numpy()).sum(1), DOUBLE)
    assert float(entropy(torch.full((1, 8), 0.125, dtype=DOUBLE))) == pytest.approx(math.log(8))
    for wrong in (-0.1, math.nan):
        with pytest.raises(InvalidData, match="probabilities"):
            entropy(torch.tensor([[wrong, 0.5]]))


def both(f):
    p = softmax(f)
    return np.concatenate([p, scipy.special.entr(p).sum(1, keepdims=True)], 1)


def test_information_is_what_the_class_says_of_the_latent():
    mean, covariance = latent(8, 3, 2.0)
    found = integral(both, mean, covariance)
    want = scipy.special.entr(found[:, :3]).sum(1) - found[:, 3]
    got = mutual_information(CATEGORICAL, mean, covariance)
    assert got.shape == (8,)
    assert largest(got, want) < 0.003
    closer = mutual_information(CATEGORICAL, mean, covariance, Nodes.standard(3, 16384))
    assert largest(closer, want) < 0.0003
    assert float(want.min()) > 0.05


def test_information_of_labels_is_summed():
    mean, covariance = latent(6, 3, 3.0)
    each = torch.stack([mutual_information(BERNOULLI, mean[:, [k]], covariance[:, [k]][:, :, [k]]) for k in range(3)])
    oracles.assert_close(mutual_information(BERNOULLI, mean, covariance), each.sum(0), DOUBLE)
    pairs = torch.stack([torch.zeros_like(mean[:, 0]), mean[:, 0]], 1)  # the classes (0, f): the same as a label
    wide = torch.zeros(6, 2, 2, dtype=DOUBLE)
    wide[:, 1, 1] = covariance[:, 0, 0]
    assert largest(mutual_information(CATEGORICAL, pairs, wide), each[0].numpy()) < 0.003


@pytest.mark.parametrize("likelihood", [CATEGORICAL, BERNOULLI, jacana.Weighted(CATEGORICAL, [1.0])])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 100.0])
def test_information_is_never_negative_nor_more_than_the_entropy(likelihood, scale):
    mean, covariance = latent(20, 4, scale)
    found = mutual_information(likelihood, 10.0 * mean, covariance)
    assert float(found.min()) > -1e-13
    assert float(found.max()) <= (4 * math.log(2) if likelihood is BERNOULLI else math.log(4))
    if scale == 0.0:
        oracles.assert_close(found, np.zeros(20), DOUBLE, scale=1.0, factor=1e3)


def test_information_without_classes_is_refused():
    with pytest.raises(InvalidOption, match="Poisson"):
        mutual_information(jacana.Poisson(), *latent(3, 2))
    with pytest.raises(InvalidOption, match="dimensions"):
        mutual_information(CATEGORICAL, *latent(3, 2), Nodes.standard(3))
