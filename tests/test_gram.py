"""The dense kernel in every shape, for every network of the zoo; every rule, with both ways to contract."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import jacana
from jacana.linearization import rules
from jacana.linearization.features import Features, features
from jacana.linearization.layout import Layout, layouts
from jacana.linearization.shares import Formed
from jacana.networks import Network, differentiable
from tests import oracles, zoo

DOUBLE, SINGLE = torch.float64, torch.float32
ZOO = pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
RULES = pytest.mark.parametrize("rule", rules.all_rules(), ids=lambda rule: type(rule).__name__)


@functools.cache
def jacobians(name, dtype):
    case = zoo.BY_NAME[name]
    net = case.net(dtype)
    x, z = case.x(4, dtype), case.x(3, dtype)
    return net, x, z, case.jacobian(net, x), case.jacobian(net, z)


def shapes(J, z, c):
    """The answer to every ``outputs``, from dense Jacobians, by their definitions."""
    n, m = len(J) // c, len(z) // c
    full = J @ z.T
    four = full.reshape(n, c, m, c)
    separate = np.einsum("ikjk->kij", four)
    summed = (J.reshape(n, c, -1).sum(1) / math.sqrt(c), z.reshape(m, c, -1).sum(1) / math.sqrt(c))
    return {
        "full": full,
        "separate": separate,
        "trace": separate.sum(0),
        "mean": separate.mean(0),
        "pseudo": summed[0] @ summed[1].T,
    }


@ZOO
def test_every_shape_of_the_answer(case, dtype):
    net, x, z, J, Z = jacobians(case.name, dtype)
    lin = jacana.linearize(net, **case.reading)
    c = lin(x).shape[1]
    scale = (np.abs(J) @ np.abs(Z).T).max()
    for outputs, want in shapes(J, Z, c).items():
        got = jacana.gram(lin, x, z, outputs=outputs)
        assert got.dtype == DOUBLE
        oracles.assert_close(got, want, dtype, scale=c * scale, what=outputs)
    own = (np.abs(J) @ np.abs(J).T).max()
    for outputs, want in shapes(J, J, c).items():
        got = jacana.gram(lin, x, outputs=outputs)
        oracles.assert_close(got, want, dtype, scale=c * own, what=outputs)
        assert torch.equal(got, got.mT)
    four = (J @ J.T).reshape(4, c, 4, c)
    oracles.assert_close(jacana.gram(lin, x, outputs="diagonal"), np.diag(J @ J.T), dtype, scale=own)
    oracles.assert_close(jacana.gram(lin, x, outputs="blocks"), np.einsum("ikil->ikl", four), dtype, scale=own)


@ZOO
def test_layers_sum_to_the_whole_and_tiles_do_not_matter(case):
    net, x, z, J, Z = jacobians(case.name, DOUBLE)
    whole = jacana.linearize(net, **case.reading)
    pieces = jacana.linearize(net, **case.reading, batch_size=None)
    want = jacana.gram(whole, x, z)
    scale = (np.abs(J) @ np.abs(Z).T).max()
    oracles.assert_close(sum(jacana.gram(whole, x, z, layers=True).values()), want, DOUBLE, scale=scale)
    per_example = whole.findings(whole.examples(x)).bytes_per_example
    c = want.shape[0] // 4
    # Room for the matrix and for the gradients of a few examples: blocks of one, few of them held.
    tight = 8 * (4 * c) ** 2 + 3 * per_example
    oracles.assert_close(
        jacana.gram(pieces, x, memory_budget=tight), J @ J.T, DOUBLE, scale=(np.abs(J) @ np.abs(J).T).max()
    )
    oracles.assert_close(jacana.gram(pieces, x, z, memory_budget=8 * want.numel() + 4 * per_example), want, DOUBLE)


def test_float32_contraction_is_rougher(dtype):
    net, x, _, J, _ = jacobians("mlp", DOUBLE)
    got = jacana.gram(net, x, dtype=SINGLE)
    assert got.dtype == SINGLE
    oracles.assert_close(got, J @ J.T, SINGLE)


def test_prior_and_groups():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=DOUBLE)
    prior = {"0.weight": 0.5, "0.bias": 2.0, "2": 3.0}
    J = oracles.jacobian(net, x)
    S = oracles.prior_deviations(net, prior) ** 2
    oracles.assert_close(jacana.gram(net, x, prior_std=prior), (J * S) @ J.T, DOUBLE)
    groups = jacana.gram(net, x, prior_std=prior, layers=["0.weight", "0.bias", "2"], outputs="trace")
    assert list(groups) == ["0.weight", "0.bias", "2"]
    for group, columns in (("0.weight", slice(0, 12)), ("0.bias", slice(12, 16)), ("2", slice(16, None))):
        part = J[:, columns]
        want = np.einsum("ikjk->ij", ((part * S[columns]) @ part.T).reshape(5, 2, 5, 2))
        oracles.assert_close(groups[group], want, DOUBLE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"outputs": "whole"}, jacana.errors.InvalidOption, "outputs: got 'whole'"),
        ({"dtype": torch.float16}, jacana.errors.InvalidOption, "dtype: got torch.float16"),
        ({"layers": ["body"]}, jacana.errors.InvalidOption, "'body' names no selected parameter"),
        ({"layers": []}, jacana.errors.InvalidOption, "no prefix; pass True"),
        ({"memory_budget": True}, jacana.errors.InvalidOption, "memory_budget"),
        ({"memory_budget": 0}, jacana.errors.InvalidOption, "memory_budget"),
        ({"memory_budget": 1.5}, jacana.errors.InvalidOption, "memory_budget"),
        ({"memory_budget": 100}, jacana.errors.InsufficientMemory, "outputs at once"),
        ({"memory_budget": 8 * 64 + 8}, jacana.errors.InsufficientMemory, "two examples"),
        ({"x2": torch.randn(2, 3), "outputs": "diagonal"}, jacana.errors.InvalidData, "x2"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    net = nn.Linear(3, 2)
    with pytest.raises(error, match=message):
        jacana.gram(net, torch.randn(4, 3), **options)


# Rules ---------------------------------------------------------------------------------------------


def seeded(rule, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net, x = rule.example()
        net = net.to(dtype)
        zoo.settle(net)
    return net.eval(), x.to(dtype) if x.is_floating_point() else x


def found_by_rules(net, x):
    """Features by rules alone, and the shares that they make."""
    network = Network(net)
    lin = jacana.linearize(net)
    with differentiable():
        every = frozenset(range(len(network.names)))
        return (
            lin,
            features(network, lin.examples(x), ruled=every, vectorises=True),
            lin.findings(lin.examples(x)).ruled,
        )


@RULES
def test_each_rule_covers_its_own_example(rule, dtype, monkeypatch):
    """No parameter of it falls to autodiff."""
    from jacana.linearization import features as module

    def refused(*_):
        raise AssertionError("a parameter fell to autodiff")

    net, x = seeded(rule, dtype)
    lin, _, ruled = found_by_rules(net, x)
    assert ruled == frozenset(range(len(lin.names)))
    monkeypatch.setattr(module, "vectorised", refused)
    monkeypatch.setattr(module, "looped", refused)
    J = oracles.jacobian(net, x)
    oracles.assert_close(lin.jacobian(x), J, dtype)
    oracles.assert_close(jacana.gram(lin, x), J @ J.T, dtype, scale=(np.abs(J) @ np.abs(J).T).max())


@RULES
def test_each_way_to_contract_is_the_oracle(rule, dtype):
    net, x = seeded(rule, dtype)
    lin = jacana.linearize(net)
    every, few = lin.examples(x), lin.examples(x)[:2]
    left, right = lin.features(every), lin.features(few)
    J, Z = oracles.jacobian(net, x), oracles.jacobian(net, x[:2])
    columns = np.split(np.arange(J.shape[1]), np.cumsum(lin.network.sizes)[:-1])
    for share in left.shares:
        other = right.of[share.places[0]]
        assert set(share.arithmetic(3, 3)) == set(share.ways)
        which = np.concatenate([columns[place] for place in share.places])
        scale = (np.abs(J[:, which]) @ np.abs(J[:, which]).T).max()
        variances = [1.0] * len(lin.names)
        for way in share.ways:
            crossed = torch.zeros(len(J), len(Z), dtype=DOUBLE)
            share.accumulate(crossed, other, variances, way=way)
            oracles.assert_close(crossed, J[:, which] @ Z[:, which].T, dtype, scale=scale, what=f"{way}, crossed")
            own = torch.zeros(len(J), len(J), dtype=DOUBLE)
            share.accumulate(own, share, variances, symmetric=True, way=way)
            want = J[:, which] @ J[:, which].T
            oracles.assert_close(own.tril(), np.tril(want), dtype, scale=scale, what=f"{way}, symmetric")


class Doubled(rules.Rule):
    """An operation of the test's own, with its rule: found without an edit anywhere."""

    operations = (torch.hypot,)

    def read(self, x, other):
        return rules.Call({"other": other}, (x / torch.sqrt(x**2 + other**2),), (0,), None)

    def formed(self, role, use):
        (ratio,) = use.inputs
        slope = torch.sqrt(1 - ratio.to(use.dtype) ** 2)
        return (use.cotangents.to(use.dtype) * slope.unsqueeze(1)).sum(2)

    def example(self):
        return Hypot(), torch.randn(3, 4)


