"""Products with J, Jᵀ, K and F: kept or computed again, whole or streamed, always those of the dense matrices."""

from __future__ import annotations

import copy
import functools
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import jacana
from jacana.linearization.doubled import Doubled
from jacana.networks import Network, differentiable
from jacana.networks.examples import Examples
from tests import oracles, zoo

DOUBLE = torch.float64
ZOO = pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
KEPT = {"kept": {}, "computed again": {"memory_budget": 0}, "by twos": {"batch_size": 2}}


def likelihoods(c):
    """Those that fit c outputs, with their names in the oracle."""
    found = {"gaussian": jacana.Gaussian(0.5), "bernoulli": jacana.Bernoulli(), "poisson": jacana.Poisson()}
    if c > 1:
        found["categorical"] = jacana.Categorical()
    if c % 2 == 0:
        found["heteroscedastic"] = jacana.HeteroscedasticGaussian()
    return found


def random(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def seeded(make):
    """Networks made the same each time, with torch's generator left as it was."""

    @functools.wraps(make)
    def made(*args, **words):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make(*args, **words)

    return made


@seeded
def small(c=3, dtype=DOUBLE):
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, c)).to(dtype)


@seeded
def convolutional(dtype=DOUBLE):
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding="same", groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3),
    ).to(dtype)  # fmt: skip
    zoo.settle(net)
    return net.eval()


@ZOO
@pytest.mark.parametrize("words", KEPT.values(), ids=KEPT)
def test_products_of_every_network(case, words):
    net, x = case.net(), case.x(5)
    lin = jacana.linearize(net, **case.reading)
    J, f = case.jacobian(net, x), case.values(net, x)
    p, c = J.shape[1], f.shape[1]
    v, V, u, U = random(p), random(p, 3, seed=1), random(len(J), seed=2), random(len(J), 3, seed=3)
    reach = np.abs(J).sum()
    jacobian = jacana.Jacobian(lin, x, **words)
    for _ in range(2):  # the second time from what is kept
        oracles.assert_close(jacobian @ v, J @ v.numpy(), DOUBLE, scale=reach * 4)
        oracles.assert_close(jacobian @ V, J @ V.numpy(), DOUBLE, scale=reach * 4)
        oracles.assert_close(jacobian.T @ u, J.T @ u.numpy(), DOUBLE, scale=reach * 4)
        oracles.assert_close(jacobian.T @ U, J.T @ U.numpy(), DOUBLE, scale=reach * 4)
    assert (jacobian @ V[:, :0]).shape == (len(J), 0)
    kernel = jacana.NTK(lin, x, prior_std=0.5, **words)
    oracles.assert_close(kernel @ U, 0.25 * J @ (J.T @ U.numpy()), DOUBLE, scale=reach**2 * 4)
    turn = list(KEPT.values()).index(words)  # each likelihood in one of the ways, and all of them together in all
    for name, likelihood in list(likelihoods(c).items())[turn :: len(KEPT)]:
        fisher = jacana.Fisher(lin, x, likelihood, **words)
        want = oracles.gauss_newton(J, oracles.curvature(name, f, 0.5))
        scale = 4 * np.abs(J).sum(1).max() * reach * np.abs(oracles.curvature(name, f, 0.5)).max()
        oracles.assert_close(fisher @ v, want @ v.numpy(), DOUBLE, scale=scale)
        oracles.assert_close(fisher @ V, want @ V.numpy(), DOUBLE, scale=scale)
        oracles.assert_close(fisher.diagonal(), np.diag(want), DOUBLE, scale=scale)
        assert (fisher @ V[:, :0]).shape == (p, 0)
        assert torch.dot(v, fisher @ v) >= -1e-12 * scale
        oracles.assert_close(torch.dot(V[:, 0], fisher @ v), torch.dot(fisher @ V[:, 0], v), DOUBLE, scale=scale * p)


