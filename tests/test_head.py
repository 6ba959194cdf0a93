"""A network with another head: kept outputs bit for bit, new ones at the optimum of an objective written out anew."""

from __future__ import annotations

import copy
import importlib
import math
from collections import UserDict

import numpy as np
import pytest
import scipy.special
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana.errors import InvalidData, InvalidOption, JacanaError, NotConverged, UnsupportedNetwork
from tests import oracles
from tests.conftest import generators, switches

DOUBLE = torch.float64
regression = importlib.import_module("jacana.networks.softmax_regression")


def classifier(d=4, hidden=6, c=3, dtype=DOUBLE, **options):
    return nn.Sequential(nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, c, **options)).to(dtype)


def task(k, n=40, d=4, dtype=DOUBLE, apart=1.0, seed=0):
    """Overlapping clouds, one a label, in no order; every label is met."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % k)[torch.randperm(n, generator=generator)]
    centres = apart * torch.randn(k, d, generator=generator, dtype=DOUBLE)
    x = centres[y] + torch.randn(n, d, generator=generator, dtype=DOUBLE)
    return x.to(dtype), y


def features(net, x):
    with torch.no_grad():
        return net[:-1](x).double().numpy()


# --- the slow oracle -------------------------------------------------------------------------------------------------


def softmax_optimum(phi, y, entries, old_weight, old_bias, penalty):
    """Weights (k, d) and biases (k,) of all outputs: dense Newton steps, halved until they help, one example at a time.

    Without kept outputs all biases may rise together; the least squares solution leaves their sum as it begins, zero.
    """
    n, d = phi.shape
    new = [place for place, entry in enumerate(entries) if entry is None]
    scale = sum(np.sum((row - phi.mean(0)) ** 2) for row in phi) / n or 1.0
    weight, bias = np.zeros((len(entries), d)), np.zeros(len(entries))
    for place, entry in enumerate(entries):
        if entry is not None:
            weight[place], bias[place] = old_weight[entry], old_bias[entry]

    def filled(point):
        w, b = weight.copy(), bias.copy()
        for i, place in enumerate(new):
            w[place], b[place] = point[i * (d + 1) : i * (d + 1) + d], point[i * (d + 1) + d]
        return w, b

    def value(point):
        w, b = filled(point)
        total = 0.5 * penalty * scale * np.sum(w[new] ** 2)
        return total - sum(scipy.special.log_softmax(w @ row + b)[label] for row, label in zip(phi, y, strict=True))

    def slopes(point):
        w, b = filled(point)
        size = len(new) * (d + 1)
        gradient, hessian = np.zeros(size), np.zeros((size, size))
        for row, label in zip(phi, y, strict=True):
            p = scipy.special.softmax(w @ row + b)
            one = np.append(row, 1.0)
            curvature = np.diag(p[new]) - np.outer(p[new], p[new])
            gradient += np.kron(p[new] - (np.array(new) == label), one)
            hessian += np.kron(curvature, np.outer(one, one))
        for i in range(len(new)):
            inside = slice(i * (d + 1), i * (d + 1) + d)
            gradient[inside] += penalty * scale * point[inside]
            hessian[inside, inside] += penalty * scale * np.eye(d)
        return gradient, hessian

    point = np.zeros(len(new) * (d + 1))
    for _ in range(100):
        gradient, hessian = slopes(point)
        step, share = -np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0], 1.0
        while value(point + share * step) > value(point) + 1e-12 and share > 1e-6:
            share /= 2
        point = point + share * step
        if np.linalg.norm(step) < 1e-11 * max(1.0, np.linalg.norm(point)):
            break
    else:
        raise AssertionError("the oracle has not converged")
    return filled(point)


def assert_optimal(new, net, x, y, entries, penalty, rtol=1e-7):
    old = net[-1]
    old_bias = old.bias if old.bias is not None else torch.zeros(old.out_features)
    weight, bias = softmax_optimum(
        features(net, x), y.tolist(), entries, *(t.detach().double().numpy() for t in (old.weight, old_bias)), penalty
    )
    size = np.abs(weight).max()
    assert new[-1].weight.detach().numpy() == pytest.approx(weight, abs=rtol * size)
    assert new[-1].bias.detach().numpy() == pytest.approx(bias, abs=rtol * max(1.0, np.abs(bias).max(), size))


# --- kept outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [[0], [2, 0], [1, 1, 0], [0, 1, 2], (2,)], ids=str)
def test_kept_outputs_are_those_asked_for_in_that_order(entries, dtype):
    net = classifier(dtype=dtype)
    new = jacana.with_head(net, entries)
    x, entries = torch.randn(5, 4, dtype=dtype), list(entries)
    assert torch.equal(new[-1].weight, net[-1].weight[entries])
    assert torch.equal(new[-1].bias, net[-1].bias[entries])
    assert (new[-1].in_features, new[-1].out_features) == (6, len(entries))
    oracles.assert_close(new(x), oracles.outputs(net, x)[:, entries], dtype)
    assert not any(module.training for module in new.modules())


@pytest.mark.usefixtures("as_users_run_it")
def test_numbers_of_outputs_come_from_anywhere():
    net = classifier()
    for entries in (np.array([2, 1]), iter([2, 1]), (np.int32(2), 1)):
        assert torch.equal(jacana.with_head(net, entries)[-1].weight, net[-1].weight[[2, 1]])


@pytest.mark.parametrize("entries", [[0, None, 2], [None, 1], [2, None, None, 0, 2]], ids=str)
def test_kept_outputs_stay_when_others_are_fitted(entries, dtype):
    net = classifier(dtype=dtype)
    x, y = task(len(entries), dtype=dtype)
    new = jacana.with_head(net, entries, x, y, penalty=0.1)
    places = [place for place, entry in enumerate(entries) if entry is not None]
    old = [entry for entry in entries if entry is not None]
    assert torch.equal(new[-1].weight[places], net[-1].weight[old])
    assert torch.equal(new[-1].bias[places], net[-1].bias[old])
    assert new[-1].weight.dtype == dtype
    oracles.assert_close(new(x)[:, places], oracles.outputs(net, x)[:, old], dtype)


# --- new outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1e-3, 0.3, 30.0])
@pytest.mark.parametrize("n", [40, 8], ids=["more examples than features", "as many features"])
@pytest.mark.parametrize("entries", [[0, None, 2], [1, None], [None] * 3, [None, None], [None, 0, None, 0]], ids=str)
def test_new_outputs_are_at_the_optimum(entries, n, penalty):
    net = classifier(hidden=6 if n == 40 else 9)
    x, y = task(len(entries), n=n)
    new = jacana.with_head(net, entries, x, y, penalty=penalty)
    assert_optimal(new, net, x, y, entries, penalty)


def test_a_network_in_float32_is_fitted_in_float64():
    net = classifier(dtype=torch.float32)
    x, y = task(3, dtype=torch.float32)
    new = jacana.with_head(net, [0, None, 2], x, y, penalty=0.1)
    assert_optimal(new, net, x, y, [0, None, 2], 0.1, rtol=4 * float(torch.finfo(torch.float32).eps))


@pytest.mark.parametrize("k", [2, 4])
def test_all_new_outputs_are_scikit_learns(k):
    net = classifier()
    x, y = task(k, n=60)
    new = jacana.with_head(net, [None] * k, x, y, penalty=0.2)
    phi = features(net, x)
    scale = ((phi - phi.mean(0)) ** 2).sum(1).mean()
    # Of two classes scikit-learn penalises the difference of the weights, the square of which is twice their sum's.
    reference = LogisticRegression(C=(2.0 if k == 2 else 1.0) / (0.2 * scale), tol=1e-12, max_iter=100_000)
    reference.fit(phi, y.numpy())
    probabilities = new(x).softmax(1).detach().numpy()
    assert probabilities == pytest.approx(reference.predict_proba(phi), abs=1e-6)
    if k > 2:
        assert new[-1].weight.detach().numpy() == pytest.approx(reference.coef_, abs=1e-4)


def scaled(net, factor, shift=0.0):
    """The same network with features that are ``factor`` φ + ``shift``."""
    body = nn.Linear(6, 6).double()
    head = nn.Linear(6, net[-1].out_features).double()
    with torch.no_grad():
        body.weight.copy_(factor * torch.eye(6))
        body.bias.fill_(shift)
        head.weight.copy_(net[-1].weight / factor)
        head.bias.copy_(net[-1].bias - shift * head.weight.sum(1))
    return nn.Sequential(net[0], net[1], body, head)


@pytest.mark.parametrize("penalty", [0.1, None], ids=str)
@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 0.0), (1e-6, 0.0), (-1.0, 0.0), (1.0, 5.0)])
def test_scale_and_origin_of_the_features_change_no_prediction(factor, shift, penalty):
    net = classifier()
    x, y = task(3)
    want = jacana.with_head(net, [0, None, 2], x, y, penalty=penalty)(x)
    found = jacana.with_head(scaled(net, factor, shift), [0, None, 2], x, y, penalty=penalty)(x)
    assert found.detach().numpy() == pytest.approx(want.detach().numpy(), abs=1e-6)


def test_the_order_of_outputs_is_a_name():
    net = classifier()
    x, y = task(3)
    want = jacana.with_head(net, [0, None, None], x, y, penalty=0.1)(x)
    found = jacana.with_head(net, [None, 0, None], x, torch.tensor([1, 2, 0])[y], penalty=0.1)(x)
    assert found[:, [1, 2, 0]].detach().numpy() == pytest.approx(want.detach().numpy(), abs=1e-8)


def test_features_that_do_not_vary_leave_the_biases_to_the_shares_of_labels():
    net = classifier()
    x, y = torch.ones(10, 4, dtype=DOUBLE), torch.tensor([0] * 6 + [1] * 3 + [2])
    new = jacana.with_head(net, [None] * 3, x, y)
    assert new(x)[0].softmax(0).detach().numpy() == pytest.approx([0.6, 0.3, 0.1], abs=1e-9)
    assert not new[-1].weight.any()
    assert float(new[-1].bias.detach().sum()) == pytest.approx(0.0, abs=1e-12)


def test_batches_make_no_difference():
    net = classifier()
    x, y = task(3)
    one, other = (jacana.with_head(net, [0, None, 2], x, y, penalty=1.0, batch_size=size) for size in (7, 256))
    assert one(x).detach().numpy() == pytest.approx(other(x).detach().numpy(), abs=1e-10)


# --- the penalty -----------------------------------------------------------------------------------------------------


def held_out_log_probability(net, x, y, entries, penalty):
    """By folds that deal out the examples label by label, kept ones first for all that they are one label."""
    phi, labels = features(net, x), y.tolist()
    old = [t.detach().numpy() for t in (net[-1].weight, net[-1].bias)]
    scale = np.sum((phi - phi.mean(0)) ** 2) / len(phi)
    new = [place for place, entry in enumerate(entries) if entry is None]
    stratum = [new.index(label) if label in new else len(new) for label in labels]
    dealt = sorted(range(len(labels)), key=lambda i: (stratum[i], i))
    fold = {i: place % 5 for place, i in enumerate(dealt)}
    total = 0.0
    for f in range(5):
        inside, outside = ([i for i in fold if (fold[i] == f) is held] for held in (False, True))
        # The oracle measures the penalty in the variance of the examples that it is given.
        own = np.sum((phi[inside] - phi[inside].mean(0)) ** 2) / len(inside)
        w, b = softmax_optimum(phi[inside], [labels[i] for i in inside], entries, *old, penalty * scale / own)
        total += sum(scipy.special.log_softmax(w @ phi[i] + b)[labels[i]] for i in outside)
    return total


@pytest.mark.parametrize("entries", [[1, None, 0], [None, None]], ids=str)
def test_the_penalty_is_the_best_for_held_out_examples(entries):
    net = classifier(hidden=3)
    x, y = task(len(entries), n=25, apart=0.6)
    grid = [10.0 ** (power / 2) for power in range(4, -8, -1)]
    found = [held_out_log_probability(net, x, y, entries, penalty) for penalty in grid]
    best = int(np.argmax(found))
    assert 0 < best < len(grid) - 3, "a grid whose ends are worse is what this test needs"
    want = jacana.with_head(net, entries, x, y, penalty=grid[best])(x)
    assert jacana.with_head(net, entries, x, y)(x).detach().numpy() == pytest.approx(want.detach().numpy(), abs=1e-8)


@pytest.mark.parametrize(
    ("entries", "y"),
    [([0, None, 1], [0, 1, 0, 2, 0]), ([None, None, None], [0, 1, 2]), ([0, None], [1, 1, 1, 0])],
    ids=["one of a new output", "one of each", "one of the kept outputs"],
)
def test_the_penalty_of_single_examples_is_a_tenth(entries, y):
    net = classifier()
    x, y = torch.randn(len(y), 4, dtype=DOUBLE), torch.tensor(y)
    want = jacana.with_head(net, entries, x, y, penalty=0.1)(x)
    assert torch.equal(jacana.with_head(net, entries, x, y)(x), want)


def test_two_examples_of_each_are_enough_to_choose():
    net = classifier()
    x, y = task(4, n=8, apart=3.0)
    assert jacana.with_head(net, [0, None, None, None], x, y)(x).shape == (8, 4)


def test_a_fit_that_stops_early_says_so(monkeypatch):
    net = classifier()
    x, y = task(3)
    monkeypatch.setattr(regression, "_minimized", lambda objective, start, tolerance: start)
    monkeypatch.setattr(regression, "_N_CORRECTIONS", 1)
    with pytest.warns(NotConverged, match=r"relative distance of about .* larger penalty="):
        jacana.with_head(net, [0, None, 2], x, y, penalty=1e-3)


def test_no_warning_at_the_smallest_penalty():
    """Labels that a plane can tell, next to no penalty, kept logits that are far off: warnings are errors here."""
    net = classifier()
    with torch.no_grad():
        net[-1].bias.add_(50.0)
    x, y = task(3, apart=20.0)
    new = jacana.with_head(net, [0, None, None], x, y, penalty=1e-6)
    rate = float((new(x)[y > 0].argmax(1) == y[y > 0]).double().mean())
    assert rate == 1.0


# --- forms of data and of networks -----------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, a, b):
        return self.head(torch.tanh(self.body(a) * b))


class Wrapped(nn.Module):
    """Returns an object, as language models do."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(4, 6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return UserDict(logits=self.classifier(self.dropout(hidden)), hidden=hidden)


