"""Iterative solvers and preconditioners: the exact answer to the stated tolerance, or NotConverged."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana.linearization import Products
from jacana.operators import Covariance
from jacana.solvers import SmallVarianceError, log_determinant
from tests import oracles

DOUBLE = torch.float64
P = jacana.preconditioners
PRECONDITIONERS = {
    "none": None,
    "diagonal": P.Diagonal(),
    "nystrom": P.Nystrom(40),
    "pivoted": P.PivotedCholesky(40),
    "default": P.PivotedCholesky(),
}
EVERY = pytest.mark.parametrize("preconditioner", PRECONDITIONERS.values(), ids=PRECONDITIONERS)


def networks(dtype=DOUBLE):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 2))
        cnn = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3))
        return {"mlp": (mlp.to(dtype), torch.randn(60, 3, dtype=dtype)),
                "cnn": (cnn.to(dtype), torch.randn(30, 1, 5, 5, dtype=dtype))}  # fmt: skip


NETWORKS = pytest.mark.parametrize("name", ["mlp", "cnn"])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Dense(jacana.NTK.__mro__[1]):
    """A symmetric matrix as an operator, with products rounded to a dtype."""

    def __init__(self, matrix, dtype=DOUBLE):
        self._matrix, self._dtype = matrix, dtype

    shape = property(lambda self: self._matrix.shape)
    dtype = property(lambda self: self._dtype)
    device = property(lambda self: self._matrix.device)

    def times(self, matrix):
        return (self._matrix.to(self._dtype) @ matrix.to(self._dtype)).to(self._dtype)

    transposed_times = times

    def precise_times(self, matrix):
        return self._matrix @ matrix


@EVERY
@NETWORKS
@pytest.mark.parametrize("noise", [1.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_preconditioner_gives_the_exact_answer(name, preconditioner, noise, dtype):
    net, x = networks(dtype)[name]
    kernel = jacana.NTK(net, x)
    n = len(kernel.to_dense())
    J = oracles.jacobian(net, x)
    variances = noise**2 * (0.5 + torch.rand(n, dtype=DOUBLE))
    A = J @ J.T + np.diag(variances.numpy())
    B = random(n, 3)
    B[:, 1] = 0.0
    solver = jacana.CG(rtol=1e-5, preconditioner=preconditioner, max_steps=3000)
    covariance = Covariance(kernel, variances)
    prepared = solver.prepare(covariance)
    found = solver.solve(covariance, B, prepared=prepared)
    assert found.converged
    true = np.linalg.norm(B.numpy() - A @ found.x.numpy(), axis=0) / np.linalg.norm(B.numpy(), axis=0).clip(1e-300)
    assert (true <= (1.01e-5 if dtype == DOUBLE else 2e-5)).all()
    np.testing.assert_allclose(found.relative_residuals, true, atol=1e-9 if dtype == DOUBLE else 1e-5)
    assert found.x[:, 1].abs().max() == 0.0
    want = np.linalg.solve(A, B.numpy())
    condition = np.linalg.cond(A)
    assert np.abs(found.x.numpy() - want).max() <= 1e-5 * condition * np.abs(want).max()
    again = solver.solve(covariance, B, prepared=prepared, start=found.x)
    assert again.steps == 0
    if prepared is not None:
        M = np.linalg.inv(prepared.solve(torch.eye(n, dtype=DOUBLE)).numpy())
        np.testing.assert_allclose(M, M.T, atol=1e-6 * np.abs(M).max())
        assert np.linalg.eigvalsh(M).min() > 0.0
        assert prepared.log_determinant == pytest.approx(np.linalg.slogdet(M)[1], abs=1e-6 * n)
        drawn = prepared.sample(10_000, torch.Generator().manual_seed(0)).numpy()
        assert np.abs(np.cov(drawn) - M).max() < 0.1 * np.abs(M).max()


def test_low_rank_preconditioners_shorten_the_iteration():
    net, x = networks()["mlp"]
    covariance = Covariance(jacana.NTK(net, x), torch.full((120,), 1e-4, dtype=DOUBLE))
    right = random(120, 1)
    steps = {}
    for name, preconditioner in PRECONDITIONERS.items():
        solver = jacana.CG(rtol=1e-6, preconditioner=preconditioner, max_steps=3000)
        steps[name] = solver.solve(covariance, right, prepared=solver.prepare(covariance)).steps
    assert steps["default"] * 5 < steps["none"]
    assert steps["nystrom"] < steps["none"]
    assert steps["pivoted"] < steps["none"]


def test_a_rank_that_is_enough_is_not_exceeded():
    net, _ = networks()["mlp"]
    x = random(5, 3).repeat(40, 1)  # five examples, forty times: ten columns are all there is
    covariance = Covariance(jacana.NTK(net, x), torch.full((400,), 0.01, dtype=DOUBLE))
    assert P.PivotedCholesky().prepare(covariance).rank < 150
    assert P.PivotedCholesky(8).prepare(covariance).rank <= 8


@pytest.mark.parametrize("preconditioner", [P.Nystrom(150), P.PivotedCholesky(150)], ids=["nystrom", "pivoted"])
@pytest.mark.parametrize(("above", "dtype"), [(1.5, torch.float32), (0.5, DOUBLE)], ids=["float32", "float64"])
def test_columns_in_the_networks_dtype_leave_the_preconditioner_below(preconditioner, above, dtype, monkeypatch):
    """Of a kernel that is singular: where pivots of W are rounding alone, M is above A; far above, for large ones."""
    root = random(600, 20)
    K = root @ root.T / 20.0
    kernel = Dense(K, torch.float32)
    asked = []

    def columns(index, dtype):
        asked.append(dtype)
        return K.to(dtype)[:, index].to(DOUBLE)

    monkeypatch.setattr(kernel, "columns", columns)
    monkeypatch.setattr(kernel, "diagonal", K.diagonal)
    noise = above * torch.finfo(torch.float32).eps * float(K.diagonal().sum())
    prepared = preconditioner.prepare(Covariance(kernel, torch.full((600,), noise, dtype=DOUBLE)))
    assert set(asked) == {dtype}
    M = np.linalg.inv(prepared.solve(torch.eye(600, dtype=DOUBLE)).numpy())
    L = np.linalg.cholesky(K.numpy() + noise * np.eye(600))
    ratios = np.linalg.eigvalsh(np.linalg.solve(L, np.linalg.solve(L, M).T))
    assert ratios.max() < 1.001
    assert ratios.min() > 0.99


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_preconditioner_is_carried_on_to_more_data(name):
    net, x = networks()[name]
    n, m = len(x) // 2, len(x) // 6
    K = torch.from_numpy(oracles.jacobian(net, x) @ oracles.jacobian(net, x).T)
    c = len(K) // len(x)
    noise = 0.5 + torch.rand(len(K), dtype=DOUBLE)
    prepared = P.PivotedCholesky(c * n // 2).prepare(Covariance(jacana.NTK(net, x[:n]), noise[: c * n].clone()))

    some = slice(c * n, c * (n + m))
    longer = prepared.extended(lambda index: K[some, index], K.diagonal()[some], noise[some])
    size = c * (n + m)
    M = np.linalg.inv(longer.solve(torch.eye(size, dtype=DOUBLE)).numpy())
    A = (K + torch.diag(noise))[:size, :size].numpy()
    scale = np.abs(A).max()
    assert np.linalg.eigvalsh(A - M).min() > -1e-9 * scale
    explained = np.abs(A - M).max(axis=0) < 1e-9 * scale
    assert explained[: c * n].sum() >= c * n // 2
    assert np.trace(A - M) < 0.9 * np.trace(K[:size, :size])

    twice = torch.ones(c * n + 1, dtype=DOUBLE)
    assert prepared.extended(lambda index: torch.zeros(len(twice), len(index), dtype=DOUBLE), twice, twice) is None
    far = 1e4 * K.diagonal()[some]
    assert prepared.extended(lambda index: K[some, index], far, noise[some]) is None
    assert P.Diagonal().prepare(Covariance(Dense(K), noise)).extended(lambda i: K[:, i], K.diagonal(), noise) is None


@pytest.mark.parametrize("away", [0.0, 30.0], ids=["near", "far"])
def test_more_data_need_a_new_preconditioner_only_where_the_old_one_does_not_serve(away, monkeypatch):
    net, x = networks()["mlp"]
    y = x[:, :2].sin()
    gp = jacana.TangentGP(net)
    made = []
    prepare = P.PivotedCholesky.prepare
    monkeypatch.setattr(P.PivotedCholesky, "prepare", lambda self, *a, **o: made.append(1) or prepare(self, *a, **o))
    old = gp.condition(x[:40], y[:40], noise_std=0.1, method=jacana.FunctionSpace(jacana.CG(rtol=1e-8)))
    post = old.condition(x[40:] + away, y[40:])
    assert len(made) == (1 if away == 0.0 else 2)
    exact = gp.condition(torch.cat([x[:40], x[40:] + away]), y, noise_std=0.1).predict(x[:9] + 0.5)
    found = post.predict(x[:9] + 0.5)
    assert float((found.mean - exact.mean).abs().max()) < 1e-5
    assert bool((found.variance <= 1.02 * exact.variance).all())
    assert post.solution.converged


@EVERY
def test_ill_conditioned_systems_are_solved_or_said_not_to_be(preconditioner):
    """Condition number 1e10, and examples that are repeated."""
    q, _ = torch.linalg.qr(random(80, 80))
    for kernel in (Dense(q @ torch.diag(torch.logspace(0, -9, 80, dtype=DOUBLE)) @ q.T, torch.float32),
                   Dense(torch.ones(80, 80, dtype=DOUBLE), torch.float32)):  # fmt: skip
        covariance = Covariance(kernel, torch.full((80,), 1e-10, dtype=DOUBLE))
        right = random(80, 2, seed=1)
        solver = jacana.CG(rtol=1e-8, preconditioner=preconditioner, max_steps=200)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = solver.solve(covariance, right, prepared=solver.prepare(covariance))
        remainder = right - covariance.to_dense() @ found.x
        relative = torch.linalg.vector_norm(remainder, dim=0) / torch.linalg.vector_norm(right, dim=0)
        assert found.converged == bool((relative <= 1.1e-8).all())
        assert bool(torch.isfinite(found.x).all())
        assert found.converged or any(issubclass(w.category, jacana.errors.NotConverged) for w in caught)


def test_what_single_precision_cannot_reach_in_one_descent_is_reached_in_several():
    q, _ = torch.linalg.qr(random(60, 60))
    kernel = Dense(q @ torch.diag(torch.logspace(2, -2, 60, dtype=DOUBLE)) @ q.T, torch.float32)
    covariance = Covariance(kernel, torch.full((60,), 0.01, dtype=DOUBLE))
    right = random(60, 2)
    found = jacana.CG(rtol=1e-11, preconditioner=None).solve(covariance, right)
    assert found.converged
    want = torch.linalg.solve(covariance.kernel._matrix + 0.01 * torch.eye(60), right)
    oracles.assert_close(found.x, want, DOUBLE, scale=float(want.abs().max()), condition=1e7)


def test_what_rounding_left_takes_a_few_steps_and_no_second_descent():
    """Where it is in the directions that the preconditioner explains; anew it were a quarter more steps."""
    q, _ = torch.linalg.qr(random(400, 400))
    values = torch.cat([torch.full((20,), 1e4, dtype=DOUBLE), torch.logspace(1, -3, 380, dtype=DOUBLE)])
    K = q @ torch.diag(values) @ q.T
    solver, steps = jacana.CG(rtol=1e-5, preconditioner=P.Nystrom(40)), {}
    for dtype in (DOUBLE, torch.float32):
        covariance = Covariance(Dense(K, dtype), torch.full((400,), 1e-2, dtype=DOUBLE))
        if dtype == torch.float32:  # vectors in float32, and products off where K is largest
            covariance.kernel.times = lambda matrix: (K + 0.1 * q[:, :20] @ q[:, :20].T) @ matrix.to(DOUBLE)
        found = solver.solve(covariance, random(400, 2), prepared=solver.prepare(covariance))
        assert found.converged
        remainder = random(400, 2) - K @ found.x - 1e-2 * found.x
        relative = torch.linalg.vector_norm(remainder, dim=0) / torch.linalg.vector_norm(random(400, 2), dim=0)
        np.testing.assert_allclose(found.relative_residuals, relative, rtol=1e-4)
        steps[dtype] = found.steps
    assert steps[DOUBLE] < steps[torch.float32] < 1.2 * steps[DOUBLE]


@pytest.mark.parametrize("several", [True, False])
def test_what_is_used_through_products_is_held_against_them(several):
    """Products and entries that a network rounds in different ways are those of two kernels."""
    q, _ = torch.linalg.qr(random(80, 80))
    K = q @ torch.diag(torch.logspace(2, -2, 80, dtype=DOUBLE)) @ q.T
    other = K + 0.01 * q[:, :5] @ q[:, :5].T
    kernel = Dense(K)
    kernel.times = lambda matrix: other @ matrix
    covariance = Covariance(kernel, torch.full((80,), 0.01, dtype=DOUBLE), by_products=several)
    right = random(80, 3)
    found = jacana.CG(rtol=1e-6, preconditioner=None).solve(covariance, right)
    meant = other if several else K
    assert found.converged
    assert found.is_precise != several
    np.testing.assert_allclose(found.remainder, right - meant @ found.x - 0.01 * found.x, atol=1e-10)


def test_products_that_do_not_show_it_give_way_to_entries():
    q, _ = torch.linalg.qr(random(60, 60))
    K = q @ torch.diag(torch.logspace(2, -2, 60, dtype=DOUBLE)) @ q.T
    covariance = Covariance(Dense(K, torch.float32), torch.full((60,), 0.01, dtype=DOUBLE), by_products=True)
    right = random(60, 2)
    found = jacana.CG(rtol=1e-11, preconditioner=None).solve(covariance, right)
    assert found.converged
    assert found.is_precise
    remainder = right - K @ found.x - 0.01 * found.x
    assert bool((remainder.norm(dim=0) <= 1.1e-11 * right.norm(dim=0)).all())


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("way", [jacana.FunctionSpace, lambda solver: jacana.Pathwise(2, solver)])
def test_the_residual_is_that_of_the_weights_that_predict(rtol, way):
    """y − m − J w − Σα, whatever α is held against."""
    net, x = networks(torch.float32)["cnn"]
    gp, y = jacana.TangentGP(net), random(len(x), 3, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jacana.errors.NotConverged)
        post = gp.condition(x, y, 0.05, method=way(jacana.CG(rtol=rtol)))
    with torch.no_grad():
        residual = (y - net(x)).flatten()
    J = torch.as_tensor(oracles.jacobian(net.double(), x.double()))
    left = residual - J @ post.weights - 0.05**2 * post.solution.x[:, 0]
    assert float(left.norm()) <= max(1.01 * rtol, 1e-5) * float(residual.norm())


def test_what_was_held_against_float64_stays_so_with_more_data():
    net, x = networks(torch.float32)["cnn"]
    y = random(len(x), 3, seed=3)
    post = jacana.TangentGP(net).condition(x[:20], y[:20], 0.3, method=jacana.FunctionSpace(jacana.CG(rtol=1e-8)))
    assert post.solution.is_precise
    lin = jacana.linearize(net)
    explained = Products(lin, x[20:22]).precise_times(post.weights.unsqueeze(1)).view(2, 3)
    more = post.condition(x[20:22], lin(x[20:22]).double() + explained)
    assert more.solution.steps == 0  # what is explained already takes none
    assert more.solution.is_precise


def test_the_warning_says_what_was_reached_and_the_cure():
    q, _ = torch.linalg.qr(random(60, 60))
    kernel = Dense(q @ torch.diag(torch.logspace(0, -6, 60, dtype=DOUBLE)) @ q.T)
    covariance = Covariance(kernel, torch.full((60,), 1e-8, dtype=DOUBLE))
    with pytest.warns(jacana.errors.NotConverged, match=r"after 3 steps.*max_steps, now 3.*rank"):
        found = jacana.CG(preconditioner=None, max_steps=3).solve(covariance, random(60, 1))
    assert not found.converged
    assert "not converged" in repr(found)


def test_columns_stop_by_themselves():
    q, _ = torch.linalg.qr(random(60, 60))
    kernel = Dense(q @ torch.diag(torch.logspace(0, -4, 60, dtype=DOUBLE)) @ q.T)
    covariance = Covariance(kernel, torch.full((60,), 1e-4, dtype=DOUBLE))
    easy = q[:, :1]  # an eigenvector: one step
    solver = jacana.CG(preconditioner=None)
    alone = solver.solve(covariance, random(60, 1))
    both = solver.solve(covariance, torch.cat([easy, random(60, 1)], 1))
    assert both.products <= alone.products + 4
    assert solver.solve(covariance, random(60, 0)).x.shape == (60, 0)


def test_variances_to_their_own_goal():
    net, x = networks()["mlp"]
    kernel = jacana.NTK(net, x)
    A = kernel.to_dense() + 1e-3 * torch.eye(120)
    right = A[:, :5].clone()
    prior = A.diagonal()[:5].clone()
    covariance = Covariance(kernel, torch.full((120,), 1e-3, dtype=DOUBLE))
    solver = jacana.CG()
    found = solver.solve(
        covariance, right, prepared=solver.prepare(covariance), goal=SmallVarianceError(0.01, 1.001 * prior)
    )
    variance = 1.001 * prior - (found.x * (right + found.remainder)).sum(0)
    exact = 1.001 * prior - (right * torch.linalg.solve(A, right)).sum(0)
    assert bool((variance >= exact * (1 - 1e-6)).all())
    assert bool((variance <= 1.02 * exact).all())


@pytest.mark.parametrize("preconditioner", [None, P.Nystrom(30), P.PivotedCholesky()], ids=str)
def test_log_determinant(preconditioner):
    net, x = networks()["mlp"]
    kernel = jacana.NTK(net, x)
    covariance = Covariance(kernel, torch.full((120,), 0.1, dtype=DOUBLE))
    prepared = None if preconditioner is None else preconditioner.prepare(covariance)
    A = kernel.to_dense() + 0.1 * torch.eye(120)
    found = log_determinant(covariance, prepared, n_probes=32)
    assert abs(found.estimate.value - float(torch.logdet(A))) < 5 * found.estimate.std_error + 1e-2
    trace = (found.solved * found.conditioned).sum(0)  # tr(A⁻¹ I)
    want = float(torch.linalg.inv(A).diagonal().sum())
    assert abs(float(trace.mean()) - want) < 5 * float(trace.std()) / math.sqrt(32) + 1e-3 * want


def test_a_log_determinant_that_has_not_settled_is_said_to():
    q, _ = torch.linalg.qr(random(300, 300))
    kernel = Dense(q @ torch.diag(torch.logspace(0, -9, 300, dtype=DOUBLE)) @ q.T)
    covariance = Covariance(kernel, torch.full((300,), 1e-9, dtype=DOUBLE))
    with pytest.warns(jacana.errors.NotConverged, match="settled"):
        log_determinant(covariance, None, n_probes=2)


# Posteriors by an iterative solver -------------------------------------------------------------------

WAYS = pytest.mark.parametrize("way", [jacana.FunctionSpace, jacana.WeightSpace], ids=["function", "weight"])


@WAYS
@NETWORKS
@pytest.mark.parametrize("mean", ["network", "zero"])
def test_the_posterior_is_the_factorised_one(name, mean, way):
    net, x = networks()[name]
    y = random(len(x), net(x[:1]).shape[1], seed=3)
    new = x[:4] + 0.1 * random(*x[:4].shape, seed=4)
    gp = jacana.TangentGP(net, 0.7, mean)
    exact = gp.condition(x, y, 0.3, method=jacana.FunctionSpace())
    found = gp.condition(x, y, 0.3, method=way(jacana.CG(rtol=1e-9)))
    assert exact.solution is None
    assert found.solution.converged
    a, b = exact.predict(new), found.predict(new)
    oracles.assert_close(b.mean, a.mean, DOUBLE, condition=1e8)
    ratio = b.variance / a.variance
    assert 1.0 - 1e-9 <= float(ratio.min()) <= float(ratio.max()) <= 1.02
    assert float((a.covariance - b.covariance).abs().max()) <= 0.02 * float(a.variance.max())
    assert bool((torch.linalg.eigvalsh(b.covariance) > -1e-12).all())
    assert abs(found.log_evidence - exact.log_evidence) <= 5 * found.evidence.std_error + 0.02
    assert exact.evidence == jacana.Estimate(exact.log_evidence, 0.0, 0)
    with pytest.raises(jacana.errors.InvalidOption, match="leave_one_out"):
        found.leave_one_out()


@WAYS
def test_samples_have_the_posterior_covariance(way):
    net, x = networks()["mlp"]
    y = random(len(x), 2, seed=3)
    post = jacana.TangentGP(net).condition(x[:20], y[:20], 0.3, method=way(jacana.CG(rtol=1e-8)))
    prediction = post.predict(x[20:22])
    s = 2000
    drawn = prediction.sample(s, torch.Generator().manual_seed(0)).flatten(1)
    covariance = prediction.covariance
    spread = torch.cov(drawn.T)
    std = covariance.diagonal().sqrt()
    assert float(((spread - covariance) / torch.outer(std, std)).abs().max()) < 6 / math.sqrt(s)  # false alarm < 1e-6
    assert float(((drawn.mean(0) - prediction.mean.flatten()) / std).abs().max()) < 6 / math.sqrt(s)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_variance_is_below_the_exact_one(dtype, way):
    """Whatever the solver's tolerance, on the data and far away."""
    net, x = networks(dtype)["mlp"]
    y = random(len(x), 2, seed=3)
    new = torch.cat([x[:2], 10 * x[5:7], 100 * x[10:12]])
    gp = jacana.TangentGP(net)
    exact = gp.condition(x, y, 0.01, method=jacana.FunctionSpace()).predict(new).variance
    for solver in (
        jacana.CG(rtol=0.5),
        jacana.CG(rtol=0.5, preconditioner=P.Nystrom(4), max_steps=100),
        jacana.CG(preconditioner=None, max_steps=100),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jacana.errors.NotConverged)
            found = gp.condition(x, y, 0.01, method=way(solver)).predict(new).variance
        assert bool((found >= exact * (1 - 1e-6)).all())


