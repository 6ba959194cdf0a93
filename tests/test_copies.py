"""Examples that are there more than once: of the weight of all their copies, and left out together."""

import numpy as np
import pytest
import torch
from torch import nn

import jacana
from jacana.likelihoods import weights_of
from jacana.posteriors.observations import observe

pytestmark = pytest.mark.usefixtures("as_users_run_it")

DOUBLE = torch.float64


def network(c=2):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, c)).double()


def noisy(n=25):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, 2))
    return x, (x[:, 0] + 0.8 * rng.normal(size=n) > 0).astype(int)


def fitted(x, y, weights=None, **words):
    return jacana.NTKClassifier(network(), progress=False, **words).fit(x, y, sample_weight=weights)


@pytest.mark.parametrize("method", ["auto", "laplace", "map", "one-hot", "dirichlet", "last-layer"])
def test_a_weight_is_so_many_copies_whatever_is_learned(method):
    x, y = noisy()
    counts = np.random.default_rng(0).integers(0, 4, len(x))
    copies = np.random.default_rng(1).permutation(np.repeat(np.arange(len(x)), counts))
    weighted, repeated = fitted(x, y, counts.astype(float), method=method), fitted(x[copies], y[copies], method=method)
    assert repeated.power_ == pytest.approx(weighted.power_, rel=1e-3)
    assert repeated.prior_std_ == pytest.approx(weighted.prior_std_, rel=1e-3)
    new = np.random.default_rng(3).normal(size=(30, 2))
    np.testing.assert_allclose(repeated.predict_proba(new), weighted.predict_proba(new), atol=1e-3)


def test_copies_do_not_make_it_sure():
    """A copy that stays would tell the label of one that is left out: noise would look like none."""
    x, y = noisy()
    once, twice = fitted(x, y), fitted(np.tile(x, (2, 1)), np.tile(y, 2))
    assert twice.power_ < 3.0 * once.power_
    new = np.random.default_rng(3).normal(size=(200, 2))
    confidence = [clf.predict_proba(new).max(axis=1).mean() for clf in (once, twice)]
    assert abs(confidence[1] - confidence[0]) < 0.1


def observed(x, y, likelihood):
    model = jacana.TangentGP(network()).model
    return observe(model, torch.from_numpy(x), torch.as_tensor(y), likelihood)


def test_the_posterior_is_the_same():
    x, y = noisy()
    some = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    weights = np.array([1.0, 2.0, 0.5, 0.0, 1.0, 1.0, 0.0, 1.0, 3.0, 3.0])
    whole = observed(x[some], y[some], jacana.Weighted(jacana.Categorical(), weights))
    found = whole.distinct()
    assert found.n == 6
    assert weights_of(found.likelihood, 6).tolist() == [3.0, 0.5, 2.0, 0.0, 1.0, 6.0]
    gp = jacana.TangentGP(network())
    posts = [
        gp.condition(one.x.tensors[0], one.targets, likelihood=one.likelihood, method=jacana.Laplace())
        for one in (whole, found)
    ]
    new = torch.randn(4, 2, dtype=DOUBLE)
    for attribute in ("mean", "covariance"):
        one, two = (getattr(post.predict(new), attribute) for post in posts)
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)
    assert posts[0].log_evidence == pytest.approx(posts[1].log_evidence, abs=1e-8)


def test_what_is_no_copy_stays():
    x, y = noisy()
    alone = observed(x, y, jacana.Categorical())
    assert alone.distinct() is alone
    other = observed(np.tile(x[:3], (2, 1)), np.array([0, 1, 0, 0, 0, 0]), jacana.Categorical())  # another label
    assert other.distinct().n == 4
    noise = jacana.Gaussian(np.random.default_rng(0).uniform(0.1, 1.0, (6, 2)))
    targets = np.zeros((6, 2))
    different = observed(np.tile(x[:3], (2, 1)), targets, noise)
    assert different.distinct() is different
    assert observed(np.tile(x[:3], (2, 1)), targets, jacana.Gaussian(0.1)).distinct().n == 3