def test_inputs_of_every_form_give_the_same_network():
    net = TwoInputs().double()
    (a, y), b = task(3), torch.randn(40, 6, dtype=DOUBLE)
    loader = DataLoader(list(zip(zip(a, b, strict=True), y, strict=True)), batch_size=7)
    forms = [
        ((a, b), y, {}),
        ({"a": a, "b": b}, y.numpy(), {}),
        ((a.numpy(), b.numpy()), y.tolist(), {}),
        (loader, None, {}),
        (torch.cat([a, b], 1), y.double(), {"forward": lambda net, x: net(x[:, :4], x[:, 4:])}),
    ]
    want, state = None, generators()
    for x, labels, options in forms:
        new = jacana.with_head(net, [2, None, 0], x, labels, penalty=0.1, **options)
        want = want if want is not None else new
        assert new.head.weight.detach().numpy() == pytest.approx(want.head.weight.detach().numpy(), rel=1e-8)
        assert torch.equal(jacana.with_head(net, [2, 0], x, **options).head.weight, net.head.weight[[2, 0]])
    assert generators() == state


def test_an_object_is_read_by_output_and_the_result_linearized():
    net = Wrapped().double().train()
    x, y = task(3)
    reading = {"output": lambda out: out["logits"]}
    new = jacana.with_head(net, [0, None, 2], x, y, **reading)
    lin = jacana.linearize(new, **reading)
    assert lin.layers["classifier"] == ("classifier.weight", "classifier.bias")
    oracles.assert_close(lin(x[:3]), oracles.outputs(new, x[:3], **reading), DOUBLE)
    oracles.assert_close(lin.jacobian(x[:3]), oracles.jacobian(new, x[:3], **reading), DOUBLE, condition=10.0)


