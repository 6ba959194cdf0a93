"""The method that is taken where none is named: by counted work and memory, with the reason said."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import nn

import jacana
from jacana import CG, FunctionSpace, WeightSpace
from jacana.errors import LongWork
from jacana.likelihoods import Gaussian
from jacana.linearization import Prior
from jacana.networks import Examples
from jacana.posteriors import Model, Observations, choice
from jacana.posteriors.choice import Choice, choose
from jacana.solvers.preconditioners import Diagonal

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One thread and 20 GiB."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(choice, "fits", lambda nbytes, device: nbytes <= 20 * GIB)
    monkeypatch.setattr(choice, "budget", lambda device: 5 * GIB)


def observations(widths, n, noise=0.1, c=1):
    """As many as are wanted, of one example that is repeated without taking memory."""
    torch.manual_seed(0)
    sizes = [5, *widths, c]
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    lin = jacana.linearize(net)
    x = Examples((torch.ones(1, 5).expand(n, 5),))
    residual = torch.zeros(1, 1, dtype=torch.float64).expand(n, c)
    return Observations(
        Model(lin, Prior.of(lin.network, 1.0), False), x, torch.zeros_like(residual), residual, Gaussian(noise), False
    )


ITERATIVE = FunctionSpace(CG())
CASES = {
    "fewer observations": (([20], 100), FunctionSpace()),
    "fewer parameters": (([20], 200), WeightSpace()),
    "as many": (([20], 141), FunctionSpace()),
    "many outputs": (([20], 33, 0.1, 10), FunctionSpace()),
    "no noise": (([20], 1_000, 0.0), FunctionSpace()),
    "a wide network": (([200, 2000, 200], 20_000), FunctionSpace()),
    "millions of examples, a small network": (([20], 3_000_000), WeightSpace()),
    "the smaller side does not fit": (([50, 500], 27_000), FunctionSpace()),
    "neither fits": (([200, 2000, 200], 100_000), ITERATIVE),
    "neither fits, no noise": (([50], 100_000, 0.0), FunctionSpace(CG(preconditioner=Diagonal()))),
}


@pytest.mark.parametrize(("arguments", "expected"), CASES.values(), ids=CASES)
def test_the_choice(arguments, expected):
    found = choose(observations(*arguments))
    assert found.method == expected
    assert re.fullmatch(r"(function|weight) space.* takes [\d,.]+ [MG]iB and \d\.\de[+]\d\d operations.*", found.reason)


def test_the_reason_counts():
    reason = choose(observations([200, 2000, 200], 1_200)).reason
    assert "1,200 observations, takes 22.0 MiB" in reason  # two of 1,200² numbers
    assert "803,601 parameters would take" in reason
    work = float(re.search(r"and (\S+) operations;", reason)[1])
    assert 1200**3 / 3 < work < 1200**3 / 3 + 2 * 1200**2 * 803_601
    assert "GiB, more than is free, and" in reason
    assert "weight" not in choose(observations([20], 1_000, 0.0)).reason
    assert choose(observations([20], 142)).reason.endswith("up to a minute the smaller side is taken")


def test_beyond_a_minute_the_quicker_side_is_taken():
    slightly_fewer_parameters = observations([50, 300], 18_000)
    assert slightly_fewer_parameters.model.lin.n_parameters < 18_000
    assert choose(slightly_fewer_parameters).method == FunctionSpace()


def test_beyond_an_hour_products_stand_beside_factorisations(monkeypatch):
    it = observations([200, 2000, 200], 30_000)
    assert choose(it).method == FunctionSpace()
    monkeypatch.setattr(choice, "_THREAD", 3e9)
    found = choose(it)
    assert found.method == ITERATIVE
    assert "; function space, factorised, for 30,000 observations would take 13.4 GiB and" in found.reason


def test_what_takes_over_an_hour_is_said_with_the_cure():
    with pytest.warns(LongWork, match=r"estimated at up to [\d.e+]+ hours, .*; give fewer examples"):
        found = choose(observations([200, 2000, 200], 1_000_000))
    assert found.method == ITERATIVE
    assert issubclass(LongWork, UserWarning)


def test_the_posterior_says_it():
    net, x = nn.Linear(2, 1).double(), torch.randn(30, 2, dtype=torch.float64)
    gp = jacana.TangentGP(net)
    post = gp.condition(x, x[:, 0], 0.1)
    assert post.method == WeightSpace()
    assert post.reason == choose(post._state.observations).reason
    assert "WeightSpace(solver=None)" in repr(post)
    assert post.condition(x, x[:, 1]).reason == post.reason
    named = gp.condition(x, x[:, 0], 0.1, method=FunctionSpace(jacana.Cholesky(1e-8)))
    assert named.reason == named.condition(x, x[:, 1]).reason == "as asked"


def test_a_choice_is_a_value():
    assert Choice(FunctionSpace(), "so") == Choice(FunctionSpace(), "so")
    with pytest.raises(AttributeError):
        Choice(FunctionSpace(), "so").reason = "other"
