"""The memory budget of the dense kernel holds, as measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import jacana

MIB = 2**20

SCRIPT = """
import sys
from pathlib import Path

import torch
from torch import nn

import jacana

torch.set_num_threads(1)
torch.manual_seed(0)
name, n, budget = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if name == "convolutions":
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    net, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), torch.randn(n, 3, 32, 32)
elif name == "wide":
    net = nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 512), nn.Linear(512, 10))
    x = torch.randn(n, 256)
else:
    encoder = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(encoder, 3, enable_nested_tensor=False)
    net = nn.Sequential(nn.Embedding(500, 64), encoder, nn.Flatten(), nn.Linear(64 * 32, 2))
    x = torch.randint(0, 500, (n, 32))
lin = jacana.linearize(net.eval())
jacana.gram(lin, x[:2])  # the probe is not part of the budget
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
K = jacana.gram(lin, x, memory_budget=budget)
assert bool(torch.isfinite(K).all())
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process its peak memory")
@pytest.mark.parametrize(
    ("network", "n", "budget"),
    [("convolutions", 60, 150), ("convolutions", 60, 300), ("wide", 300, 250), ("transformer", 150, 200)],
)
def test_the_peak_stays_within_the_budget(network, n, budget):
    command = [sys.executable, "-c", SCRIPT, network, str(n), str(budget * MIB)]
    # Every large block by itself: what is freed goes back, so that the peak is of what is held, the same each time.
    # Otherwise C's allocator keeps up to 50 MiB of what was freed, more or less by where the blocks happened to lie.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= budget * MIB, f"{int(done.stdout) / MIB:.0f} MiB"
    assert int(done.stdout) > 0


def test_a_budget_tiles_over_parameters_where_two_examples_do_not_fit_whole():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    x = torch.randn(6, 5, 30, dtype=torch.float64)
    lin = jacana.linearize(nn.Sequential(net, nn.Flatten(), nn.Linear(15, 4).double()))
    findings = lin.findings(lin.examples(x))
    whole = jacana.gram(lin, x)
    kernel = 8 * whole.numel()
    most = max(findings.held.values())
    tight = kernel + findings.passing + 2 * most + 100
    assert 2 * sum(findings.held.values()) > 2 * most + 100  # all of two examples would not fit
    torch.testing.assert_close(jacana.gram(lin, x, memory_budget=tight), whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(jacana.errors.InsufficientMemory, match="two examples"):
        jacana.gram(lin, x, memory_budget=kernel + findings.passing + most)