def test_the_layer_by_its_name():
    net = Wrapped().double()
    x, y = task(3)
    reading = {"output": lambda out: out["logits"]}
    by_itself = jacana.with_head(net, [0, None, 2], x, y, penalty=1.0, **reading)
    named = jacana.with_head(net, [0, None, 2], x, y, penalty=1.0, layer="classifier", **reading)
    assert torch.equal(named.classifier.weight, by_itself.classifier.weight)
    assert torch.equal(jacana.with_head(net, [1], layer="classifier").classifier.weight, net.classifier.weight[[1]])


class Pooled(nn.Module):
    """Logits at every position, of which one is chosen, or their mean taken, as decoders are made classifiers."""

    def __init__(self, pool):
        super().__init__()
        self.body, self.score, self.pool = nn.Linear(4, 6), nn.Linear(6, 3, bias=False), pool

    def forward(self, x):
        return self.pool(self.score(torch.tanh(self.body(x))))


@pytest.mark.parametrize(
    ("pool", "pooled"),
    [
        (lambda logits: logits[torch.arange(len(logits)), -1], lambda phi: phi[:, -1]),
        (lambda logits: logits.mean(1), lambda phi: phi.mean(1)),
    ],
    ids=["the last position", "the mean"],
)
def test_a_named_layer_may_be_followed_by_a_choice_of_positions(pool, pooled):
    net = Pooled(pool).double()
    x, y = torch.randn(30, 5, 4, dtype=DOUBLE), torch.arange(30) % 3
    with pytest.raises(UnsupportedNetwork, match=r"'score', and something is done after it.*layer="):
        jacana.with_head(net, [0, None, 2], x, y)
    new = jacana.with_head(net, [0, None, 2], x, y, layer="score", penalty=0.5)
    with torch.no_grad():
        phi = pooled(torch.tanh(net.body(x)))
        alone = nn.Sequential(nn.Identity(), copy.deepcopy(net.score))
    assert net.score.bias is None
    assert_optimal(nn.Sequential(nn.Identity(), new.score), alone, phi, y, [0, None, 2], 0.5)
    oracles.assert_close(new(x)[:, [0, 2]], oracles.outputs(net, x)[:, [0, 2]], DOUBLE)