@pytest.fixture
def factored(monkeypatch):
    """Every batch that is kept goes over to factors at once; gives how many did."""
    count = []

    def always(*_):
        count.append(1)
        return True

    monkeypatch.setattr("jacana.linearization.inquiry.are_faster", always)
    monkeypatch.setattr("jacana.linearization.batch._PASSES_AN_OUTPUT", 0)
    return count


@ZOO
def test_products_of_every_network_by_factors(case, factored):
    test_products_of_every_network(case, {})
    assert factored


def test_a_batch_goes_over_to_factors_once_as_much_has_been_spent(factored, monkeypatch):
    monkeypatch.setattr("jacana.linearization.batch._PASSES_AN_OUTPUT", 4)
    net, x = small(), random(6, 2)
    J = oracles.jacobian(net, x)
    jacobian = jacana.Jacobian(net, x)
    v, u = random(J.shape[1]), random(len(J))
    for count in range(1, 9):
        oracles.assert_close(jacobian @ v, J @ v.numpy(), DOUBLE, scale=100)
        oracles.assert_close(jacobian.T @ u, J.T @ u.numpy(), DOUBLE, scale=100)
        assert len(factored) == (2 * count > 4 * 2)  # asked once
    fisher = jacana.Fisher(net, x, jacana.Categorical())
    V = random(J.shape[1], 20)
    want = oracles.gauss_newton(J, oracles.curvature("categorical", oracles.outputs(net, x)))
    for _ in range(2):
        oracles.assert_close(fisher @ V, want @ V.numpy(), DOUBLE, scale=100)
    tight = jacana.Jacobian(net, x, memory_budget=6 * 8 * 40)  # the graphs fit, the factors do not
    for _ in range(10):
        oracles.assert_close(tight @ v, J @ v.numpy(), DOUBLE, scale=100)


@ZOO
def test_products_in_single_precision(case):
    net, x = case.net(torch.float32), case.x(4, torch.float32)
    lin = jacana.linearize(net, **case.reading)
    J, f = case.jacobian(net, x), case.values(net, x)
    fisher = jacana.Fisher(lin, x, jacana.Poisson())
    want = oracles.gauss_newton(J, oracles.curvature("poisson", f))
    v = random(J.shape[1], dtype=torch.float32)
    scale = 4 * np.abs(J).sum(1).max() * np.abs(J).sum() * np.exp(f).max()
    for _ in range(2):
        oracles.assert_close(fisher @ v, want @ v.double().numpy(), torch.float32, scale=scale)
    oracles.assert_close(fisher.diagonal(), np.diag(want), torch.float32, scale=scale)


@pytest.mark.parametrize("c", [1, 3])
def test_the_empirical_fisher(c):
    net, x = small(c), random(7, 2)
    J, f = oracles.jacobian(net, x), torch.from_numpy(oracles.outputs(net, x))
    y = (random(7, c, seed=5) > 0).double()
    gradient = jacana.Bernoulli().gradient(f, y).numpy()
    rows = np.einsum("nc,ncp->np", gradient, J.reshape(7, c, -1))
    for words in KEPT.values():
        E = jacana.EmpiricalFisher(net, x, y, jacana.Bernoulli(), **words)
        oracles.assert_close(E.to_dense(), rows.T @ rows, DOUBLE, scale=100)
        oracles.assert_close(E.diagonal(), np.diag(rows.T @ rows), DOUBLE, scale=100)
    loaded = jacana.EmpiricalFisher(net, DataLoader(TensorDataset(x, y), 3), None, jacana.Bernoulli())
    oracles.assert_close(loaded.to_dense(), rows.T @ rows, DOUBLE, scale=100)


def test_noise_by_output_and_by_observation():
    net, x = small(2), random(6, 2)
    J = oracles.jacobian(net, x)
    for noise in (torch.tensor([0.5, 2.0]).double(), torch.linspace(0.5, 2, 12).double().view(6, 2)):
        H = torch.diag_embed(noise.expand(6, 2) ** -2).numpy()
        for words in KEPT.values():
            fisher = jacana.Fisher(net, x, jacana.Gaussian(noise), **words)
            oracles.assert_close(fisher.to_dense(), oracles.gauss_newton(J, H), DOUBLE, scale=100)
            oracles.assert_close(fisher.diagonal(), np.diag(oracles.gauss_newton(J, H)), DOUBLE, scale=100)