@WAYS
def test_a_loader_is_streamed(way):
    net, x = networks()["mlp"]
    y = random(len(x), 2, seed=3)
    method = way(jacana.CG(rtol=1e-9))
    gp = jacana.TangentGP(net)
    whole = gp.condition(x, y, 0.3, method=method)
    for size in (7, 60):
        loader = DataLoader(TensorDataset(x, y), batch_size=size)
        streamed = gp.condition(loader, noise_std=0.3, method=method)
        oracles.assert_close(streamed.predict(x[:5]).mean, whole.predict(x[:5]).mean, DOUBLE, condition=1e8)
        oracles.assert_close(streamed.predict(x[:5]).variance, whole.predict(x[:5]).variance, DOUBLE, condition=1e12)
        more = streamed.condition(x[:3], y[:3])
        assert more.n_examples == 63
    shuffled = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    with pytest.raises(jacana.errors.InvalidData, match="order"):
        gp.condition(shuffled, noise_std=0.3, method=method)


@WAYS
def test_more_data_start_from_the_old_solution(way):
    net, x = networks()["mlp"]
    y = random(len(x), 2, seed=3)
    method = way(jacana.CG(rtol=1e-5, preconditioner=P.Nystrom(20)))
    gp = jacana.TangentGP(net)
    old = gp.condition(x[:59], y[:59], 0.3, method=method)
    more, whole = old.condition(x[59:], y[59:]), gp.condition(x, y, 0.3, method=method)
    oracles.assert_close(more.predict(x[:5]).mean, whole.predict(x[:5]).mean, DOUBLE, condition=1e11)
    assert more.solution.steps < whole.solution.steps