class After(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.body, self.head, self.after = nn.Linear(4, 6), nn.Linear(6, 3), after

    def forward(self, x):
        return self.after(self.head(torch.tanh(self.body(x))))


@pytest.mark.parametrize(
    "after",
    [torch.tanh, lambda f: f.log_softmax(1), lambda f: f - f.mean(1, keepdim=True), lambda f: f[:, [2, 0, 1]]],
    ids=["tanh", "log-softmax", "centred", "permuted"],
)
@pytest.mark.parametrize("layer", [None, "head", "body"], ids=str)
def test_a_layer_that_is_not_the_last_is_refused(after, layer):
    net = After(after).double()
    x, y = task(3)
    snapshot = oracles.Snapshot(net)
    for arguments in ([[0, None, 2], x, y], [[0, 2], x]):
        with pytest.raises(UnsupportedNetwork, match="layer="):
            jacana.with_head(net, *arguments, layer=layer)
    snapshot.assert_unchanged()


class Twice(nn.Module):
    """Runs its last layer at two places."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.head(x)))


class Listed(nn.Module):
    """Keeps its last layer also where no replacement reaches it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.used = [self.head]

    def forward(self, x):
        return self.used[0](x)


class Doubled(nn.Linear):
    """Is linear, but not in its weights alone."""

    def forward(self, x):
        return 2.0 * super().forward(x)


class Random(nn.Sequential):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))


