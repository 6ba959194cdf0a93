"""Exact products with the Jacobian: every network of the zoo, both dtypes, every kind of input, every way to cut it."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import jacana
from jacana.linearization import pull, push
from tests import oracles, zoo

DOUBLE, SINGLE = torch.float64, torch.float32
N = 4

ZOO = pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)


class Known:
    """A linearization and its oracle; built once for each network and dtype."""

    def __init__(self, case: zoo.Case, dtype: torch.dtype) -> None:
        self.net, self.x = case.net(dtype), case.x(N, dtype)
        self.J, self.values = case.jacobian(self.net, self.x), case.values(self.net, self.x)
        self.lin = jacana.linearize(self.net, **case.reading)
        self.n, self.c = self.values.shape
        self.p = self.J.shape[1]
        rng = np.random.default_rng(self.p)
        self.v, self.V = rng.normal(size=self.p), rng.normal(size=(self.p, 3))
        self.u, self.U = rng.normal(size=(self.n, self.c)), rng.normal(size=(self.n * self.c, 3))

    def tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.lin.dtype)


@functools.cache
def known(name: str, dtype: torch.dtype) -> Known:
    return Known(zoo.BY_NAME[name], dtype)


def parts(x):
    """The tensors of an input."""
    if isinstance(x, torch.Tensor):
        return [x]
    return list(x.values()) if isinstance(x, Mapping) else list(x)


def close(got, want, dtype, scale=None, what="value"):
    oracles.assert_close(got, want, dtype, scale=scale, what=what)


# The network, its derivative, and the way there ------------------------------------------------------


@ZOO
def test_outputs_are_those_of_the_network(case, dtype):
    it = known(case.name, dtype)
    got = it.lin(it.x)
    assert got.dtype == dtype
    assert not got.requires_grad
    close(got, it.values, dtype)


@ZOO
def test_jvp_is_the_dense_jacobian_times_v(case, dtype):
    it = known(case.name, dtype)
    scale = np.abs(it.J) @ np.abs(it.v)
    got = it.lin.jvp(it.x, it.tensor(it.v))
    assert got.dtype == dtype
    assert not got.requires_grad
    close(got, (it.J @ it.v).reshape(it.n, it.c), dtype, scale.max())


@ZOO
def test_jvp_of_many_vectors(case, dtype):
    it = known(case.name, dtype)
    scale = np.abs(it.J) @ np.abs(it.V)
    close(it.lin.jvp(it.x, it.tensor(it.V)), (it.J @ it.V).reshape(it.n, it.c, 3), dtype, scale.max())


@ZOO
def test_vjp_is_the_transposed_jacobian_times_u(case, dtype):
    it = known(case.name, dtype)
    scale = np.abs(it.J).T @ np.abs(it.u.reshape(-1))
    want = it.J.T @ it.u.reshape(-1)
    got = it.lin.vjp(it.x, it.tensor(it.u))
    assert got.dtype == dtype
    close(got, want, dtype, scale.max())
    close(it.lin.vjp(it.x, it.tensor(it.u.reshape(-1))), want, dtype, scale.max())


@ZOO
def test_vjp_of_many_vectors(case, dtype):
    it = known(case.name, dtype)
    scale = np.abs(it.J).T @ np.abs(it.U)
    close(it.lin.vjp(it.x, it.tensor(it.U)), it.J.T @ it.U, dtype, scale.max())


@ZOO
def test_products_are_adjoint(case, dtype):
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩."""
    it = known(case.name, dtype)
    left = torch.sum(it.tensor(it.u).double() * it.lin.jvp(it.x, it.tensor(it.v)).double()).item()
    right = torch.dot(it.lin.vjp(it.x, it.tensor(it.u)).double(), it.tensor(it.v).double()).item()
    scale = np.abs(it.u.reshape(-1)) @ np.abs(it.J) @ np.abs(it.v)
    close(left, right, dtype, scale)


@ZOO
def test_dense_jacobian_is_that_of_autograd_loops(case, dtype):
    it = known(case.name, dtype)
    got = it.lin.jacobian(it.x)
    assert got.dtype == dtype
    assert not got.requires_grad
    close(got, it.J, dtype)