def test_the_curvature_is_taken_where_it_is_asked_for():
    net, x, at = small(), random(5, 2), random(5, 3, seed=9)
    J = oracles.jacobian(net, x)
    want = oracles.gauss_newton(J, oracles.curvature("categorical", at.numpy()))
    for words in KEPT.values():
        fisher = jacana.Fisher(net, x, jacana.Categorical(), at=at, **words)
        oracles.assert_close(fisher.to_dense(), want, DOUBLE, scale=100)
        oracles.assert_close(fisher.diagonal(), np.diag(want), DOUBLE, scale=100)
    for wrong in (at[:4], at[:, :2], at * torch.nan, "here"):
        with pytest.raises(jacana.errors.InvalidData, match="at"):
            jacana.Fisher(net, x, jacana.Categorical(), at=wrong)


def test_a_likelihood_must_fit(as_users_run_it):
    net, x = small(), random(5, 2)
    for wrong in (None, "categorical", jacana.HeteroscedasticGaussian(), jacana.Gaussian([0.1, 0.2])):
        with pytest.raises(jacana.errors.JacanaError):
            jacana.Fisher(net, x, wrong)
    with pytest.raises(jacana.errors.InvalidData, match="y"):
        jacana.EmpiricalFisher(net, x, None, jacana.Bernoulli())


# What is kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 2_000, 6_000, 20_000, None])
@pytest.mark.parametrize("make", [small, convolutional])
def test_any_budget_gives_the_same_products(make, budget):
    net = make()
    x = random(9, 2) if make is small else random(9, 2, 6, 6)
    lin = jacana.linearize(net)
    J = oracles.jacobian(net, x)
    want = oracles.gauss_newton(J, oracles.curvature("categorical", oracles.outputs(net, x)))
    fisher = jacana.Fisher(lin, x, jacana.Categorical(), batch_size=2, memory_budget=budget)
    V = random(len(want), 4)
    scale = 100 * np.abs(want).max()
    for _ in range(3):
        oracles.assert_close(fisher @ V, want @ V.numpy(), DOUBLE, scale=scale)
        oracles.assert_close(fisher @ V[:, 0], want @ V[:, 0].numpy(), DOUBLE, scale=scale)


def test_what_is_kept_needs_no_further_pass_through_the_network():
    calls = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            calls.append(len(x))
            return self.inner(x)

    net, x = Counting(), random(6, 2)
    lin = jacana.linearize(net)
    v = random(lin.n_parameters)
    for words, expected in (({}, 0), ({"memory_budget": 0}, 4)):
        fisher = jacana.Fisher(lin, x, jacana.Categorical(), batch_size=3, **words)
        fisher @ v
        calls.clear()
        fisher @ v
        assert len(calls) == expected


@pytest.mark.parametrize("vectorize", [True, False, None])
def test_columns_at_once_or_one_by_one(vectorize):
    for net, x in ((small(), random(5, 2)), (convolutional(), random(4, 2, 6, 6))):
        J = oracles.jacobian(net, x)
        V, U = random(J.shape[1], 11), random(len(J), 11)
        operator = jacana.Jacobian(net, x, vectorize=vectorize)
        oracles.assert_close(operator @ V, J @ V.numpy(), DOUBLE, scale=1e3)
        oracles.assert_close(operator.T @ U, J.T @ U.numpy(), DOUBLE, scale=1e3)


def test_options_are_checked(as_users_run_it):
    for words in ({"vectorize": "yes"}, {"memory_budget": -1}, {"memory_budget": "all"}, {"batch_size": 0}):
        with pytest.raises(jacana.errors.InvalidOption, match=next(iter(words))):
            jacana.Jacobian(small(), random(4, 2), **words)


# Operations written out ---------------------------------------------------------------------------


