"""The average of candidates against its definition, written out."""

import numpy as np
import pytest
import torch
from torch import nn

from experiments import adaptation
from experiments.adaptation import Setting, weigh

SETTINGS = (
    Setting("network mean", "network"),
    Setting("zero mean, wide bias", "zero", {"": 1.0, "2.bias": 10.0}),
    Setting("head alone", "network", parameters="2"),
)


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))
    x = torch.linspace(-2, 2, 15)[:, None]
    y = torch.sin(2 * x[:, 0]).double() + 0.1 * torch.randn(15, generator=generator, dtype=torch.float64)
    return net, x, y, torch.linspace(-3, 3, 11)[:, None]


def test_weights_are_the_probabilities_of_the_candidates(problem):
    net, x, y, _ = problem
    average = weigh(net, x, y, SETTINGS)
    evidences = {}
    for candidate in average.candidates:
        post = candidate.gp.condition(x, y, likelihood=candidate.likelihood)
        evidences[candidate.setting.name] = np.exp(post.log_evidence)
    expected = {name: value / sum(evidences.values()) for name, value in evidences.items()}
    assert average.summary()["weights"] == pytest.approx(expected)
    assert (np.diff(average.weights) <= 0).all()


def test_the_average_has_the_moments_of_the_mixture(problem, monkeypatch):
    monkeypatch.setattr(adaptation, "NEGLIGIBLE", 0.0)
    net, x, y, new = problem
    average = weigh(net, x, y, SETTINGS)
    mean, std = average.predict(x, y, new, block=4)
    parts = [c.gp.condition(x, y, likelihood=c.likelihood).predict(new, observed=True) for c in average.candidates]
    means, variances = (np.stack([getattr(p, what).numpy() for p in parts]) for what in ("mean", "variance"))
    by_hand = average.weights @ means
    np.testing.assert_allclose(mean, by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(std**2, average.weights @ (variances + means**2) - by_hand**2, rtol=1e-7)
    best_mean, best_std = average.predict(x, y, new, best=True)
    np.testing.assert_allclose(best_mean, means[0])
    np.testing.assert_allclose(best_std, np.sqrt(variances[0]))


def test_learned_noise_has_a_floor():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    x = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
    y = net(x)[:, 0].detach() * 3.0  # on the tangent, without any noise
    average = weigh(net, x, y, SETTINGS[:1])
    assert float(average.candidates[0].likelihood.noise_std) == pytest.approx(1e-3 * float(y.std()), rel=1e-3)