@ZOO
def test_jacobian_from_products_is_the_jacobian(case, dtype):
    """Row i·c + k is output k of example i; columns (forty of them) in the order of `lin.names`."""
    it = known(case.name, dtype)
    chosen = np.random.default_rng(0).permutation(it.p)[:40]
    columns = it.lin.jvp(it.x, torch.eye(it.p, dtype=dtype)[:, chosen]).reshape(it.n * it.c, -1)
    rows = it.lin.vjp(it.x, torch.eye(it.n * it.c, dtype=dtype)).T
    close(columns, it.J[:, chosen], dtype, np.abs(it.J).max())
    close(rows, it.J, dtype)


@ZOO
def test_a_route_is_told_and_allowed(case, dtype):
    it = known(case.name, dtype)
    route = it.lin.route(it.x)
    assert route in zoo.ANY
    assert route in case.routes


@ZOO
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_products_do_not_depend_on_batch_size(case, batch_size):
    it = known(case.name, DOUBLE)
    u, v = it.tensor(it.u), it.tensor(it.v)
    close(it.lin(it.x, batch_size=batch_size), it.values, DOUBLE)
    product = (it.J @ it.v).reshape(it.n, it.c)
    close(it.lin.jvp(it.x, v, batch_size=batch_size), product, DOUBLE, np.abs(it.J).sum(1).max() * 4)
    close(it.lin.vjp(it.x, u, batch_size=batch_size), it.J.T @ it.u.reshape(-1), DOUBLE, np.abs(it.J).sum(0).max() * 4)
    close(it.lin.jacobian(it.x, batch_size=batch_size), it.J, DOUBLE)


@ZOO
def test_one_example_alone_gives_its_own_rows(case, dtype):
    it = known(case.name, dtype)
    x = case.x(N, dtype)
    if isinstance(x, torch.Tensor):
        one = x[2:3]
    elif isinstance(x, tuple):
        one = tuple(part[2:3] for part in x)
    else:
        one = {key: part[2:3] for key, part in x.items()}
    rows = slice(2 * it.c, 3 * it.c)
    lin = jacana.linearize(it.net, **case.reading)  # met first with one example
    close(lin(one), it.values[2:3], dtype, np.abs(it.values).max())
    scale = (np.abs(it.J) @ np.abs(it.v)).max()
    close(lin.jvp(one, it.tensor(it.v)), (it.J @ it.v)[rows].reshape(1, it.c), dtype, scale)
    close(lin.jacobian(one), it.J[rows], dtype, np.abs(it.J).max())


@ZOO
def test_zero_and_no_right_hand_sides(case, dtype):
    it = known(case.name, dtype)
    assert not it.lin.jvp(it.x, torch.zeros(it.p, dtype=dtype)).any()
    assert not it.lin.vjp(it.x, torch.zeros(it.n, it.c, dtype=dtype)).any()
    assert it.lin.jvp(it.x, torch.zeros(it.p, 0, dtype=dtype)).shape == (it.n, it.c, 0)
    assert it.lin.vjp(it.x, torch.zeros(it.n * it.c, 0, dtype=dtype)).shape == (it.p, 0)


@ZOO
def test_data_are_left_as_they_were(case):
    """Also where the network changes its input in place."""
    it = known(case.name, DOUBLE)
    x = case.x(N, DOUBLE)
    it.lin(x), it.lin.jvp(x, it.tensor(it.v)), it.lin.vjp(x, it.tensor(it.u)), it.lin.jacobian(x), it.lin.route(x)
    fresh = case.x(N, DOUBLE)
    for part, untouched in zip(parts(x), parts(fresh), strict=True):
        assert torch.equal(part, untouched)
        assert not part.requires_grad


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")  # torch's, under no_grad
def test_reentrant_checkpoints_are_right_or_refused():
    """`autograd.grad` does not go through them: an error with a cure, or the right answer; never a silent zero."""
    net, x = zoo.Case("reentrant", zoo.Reentrant, zoo.vectors(3)).net(), torch.randn(4, 3, dtype=DOUBLE)
    plain = zoo.Case("reentrant", zoo.Checkpointed, zoo.vectors(3)).net()
    plain.load_state_dict(net.state_dict())
    J = oracles.jacobian(plain, x)
    lin = jacana.linearize(net)
    v = torch.randn(J.shape[1], dtype=DOUBLE)
    try:
        got = lin.jvp(x, v)
    except jacana.errors.UnsupportedNetwork as error:
        assert "use_reentrant" in str(error)  # noqa: PT017
    else:
        close(got, (J @ v.numpy()).reshape(4, 2), DOUBLE, np.abs(J).sum(1).max())


