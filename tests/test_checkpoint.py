"""Long solutions on disk: a process that was killed goes on, and nothing on the disk can spoil an answer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jacana
from tests import oracles
from tests.test_solvers import DOUBLE, random

SCRIPT = """
import signal, sys, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has its children ignore Ctrl-C
from tests.test_checkpoint import posterior
from jacana.operators import NTK
times = NTK.times
def slow(self, matrix):
    time.sleep(0.02)
    return times(self, matrix)
NTK.times = slow
posterior(sys.argv[1], every=0.0)
"""


def problem():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    return net, random(60, 3), random(60, 2, seed=3)


def posterior(folder, every=120.0, rtol=1e-9):
    net, x, y = problem()
    solver = jacana.CG(rtol=rtol, preconditioner=None, max_steps=5000, checkpoint=folder, every=every)
    return jacana.TangentGP(net, progress=False).condition(x, y, 0.1, method=jacana.FunctionSpace(solver))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_killed_process_is_gone_on_from(tmp_path, how):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    assert process.poll() is None  # it is at work
    process.send_signal(how)
    assert process.wait(timeout=30) != 0
    whole, resumed = posterior(None), posterior(tmp_path)
    assert resumed.solution.converged
    assert resumed.solution.steps < whole.solution.steps
    oracles.assert_close(resumed.weights, whole.weights, DOUBLE, scale=float(whole.weights.abs().max()), condition=1e8)
    assert posterior(tmp_path).solution.steps == 0  # the end is kept as well


@pytest.mark.parametrize("content", ["nothing", "rubbish", "others", "not finite"])
def test_a_file_that_does_not_belong_is_not_used(tmp_path, content):
    fresh = posterior(None)
    posterior(tmp_path, every=0.0, rtol=0.5)
    (file,) = tmp_path.glob("*.safetensors")
    kept = torch.zeros(120, 1, dtype=DOUBLE)
    {
        "nothing": lambda: file.write_bytes(b""),
        "rubbish": lambda: file.write_bytes(b"\x00" * 1000),
        "others": lambda: save_file({"x": 1e6 * random(120, 1)}, str(file)),
        "not finite": lambda: save_file({"x": kept + float("nan")}, str(file)),
    }[content]()
    found = posterior(tmp_path)
    assert found.solution.converged
    oracles.assert_close(found.weights, fresh.weights, DOUBLE, scale=float(fresh.weights.abs().max()), condition=1e8)


def test_a_full_disk_is_said_and_costs_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jacana.solvers.checkpoint.save_file", full)
    with pytest.warns(UserWarning, match=r"checkpoint.*No space left"):
        found = posterior(tmp_path, every=0.0)
    assert found.solution.converged
    assert not list(tmp_path.iterdir())


def test_a_short_solution_leaves_no_file(tmp_path):
    posterior(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("words", [{"every": -1.0}, {"checkpoint": 3}])
def test_options_are_checked(words, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match=next(iter(words))):
        jacana.CG(**words)