@WAYS
def test_the_same_answer_every_time(way):
    net, x = networks(torch.float32)["mlp"]
    y = random(len(x), 2, seed=3)
    gp, method = jacana.TangentGP(net), way(jacana.CG())
    first, second = (gp.condition(x, y, 0.3, method=method).weights for _ in range(2))
    oracles.assert_close(first, second, torch.float32, scale=float(first.abs().max()))


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: jacana.CG(rtol=0.0), "rtol"), (lambda: jacana.CG(rtol=True), "rtol"),
     (lambda: jacana.CG(max_steps=0), "max_steps"), (lambda: jacana.CG(preconditioner="auto"), "preconditioner"),
     (lambda: P.Nystrom(0), "rank"), (lambda: P.PivotedCholesky(2.5), "rank"),
     (lambda: jacana.FunctionSpace("cg"), "solver"), (lambda: jacana.WeightSpace("cg"), "solver")],
)  # fmt: skip
def test_options_are_checked(make, name, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match=name):
        make()


def test_zero_noise_has_no_low_rank_preconditioner():
    net, x = networks()["mlp"]
    gp = jacana.TangentGP(net)
    with pytest.raises(jacana.errors.InvalidOption, match="Diagonal"):
        gp.condition(x[:3], random(3, 2), 0.0, method=jacana.FunctionSpace(jacana.CG()))
    post = gp.condition(
        x[:3], random(3, 2), 0.0, method=jacana.FunctionSpace(jacana.CG(rtol=1e-8, preconditioner=P.Diagonal()))
    )
    oracles.assert_close(post.predict(x[:3]).mean, random(3, 2), DOUBLE, condition=1e9)