# The context -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    return known("mlp", DOUBLE)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("route", ["mlp", "custom Function, old style", "custom Function, once differentiable", "LSTM"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_every_grad_mode_gives_the_same(route, context):
    """torch.func.linearize returns zeros under inference mode, without a word."""
    case = zoo.BY_NAME[route]
    it = known(route, DOUBLE)
    with CONTEXTS[context]():
        x = case.x(N, DOUBLE)  # under inference mode an inference tensor
        lin = jacana.linearize(it.net)
        got = lin(x), lin.jvp(x, it.tensor(it.v)), lin.vjp(x, it.tensor(it.u)), lin.jacobian(x)
    close(got[0], it.values, DOUBLE)
    close(got[1], (it.J @ it.v).reshape(it.n, it.c), DOUBLE, (np.abs(it.J) @ np.abs(it.v)).max())
    close(got[2], it.J.T @ it.u.reshape(-1), DOUBLE, (np.abs(it.J).T @ np.abs(it.u.reshape(-1))).max())
    close(got[3], it.J, DOUBLE)


@pytest.mark.parametrize("use", ["jvp", "vjp", "jacobian", "call"])
def test_autocast_is_refused_or_switched_off(use):
    """Left on it rounds to bfloat16: 5e-3 wrong in silence."""
    it = known("mlp", SINGLE)
    lin = jacana.linearize(it.net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            if use == "jvp":
                got, want = lin.jvp(it.x, it.tensor(it.v)), (it.J @ it.v).reshape(it.n, it.c)
            elif use == "vjp":
                got, want = lin.vjp(it.x, it.tensor(it.u)), it.J.T @ it.u.reshape(-1)
            elif use == "jacobian":
                got, want = lin.jacobian(it.x), it.J
            else:
                got, want = lin(it.x), it.values
        except jacana.errors.JacanaError as error:
            assert "autocast" in str(error)  # noqa: PT017
            return
    close(got, want, SINGLE, scale=4 * np.abs(want).max())


def test_a_default_dtype_of_the_user_changes_nothing(plain):
    torch.set_default_dtype(DOUBLE)
    try:
        it = known("mlp", SINGLE)
        lin = jacana.linearize(it.net)
        assert lin(it.x).dtype == SINGLE
        close(lin.jacobian(it.x), it.J, SINGLE)
    finally:
        torch.set_default_dtype(SINGLE)


def test_threads_inside_torch_do_not_matter(threads):
    case = zoo.BY_NAME["conv, BatchNorm, in-place ReLU"]
    it = known(case.name, DOUBLE)
    close(jacana.linearize(it.net).jacobian(it.x), it.J, DOUBLE)


@pytest.mark.parametrize("names", [("mlp", "LSTM"), ("scaled_dot_product_attention", "TransformerEncoderLayer")])
def test_two_python_threads_at_once(names):
    """Forward mode in two threads raises "Nested forward mode AD", and the switches are the process's."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    failures: list[BaseException] = []
    start = threading.Barrier(2)

    def work(name: str) -> None:
        it = known(name, SINGLE)
        try:
            start.wait()
            lin = jacana.linearize(it.net)
            for _ in range(15):
                found[name].append(lin.jvp(it.x, it.tensor(it.v)))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    for name in names:
        known(name, SINGLE)
    workers = [threading.Thread(target=work, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    for name in names:
        it = known(name, SINGLE)
        for got in found[name]:
            close(got, (it.J @ it.v).reshape(it.n, it.c), SINGLE, (np.abs(it.J) @ np.abs(it.v)).max())


def test_two_python_threads_share_one_linearization():
    """Meeting new kinds and lengths of input all the while, in no order."""
    it = known("GRU", DOUBLE)
    lin = jacana.linearize(it.net)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for i in range(first, 24, 2):
                x = it.x[: 1 + i % 4, : 1 + i % 3]
                J = oracles.jacobian(it.net, x)
                close(lin.jvp(x, it.tensor(it.v)).reshape(-1), J @ it.v, DOUBLE, np.abs(J).sum(1).max() * 4)
                close(lin.jacobian(x), J, DOUBLE)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    workers = [threading.Thread(target=work, args=(first,), daemon=True) for first in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers), "deadlock"
    assert not failures


# The snapshot ----------------------------------------------------------------------------------------


def test_later_training_of_the_network_does_not_reach_it():
    net, x = zoo.mlp().double(), torch.randn(4, 3, dtype=DOUBLE)
    lin = jacana.linearize(net)
    J, values = oracles.jacobian(net, x), oracles.outputs(net, x)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    net(x).square().sum().backward()
    optimiser.step()
    assert np.abs(oracles.outputs(net, x) - values).max() > 1e-2
    close(lin(x), values, DOUBLE)
    close(lin.jacobian(x), J, DOUBLE)


def test_a_network_in_training_mode_is_linearized_in_evaluation_mode_and_left_in_training_mode():
    case = zoo.BY_NAME["conv, BatchNorm, in-place ReLU"]
    net, x = case.net(), case.x(N)
    J = case.jacobian(net, x)
    net.train()
    lin = jacana.linearize(net)
    close(lin.jacobian(x), J, DOUBLE)
    assert all(module.training for module in net.modules())


def test_a_network_changed_in_place_by_optimisers_of_others_does_not_share_memory():
    net, x = zoo.mlp().double(), torch.randn(4, 3, dtype=DOUBLE)
    lin = jacana.linearize(net)
    J = oracles.jacobian(net, x)
    for parameter in net.parameters():
        parameter.data.fill_(7.0)
    close(lin.jacobian(x), J, DOUBLE)


# What x may be ---------------------------------------------------------------------------------------


def test_numpy_arrays_of_every_memory_layout(plain):
    array = plain.x.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    wide = np.repeat(array, 2, axis=1)
    for x in (
        array,
        read_only,
        np.asfortranarray(array),
        array[::-1][::-1],
        array[::-1].copy()[::-1],
        wide[:, ::2],
        array.astype(">f8"),
    ):
        close(plain.lin(x), plain.values, DOUBLE)
        close(plain.lin.jacobian(x), plain.J, DOUBLE)


def test_floating_inputs_are_cast_to_the_dtype_of_the_network():
    it = known("mlp", SINGLE)
    for x in (it.x.double(), it.x.double().numpy(), it.x):
        assert it.lin(x).dtype == SINGLE
        close(it.lin.jacobian(x), it.J, SINGLE)
    half = it.x.half()
    close(it.lin.jacobian(half), oracles.jacobian(it.net, half.float()), SINGLE)


def test_integers_are_left_alone():
    case = zoo.BY_NAME["tied embedding and head"]
    it = known(case.name, DOUBLE)
    for x in (it.x, it.x.int(), it.x.numpy()):
        close(it.lin.jacobian(x), it.J, DOUBLE)


def test_inputs_that_require_gradients_and_views_and_non_contiguous_inputs(plain):
    close(plain.lin.jacobian(plain.x.clone().requires_grad_(True)), plain.J, DOUBLE)
    close(plain.lin.jacobian(plain.x.T.contiguous().T), plain.J, DOUBLE)
    close(plain.lin.jacobian(plain.x.repeat_interleave(2, 0)[::2]), plain.J, DOUBLE)
    assert not plain.lin.jvp(plain.x.clone().requires_grad_(True), plain.tensor(plain.v)).requires_grad


def test_vectors_that_require_gradients_or_have_another_float_dtype(plain):
    v = plain.tensor(plain.v)
    want = (plain.J @ plain.v).reshape(plain.n, plain.c)
    close(plain.lin.jvp(plain.x, v.clone().requires_grad_(True)), want, DOUBLE, np.abs(plain.J).sum(1).max() * 4)
    close(plain.lin.jvp(plain.x, v.float()), want, SINGLE, np.abs(plain.J).sum(1).max() * 4)
    close(plain.lin.jvp(plain.x, torch.stack([v, v], 1)[:, 1]), want, DOUBLE, np.abs(plain.J).sum(1).max() * 4)


def test_equal_examples_are_fine(plain):
    x = plain.x[[1, 1, 1]]
    close(plain.lin.jacobian(x), np.tile(plain.J[2:4], (3, 1)), DOUBLE)


def test_in_place_layers_leave_numpy_inputs_alone():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    array = np.random.default_rng(0).normal(size=(4, 3))
    kept = array.copy()
    lin = jacana.linearize(net)
    J = oracles.jacobian(net, torch.from_numpy(kept.copy()))
    close(lin.jacobian(array), J, DOUBLE)
    lin(array), lin.jvp(array, torch.ones(J.shape[1], dtype=DOUBLE)), lin.vjp(array, torch.ones(4, 2, dtype=DOUBLE))
    np.testing.assert_array_equal(array, kept)


class Pairs(Dataset):
    """(input, target) with the input a mapping."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {key: value[i] for key, value in self.x.items()}, self.y[i]


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_loaders_of_inputs_alone_and_of_inputs_with_targets(plain, size, generators_untouched):
    alone = DataLoader(plain.x, batch_size=size)
    singles = DataLoader(TensorDataset(plain.x), batch_size=size)
    pairs = DataLoader(TensorDataset(plain.x, torch.full((N,), 3.0)), batch_size=size)
    v, u = plain.tensor(plain.v), plain.tensor(plain.u)
    for loader in (alone, singles, pairs):
        close(plain.lin(loader), plain.values, DOUBLE)
        close(plain.lin.jvp(loader, v), (plain.J @ plain.v).reshape(N, 2), DOUBLE, np.abs(plain.J).sum(1).max() * 4)
        close(plain.lin.vjp(loader, u), plain.J.T @ plain.u.reshape(-1), DOUBLE, np.abs(plain.J).sum(0).max() * 4)
        close(plain.lin.jacobian(loader), plain.J, DOUBLE)


def test_loaders_of_mappings(generators_untouched):
    it = known("dict input", DOUBLE)
    loader = DataLoader(Pairs(it.x, torch.zeros(N)), batch_size=3)
    close(it.lin.jacobian(loader), it.J, DOUBLE)


def test_a_loader_with_workers_and_its_own_generator(plain, generators_untouched):
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(plain.x, plain.x), batch_size=3, generator=generator)
    close(plain.lin.jacobian(loader), plain.J, DOUBLE)


