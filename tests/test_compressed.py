"""Laplace(rtol=): fewer directions of the data, variances that are never too small and hardly too large."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jacana
from jacana.posteriors.sides.compressed import Compressed


def problem(dtype, convolutional=False, seed=0):
    torch.manual_seed(seed)
    if convolutional:
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
        x, new = torch.randn(12, 1, 8, 8), torch.randn(70, 1, 8, 8)
    else:
        net = nn.Sequential(nn.Linear(2, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 3))
        x, new = torch.randn(30, 2), 2.0 * torch.randn(90, 2)
    return net.to(dtype), x.to(dtype), torch.arange(len(x)) % 3, new.to(dtype)


def blocks(net, x, labels, new, rtol, prior_std=1.0):
    gp = jacana.TangentGP(net, prior_std, progress=False)
    method = jacana.Laplace(jacana.FunctionSpace(), rtol=rtol)
    post = gp.condition(x, labels, likelihood=jacana.Categorical(), method=method)
    prediction = post.predict(new)
    return prediction.marginal_covariance, prediction.variance, post, gp.predict(new).marginal_covariance


@pytest.mark.parametrize("rtol", [1e-5, 1e-2, 0.3])
@pytest.mark.parametrize("convolutional", [False, True])
def test_the_bounds_hold_as_matrices(rtol, convolutional):
    """0 ≤ what is added ≤ rtol of the prior, in every direction of the outputs."""
    case = problem(torch.float64, convolutional)
    exact, variance, _, prior = blocks(*case, 0.0)
    found, compressed, post, _ = blocks(*case, rtol)
    assert convolutional or rtol < 1e-3 or post._state._spread.rank < 2 * len(case[1])
    scale = prior.diagonal(dim1=1, dim2=2).amax(1)
    below = torch.linalg.eigvalsh(found - exact)[:, 0]
    above = torch.linalg.eigvalsh(rtol * prior - (found - exact))[:, 0]
    assert bool((below >= -1e-10 * scale).all())
    assert bool((above >= -1e-10 * scale).all())
    torch.testing.assert_close(compressed, found.diagonal(dim1=1, dim2=2))
    assert bool((compressed >= variance * (1 - 1e-9)).all())


@pytest.mark.parametrize("convolutional", [False, True])
def test_single_precision_stays_within_its_rounding(convolutional):
    case = problem(torch.float32, convolutional)
    exact, _, _, prior = blocks(*case, 0.0)
    found, _, _, _ = blocks(*case, 1e-3)
    scale = prior.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    assert bool(((found - exact).abs() <= 2e-3 * scale).all())
    assert torch.equal(found, found.mT)
    assert bool((torch.linalg.eigvalsh(found)[:, 0] > 0.0).all())


def test_what_rounding_would_hide_is_computed_exactly():
    """Under a wide prior a variance near the data is a tiny difference of large numbers."""
    net, x, labels, _ = problem(torch.float32)
    case = net, x, labels, x.repeat(3, 1)
    exact, _, _, prior = blocks(*case, 0.0, prior_std=100.0)
    found, _, post, _ = blocks(*case, 1e-6, prior_std=100.0)
    assert post._state._spread._pays(post.examples(case[3]))
    least, of_found = torch.linalg.eigvalsh(exact)[:, 0], torch.linalg.eigvalsh(found)[:, 0]
    assert bool((least < 1e-4 * prior.diagonal(dim1=1, dim2=2).amax(1)).any())  # differences between classes are known
    assert bool((of_found > 0.0).all())
    torch.testing.assert_close(of_found, least, rtol=0.1, atol=1e-7 * float(prior.amax()))


def test_a_few_values_are_exact():
    """Where the directions cost more than they save, nothing is left out; samples and joint covariances are exact."""
    net, x, labels, new = problem(torch.float64)
    exact, *_ = blocks(net, x, labels, new[:2], 0.0)
    found, _, post, _ = blocks(net, x, labels, new[:2], 0.3)
    assert torch.equal(found, exact)
    assert isinstance(post._state._spread, Compressed)
    gp = jacana.TangentGP(net, progress=False)
    plain = gp.condition(x, labels, likelihood=jacana.Categorical(), method=jacana.Laplace(jacana.FunctionSpace()))
    assert torch.equal(post.predict(new).covariance, plain.predict(new).covariance)
    draws = [one.sample_weights(3, generator=torch.Generator().manual_seed(1)) for one in (post, plain)]
    assert torch.equal(*draws)
    assert post.log_evidence == plain.log_evidence


@pytest.mark.parametrize("rtol", [-0.1, 1.0, True, "small", float("nan")])
def test_a_tolerance_that_is_none_is_refused(rtol, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match="rtol"):
        jacana.Laplace(rtol=rtol)