@pytest.mark.parametrize(
    ("free", "n", "kind"),
    [(10**12, 5, jacana.FunctionSpace), (10**12, 200, jacana.WeightSpace), (6 * 8 * 185**2, 200, jacana.WeightSpace),
     (2 * 8 * 200**2, 100, jacana.FunctionSpace), (2 * 8 * 20**2, 10, jacana.FunctionSpace)],
)  # fmt: skip
def test_what_is_taken_by_default_fits(free, n, kind, monkeypatch):
    monkeypatch.setattr("jacana.posteriors.choice.fits", lambda nbytes, _: nbytes <= free)
    net, _ = networks()["mlp"]
    post = jacana.TangentGP(net).condition(random(n, 3), random(n, 2), 0.1)
    assert isinstance(post.method, kind)
    assert post.solution is None


def test_what_cannot_be_factorised_is_solved_by_products(monkeypatch):
    monkeypatch.setattr("jacana.posteriors.choice.fits", lambda *_: False)
    net, x = networks()["mlp"]
    post = jacana.TangentGP(net).condition(x, random(60, 2), 0.1)
    assert post.method == jacana.FunctionSpace(jacana.CG())
    assert post.solution.converged


@pytest.mark.parametrize("preconditioner", [None, P.Diagonal()], ids=str)
@pytest.mark.parametrize(("prior", "noise"), [(1e-3, 1e-4), (1.0, 1e-2), (1.0, 1e-4)])
def test_variances_are_near_the_exact_ones_or_said_not_to_be(preconditioner, prior, noise):
    """Whatever M is: what bounds the error must be a bound."""
    net, x = networks()["mlp"]
    y = random(60, 2, seed=3)
    gp = jacana.TangentGP(net, prior)
    exact = gp.condition(x, y, noise, method=jacana.FunctionSpace()).predict(x[:6]).variance
    solver = jacana.CG(preconditioner=preconditioner, max_steps=300)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gp.condition(x, y, noise, method=jacana.FunctionSpace(solver)).predict(x[:6]).variance
    ratio = found / exact
    assert float(ratio.min()) > 1 - 1e-6
    said = any(issubclass(w.category, jacana.errors.NotConverged) for w in caught)
    assert said or float(ratio.max()) < 1.02


