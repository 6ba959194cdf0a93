"""Arrays in files: the numbers of the same arrays in memory, never copied whole, refused where they are no data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import jacana
from jacana.networks import mapped
from jacana.networks.mapped import Mapped, is_mapped
from tests import oracles

DOUBLE = torch.float64
TIGHT = jacana.CG(rtol=1e-10)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    """Slices of a few examples, so that small files have many."""
    monkeypatch.setattr(mapped, "_SLICE_BYTES", 200)


@pytest.fixture
def saved(tmp_path):
    """Puts arrays into files, and gives them as memory maps."""
    count = iter(range(100))

    def save(array, mode="r"):
        path = tmp_path / f"{next(count)}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode=mode)

    return save


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


class Two(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(3, 2).double(), nn.Linear(2, 2).double()

    def forward(self, a, b):
        return self.left(a).tanh() * self.right(b)


class Words(nn.Module):
    """A network of tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(7, 3).double(), nn.Linear(3, 2).double()

    def forward(self, ids):
        return self.head(self.table(ids).mean(1).tanh())


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


# The same numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [{}, {"memory_budget": 0}, {"memory_budget": 3000}, {"batch_size": 3}], ids=str)
def test_products_are_those_of_the_array(words, saved):
    net, x, z = jacana.linearize(small()), random(45, 3), random(5, 3, seed=1)
    file = saved(x)
    labels = np.arange(45) % 2
    likelihood = jacana.Categorical()
    pairs = [
        (jacana.Jacobian(net, data, **words), jacana.NTK(net, z, data, **words), jacana.NTK(net, data, **words),
         jacana.Fisher(net, data, likelihood, **words), jacana.EmpiricalFisher(net, data, labels, likelihood, **words))
        for data in (file, x)
    ]  # fmt: skip
    for streamed, whole in zip(*pairs, strict=True):
        V, U = (torch.from_numpy(random(size, 2)).to(DOUBLE) for size in (whole.shape[1], whole.shape[0]))
        for _ in range(2):
            same(streamed @ V, whole @ V)
            same(streamed.T @ U, whole.T @ U)
        same(streamed.to_dense(), whole.to_dense())
        if whole.shape[0] == whole.shape[1]:
            same(streamed.diagonal(), whole.diagonal())


@pytest.mark.parametrize(
    "method",
    [
        jacana.FunctionSpace(TIGHT),
        jacana.Pathwise(5, TIGHT),
        jacana.FunctionSpace(jacana.CG(1e-10, preconditioner=jacana.preconditioners.Nystrom(20))),
        jacana.FunctionSpace(),
        jacana.WeightSpace(),
    ],
    ids=["CG", "Pathwise", "CG, Nyström", "factorised", "weights"],
)
def test_posteriors_are_those_of_the_array(method, saved):
    gp, x, y = jacana.TangentGP(small()), random(45, 3), random(45, 2, seed=2)
    new = saved(random(6, 3, seed=3))
    want = gp.condition(x, y, 0.3, method=method)
    got = gp.condition(saved(x), saved(y), 0.3, method=method)
    oracles.assert_close(got.weights, want.weights, DOUBLE, scale=float(want.weights.abs().max()), condition=1e4)
    a, b = got.predict(new), want.predict(np.array(new))
    oracles.assert_close(a.mean, b.mean, DOUBLE, scale=1.0, condition=1e4)
    oracles.assert_close(a.variance, b.variance, DOUBLE, scale=1.0, condition=1e6)
    more = got.condition(saved(x[:2] + 1.0), y[:2])
    assert more.n_examples == 47


