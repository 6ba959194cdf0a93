"""The judges are judged first: oracles against each other, and the comparing helpers against wrong values."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests import oracles, zoo

DOUBLE, SINGLE = torch.float64, torch.float32


@pytest.mark.parametrize("case", [c for c in zoo.CASES if c.differentiable], ids=lambda c: c.name)
def test_reverse_mode_is_the_derivative_of_the_outputs(case):
    net, x = case.net(), case.x(3)
    J = case.jacobian(net, x)
    assert J.shape == (case.values(net, x).size, sum(p.numel() for p in net.parameters() if p.requires_grad))
    np.testing.assert_allclose(oracles.differences(net, x, **case.reading), J, atol=2e-7 * max(np.abs(J).max(), 1))


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda c: c.name)
def test_every_case_is_interesting(case):
    """No dead network: every example moves some weight, and the examples differ."""
    net, x = case.net(), case.x(4)
    J, values = case.jacobian(net, x), case.values(net, x)
    assert (np.abs(J).sum(1) > 1e-3).all()
    assert np.abs(values - values[:1]).max() > 1e-3
    np.testing.assert_array_equal(case.values(net, case.x(4)), values, err_msg="not reproducible")


def test_the_padding_row_is_what_reverse_mode_leaves_out():
    case = zoo.BY_NAME["Embedding with padding_idx"]
    net, x = case.net(), case.x(3)
    J = case.jacobian(net, x)
    assert (J[:, :3] == 0).all()
    assert np.abs(oracles.differences(net, x)[:, :3]).max() > 1e-2


def problem(n=4, c=2, p=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "J": rng.normal(size=(n * c, p)),
        "s": rng.uniform(0.5, 2, p),
        "mean": rng.normal(size=(n, c)),
        "y": rng.normal(size=(n, c)),
        "sigma": rng.uniform(0.2, 0.6, c),
    }


@pytest.mark.parametrize("p", [3, 5, 30])
@pytest.mark.parametrize("n", [1, 4])
def test_both_sides_and_many_digits_agree(n, p):
    data = problem(n=n, p=p)
    rng = np.random.default_rng(1)
    new = {"J_new": rng.normal(size=(6, p)), "mean_new": rng.normal(size=(3, 2))}
    exact = oracles.condition_exactly(**data, **new)
    for side in (oracles.condition_on_functions, oracles.condition_on_weights):
        found = side(**data, **new)
        np.testing.assert_allclose(found.mean, exact.mean, atol=1e-11)
        np.testing.assert_allclose(found.covariance, exact.covariance, atol=1e-11)
        assert (found.variance > 0).all()


def test_evidence_is_the_product_of_its_predictions():
    """The chain rule: log p(y) = Σ log p(yᵢ | y₁ … yᵢ₋₁), each from a refitted posterior."""
    data = problem(n=5)
    rows, total = data["J"].reshape(5, 2, -1), 0.0
    for i in range(5):
        before = {**data, "J": data["J"][: 2 * i], "mean": data["mean"][:i], "y": data["y"][:i]}
        if i:
            found = oracles.condition_on_functions(**before, J_new=rows[i], mean_new=data["mean"][[i]])
            mean, covariance = found.mean[0], found.covariance
        else:
            mean, covariance = data["mean"][0], (rows[0] * data["s"] ** 2) @ rows[0].T
        covariance = covariance + np.diag(data["sigma"] ** 2)
        r = data["y"][i] - mean
        total -= 0.5 * (r @ np.linalg.solve(covariance, r) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert oracles.log_evidence(**data) == pytest.approx(total, rel=1e-12)


def test_leaving_out_by_refitting_is_the_closed_form_by_blocks():
    data = problem(n=5)
    left = oracles.leave_one_out_by_refitting(**data)
    inverse = np.linalg.inv((data["J"] * data["s"] ** 2) @ data["J"].T + oracles.noise_matrix(data["sigma"], 5, 2))
    r = (data["y"] - data["mean"]).reshape(-1)
    for i in range(5):
        block = slice(2 * i, 2 * i + 2)
        covariance = np.linalg.inv(inverse[block, block])
        np.testing.assert_allclose(left.covariance[i], covariance, atol=1e-12)
        np.testing.assert_allclose(data["y"][i] - left.mean[i], covariance @ (inverse @ r)[block], atol=1e-12)


def test_leaving_out_the_only_example_is_the_prior():
    data = problem(n=1)
    left = oracles.leave_one_out_by_refitting(**data)
    np.testing.assert_array_equal(left.mean, data["mean"])
    assert left.log_probability[0] == pytest.approx(oracles.log_evidence(**data))


# The comparing helpers fail on what is wrong -------------------------------------------------------


def test_closeness_holds_at_the_tolerance_and_fails_beyond_it():
    want = np.array([[1.0, -2.0], [0.5, 0.0]])
    allowed = 64 * oracles.eps(SINGLE) * 10 * 2
    off = np.array([[0.0, 0.0], [1.0, 0.0]])
    oracles.assert_close(want + 0.9 * allowed * off, want, SINGLE, condition=10)
    with pytest.raises(AssertionError, match=r"off by .* at \(1, 0\)"):
        oracles.assert_close(want + 1.1 * allowed * off, want, SINGLE, condition=10)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (np.ones(3), "shape"),
        (np.ones((2, 2)).T[:1], "shape"),
        (np.array([[1.0, np.nan], [1, 1]]), "not finite"),
        (np.array([[1.0, np.inf], [1, 1]]), "not finite"),
        (-np.ones((2, 2)), "off by"),
        (np.ones((2, 2)) * (1 + 1e-9), "off by"),
    ],
)
def test_closeness_fails_on(got, message):
    with pytest.raises(AssertionError, match=message):
        oracles.assert_close(got, np.ones((2, 2)), DOUBLE)


def test_a_tolerance_that_allows_everything_is_refused():
    with pytest.raises(AssertionError, match="no test"):
        oracles.bound(SINGLE, condition=1e6)


@pytest.mark.parametrize("fault", ["mean", "scale", "correlation", "shape", "transposed"])
def test_the_test_of_samples_fails_on_a_wrong(fault):
    rng = np.random.default_rng(3)
    covariance = np.array([[2.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 0.5]])
    mean = np.array([1.0, -1.0, 0.0])
    samples = rng.multivariate_normal(mean, covariance, size=6_000)
    oracles.assert_gaussian_samples(samples, mean, covariance)
    wrong = {
        "mean": samples + 0.1,
        "scale": mean + 1.08 * (samples - mean),
        "correlation": mean + (samples - mean) * np.array([1, -1, 1]),
        "shape": mean + rng.laplace(size=samples.shape) @ np.linalg.cholesky(covariance / 2).T,
        "transposed": samples[:, ::-1],
    }[fault]
    with pytest.raises(AssertionError):
        oracles.assert_gaussian_samples(wrong, mean, covariance)


def _train(net):
    net.train()


def _train_one(net):
    net[1].train()


def _nudge(net):
    net[0].weight.data[0, 0, 0, 0] = torch.nextafter(net[0].weight.data[0, 0, 0, 0], torch.tensor(9.0).to(DOUBLE))


def _swap_and_swap_back(net):
    with torch.no_grad():
        net[0].weight.mul_(2).div_(2)


def _statistics(net):
    net[1].num_batches_tracked += 1


def _gradient(net):
    net[0].weight.grad = torch.zeros_like(net[0].weight)


def _freeze(net):
    net[0].weight.requires_grad_(False)


def _hook(net):
    net[0].register_forward_hook(zoo._double)


def _tensor_hook(net):
    net[0].weight.register_hook(lambda g: g)


def _replace(net):
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())


def _attribute(net):
    net.remembered = 1


def _negative_zero(net):
    net[1].running_mean[0] = -0.0


@pytest.mark.parametrize(
    "change",
    [
        _train,
        _train_one,
        _nudge,
        _swap_and_swap_back,
        _statistics,
        _gradient,
        _freeze,
        _hook,
        _tensor_hook,
        _replace,
        _attribute,
        _negative_zero,
    ],
    ids=lambda f: f.__name__.strip("_"),
)
def test_a_snapshot_sees(change):
    net = zoo.BY_NAME["conv, BatchNorm, in-place ReLU"].net()
    with torch.no_grad():
        net[1].running_mean[0] = 0.0
    snapshot = oracles.Snapshot(net)
    with torch.no_grad():
        copy.deepcopy(net)(torch.zeros(2, 1, 5, 5, dtype=DOUBLE))
    snapshot.assert_unchanged()
    change(net)
    with pytest.raises(AssertionError, match="the network was changed"):
        snapshot.assert_unchanged()
