"""What a mode says of itself, where the digits of float64 end."""

import pytest
import torch
from torch import nn

from jacana import FunctionSpace, Gaussian, HeteroscedasticGaussian, Laplace, TangentGP, WeightSpace
from jacana.errors import NotConverged
from tests import oracles

pytestmark = pytest.mark.usefixtures("as_users_run_it")

SIDE = pytest.mark.parametrize("side", [FunctionSpace(), WeightSpace()], ids=["function space", "weight space"])


def task():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(20, 2, dtype=torch.float64)
    return net, x, x[:, :1].square()


def objective(net, x, y, likelihood, std, weights):
    """Ψ of a change of the weights, by the definition."""
    change = torch.from_numpy(oracles.jacobian(net, x)) @ weights
    f = torch.from_numpy(oracles.outputs(net, x)).view(len(x), -1) + change.view(len(x), -1)
    return float(likelihood.log_prob(f, y).sum()) - 0.5 * float((weights / std).square().sum())


@SIDE
@pytest.mark.parametrize("std", [3.0, 10.0])
def test_where_there_is_none_it_says_so_and_where_steps_ended(side, std):
    """With few examples a variance of its own for each may fall without end: Ψ grows until f has no digits."""
    net, x, y = task()
    likelihood = HeteroscedasticGaussian()
    with pytest.warns(NotConverged, match="was not reached: after .* steps a further one could"):
        post = TangentGP(net, std).condition(x, y, likelihood=likelihood, method=Laplace(side))
    says = post._state.mode.value
    assert says > objective(net, x, y, likelihood, std, torch.zeros_like(post.weights)) + 50.0
    assert objective(net, x, y, likelihood, std, post.weights) == pytest.approx(says, rel=0.05)


def test_a_step_that_is_lost_in_rounding_is_not_taken():
    """The prior's variance of f is 10¹⁶ that of the noise: K u, of large numbers that cancel, has no digits."""
    net, x, y = task()
    y, likelihood = torch.cat([y, y], dim=1), Gaussian(0.01)
    with pytest.warns(NotConverged, match="a further one could lose .* nats .* take a smaller prior_std"):
        post = TangentGP(net, 1e6).condition(x, y, likelihood=likelihood, method=Laplace(FunctionSpace()))
    says = post._state.mode.value
    before = objective(net, x, y, likelihood, 1e6, torch.zeros_like(post.weights))
    assert says >= before - 1e-6 * abs(before)
    assert objective(net, x, y, likelihood, 1e6, post.weights) == pytest.approx(says, rel=1e-6)


@pytest.mark.parametrize("std", [1e2, 1e4])
def test_where_digits_remain_a_wide_prior_is_no_reason_to_warn(std):
    net, x, y = task()
    y, likelihood = torch.cat([y, y], dim=1), Gaussian(0.01)
    post = TangentGP(net, std).condition(x, y, likelihood=likelihood, method=Laplace(FunctionSpace()))
    assert objective(net, x, y, likelihood, std, post.weights) == pytest.approx(post._state.mode.value, rel=1e-5)
    exact = TangentGP(net, std).condition(x, y, noise_std=0.01)
    torch.testing.assert_close(post.predict(x).mean, exact.predict(x).mean, rtol=1e-5, atol=1e-5)