class Hypot(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        return torch.hypot(x, self.b)[:, :2]


def test_a_new_rule_is_found(dtype):
    assert any(isinstance(rule, Doubled) for rule in rules.all_rules())
    test_each_way_to_contract_is_the_oracle(Doubled(), dtype)
    net, x = seeded(Doubled(), dtype)
    assert found_by_rules(net, x)[2] == frozenset({0})


@pytest.mark.parametrize("n", [1, 4, 5])
def test_layouts(n):
    tensor = torch.arange(n * 3 * 2).view(n, 3, 2)
    chosen = layouts(tuple(tensor.shape), (0, 1), n)
    assert torch.equal(chosen[0].arrange(tensor, n).flatten(1), tensor.flatten(1))
    flat = tensor.flatten(0, 1)
    if n > 1:
        assert torch.equal(Layout(0, 3).arrange(flat, n).flatten(1), tensor.flatten(1))
        minor = tensor.transpose(0, 1).flatten(0, 1)
        assert torch.equal(Layout(0, 3, major=False).arrange(minor, n).flatten(1), tensor.flatten(1))
        assert Layout(0, 3) in layouts(tuple(flat.shape), (0,), n)


def test_the_cheaper_way_is_taken():
    """One position of a wide operation is factored, several of a narrower one formed from its factors, many at once."""
    wide = jacana.linearize(nn.Linear(200, 200))
    (share,) = wide.features(wide.examples(torch.randn(4, 200))).shares
    counts = share.arithmetic(4, 4)
    assert counts["factored"] < counts["formed"]
    net = nn.Sequential(nn.Linear(60, 60), nn.Flatten(), nn.Linear(1200, 2))
    several = jacana.linearize(net, parameters="0")
    (share,) = several.features(several.examples(torch.randn(4, 20, 60))).shares
    counts = share.arithmetic(4, 4)
    assert counts["formed"] < counts["factored"]
    net = nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(400, 2))
    narrow = jacana.linearize(net, parameters="0")
    features_of_narrow = narrow.features(narrow.examples(torch.randn(4, 100, 3)))
    assert [type(share) for share in features_of_narrow.shares] == [Formed, Formed]


