"""What jacana.explain says is what jacana.gram does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import jacana


class Mixed(nn.Module):
    """A tied embedding, an operation without a rule, a parameter that is not used, views."""

    def __init__(self):
        super().__init__()
        self.token, self.mix = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.centres, self.spare = nn.Parameter(torch.randn(3, 4)), nn.Linear(2, 2)
        self.packed = nn.Parameter(torch.randn(8, 4))

    def forward(self, ids):
        x = torch.tanh(self.mix(self.token(ids)))
        x = functional.linear(x, self.packed[:4]) + functional.linear(x, self.packed[4:]).square()
        x = x.mean(1)
        return torch.cat([functional.linear(x, self.token.weight), torch.cdist(x, self.centres)], 1)


def test_it_tells_rules_evaluations_and_what_falls_to_autodiff():
    torch.manual_seed(0)
    ids = torch.randint(5, (7, 6))
    told = jacana.explain(Mixed(), ids)
    by_first = {line.parameters[0]: line for line in told.lines}
    assert by_first["token.weight"].rule == "embedding, linear"
    assert by_first["token.weight"].evaluation == "formed"
    assert by_first["mix.weight"].rule == "linear"
    assert by_first["mix.weight"].parameters in (("mix.weight",), ("mix.weight", "mix.bias"))
    assert by_first["packed"].rule == "linear x 2"
    assert by_first["centres"].rule == "autodiff"
    assert by_first["spare.weight"].evaluation == "none"
    assert by_first["spare.weight"].operations == 0.0
    assert sorted(name for line in told.lines for name in line.parameters) == sorted(jacana.linearize(Mixed()).names)
    assert (told.n, told.n_outputs, told.block) == (7, 8, 7)
    assert told.operations == pytest.approx(sum(line.operations for line in told.lines))
    text = str(told)
    assert "autodiff" in text
    assert "56 by 56" in text
    assert repr(told) == text


def test_the_arithmetic_grows_with_the_examples_as_counted():
    net = nn.Linear(300, 200)  # one position, factored: 2 n² (a + c² g) and a little
    small, large = (jacana.explain(net, torch.randn(n, 300)) for n in (10, 20))
    assert small.lines[0].evaluation == "factored"
    assert large.operations == pytest.approx(4 * small.operations)
    least = 2 * 10**2 * (300 + 200**2 * 200)
    assert least <= small.operations <= 1.2 * least
    assert small.held == 4 * 10 * (300 + 200 * 200)


def test_it_takes_what_gram_takes():
    net = nn.Linear(3, 2)
    with pytest.raises(jacana.errors.InvalidData, match="NaN"):
        jacana.explain(net, torch.full((2, 3), float("nan")))
    assert jacana.explain(jacana.linearize(net), torch.randn(1, 3)).n == 1