@pytest.mark.parametrize("structure", ["dict", "tuple", "one of two"])
def test_dicts_and_tuples_of_maps(structure, saved):
    net, a, b = jacana.linearize(Two()), random(30, 3), random(30, 2, seed=1)
    files = {"dict": {"a": saved(a), "b": saved(b)}, "tuple": (saved(a), saved(b)), "one of two": (a, saved(b))}
    given = files[structure]
    whole = {"a": a, "b": b} if structure == "dict" else (a, b)
    v = torch.ones(net.n_parameters, dtype=DOUBLE)
    assert is_mapped(given)
    streamed = jacana.Jacobian(net, given, memory_budget=0)
    same(streamed @ v, jacana.Jacobian(net, whole) @ v)
    if structure == "one of two":  # what is in memory is out of reach
        a[:] = 0.0
        same(streamed @ v, jacana.Jacobian(net, (random(30, 3), b)) @ v)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_tokens(dtype, saved):
    ids = np.random.default_rng(0).integers(0, 7, size=(50, 4))
    net = jacana.linearize(Words())
    method = jacana.FunctionSpace(TIGHT)
    post, want = (
        jacana.TangentGP(net).condition(x, random(50, 2), 0.3, method=method)
        for x in (saved(ids.astype(dtype)) if dtype != np.uint8 else saved(ids), ids)
    )
    oracles.assert_close(post.weights, want.weights, DOUBLE, scale=1.0, condition=1e4)


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "int16", "bool"])
def test_a_file_of_another_dtype_is_cast_slice_by_slice(dtype, saved):
    x = (10 * random(40, 3)).astype(dtype)
    net = small()
    if x.dtype.kind != "f":
        net = nn.Sequential(Floating(), net)
    file, v = saved(x), torch.ones(50, dtype=DOUBLE)
    same(jacana.Jacobian(net, file, memory_budget=0) @ v, jacana.Jacobian(net, x) @ v)


class Floating(nn.Module):
    """Makes floating-point numbers of its input."""

    def forward(self, x):
        return x.double()


def test_views_of_maps_are_maps(saved):
    file = saved(random(40, 6))
    for view in (file, file[3:], file[::2, :3], np.asarray(file), np.asarray(file)[5:].T, file.reshape(-1, 3)):
        assert is_mapped(view)
        assert is_mapped({"x": view})
        assert is_mapped((1.0, view))
    for array in (np.array(file), file[[1, 2]], file + 1.0, torch.zeros(3), [1.0], None, np.float64(1.0)):
        assert not is_mapped(array)
    v = torch.ones(50, dtype=DOUBLE)
    view = file[1::2, ::-2]
    same(jacana.Jacobian(small(), view) @ v, jacana.Jacobian(small(), np.array(view)) @ v)


def test_some_examples_are_read_alone(saved):
    x = random(100, 3)
    source = Mapped(saved(x), DOUBLE, torch.device("cpu"))
    index = torch.tensor([0, 7, 8, 99])
    same(source.some(index).tensors[0], torch.from_numpy(x[index.numpy()]))
    assert len(source) == len(source.gathered()) == 100
    assert max(len(piece) for piece in source.batches(100)) == 8


# What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name_and_index(value, saved):
    x = random(100, 3)
    x[61, 2] = value
    with pytest.raises(jacana.errors.InvalidData, match=r"^x: got NaN .* the first at index 61;"):
        jacana.Jacobian(small(), saved(x))
    with pytest.raises(jacana.errors.InvalidData, match=r"^x2: got NaN .* the first at index 61;"):
        jacana.NTK(small(), x[:3], saved(x))
    with pytest.raises(jacana.errors.InvalidData, match=r"^x\['a'\]: got NaN .* the first at index 61;"):
        jacana.Jacobian(Two(), {"a": saved(x), "b": saved(random(100, 2))})
    with pytest.raises(jacana.errors.InvalidData, match=r"the first at index 61;"):
        jacana.TangentGP(small()).condition(saved(x), random(100, 2), 0.3, method=jacana.Pathwise())


def test_what_float32_cannot_hold_is_refused(saved):
    x = random(50, 3)
    x[-1, -1] = 1e300
    with pytest.raises(jacana.errors.InvalidData, match="too large"):
        jacana.Jacobian(small().float(), saved(x))