@pytest.mark.parametrize("noise", [1e-2, 1e-4])
def test_samples_are_as_wide_as_the_posterior_however_small_the_noise(noise):
    net, x = networks()["mlp"]
    y = random(60, 2, seed=3)
    gp = jacana.TangentGP(net)
    exact = gp.condition(x, y, noise, method=jacana.FunctionSpace()).predict(x[:6]).variance
    for method in (jacana.Pathwise(400), jacana.FunctionSpace(jacana.CG())):
        post = gp.condition(x, y, noise, method=method)
        drawn = post.predict(x[:6]).sample(400, torch.Generator().manual_seed(0))
        ratio = drawn.var(0) / exact
        assert 1 - 6 * math.sqrt(2 / 400) < float(ratio.min()) <= float(ratio.max()) < 1.05 + 6 * math.sqrt(2 / 400)


def inputs_that_are_not_standardised():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
        x = torch.randn(300, 3) * 10 + 100
    return net, x, (x - 100).sum(1, keepdim=True).sin()


def test_where_float32_leads_nowhere_products_are_in_float64():
    net, x, y = inputs_that_are_not_standardised()
    gp = jacana.TangentGP(net, mean="zero")
    post = gp.condition(x, y, noise_std=0.05, method=jacana.FunctionSpace(jacana.CG()))
    assert post.solution.converged
    assert float(post.solution.relative_residuals.max()) <= 1e-4
    exact = gp.condition(x, y, noise_std=0.05, method=jacana.FunctionSpace())
    gap = post.predict(x[:20]).mean - exact.predict(x[:20]).mean
    assert float(gap.abs().max()) < 0.1 * float(exact.predict(x[:20]).std.min())


