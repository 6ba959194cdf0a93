"""The integrator of gradient flows: against closed forms, an implicit method, and hills with cliffs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import torch

from jacana.solvers import Height, flow

DOUBLE = torch.float64
MANY = 100_000


def quadratic(size=40, stiffest=1e3):
    """ψ = bᵀu − ½ uᵀΛu, and u(t)."""
    rates = torch.logspace(-2, math.log10(stiffest), size, dtype=DOUBLE)
    b = torch.randn(size, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * rates.sqrt()

    def slope(u):
        return Height(float((b * u - 0.5 * rates * u * u).sum()), b - rates * u)

    return slope, lambda t: b * (1.0 - torch.exp(-t * rates)) / rates


@pytest.mark.parametrize("time", [0.01, 0.5, 30.0])
@pytest.mark.parametrize(("rtol", "off"), [(0.1, 1e-2), (1e-3, 1e-3), (1e-6, 1e-5)])
def test_a_quadratic_hill_is_climbed_as_its_closed_form(rtol, off, time):
    slope, u = quadratic()
    found = flow(slope, torch.zeros(40, dtype=DOUBLE), time, rtol=rtol, most=MANY)
    assert found.time == time
    assert float((found.u - u(time)).norm()) <= off * (1.0 + float(u(time).norm()))
    assert found.value == slope(found.u).value


def test_a_stiff_hill_costs_the_root_of_its_stiffness():
    counts = [
        flow(quadratic(stiffest=stiffest)[0], torch.zeros(40, dtype=DOUBLE), 1.0, rtol=0.1, most=MANY).evaluations
        for stiffest in (1e2, 1e4)
    ]
    assert counts[1] < 20 * counts[0]  # 10 times by the root; an explicit method of fixed stages needs 100 times
    assert counts[1] < 1_000


def curved(u):
    """A hill with terraces, not concave."""
    x, y = float(u[0]), float(u[1])
    value = -50.0 * (y - math.sin(x)) ** 2 + 2.0 * x - 0.1 * x * x
    gap = y - math.sin(x)
    return Height(value, torch.tensor([100.0 * gap * math.cos(x) + 2.0 - 0.2 * x, -100.0 * gap], dtype=DOUBLE))


@pytest.mark.parametrize("time", [0.1, 1.0, 4.0])
def test_a_curved_ridge_is_followed_as_by_an_implicit_method(time):
    want = scipy.integrate.solve_ivp(
        lambda _, u: curved(torch.tensor(u)).slope.numpy(), (0.0, time), np.array([0.0, 1.0]),
        method="Radau", rtol=1e-9, atol=1e-11,
    ).y[:, -1]  # fmt: skip
    found = flow(curved, torch.tensor([0.0, 1.0], dtype=DOUBLE), time, rtol=1e-6, most=MANY)
    np.testing.assert_allclose(found.u, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rtol", [0.3, 0.01])
def test_no_step_goes_down(rtol):
    values = [
        flow(curved, torch.tensor([0.0, 1.0], dtype=DOUBLE), time, rtol=rtol, most=MANY).value
        for time in np.linspace(0.01, 3.0, 40)
    ]
    taken = []

    def noted(u):
        taken.append(u)
        return curved(u)

    found = flow(noted, torch.tensor([0.0, 1.0], dtype=DOUBLE), 3.0, rtol=rtol, most=MANY)
    assert found.value == values[-1]
    assert found.evaluations == len(taken)
    assert min(values) >= curved(torch.tensor([0.0, 1.0])).value


def test_beyond_a_cliff_there_is_nothing():
    """Where ψ is not finite steps are made again shorter: √u climbs to the edge of where it is defined."""

    def cliff(u):
        x = float(u[0])
        if x >= 1.0:
            return Height(-math.inf, torch.full((1,), math.nan, dtype=DOUBLE))
        return Height(2.0 * x + 0.01 * math.log(1.0 - x), torch.tensor([2.0 - 0.01 / (1.0 - x)], dtype=DOUBLE))

    found = flow(cliff, torch.zeros(1, dtype=DOUBLE), 5.0, rtol=0.1, most=MANY)
    assert found.time == 5.0
    assert float(found.u) == pytest.approx(1.0 - 0.005, abs=1e-3)


def test_a_top_is_stayed_on_and_a_limit_is_kept():
    slope, _ = quadratic()
    top = flow(lambda u: Height(0.0, torch.zeros_like(u)), torch.ones(3, dtype=DOUBLE), 2.0, rtol=0.1, most=MANY)
    assert torch.equal(top.u, torch.ones(3, dtype=DOUBLE))
    assert (top.time, top.evaluations) == (2.0, 1)
    stopped = flow(slope, torch.zeros(40, dtype=DOUBLE), 30.0, rtol=1e-3, most=50)
    assert 0.0 < stopped.time < 30.0
    assert 40 <= stopped.evaluations <= 50
    assert stopped.value > 0.0


@pytest.mark.parametrize("rtol", [0.1, 1e-3])
def test_where_little_is_left_for_what_was_paid_it_ends(rtol):
    slope, u = quadratic()
    top = slope(u(math.inf)).value
    whole = flow(slope, torch.zeros(40, dtype=DOUBLE), 3e3, rtol=rtol, most=MANY)
    found = flow(slope, torch.zeros(40, dtype=DOUBLE), 3e3, rtol=rtol, most=MANY, top=top)
    assert found.time == 3e3
    assert top - found.value <= 0.5 * rtol * max(rtol, float(found.u.square().sum()))
    assert found.evaluations < whole.evaluations


def test_the_stiffness_is_that_of_where_it_is():
    """A thousandth of the way to the top the gradient is another one; and the hill is less stiff the higher it is."""
    J = 300.0 * torch.randn(20, 40, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    signs = 2.0 * (torch.arange(20) % 2) - 1.0

    def sure(u):
        margin = signs * (J @ u)
        value = float(torch.nn.functional.logsigmoid(margin).sum())
        return Height(value, J.T @ (signs * (-margin).sigmoid()), 1e-6 * abs(value))

    found = flow(sure, torch.zeros(40, dtype=DOUBLE), 0.5, rtol=0.1, most=MANY)
    assert found.time == 0.5
    assert -1e-3 < found.value < 0.0
    assert found.evaluations < 400  # 861 where stiffness is measured by a change of a fixed length


def test_a_plain_slope_is_gone_down_once():
    """Nothing changes along it, so that one step is enough."""
    found = flow(
        lambda u: Height(float(u.sum()), torch.ones_like(u)), torch.zeros(3, dtype=DOUBLE), 2.0, rtol=0.1, most=MANY
    )
    torch.testing.assert_close(found.u, torch.full((3,), 2.0, dtype=DOUBLE))
    assert found.steps == 1


def test_a_step_never_takes_more_gradients_than_are_left():
    """Beyond u = 1 the hill is as stiff as numbers can be: what a step saw of it there must not ask for 10¹⁵ stages."""

    def steep(u):
        x = float(u[0])
        return Height(x - 1e30 * max(x - 1.0, 0.0) ** 2, torch.tensor([1.0 - 2e30 * max(x - 1.0, 0.0)], dtype=DOUBLE))

    found = flow(steep, torch.zeros(1, dtype=DOUBLE), 50.0, rtol=0.1, most=300)
    assert found.evaluations <= 300
    assert 0.5 < float(found.u) <= 1.0 + 1e-9


@pytest.mark.parametrize("most", [1, 2, 3, 10, 37, 200])
def test_the_limit_is_never_passed(most):
    slope, _ = quadratic(stiffest=1e6)
    assert flow(slope, torch.zeros(40, dtype=DOUBLE), 10.0, rtol=1e-3, most=most).evaluations <= max(most, 4)


def test_a_slope_that_underflows_is_a_top():
    tiny = flow(lambda u: Height(0.0, torch.full_like(u, 1e-217)), torch.zeros(3, dtype=DOUBLE), 1.0, rtol=0.1, most=9)
    assert (tiny.time, tiny.evaluations) == (1.0, 1)


def test_rounding_of_the_value_does_not_stop_it():
    """At the top the value of a network in float32 goes up and down by its noise."""
    slope, u = quadratic(stiffest=1e2)
    generator = torch.Generator().manual_seed(0)

    def noisy(at):
        value, gradient, _ = slope(at)
        return Height(value + 1e-4 * float(torch.rand((), generator=generator)), gradient, 1e-4)

    found = flow(noisy, torch.zeros(40, dtype=DOUBLE), 30.0, rtol=0.01, most=2_000)
    assert found.time == 30.0
    assert float((found.u - u(30.0)).norm()) <= 0.01 * (1.0 + float(u(30.0).norm()))