def test_what_does_not_fit_together_is_refused(saved):
    gp, x, method = jacana.TangentGP(small()), saved(random(50, 3)), jacana.FunctionSpace(TIGHT)
    with pytest.raises(jacana.errors.InvalidData, match="49 targets for 50 examples"):
        gp.condition(x, random(49, 2), 0.3, method=method)
    with pytest.raises(jacana.errors.InvalidData, match="y: got None"):
        gp.condition(x, noise_std=0.3, method=method)
    with pytest.raises(jacana.errors.InvalidData, match="y: got None"):
        jacana.EmpiricalFisher(small(), x, None, jacana.Categorical())
    with pytest.raises(jacana.errors.InvalidData, match=r"x\['b'\]: got 49 examples where x\['a'\] has 50"):
        jacana.Jacobian(Two(), {"a": x, "b": saved(random(49, 2))})
    with pytest.raises(jacana.errors.InvalidData, match="at least one example"):
        jacana.Jacobian(small(), x[:0])
    with pytest.raises(jacana.errors.InvalidData, match="no plain numbers"):
        jacana.Jacobian(small(), saved(np.zeros(50, dtype=[("a", float), ("b", int)])))
    with pytest.raises(jacana.errors.InvalidData, match="complex"):
        jacana.Jacobian(small(), saved(random(50, 3) + 1j))


def test_a_file_that_changes_is_refused(saved):
    file = saved(random(50, 3), mode="r+")
    jacobian, v = jacana.Jacobian(small(), file, memory_budget=0), torch.ones(50, dtype=DOUBLE)
    before = jacobian @ v
    file[30, 1] += 1e-12
    for product in (lambda: jacobian @ v, lambda: jacobian.T @ before, jacobian.to_dense):
        with pytest.raises(jacana.errors.InvalidData, match="other examples, or another order, on a later pass"):
            product()


# Memory ----------------------------------------------------------------------------------------------

MIB = 2**20

# What the allocator keeps for later, as much as 50 MiB by chance, is not the posterior's.
GIVEN_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

SCRIPT = """
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

import jacana
from jacana.linearization import memory

torch.set_num_threads(1)
torch.manual_seed(0)
memory._free = lambda device: 2**26  # as on a small machine: no more than a quarter is kept


def own():  # what the process has of its own; pages of files, which the system takes back as it likes, are not in it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


peak = 0


def watch():
    global peak
    while True:
        peak = max(peak, own())
        time.sleep(0.002)


net = torch.nn.Sequential(torch.nn.Linear(4096, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
gp = jacana.TangentGP(net, prior_std=0.01, progress=False)
x = np.load(sys.argv[1], mmap_mode="r")
y = np.sin(np.arange(len(x)))
solver = jacana.CG(rtol=1e-1, preconditioner=jacana.preconditioners.Nystrom(20))
method = jacana.FunctionSpace(solver)
gp.condition(x[:300], y[:300], 1.0, method=method).predict(x[:2]).mean  # what comes once is not of the data
before = own()
threading.Thread(target=watch, daemon=True).start()
post = gp.condition(x, y, 1.0, method=method)
assert post.solution.converged
assert bool(torch.isfinite(post.predict(x[:2]).mean).all())
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process its memory")
def test_the_memory_of_a_posterior_does_not_grow_with_the_file(tmp_path):
    """In processes of their own: 500 MiB of examples take less than half of that, and no more than a fourth of them."""
    peaks = {}
    for n in (8_000, 32_000):
        path = tmp_path / f"{n}.npy"
        file = np.lib.format.open_memmap(path, "w+", np.float32, (n, 4_096))
        file[:, :20] = random(n, 20)  # zeros elsewhere
        del file
        command = [sys.executable, "-c", SCRIPT, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | GIVEN_BACK)
        path.unlink()
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        peaks[n] = int(done.stdout) / MIB
    assert 0 < peaks[32_000] < 250, peaks
    assert peaks[32_000] < peaks[8_000] + 50, peaks