class Applied(nn.Module):
    """One function of the input, a weight and a bias."""

    def __init__(self, apply, *shapes):
        super().__init__()
        self.apply_ = apply
        self.weights = nn.ParameterList([nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)])

    def forward(self, x):
        return self.apply_(x, *self.weights).tanh().flatten(1)


MEAN, VARIANCE = random(2, seed=7), random(2, seed=8).square() + 0.1
OPERATIONS = {
    "conv1d": (Applied(lambda x, w, b: F.conv1d(x, w, b, 2, 1), (4, 2, 3), (4,)), (3, 2, 7)),
    "conv2d": (Applied(lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 0), (1, 2)), (4, 2, 3, 2), (4,)), (3, 2, 6, 6)),
    "conv2d without bias": (Applied(lambda x, w: F.conv2d(x, w, padding="valid"), (4, 2, 3, 3)), (3, 2, 5, 5)),
    "conv2d, groups": (Applied(lambda x, w: F.conv2d(x, w, groups=2, padding=1), (4, 1, 3, 3)), (3, 2, 5, 5)),
    "conv3d": (Applied(lambda x, w, b: F.conv3d(x, w, b, padding=1), (3, 2, 2, 2, 2), (3,)), (2, 2, 3, 3, 3)),
    "conv2d, one weight twice": (
        Applied(lambda x, w: F.conv2d(F.conv2d(x, w, padding=1), w), (2, 2, 3, 3)), (3, 2, 5, 5)
    ),
    "conv2d, bias alone": (Applied(lambda x, b: F.conv2d(x, torch.ones(4, 2, 3, 3).double(), b), (4,)), (3, 2, 5, 5)),
    "transposed": (
        Applied(lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, output_padding=1), (2, 4, 3, 3), (4,)), (3, 2, 4, 4)
    ),
    "transposed, groups and dilation": (
        Applied(lambda x, w: F.conv_transpose1d(x, w, None, 1, 0, 0, 2, 2), (2, 3, 3)), (3, 2, 6)
    ),
    "batch norm": (Applied(lambda x, w, b: F.batch_norm(x, MEAN, VARIANCE, w, b, False), (2,), (2,)), (3, 2, 4)),
    "batch norm, scale alone": (Applied(lambda x, w: F.batch_norm(x, MEAN, VARIANCE, w), (2,)), (3, 2, 4, 4)),
    "batch norm after a weight": (
        Applied(lambda x, w: F.batch_norm(F.conv1d(x, w), MEAN, VARIANCE, eps=0.1), (2, 2, 1)), (3, 2, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("net", "shape"), OPERATIONS.values(), ids=OPERATIONS)
def test_operations_written_out(net, shape):
    x = random(*shape, seed=20)
    J = oracles.jacobian(net, x)
    with differentiable():
        kept = Doubled(Network(net), Examples((x,)), written_out=True)
        V, U = random(J.shape[1], 3), random(len(J), 3)
        u = U.view(len(x), -1, 3)
        oracles.assert_close(kept.output, oracles.outputs(net, x), DOUBLE)
        for k in range(3):
            oracles.assert_close(kept.push(V[:, k]).flatten(), J @ V[:, k].numpy(), DOUBLE, scale=1e3)
            oracles.assert_close(kept.pull(u[..., k]), J.T @ U[:, k].numpy(), DOUBLE, scale=1e3)
        oracles.assert_close(kept.push_several(V).flatten(0, 1), J @ V.numpy(), DOUBLE, scale=1e3)
        oracles.assert_close(kept.pull_several(u), J.T @ U.numpy(), DOUBLE, scale=1e3)


# Data that stream ---------------------------------------------------------------------------------


class Rows(Dataset):
    def __init__(self, x, y=None):
        self.x, self.y, self.read = x, y, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read += 1
        return self.x[i] if self.y is None else (self.x[i], self.y[i])


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("words", [{}, {"memory_budget": 0}, {"memory_budget": 3000}, {"batch_size": 2}])
def test_streamed_is_whole(size, words, generators_untouched):
    net, x, z = small(), random(10, 2), random(3, 2, seed=4)
    J, Z = oracles.jacobian(net, x), oracles.jacobian(net, z)
    f = oracles.outputs(net, x)
    V, U = random(J.shape[1], 2), random(len(J), 2)
    lin = jacana.linearize(net)
    for data in (Rows(x), Rows(x, torch.zeros(10))):
        loader = DataLoader(data, batch_size=size)
        jacobian = jacana.Jacobian(lin, loader, **words)
        assert jacobian.shape == J.shape
        fisher = jacana.Fisher(lin, loader, jacana.Categorical(), **words)
        for _ in range(2):
            oracles.assert_close(jacobian @ V, J @ V.numpy(), DOUBLE, scale=100)
            oracles.assert_close(jacobian.T @ U, J.T @ U.numpy(), DOUBLE, scale=100)
            want = oracles.gauss_newton(J, oracles.curvature("categorical", f))
            oracles.assert_close(fisher @ V, want @ V.numpy(), DOUBLE, scale=100)
        oracles.assert_close(fisher.diagonal(), np.diag(want), DOUBLE, scale=100)
        kernel = jacana.NTK(lin, z, loader, **words)
        oracles.assert_close(kernel @ U, Z @ (J.T @ U.numpy()), DOUBLE, scale=1e3)
        oracles.assert_close(kernel.to_dense(), Z @ J.T, DOUBLE, scale=1e3)
        oracles.assert_close(jacana.NTK(lin, loader, **words).diagonal(), (J**2).sum(1), DOUBLE, scale=100)
        oracles.assert_close(jacobian.to_dense(), J, DOUBLE, scale=100)


def test_a_stream_without_length():
    x = random(7, 2)

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(x)

    net = small()
    oracles.assert_close(
        jacana.Jacobian(net, DataLoader(Endless(), 3)) @ torch.ones(61, dtype=DOUBLE),
        oracles.jacobian(net, x).sum(1), DOUBLE, scale=100,
    )  # fmt: skip


def test_batches_of_different_lengths():
    """Sequences that are padded batch by batch need no common length."""
    table = nn.Embedding(5, 3).double()
    head = nn.Linear(3, 2).double()

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = table, head

        def forward(self, ids):
            return self.head(self.table(ids).mean(1).tanh())

    net = Mean()
    parts = [torch.randint(0, 5, (3, length), generator=torch.Generator().manual_seed(length)) for length in (4, 6)]
    loader = DataLoader(parts, batch_size=None)
    J = np.concatenate([oracles.jacobian(net, part) for part in parts])
    v = random(J.shape[1])
    for words in ({}, {"memory_budget": 0}):
        jacobian = jacana.Jacobian(net, loader, **words)
        oracles.assert_close(jacobian @ v, J @ v.numpy(), DOUBLE, scale=100)


def test_kept_batches_are_not_read_again():
    data = Rows(random(8, 2))
    jacobian = jacana.Jacobian(small(), DataLoader(data, batch_size=3))
    jacobian @ torch.ones(61, dtype=DOUBLE)
    read = data.read
    jacobian @ torch.ones(61, dtype=DOUBLE)
    assert data.read == read


def swapped(data):
    data.x = data.x.flip(0)


def shortened(data):
    data.x = data.x[:6]


def lengthened(data):
    data.x = torch.cat([data.x, data.x[:1]])


def nudged(data):
    data.x = data.x.clone()
    data.x[-1, -1] += 1e-12


@pytest.mark.parametrize("change", [swapped, shortened, lengthened, nudged])
def test_other_examples_on_a_later_pass_are_refused(change):
    data = Rows(random(8, 2))
    jacobian = jacana.Jacobian(small(), DataLoader(data, batch_size=2), memory_budget=0)
    v = torch.ones(61, dtype=DOUBLE)
    before = jacobian @ v
    kept = data.x
    change(data)
    for product in (lambda: jacobian @ v, lambda: jacobian.T @ before, jacobian.to_dense):
        with pytest.raises(jacana.errors.InvalidData, match="order"):
            product()
    data.x = kept
    assert torch.equal(jacobian @ v, before)


def test_a_loader_that_shuffles_is_refused(generators_untouched):
    loader = DataLoader(TensorDataset(random(50, 2)), batch_size=5, shuffle=True)
    with pytest.raises(jacana.errors.InvalidData, match="shuffle"):
        jacana.Fisher(small(), loader, jacana.Categorical())


# Wherever it is called ----------------------------------------------------------------------------


def within(context):
    def call(product):
        with context():
            return product()

    return call


SURROUNDINGS = {
    "no_grad": within(torch.no_grad),
    "inference_mode": within(torch.inference_mode),
    "autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "default dtype": lambda product: product(),
}


@pytest.mark.parametrize("call", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_surroundings_change_nothing(call):
    net, x = small(dtype=torch.float32), random(6, 2, dtype=torch.float32)
    v = random(61, dtype=torch.float32)
    want = jacana.Fisher(net, x, jacana.Categorical()) @ v

    def product():
        fisher = jacana.Fisher(net, x, jacana.Categorical())
        return [fisher @ v, fisher @ v.clone(), (fisher @ torch.stack([v, v], 1))[:, 1]]

    for got in call(product):
        assert not got.requires_grad
        oracles.assert_close(got, want, torch.float32)
    made = jacana.Fisher(net, x, jacana.Categorical())
    oracles.assert_close(call(lambda: made @ v), want, torch.float32)


def test_two_threads_at_once():
    net, x = convolutional(), random(6, 2, 6, 6)
    fisher = jacana.Fisher(net, x, jacana.Categorical(), batch_size=2)
    columns = random(fisher.shape[0], 8)
    want = fisher @ columns
    got = {}

    def work(k):
        got[k] = fisher @ columns[:, k]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    oracles.assert_close(torch.stack([got[k] for k in range(8)], 1), want, DOUBLE)


def test_the_network_stays_as_it_was():
    net, x = convolutional(), random(4, 2, 6, 6)
    net.train()
    before = oracles.Snapshot(net)
    data = x.clone()
    fisher = jacana.Fisher(net, x, jacana.Categorical())
    v = random(fisher.shape[0])
    first = fisher @ v
    before.assert_unchanged()
    x.zero_()  # the operator has the data in memory of its own
    oracles.assert_close(fisher @ v, first, DOUBLE)
    with torch.no_grad():
        net[0].weight.zero_()
    oracles.assert_close(fisher @ v, first, DOUBLE)
    assert data.any()


def test_operators_can_be_copied():
    fisher = jacana.Fisher(small(), random(4, 2), jacana.Categorical())
    v = random(61)
    oracles.assert_close(copy.deepcopy(fisher) @ v, fisher @ v, DOUBLE)


# What a hostile reader found ----------------------------------------------------------------------


class Square(torch.autograd.Function):
    """Its derivative cannot be differentiated, and says nothing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Branching(nn.Module):
    """The examples that a probe looks at, the first and the last, do not take the branch."""

    def __init__(self, apply):
        super().__init__()
        self.first, self.last, self.apply_ = nn.Linear(3, 4, bias=False), nn.Linear(4, 2), apply

    def forward(self, x):
        h = self.first(x)
        some = x[:, 0] > 0
        if some.any():
            h = h.index_put((some,), self.apply_(h[some]))
        return self.last(h.tanh())


BRANCHES = {
    "a derivative that has none": Square.apply,
    "a derivative by numpy": lambda h: h * torch.from_numpy(np.ones(1)) + Square.apply(h),
    "a singular point": lambda h: h + h.std(1, keepdim=True),
}


@pytest.mark.parametrize("words", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("apply", BRANCHES.values(), ids=BRANCHES)
def test_examples_that_the_probe_did_not_see(apply, words):
    torch.manual_seed(0)
    net = Branching(apply).double()
    x = random(8, 3)
    x[:, 0] = torch.tensor([-1.0, -1, 1, 1, 1, -1, -1, -1])
    J = oracles.jacobian(net, x)
    jacobian = jacana.Jacobian(net, x, **words)
    V = random(J.shape[1], 5)
    for _ in range(2):
        oracles.assert_close(jacobian @ V, J @ V.numpy(), DOUBLE, scale=100)
        oracles.assert_close(jacobian @ V[:, 0], J @ V[:, 0].numpy(), DOUBLE, scale=100)
    fisher = jacana.Fisher(net, x, jacana.Categorical(), **words)
    want = oracles.gauss_newton(J, oracles.curvature("categorical", oracles.outputs(net, x)))
    oracles.assert_close(fisher @ V, want @ V.numpy(), DOUBLE, scale=100)


@pytest.mark.parametrize("apply", BRANCHES.values(), ids=BRANCHES)
def test_examples_that_the_probe_did_not_see_by_factors(apply, factored):
    test_examples_that_the_probe_did_not_see(apply, {})


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("vectorize", [True, False, None])
def test_parameters_that_are_not_used(vectorize):
    net, x = Unused().double(), random(7, 4)
    J = oracles.jacobian(net, x)
    jacobian = jacana.Jacobian(net, x, vectorize=vectorize)
    for k in (1, 3, 4, 9):
        V, U = random(16, k), random(14, k)
        oracles.assert_close(jacobian @ V, J @ V.numpy(), DOUBLE, scale=100)
        oracles.assert_close(jacobian.T @ U, J.T @ U.numpy(), DOUBLE, scale=100)
    oracles.assert_close(jacana.Fisher(net, x, jacana.Gaussian(1.0)).to_dense(), J.T @ J, DOUBLE, scale=100)


def test_labels_come_from_the_pass_that_was_checked():
    x, y = random(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])

    class Restless(torch.utils.data.Sampler):
        turn = 0

        def __iter__(self):
            self.turn += 1
            return iter(range(6) if self.turn < 3 else range(5, -1, -1))

        def __len__(self):
            return 6

    loader = DataLoader(TensorDataset(x, y), batch_size=2, sampler=Restless())
    with pytest.raises(jacana.errors.InvalidData, match="order"):
        jacana.EmpiricalFisher(small(), loader, None, jacana.Categorical())


def test_labels_are_held_in_memory_of_their_own():
    y = torch.zeros(6, dtype=torch.long)
    E = jacana.EmpiricalFisher(small(), random(6, 2), y, jacana.Categorical())
    v = random(61)
    before = E @ v
    y.fill_(1)
    assert torch.equal(E @ v, before)


def test_copies_after_a_product():
    fisher = jacana.Fisher(small(), random(4, 2), jacana.Categorical())
    v = random(61)
    want = fisher @ v
    for copied in (copy.deepcopy(fisher), pickle.loads(pickle.dumps(fisher))):
        oracles.assert_close(copied @ v, want, DOUBLE)


def test_products_that_are_not_finite_are_refused():
    net = nn.Linear(2, 3).double()
    with torch.no_grad():
        net.weight.mul_(1e5)
    fisher = jacana.Fisher(net, random(5, 2), jacana.Poisson())
    for product in (lambda: fisher @ torch.ones(9, dtype=DOUBLE), fisher.diagonal):
        with pytest.raises(jacana.errors.InvalidData, match="finite"):
            product()


def test_padding_given_to_torch_itself():
    table = nn.Parameter(random(5, 3))

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = table, nn.Linear(3, 2).double()

        def forward(self, ids):
            return self.head(torch.embedding(self.table, ids, 2).mean(1).tanh())

    net, ids = Padded(), torch.tensor([[0, 1], [2, 3], [2, 2], [4, 0], [1, 1]])
    J = oracles.jacobian(net, ids)
    for words in KEPT.values():
        V = random(J.shape[1], 2)
        oracles.assert_close(jacana.Jacobian(net, ids, **words) @ V, J @ V.numpy(), DOUBLE, scale=100)