def test_features_of_different_structure_are_contracted():
    """A network that branches may use a parameter by a rule for some examples and otherwise for others."""
    net = nn.Linear(3, 2).double()
    lin = jacana.linearize(net)
    x = torch.randn(4, 3, dtype=DOUBLE)
    left = lin.features(lin.examples(x))
    formed = Features(4, 2, [Formed(place, left.of[place].dense(place).view(4, 2, -1), DOUBLE) for place in (0, 1)])
    J = oracles.jacobian(net, x)
    for a, b in ((left, formed), (formed, left)):
        kernel = torch.zeros(8, 8, dtype=DOUBLE)
        a.accumulate(kernel, b, [1.0, 1.0])
        oracles.assert_close(kernel, J @ J.T, DOUBLE)


def test_examples_in_the_middle_of_a_layer():
    """Time first, as transformers compute inside; as many times as examples, so that shapes cannot tell."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(functional.gelu(self.mix(x.transpose(0, 1))).sum(0))

    torch.manual_seed(0)
    net, x = Inside().double(), torch.randn(4, 4, 3, dtype=DOUBLE)
    lin, _, ruled = found_by_rules(net, x)
    assert ruled == frozenset(range(4))
    oracles.assert_close(lin.jacobian(x), oracles.jacobian(net, x), DOUBLE)


def test_the_fewer_are_held_so_that_all_others_pass_once():
    net = nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 5)).double()
    x = torch.randn(400, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lin = jacana.linearize(net)
    want = jacana.gram(lin, x, x[:6])
    seen = []
    features = lin.features
    object.__setattr__(
        lin, "features", lambda examples, *a, **o: seen.append(len(examples)) or features(examples, *a, **o)
    )
    for first, second in ((x, x[:6]), (x[:6], x)):
        seen.clear()
        got = jacana.gram(lin, first, second, memory_budget=3_000_000)
        assert torch.allclose(got, want if first is x else want.T, rtol=1e-12)
        assert max(seen) < 100, "the budget asks for blocks"
        assert sum(seen) == 406
