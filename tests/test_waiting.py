"""The host does not wait for the device block by block: stands for torch.cuda.set_sync_debug_mode on any machine."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import jacana

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default, aten.equal.default,
    aten.unique_dim.default, aten.masked_select.default, aten.is_nonzero.default,
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host must have before it can go on."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(11, 8), encoder, nn.Flatten(), nn.Linear(40, 2))


CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), lambda n: torch.randn(n, 6)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3)
        ),
        lambda n: torch.randn(n, 1, 6, 6),
    ),
    "transformer": (transformer, lambda n: torch.randint(0, 11, (n, 5))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_how_often_the_host_waits_does_not_depend_on_the_number_of_blocks(name, outputs):
    torch.manual_seed(0)
    net, data = CASES[name][0](), CASES[name][1]
    x = data(24)
    counts = {}
    for size in (24, 2):
        lin = jacana.linearize(net.eval(), batch_size=1)  # at most four examples a block, or all of them
        findings = lin.findings(lin.examples(x))
        c = findings.n_outputs
        rows = 24 * c if outputs == "full" else 24
        kernel = 8 * rows**2
        room = kernel + (100 * 24 if size == 24 else 8 * 2) * findings.bytes_per_example
        jacana.gram(lin, x, outputs=outputs, memory_budget=room)
        with Waits() as waits:
            jacana.gram(lin, x, outputs=outputs, memory_budget=room)
        counts[size] = waits.seen
    assert counts[24] == counts[2], "the host waits in the loop over blocks"
    assert sum(counts[2].values()) <= 6, counts[2]
    with Waits() as waits:
        assert bool((x == x).all())
    assert sum(waits.seen.values()) == 1, "a wait is counted"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("passes", [0, 10**9], ids=["factors", "graphs"])
def test_products_by_what_is_kept_never_wait(name, passes, monkeypatch):
    monkeypatch.setattr("jacana.linearization.inquiry.are_faster", lambda *_: True)
    monkeypatch.setattr("jacana.linearization.batch._PASSES_AN_OUTPUT", passes)
    torch.manual_seed(0)
    net, data = CASES[name][0](), CASES[name][1]
    lin, x = jacana.linearize(net.eval()), data(12)
    v = torch.randn(lin.n_parameters, 2)
    c = lin(x).shape[1]
    operators = [
        jacana.Fisher(lin, x, jacana.Categorical(), batch_size=5),
        jacana.NTK(lin, x, batch_size=5),
        jacana.Jacobian(lin, x, batch_size=5),
    ]
    for operator, right in zip(operators, (v, torch.randn(12 * c, 2), v), strict=True):
        operator.times(right)
        operator.transposed_times(torch.randn(operator.shape[0], 2))
        with Waits() as waits:
            operator.times(right)
            operator.transposed_times(torch.randn(operator.shape[0], 2))
        assert not waits.seen, type(operator).__name__