class Mixing(nn.Sequential):
    def forward(self, x):
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Twice, "not those of layer 'head'"),
        (Listed, "not those of the new layer"),
        (lambda: nn.Sequential(nn.Linear(4, 5), Doubled(5, 3)), "not those of layer '1'"),
        (lambda: Random(nn.Linear(4, 3)), "another output at each pass"),
        (lambda: Mixing(nn.Linear(4, 3)), "mixes the examples"),
        (
            lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)),
            "no run",
        ),
        (lambda: nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 3, 1), nn.Flatten()), "without an nn.Linear"),
    ],
    ids=["twice", "listed", "own forward", "random", "mixing", "batch statistics", "convolution"],
)
def test_networks_that_have_no_such_layer_are_refused(make, message):
    net = make().double()
    x, y = task(3)
    for arguments in ([[0, None, 2], x, y], [[2, 0], x]):
        with pytest.raises(UnsupportedNetwork, match=message):
            jacana.with_head(net, *arguments)


def test_a_hook_that_changes_the_outputs_is_refused():
    net = classifier()
    net[-1].register_forward_hook(lambda module, args, out: 2.0 * out)
    x, y = task(3)
    with pytest.raises(UnsupportedNetwork, match="no hooks"):
        jacana.with_head(net, [0, None, 2], x, y)