def test_products_draw_nothing_from_the_global_generators(generators_untouched):
    for name in ("mlp", "LSTM", "custom Function, once differentiable"):
        case = zoo.BY_NAME[name]
        net = case.net()
        lin = jacana.linearize(net)
        x = case.x(N)
        p = sum(q.numel() for q in net.parameters())
        lin(x), lin.jvp(x, torch.ones(p, dtype=DOUBLE)), lin.jacobian(x)


@pytest.mark.parametrize("k", [1, 40])
def test_products_with_few_and_many_columns_are_those_of_the_jacobian(k):
    """Position by position, or with gradients that are formed first: whichever counts fewer operations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 3))
    lin = jacana.linearize(net.double())
    x = lin.examples(torch.randn(6, 2, 8, 8, dtype=torch.float64))
    jacobian = lin.jacobian(x)
    tangents = torch.randn(lin.n_parameters, k, dtype=torch.float64)
    cotangents = torch.randn(18, k, dtype=torch.float64)
    torch.testing.assert_close(push(lin, x, tangents), jacobian @ tangents, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pull(lin, x, cotangents), jacobian.T @ cotangents, rtol=1e-10, atol=1e-10)
    formed = torch.cat([block.formed().push(tangents, lin.network.sizes) for block in lin.blocks(x)])
    torch.testing.assert_close(formed, jacobian @ tangents, rtol=1e-10, atol=1e-10)


def test_nothing_of_it_stays_when_it_is_gone():
    """Graphs that were looked at would hold themselves: an output that its node has saved."""

    def tensors():
        gc.collect()
        return sum(issubclass(type(it), torch.Tensor) for it in gc.get_objects())  # no attribute of any is touched

    net, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 2)
    counts = []
    for _ in range(4):
        lin = jacana.linearize(net)
        lin.jvp(x, torch.ones(lin.n_parameters))
        jacana.gram(lin, x)
        del lin
        counts.append(tensors())
    assert counts[-1] == counts[1]