def test_what_is_worse_than_nothing_is_not_kept():
    net, x, y = inputs_that_are_not_standardised()
    gp = jacana.TangentGP(net, mean="zero", prior_std=1e20)  # K is beyond float32, and cannot be told from rank one
    with pytest.warns(jacana.errors.NotConverged):
        post = gp.condition(x, y, noise_std=0.05, method=jacana.FunctionSpace(jacana.CG(max_steps=50)))
    assert float(post.solution.relative_residuals.max()) <= 1.0


def test_a_bound_that_rounding_has_eaten_is_not_convergence():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)).double()
        x = torch.randn(60, 3, dtype=DOUBLE)
    y = x.sum(1, keepdim=True).sin()
    with pytest.warns(jacana.errors.NotConverged):
        post = jacana.TangentGP(net, prior_std=1e5).condition(
            x, y, noise_std=1e-3, method=jacana.WeightSpace(jacana.CG())
        )
    assert not post.solution.converged


def test_a_kernel_far_below_the_noise_needs_no_preconditioner_and_takes_more_data():
    net, x = networks(torch.float32)["mlp"]
    y = random(60, 2)
    gp = jacana.TangentGP(net, prior_std=1e-3)
    post = gp.condition(x[:50], y[:50], noise_std=1.0, method=jacana.FunctionSpace(jacana.CG()))
    more = post.condition(x[50:], y[50:])
    whole = gp.condition(x, y, noise_std=1.0)
    oracles.assert_close(more.predict(x).mean, whole.predict(x).mean, torch.float32, scale=1.0)


def test_steps_of_a_network_in_float64_are_products_and_no_contractions(monkeypatch):
    net, x = networks()["mlp"]
    precise = []
    times = Covariance.precise_times
    monkeypatch.setattr(Covariance, "precise_times", lambda self, m: precise.append(1) or times(self, m))
    method = jacana.FunctionSpace(jacana.CG(rtol=1e-6, preconditioner=None))
    post = jacana.TangentGP(net).condition(x, random(60, 2), noise_std=0.3, method=method)
    assert post.solution.steps > 10
    assert len(precise) <= 2