def test_without_examples_the_last_layer_must_be_plain_or_named():
    nested = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 3), nn.Dropout()), nn.Identity())
    new = jacana.with_head(nested, [2])
    assert torch.equal(new[1][1].weight, nested[1][1].weight[[2]])
    assert jacana.with_head(nn.Linear(4, 3), [2, 1]).out_features == 2
    for net, options in [
        (After(torch.relu), {}),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), {}),
        (classifier(), {"output": lambda out: out}),
        (Wrapped(), {}),
    ]:
        with pytest.raises(InvalidOption, match=r"pass a few as x, or name it, e\.g\. layer='(head|0|2|classifier)'"):
            jacana.with_head(net, [0], **options)
    with pytest.raises(InvalidOption, match="Doubled that need not be what its weights say"):
        jacana.with_head(nn.Sequential(Doubled(4, 3)), [0])


def test_a_tied_head_is_untied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 6, sparse=True)
            self.head = nn.Linear(6, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.again = self.head

        def forward(self, words):
            return self.again(self.embedding(words).mean(1))

    net = Tied().double()
    words, y = torch.randint(0, 5, (30, 4)), torch.arange(30) % 3
    new = jacana.with_head(net, [4, None, 1], words, y, penalty=0.1)
    assert torch.equal(new.embedding.weight, net.embedding.weight)
    assert new.embedding.sparse
    assert new.head is new.again
    assert new.head.weight is not new.embedding.weight
    assert torch.equal(new.head.weight[[0, 2]], net.head.weight[[4, 1]])
    assert new.head.bias[[0, 2]].tolist() == [0.0, 0.0]
    assert net.head.weight is net.embedding.weight


@pytest.mark.parametrize("old_way", [False, True], ids=["parametrized", "old weight_norm"])
def test_normalised_weights_are_taken_as_they_come(old_way):
    net = classifier()
    if old_way:
        with pytest.warns(FutureWarning, match="weight_norm"):
            net[-1] = nn.utils.weight_norm(net[-1])
    else:
        parametrizations.weight_norm(net[-1])
    x, y = task(3)
    with torch.no_grad():
        want = net(x).numpy()
    new = jacana.with_head(net, [0, None, 2], x, y, penalty=0.1)
    assert type(new[-1]) is nn.Linear
    oracles.assert_close(new(x)[:, [0, 2]], want[:, [0, 2]], DOUBLE)
    if old_way:
        with pytest.raises(InvalidOption, match="need not be what its weights say"):
            jacana.with_head(net, [0])
    else:
        oracles.assert_close(jacana.with_head(net, [1])(x), want[:, [1]], DOUBLE)


def test_what_was_frozen_is_frozen():
    net = classifier()
    net[0].requires_grad_(False)
    x, y = task(3)
    new = jacana.with_head(net, [0, None, 2], x, y)
    assert [p.requires_grad for p in new.parameters()] == [False, False, True, True]
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in jacana.with_head(net, [0, None, 2], x, y).parameters())


def test_the_copy_is_apart_and_the_network_untouched():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).double()
    x, y = task(3)
    net[0](x).square().sum().backward()
    calls = []
    handles = [net[-1].register_forward_hook(lambda module, args, out: calls.append(id(module)))]
    snapshot, turned, state = oracles.Snapshot(net), switches(), generators()
    data = [(t, t.clone(), t._version) for t in (x, y)]
    with torch.inference_mode():
        new = jacana.with_head(net, [0, None, 2], x, y)
    selected = jacana.with_head(net, [0, 2])
    snapshot.assert_unchanged()
    assert switches() == turned
    assert generators() == state
    for tensor, before, version in data:
        assert torch.equal(tensor, before)
        assert tensor._version == version
    assert id(net[-1]) not in calls
    own = {p.data_ptr() for p in [*net.parameters(), *net.buffers()]}
    for made in (new, selected):
        assert own.isdisjoint(p.data_ptr() for p in [*made.parameters(), *made.buffers()])
        assert not any(p.is_inference() for p in made.parameters())
        made(x).sum().backward()
        assert not made.training
    snapshot.assert_unchanged()
    handles[0].remove()


# --- bad input -------------------------------------------------------------------------------------------------------

X, Y = task(3)
BAD = {
    "outputs empty": ({"outputs": []}, InvalidOption, "outputs: got .*expected an entry for each"),
    "outputs a number": ({"outputs": 3}, InvalidOption, "outputs: got 3"),
    "outputs true": ({"outputs": [0, True]}, InvalidOption, "outputs: got"),
    "outputs a fraction": ({"outputs": [0, 1.0]}, InvalidOption, "outputs: got"),
    "outputs too large": ({"outputs": [0, 3, None]}, InvalidOption, "number 3 of an old output; expected 0 to 2"),
    "outputs negative": ({"outputs": [0, -1, None]}, InvalidOption, "number -1 of an old output"),
    "one new output": ({"outputs": [None], "y": 0 * Y}, InvalidOption, r"outputs: got \[None\]; expected two"),
    "no examples": ({"x": None}, InvalidData, "x: got None; new outputs are fitted"),
    "no labels": ({"y": None}, InvalidData, "y: got None"),
    "labels too few": ({"y": Y[:-1]}, InvalidData, "y: got 39 targets for 40 examples"),
    "labels of two columns": ({"y": torch.stack([Y, Y], 1)}, InvalidData, r"y: got shape \(40, 2\); expected \(n,\)"),
    "labels too large": ({"y": Y + 1}, InvalidData, "y: got labels from 1 to 3; expected whole numbers from 0 to 2"),
    "labels with fractions": ({"y": Y / 2}, InvalidData, "expected whole numbers"),
    "a new output unseen": ({"y": 0 * Y}, InvalidData, r"no example of the new outputs at \[1\]"),
    "kept outputs unseen": ({"y": 0 * Y + 1}, InvalidData, r"new outputs alone.*kept outputs, at \[0, 2\]"),
    "not finite": ({"x": X * math.nan}, InvalidData, "x: got NaN"),
    "another shape": ({"x": X[:, :3]}, InvalidData, "the network fails on inputs"),
    "penalty zero": ({"penalty": 0.0}, InvalidOption, "penalty: got 0.0; expected a positive number"),
    "penalty infinite": ({"penalty": math.inf}, InvalidOption, "penalty: got inf"),
    "penalty a word": ({"penalty": "small"}, InvalidOption, "penalty: got 'small'"),
    "batch size": ({"batch_size": 0}, InvalidOption, "batch_size: got 0"),
    "layer unknown": ({"layer": "haed"}, InvalidOption, "layer: 'haed' names no layer.*mean 'head'.*'body', 'head'"),
    "layer of another kind": ({"layer": "act"}, InvalidOption, "layer: 'act' is a Tanh; expected an nn.Linear"),
    "layer itself": ({"layer": nn.Linear(2, 2)}, InvalidOption, "layer: got Linear; expected the dotted name"),
    "net a function": ({"net": torch.tanh}, InvalidOption, "net: got builtin_function_or_method"),
    "one logit": ({"net": classifier(c=1), "outputs": [0, None, None]}, InvalidOption, "logit of a Bernoulli"),
    "squeezed": (
        {"net": nn.Sequential(*classifier(c=1), nn.Flatten(0))},
        UnsupportedNetwork,
        "something is done after",
    ),
    "output fails": ({"output": lambda out: out.logits}, InvalidOption, "output: the function fails"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    changed, kind, message = BAD[name]
    net = nn.Sequential()
    for key, module in zip(("body", "act", "head"), classifier(), strict=True):
        net.add_module(key, module)
    arguments = {"net": net, "outputs": [0, None, 2], "x": X, "y": Y, **changed}
    snapshot = oracles.Snapshot(net)
    with pytest.raises(kind, match=message) as caught:
        jacana.with_head(arguments.pop("net"), arguments.pop("outputs"), **arguments)
    assert isinstance(caught.value, JacanaError)
    snapshot.assert_unchanged()


def test_a_single_old_output_may_make_place_for_new_ones():
    net = classifier(c=1)
    x, y = task(3)
    new = jacana.with_head(net, [None] * 3, x, y, penalty=0.5)
    assert_optimal(new, net, x, y, [None] * 3, 0.5)
    assert jacana.with_head(net, [0], x)(x).shape == (40, 1)


def test_loaders_of_inputs_alone():
    net = classifier()
    x, y = task(3)
    alone = DataLoader(TensorDataset(x), batch_size=9)
    assert torch.equal(jacana.with_head(net, [2, 1], alone)[-1].weight, net[-1].weight[[2, 1]])
    with pytest.raises(InvalidData, match="gives inputs alone"):
        jacana.with_head(net, [2, None], alone)
    with pytest.raises(InvalidData, match="targets beside a DataLoader"):
        jacana.with_head(net, [2, None], DataLoader(TensorDataset(x, y)), y)
    with pytest.raises(InvalidData, match="gave no batch"):
        jacana.with_head(net, [2], DataLoader(TensorDataset(x[:0])))
