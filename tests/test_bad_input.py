"""Each malformation at each door where it can come in: refused by name, with the cure, and nothing left half done.

A row of a table is a malformation with the words that its message must hold; a column is a public call. Each refusal
is a `JacanaError`, never a bare torch traceback; it names the argument; it leaves the network bit for bit, and an
earlier posterior predicts the same bits.
"""

from __future__ import annotations

import re
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import FunctionSpace, Gaussian, WeightSpace
from jacana.errors import InvalidData, InvalidOption, JacanaError, NotPositiveDefinite, UnsupportedNetwork
from tests import oracles, zoo

pytestmark = pytest.mark.usefixtures("as_users_run_it")

DOUBLE, SINGLE = torch.float64, torch.float32

# A cure is an imperative, something that the reader can do; for data and options also what is expected in their place.
EXPECTED = re.compile(r"\bexpect(ed|ing)\b.{4}", re.IGNORECASE)
CURE = re.compile(
    r"\b(add|ask|build|call|cast|change|check|choose|clean|convert|create|detach|drop|expand|fill|fit|fix|flatten|freeze|"
    r"give|impute|increase|initiali[sz]e|keep|leave|load|lower|make|mark|move|name|normali[sz]e|omit|pass|permute|pick|"
    r"put|raise|reduce|remove|rename|replace|rescale|reshape|return|run|scale|select|set|shuffle|split|standardi[sz]e|"
    r"switch|take|train|transpose|try|turn|unfreeze|use|wrap|write)\b",
    re.IGNORECASE,
)


class Bench:
    """A network with data, an operator of each kind, a posterior and a fitted regressor; and what they said before."""

    def __init__(self, net, x, y, points, **reading):
        self.net, self.x, self.y, self.points, self.reading = net, x, y, points, reading
        self.lin = jacana.linearize(net, **reading)
        self.gp = jacana.TangentGP(self.lin, prior_std=0.8)
        self.post = self.gp.condition(x, y, 0.3)
        self.regressor = self.fresh().fit(x, y)
        self.p = self.lin.n_parameters
        self.v = torch.ones(self.p, dtype=self.lin.dtype)
        self.snapshot = oracles.Snapshot(net)
        self.before = self.answers()

    def fresh(self, **options):
        return jacana.NTKRegressor(self.net, **{"prior_std": 0.8, "noise_std": 0.3, **self.reading, **options})

    def answers(self):
        prediction = self.post.predict(self.points)
        return prediction.mean, prediction.covariance, torch.from_numpy(self.regressor.predict(self.points))

    def assert_unspoiled(self):
        self.snapshot.assert_unchanged()
        for now, before in zip(self.answers(), self.before, strict=True):
            assert torch.equal(now, before), "an earlier posterior was spoiled"


def make_bench(dtype=DOUBLE):
    net = zoo.BY_NAME["mlp"].net(dtype)
    generator = torch.Generator().manual_seed(0)
    x, y, points = (torch.randn(n, d, generator=generator, dtype=DOUBLE) for n, d in ((6, 3), (6, 2), (3, 3)))
    return Bench(net, x.to(dtype), y, points.to(dtype))


@pytest.fixture(scope="module")
def bench():
    return make_bench()


@pytest.fixture(scope="module")
def single():
    return make_bench(SINGLE)


def refuse(call, argument, *words, kind=JacanaError, bench=None):
    """The call raises `kind`, its message names the argument, holds the words and a cure, and nothing is spoiled."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert len(message) >= 35, f"too short to hold what was got, what was expected and a cure: {message!r}"
    assert re.search(rf"(?<!\w)(?:{argument})(?!\w)", message), f"does not name {argument}: {message!r}"
    for word in words:
        assert re.search(word, message, re.IGNORECASE), f"does not say {word!r}: {message!r}"
    told = EXPECTED.search(message) and isinstance(caught.value, InvalidData | InvalidOption)
    assert CURE.search(message) or told, f"names no cure: {message!r}"
    if bench is not None:
        bench.assert_unspoiled()


def size(x):
    """How many examples, as far as that can be told."""
    if isinstance(x, DataLoader):
        return len(x.dataset)
    return len(x) if isinstance(x, torch.Tensor | np.ndarray) and x.ndim else 6


def targets(b, x):
    return torch.ones(size(x), b.y.shape[1], dtype=DOUBLE)


# Inputs ----------------------------------------------------------------------------------------------

INPUT_DOORS = {
    "lin(x)": ("x", lambda b, x: b.lin(x)),
    "lin.jvp": ("x", lambda b, x: b.lin.jvp(x, b.v)),
    "lin.vjp": ("x", lambda b, x: b.lin.vjp(x, targets(b, x))),
    "lin.jacobian": ("x", lambda b, x: b.lin.jacobian(x)),
    "lin.route": ("x", lambda b, x: b.lin.route(x)),
    "Jacobian": ("x", lambda b, x: jacana.Jacobian(b.lin, x) @ b.v),
    "NTK, x1": ("x1|x", lambda b, x: jacana.NTK(b.lin, x).to_dense()),
    "NTK, x2": ("x2|x", lambda b, x: jacana.NTK(b.lin, b.x, x).to_dense()),
    "prior.predict": ("x", lambda b, x: b.gp.predict(x).mean),
    "condition": ("x", lambda b, x: b.gp.condition(x, targets(b, x), 0.3)),
    "posterior.predict, mean": ("x", lambda b, x: b.post.predict(x).mean),
    "posterior.predict, variance": ("x", lambda b, x: b.post.predict(x).variance),
    "posterior.condition": ("x", lambda b, x: b.post.condition(x, targets(b, x))),
    "maximize_evidence": ("x", lambda b, x: jacana.maximize_evidence(b.gp, x, targets(b, x))),
    "NTKRegressor.fit": ("X|x", lambda b, x: b.fresh().fit(x, targets(b, x))),
    "NTKRegressor.predict": ("X|x", lambda b, x: b.regressor.predict(x)),
    "NTKRegressor.sample_y": ("X|x", lambda b, x: b.regressor.sample_y(x)),
}


def changed(x, value):
    x = x.clone()
    x[2, 1] = value
    return x


BAD_INPUTS = {
    "NaN": (lambda x: changed(x, float("nan")), ["nan|finite"]),
    "infinity": (lambda x: changed(x, float("inf")), ["inf|finite"]),
    "NaN in numpy": (lambda x: changed(x, float("nan")).numpy(), ["nan|finite"]),
    "zero examples": (lambda x: x[:0], ["empty|zero|no example|at least one|0 examples"]),
    "complex": (lambda x: x + 1j, ["complex"]),
    "an object array": (lambda x: x.numpy().astype(object), ["object|numbers"]),
    "strings": (lambda x: np.array([["a", "b", "c"]] * 6), ["<U1|str|dtype|numbers"]),
    "too few features": (lambda x: x[:, :2], [r"\b2\b"]),
    "too many features": (lambda x: torch.cat([x, x], 1), [r"\b6\b"]),
    "no dimension": (lambda x: torch.tensor(1.0), [r"dimension|shape|scalar|0-d|single number"]),
    "None": (lambda x: None, ["None"]),
    "a number": (lambda x: 3.0, ["float|number"]),
    "a list": (lambda x: [[1.0, 2.0, 3.0], [1.0, 2.0]], ["list"]),
    "a string": (lambda x: "data", ["str"]),
    "integers for a network of floats": (lambda x: x.long(), ["int"]),
    "a keyword that the network does not take": (lambda x: {"z": x}, ["z"]),
    "an empty mapping": (lambda x: {}, ["empty|no tensor|mapping"]),
    "an empty tuple": (lambda x: (), ["empty|no tensor|tuple"]),
    "mapping to words": (lambda x: {"input": "words"}, ["str"]),
    "too many positions": (lambda x: (x, x), []),
    "a sparse tensor": (lambda x: x.to_sparse(), ["sparse"]),
    "a tensor without data": (lambda x: torch.empty(6, 3, device="meta"), ["meta|without data"]),
    "a loader of nothing": (
        lambda x: DataLoader(TensorDataset(x[:0])),
        ["empty|zero|no example|no batch|at least one"],
    ),
    "a loader with a NaN": (lambda x: DataLoader(TensorDataset(changed(x, np.nan)), batch_size=2), ["nan|finite"]),
}


@pytest.mark.parametrize("door", INPUT_DOORS)
@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_inputs(bench, fault, door):
    spoil, words = BAD_INPUTS[fault]
    argument, call = INPUT_DOORS[door]
    if "a loader" in fault:
        if door in ("condition", "posterior.condition", "maximize_evidence", "NTKRegressor.fit"):
            pytest.skip("a loader without targets is another malformation there")
        if door.startswith("NTKRegressor"):
            pytest.skip("scikit-learn's face takes arrays")
    if door == "lin.route" and "features" in fault:
        pytest.skip("a route is of the network and the dtype, not of the shape")
    if door == "NTK, x2" and fault == "None":
        pytest.skip("x2=None is x1 again")
    x = spoil(bench.x)
    refuse(lambda: call(bench, x), argument, *words, bench=bench)


@pytest.mark.parametrize("door", INPUT_DOORS)
@pytest.mark.parametrize("value", [1e300, -1e39])
def test_inputs_that_overflow_the_dtype_of_the_network(single, door, value):
    """1e300 is a number in float64 and infinite in float32."""
    argument, call = INPUT_DOORS[door]
    x = changed(single.x.double(), value)
    refuse(lambda: call(single, x), argument, "float32|overflow|range|large|finite", bench=single)


@pytest.mark.parametrize("door", INPUT_DOORS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unequal lengths", ["left|right", r"\b5\b|\b6\b"]),
        ("NaN in one", ["left|right", "nan|finite"]),
        ("one missing", ["left"]),
        ("one too many", ["extra"]),
        ("a number among them", ["right", "float|number"]),
    ],
)
def test_mappings(door, fault, words):
    net = zoo.BY_NAME["dict input"].net()
    x = zoo.BY_NAME["dict input"].x(6)
    b = Bench(net, x, torch.ones(6, 2, dtype=DOUBLE), zoo.BY_NAME["dict input"].x(2))
    argument, call = INPUT_DOORS[door]
    bad = {
        "unequal lengths": {"left": x["left"], "right": x["right"][:5]},
        "NaN in one": {"left": changed(x["left"], float("nan")), "right": x["right"]},
        "one missing": {"right": x["right"]},
        "one too many": {**x, "extra": x["left"]},
        "a number among them": {"left": x["left"], "right": 3.0},
    }[fault]
    refuse(lambda: call(b, bad), f"{argument}|left|right|extra", *words, bench=b)


def test_tokens_outside_the_vocabulary():
    net = zoo.BY_NAME["tied embedding and head"].net()
    x = torch.randint(0, 5, (4, 3))
    b = Bench(net, x, torch.ones(4, 3, dtype=DOUBLE), x[:2])
    bad = x.clone()
    bad[1, 1] = 99
    for door, (argument, call) in INPUT_DOORS.items():
        if door != "lin.route":
            refuse(lambda call=call: call(b, bad), argument, bench=b)


ORDERED_DOORS = ["lin.jvp", "lin.vjp", "Jacobian", "NTK, x1", "prior.predict", "posterior.predict, variance"]


@pytest.mark.parametrize("door", ORDERED_DOORS)
def test_a_loader_that_changes_its_order(bench, door):
    argument, call = INPUT_DOORS[door]
    loader = DataLoader(TensorDataset(bench.x), batch_size=2, shuffle=True)
    refuse(lambda: call(bench, loader), f"{argument}|DataLoader|loader", "shuffle|order", bench=bench)


def test_a_loader_with_a_sampler_that_changes_its_order(bench):
    class Restless(torch.utils.data.Sampler):
        turn = 0

        def __iter__(self):
            self.turn += 1
            return iter([*range(self.turn % 6, 6), *range(self.turn % 6)])

        def __len__(self):
            return 6

    loader = DataLoader(TensorDataset(bench.x), batch_size=2, sampler=Restless())
    J = jacana.Jacobian(bench.lin, bench.x).to_dense()
    try:
        operator = jacana.Jacobian(bench.lin, loader)
        products = operator @ bench.v, operator @ bench.v, operator.to_dense() @ bench.v
    except JacanaError as error:
        assert re.search("order|second pass", str(error))  # noqa: PT017
        return
    assert torch.equal(products[0], products[1])
    oracles.assert_close(products[0], products[2], DOUBLE, scale=10)
    assert products[0].shape == (J @ bench.v).shape


# Targets ---------------------------------------------------------------------------------------------

TARGET_DOORS = {
    "condition": lambda b, y: b.gp.condition(b.x, y, 0.3),
    "condition, function space": lambda b, y: b.gp.condition(b.x, y, 0.3, method=FunctionSpace()),
    "condition, weight space": lambda b, y: b.gp.condition(b.x, y, 0.3, method=WeightSpace()),
    "posterior.condition": lambda b, y: b.post.condition(b.x, y),
    "maximize_evidence": lambda b, y: jacana.maximize_evidence(b.gp, b.x, y),
    "NTKRegressor.fit": lambda b, y: b.fresh().fit(b.x, y),
}
BAD_TARGETS = {
    "NaN": (lambda y: changed(y, float("nan")), ["nan|finite"]),
    "infinity": (lambda y: changed(y, -float("inf")), ["inf|finite"]),
    "NaN in numpy": (lambda y: changed(y, float("nan")).numpy(), ["nan|finite"]),
    "too short": (lambda y: y[:5], [r"\b5\b", r"\b6\b"]),
    "too long": (lambda y: torch.cat([y, y[:1]]), [r"\b7\b", r"\b6\b"]),
    "zero examples": (lambda y: y[:0], [r"\b0\b|empty|zero"]),
    "too many outputs": (lambda y: torch.cat([y, y], 1), [r"\b4\b", r"\b2\b"]),
    "one output of two": (lambda y: y[:, 0], [r"\b2\b"]),
    "one column of two": (lambda y: y[:, :1], [r"\b1\b", r"\b2\b"]),
    "transposed": (lambda y: y.T, [r"\b6\b", r"\b2\b"]),
    "three dimensions": (lambda y: y[:, :, None], ["dimension|shape"]),
    "complex": (lambda y: y + 0j, ["complex"]),
    "an object array": (lambda y: y.numpy().astype(object), ["object|numbers"]),
    "strings": (lambda y: np.array([["a", "b"]] * 6), ["<U1|str|dtype|numbers"]),
    "None": (lambda y: None, ["None|missing|target"]),
    "a number": (lambda y: 1.0, ["float|number|shape|dimension"]),
    "a string": (lambda y: "targets", ["str"]),
}


@pytest.mark.parametrize("door", TARGET_DOORS)
@pytest.mark.parametrize("fault", BAD_TARGETS)
def test_targets(bench, fault, door):
    spoil, words = BAD_TARGETS[fault]
    y = spoil(bench.y)
    refuse(lambda: TARGET_DOORS[door](bench, y), "y|targets?", *words, kind=InvalidData, bench=bench)


@pytest.mark.parametrize("shape", [(4, 2), (1, 4), (4, 1, 1), (3,), (5, 1)])
def test_targets_of_a_network_that_returns_one_number(shape):
    net = zoo.Flat().double()
    x = torch.randn(4, 3, dtype=DOUBLE)
    b = Bench(net, x, torch.ones(4, dtype=DOUBLE), x[:2])
    for door in TARGET_DOORS.values():
        refuse(lambda door=door: door(b, torch.ones(shape, dtype=DOUBLE)), "y|targets?", kind=InvalidData, bench=b)


@pytest.mark.parametrize("door", ["condition", "posterior.condition", "maximize_evidence"])
@pytest.mark.parametrize("fault", ["without targets", "with targets twice", "NaN", "wrong width", "nothing"])
def test_loaders_of_data(bench, door, fault):
    spoiled = bench.y.clone()
    spoiled[5, 0] = float("nan")
    loader, y, words = {
        "without targets": (DataLoader(TensorDataset(bench.x), batch_size=2), None, ["target"]),
        "with targets twice": (DataLoader(TensorDataset(bench.x, bench.y), batch_size=2), bench.y, []),
        "NaN": (DataLoader(TensorDataset(bench.x, spoiled), batch_size=2), None, ["nan|finite"]),
        "wrong width": (DataLoader(TensorDataset(bench.x, bench.x), batch_size=2), None, [r"\b3\b", r"\b2\b"]),
        "nothing": (
            DataLoader(TensorDataset(bench.x[:0], bench.y[:0])),
            None,
            ["empty|zero|no example|no batch|at least"],
        ),
    }[fault]
    calls = {
        "condition": lambda: bench.gp.condition(loader, y, noise_std=0.3),
        "posterior.condition": lambda: bench.post.condition(loader, y),
        "maximize_evidence": lambda: jacana.maximize_evidence(bench.gp, loader, y),
    }
    refuse(calls[door], "x|y|targets?", *words, kind=InvalidData, bench=bench)


@pytest.mark.parametrize("method", [None, FunctionSpace(), WeightSpace()], ids=str)
def test_conditioning_on_zero_examples(bench, method):
    nothing = torch.zeros(0, 3, dtype=DOUBLE), torch.zeros(0, 2, dtype=DOUBLE)
    words = ["empty|zero|no example|at least one|0 examples"]
    refuse(lambda: bench.gp.condition(*nothing, 0.3, method=method), "x|y", *words, kind=InvalidData, bench=bench)
    refuse(lambda: bench.post.condition(*nothing), "x|y", *words, kind=InvalidData, bench=bench)


# Noise -----------------------------------------------------------------------------------------------

NOISE_DOORS = {
    "condition": lambda b, s: b.gp.condition(b.x, b.y, s),
    "condition, likelihood=": lambda b, s: b.gp.condition(b.x, b.y, likelihood=Gaussian(s)),
    "posterior.condition": lambda b, s: b.post.condition(b.x, b.y, s),
    "maximize_evidence": lambda b, s: jacana.maximize_evidence(b.gp, b.x, b.y, noise_std=s),
    "NTKRegressor.fit": lambda b, s: b.fresh(noise_std=s).fit(b.x, b.y),
}
BAD_NOISES = {
    "negative": (-0.1, ["-0.1"]),
    "NaN": (float("nan"), ["nan|finite"]),
    "infinite": (float("inf"), ["inf|finite"]),
    "one negative": ([0.1, -0.1], ["positive|negative|zero or larger"]),
    "one NaN": (torch.tensor([0.1, float("nan")]), ["nan|finite"]),
    "three for two outputs": ([0.1, 0.2, 0.3], [r"\b3\b", r"\b2\b"]),
    "(n,)": (np.full(6, 0.3), [r"\b6\b", r"\b2\b"]),
    "(n + 1, c)": (np.full((7, 2), 0.3), [r"\b7\b", r"\b6\b"]),
    "(n, c + 1)": (np.full((6, 3), 0.3), [r"\b3\b", r"\b2\b"]),
    "(n, c, c)": (np.full((6, 2, 2), 0.3), ["shape|dimension"]),
    "none at all": ([], ["empty|shape|0"]),
    "a word": ("loud", ["loud"]),
    "complex": (0.3j, ["complex|0.3j"]),
    "an object": (object(), ["object"]),
}


@pytest.mark.parametrize("door", NOISE_DOORS)
@pytest.mark.parametrize("fault", BAD_NOISES)
def test_noise(bench, fault, door):
    noise, words = BAD_NOISES[fault]
    refuse(lambda: NOISE_DOORS[door](bench, noise), "noise_std", *words, kind=InvalidOption, bench=bench)


def test_words_of_noise_and_prior_list_the_words_there_are(bench):
    for options, words in (
        ({"noise_std": "output"}, ["shared", "outputs"]),
        ({"prior_std": "layer"}, ["shared", "layers"]),
    ):
        argument = next(iter(options))
        refuse(
            lambda options=options: jacana.maximize_evidence(bench.gp, bench.x, bench.y, **options),
            argument,
            *words,
            kind=InvalidOption,
            bench=bench,
        )


def test_noise_missing_twice_or_of_another_kind(bench):
    data = bench.x, bench.y
    refuse(lambda: bench.gp.condition(*data), "noise_std", "likelihood", kind=InvalidOption, bench=bench)
    refuse(lambda: bench.gp.condition(*data, None), "noise_std", "likelihood", kind=InvalidOption, bench=bench)
    both = {"noise_std": 0.1, "likelihood": Gaussian(0.1)}
    refuse(lambda: bench.gp.condition(*data, **both), "noise_std", "likelihood", kind=InvalidOption, bench=bench)
    for wrong in (0.1, "gaussian", Gaussian):
        refuse(lambda w=wrong: bench.gp.condition(*data, likelihood=w), "likelihood", "Gaussian", bench=bench)


def test_one_noise_an_example_says_nothing_of_new_examples(bench):
    """Neither of observations at new points nor of more data: asked for, it is refused with what to give."""
    post = bench.gp.condition(bench.x, bench.y, np.full((6, 2), 0.3))
    refuse(lambda: post.predict(bench.points, observed=True).variance, "noise_std|observed", "example", bench=bench)
    refuse(lambda: post.condition(bench.points, bench.y[:3]), "noise_std", "example", kind=InvalidOption, bench=bench)
    assert (post.predict(bench.points).variance > 0).all()


# Prior, mean, method ---------------------------------------------------------------------------------

PRIOR_DOORS = {
    "TangentGP": lambda b, s: jacana.TangentGP(b.lin, prior_std=s),
    "TangentGP of a network": lambda b, s: jacana.TangentGP(b.net, prior_std=s),
    "NTK": lambda b, s: jacana.NTK(b.lin, b.x, prior_std=s).to_dense(),
    "maximize_evidence": lambda b, s: jacana.maximize_evidence(b.gp, b.x, b.y, prior_std=s),
    "NTKRegressor.fit": lambda b, s: b.fresh(prior_std=s).fit(b.x, b.y),
}
BAD_PRIORS = {
    "negative": (-1.0, ["-1|positive|negative"]),
    "zero": (0.0, ["0|positive"]),
    "NaN": (float("nan"), ["nan|finite"]),
    "infinite": (float("inf"), ["inf|finite"]),
    "a word": ("large", ["large"]),
    "complex": (1j, ["complex|1j"]),
    "a mapping of nothing": ({}, ["0|cover"]),
    "a mapping that leaves parameters out": ({"0": 1.0}, [r"2\.weight"]),
    "a mapping that names nothing": ({"": 1.0, "7": 2.0}, ["7"]),
    "a mapping that names half a word": ({"": 1.0, "0.wei": 2.0}, [r"0\.wei"]),
    "a negative one in a mapping": ({"0": 1.0, "2": -1.0}, ["2", "-1|positive|negative"]),
    "a NaN in a mapping": ({"0": float("nan"), "2": 1.0}, ["0", "nan|finite"]),
    "a word in a mapping": ({"0": 1.0, "2": "wide"}, ["wide"]),
    "a mapping from numbers": ({0: 1.0, 2: 1.0}, ["name|prefix|str"]),
    "one for each of something": ([1.0, 2.0], [r"list|shape|scalar|\[1"]),
}


@pytest.mark.parametrize("door", PRIOR_DOORS)
@pytest.mark.parametrize("fault", BAD_PRIORS)
def test_prior(bench, fault, door):
    prior, words = BAD_PRIORS[fault]
    refuse(lambda: PRIOR_DOORS[door](bench, prior), "prior_std", *words, kind=InvalidOption, bench=bench)


@pytest.mark.parametrize("mean", ["median", "Network", None, 0.0, ["zero"]], ids=str)
def test_mean(bench, mean):
    words = ["network", "zero"]
    refuse(lambda: jacana.TangentGP(bench.lin, mean=mean), "mean", *words, kind=InvalidOption, bench=bench)
    refuse(lambda: bench.fresh(mean=mean).fit(bench.x, bench.y), "mean", *words, kind=InvalidOption, bench=bench)


@pytest.mark.parametrize("method", ["function", FunctionSpace, 3], ids=str)
def test_method(bench, method):
    words = ["FunctionSpace", "WeightSpace"]
    call = lambda: bench.gp.condition(bench.x, bench.y, 0.3, method=method)  # noqa: E731
    refuse(call, "method", *words, kind=InvalidOption, bench=bench)


@pytest.mark.parametrize("method", ["banana", "Function", WeightSpace, 3], ids=str)
def test_method_of_the_regressor(bench, method):
    call = lambda: bench.fresh(method=method).fit(bench.x, bench.y)  # noqa: E731
    refuse(call, "method", "function", "weight", kind=InvalidOption, bench=bench)


def test_both_kinds_of_spread_at_once(bench):
    both = {"return_std": True, "return_cov": True}
    refuse(lambda: bench.regressor.predict(bench.points, **both), "return_std", "return_cov", bench=bench)


def test_features_that_were_not_fitted(bench):
    for call in (bench.regressor.predict, bench.regressor.sample_y):
        refuse(lambda call=call: call(torch.ones(2, 4, dtype=DOUBLE)), "X", r"\b4\b", r"\b3\b", bench=bench)


# Selection -------------------------------------------------------------------------------------------

SELECTION_DOORS = {
    "linearize": lambda net, chosen: jacana.linearize(net, parameters=chosen),
    "NTKRegressor.fit": lambda net, chosen: jacana.NTKRegressor(net, parameters=chosen, noise_std=0.3).fit(
        torch.ones(3, 3, dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE)
    ),
}
BAD_SELECTIONS = {
    "unknown name": (lambda net: "nonsense", ["nonsense"]),
    "half a word": (lambda net: "hea", ["hea"]),
    "one of many unknown": (lambda net: ["head", "tail"], ["tail"]),
    "a name with a wrong ending": (lambda net: "head.weights", [r"head\.weights", r"head\.weight\b"]),
    "nothing": (lambda net: [], ["empty|no parameter|nothing|at least one"]),
    "a module of another network": (lambda net: nn.Linear(2, 2), ["module|Linear"]),
    "a module without parameters": (lambda net: net.activation, ["empty|no parameter|nothing|at least one"]),
    "a parameter of another network": (lambda net: nn.Parameter(torch.ones(2)), ["parameter"]),
    "a buffer": (lambda net: "shift", ["shift", "buffer|parameter"]),
    "a tensor": (lambda net: torch.ones(3), ["Tensor"]),
    "a number": (lambda net: 3, ["int|3"]),
    "numbers": (lambda net: [0, 1], ["int|0"]),
}


class Selectable(zoo.Raw):
    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()


@pytest.mark.parametrize("door", SELECTION_DOORS)
@pytest.mark.parametrize("fault", BAD_SELECTIONS)
def test_selection(fault, door):
    net = Selectable().double()
    snapshot = oracles.Snapshot(net)
    choose, words = BAD_SELECTIONS[fault]
    refuse(lambda: SELECTION_DOORS[door](net, choose(net)), "parameters", *words, kind=InvalidOption)
    snapshot.assert_unchanged()


def test_everything_frozen_or_no_parameters_at_all():
    frozen = zoo.mlp().double().requires_grad_(False)
    for door in SELECTION_DOORS.values():
        refuse(lambda door=door: door(frozen, None), "parameters", "requires_grad|gradient|frozen")
        refuse(lambda door=door: door(nn.Sequential(nn.Linear(3, 3), nn.Tanh())[1:], None), "parameters")


# The network -----------------------------------------------------------------------------------------

NETWORK_DOORS = {
    "linearize": ("net", lambda net, x, y: jacana.linearize(net)),
    "Jacobian": ("net|lin", lambda net, x, y: jacana.Jacobian(net, x)),
    "NTK": ("net|lin", lambda net, x, y: jacana.NTK(net, x)),
    "TangentGP": ("net|lin", lambda net, x, y: jacana.TangentGP(net)),
    "NTKRegressor.fit": ("net", lambda net, x, y: jacana.NTKRegressor(net, noise_std=0.3).fit(x, y)),
}


@pytest.mark.parametrize("door", NETWORK_DOORS)
@pytest.mark.parametrize(
    "net", [None, torch.tanh, nn.Linear, zoo.mlp, "mlp", np.ones(3), {"net": 1}], ids=lambda net: repr(net)[:20]
)
def test_what_is_no_network(net, door):
    argument, call = NETWORK_DOORS[door]
    x, y = torch.ones(3, 3, dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE)
    refuse(lambda: call(net, x, y), argument, "Module")


USES = {
    "lin(x)": lambda lin, x, y: lin()(x),
    "lin.jvp": lambda lin, x, y: lin().jvp(x, torch.ones(lin().n_parameters, dtype=DOUBLE)),
    "lin.vjp": lambda lin, x, y: lin().vjp(x, y),
    "lin.jacobian": lambda lin, x, y: lin().jacobian(x),
    "lin.route": lambda lin, x, y: lin().route(x),
    "Jacobian": lambda lin, x, y: jacana.Jacobian(lin(), x).to_dense(),
    "NTK": lambda lin, x, y: jacana.NTK(lin(), x).to_dense(),
    "NTK @": lambda lin, x, y: jacana.NTK(lin(), x) @ y.reshape(-1),
    "prior mean": lambda lin, x, y: jacana.TangentGP(lin()).predict(x).mean,
    "prior variance": lambda lin, x, y: jacana.TangentGP(lin()).predict(x).variance,
    "condition": lambda lin, x, y: jacana.TangentGP(lin()).condition(x, y, 0.3),
    "maximize_evidence": lambda lin, x, y: jacana.maximize_evidence(jacana.TangentGP(lin()), x, y),
}


class Reads(nn.Module):
    """An honest body and a faulty end."""

    def __init__(self, end):
        super().__init__()
        self.body = zoo.mlp()
        self.end = end

    def forward(self, x):
        return self.end(self.body(x))


def _missing(out):
    raise KeyError("logits")


BAD_OUTPUTS = {
    "integers": (lambda out: out.argmax(1), {}, ["int", "float"]),
    "booleans": (lambda out: out > 0, {}, ["bool", "float"]),
    "complex": (lambda out: torch.complex(out, out), {}, ["complex"]),
    "a tuple": (lambda out: (out, out), {}, ["tuple", "output="]),
    "a dict": (lambda out: {"logits": out}, {}, ["dict|mapping", "output="]),
    "a dataclass": (lambda out: zoo.ModelOutput(out, out), {}, ["ModelOutput", "output="]),
    "None": (lambda out: None, {}, ["None"]),
    "three dimensions": (lambda out: out[:, :, None].expand(-1, -1, 3), {}, ["shape|dimension"]),
    "a loss": (lambda out: out.square().mean(), {}, ["shape|dimension"]),
    "half of the examples": (lambda out: out[:2], {}, [r"\b4\b"]),
    "transposed": (lambda out: out.T, {}, [r"\b4\b"]),
    "no columns": (lambda out: out[:, :0], {}, [r"\b0\b|no output|empty"]),
    "NaN": (lambda out: out * float("nan"), {}, ["nan|finite"]),
    "infinity": (lambda out: out / 0.0, {}, ["inf|finite|nan"]),
    "output= that gives an array": (
        lambda out: out,
        {"output": lambda out: out.detach().numpy()},
        ["output", "ndarray"],
    ),
    "output= that fails": (lambda out: out, {"output": lambda out: out["logits"]}, ["output"]),
    "output= that misses a key": (lambda out: out, {"output": _missing}, ["output", "logits"]),
    "forward= that fails": (lambda out: out, {"forward": lambda net, x: net.nothing(x)}, ["forward|nothing"]),
    "forward= of one argument": (lambda out: out, {"forward": lambda x: x}, ["forward"]),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", BAD_OUTPUTS)
def test_outputs(fault, use):
    end, reading, words = BAD_OUTPUTS[fault]
    net = Reads(end).double()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    snapshot = oracles.Snapshot(net)
    argument = "net|network|outputs?|forward|output="
    refuse(lambda: USES[use](lambda: jacana.linearize(net, **reading), x, y), argument, *words)
    snapshot.assert_unchanged()


@pytest.mark.parametrize("argument", ["output", "forward"])
@pytest.mark.parametrize("value", ["logits", 3, torch.ones(2)], ids=["str", "int", "Tensor"])
def test_readers_that_cannot_be_called(bench, argument, value):
    refuse(lambda: jacana.linearize(bench.net, **{argument: value}), argument, "callable|function", kind=InvalidOption)
    regressor = bench.fresh(**{argument: value})
    refuse(lambda: regressor.fit(bench.x, bench.y), argument, "callable|function", kind=InvalidOption, bench=bench)


@pytest.mark.parametrize("use", ["condition", "maximize_evidence", "prior variance"])
def test_a_jacobian_that_is_not_finite(use):
    """Finite outputs with infinite slopes: a square root at zero."""
    net = nn.Sequential(nn.Linear(3, 2, bias=False), Size()).double()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    x[1] = 0  # neither the first example nor the last
    refuse(lambda: USES[use](lambda: jacana.linearize(net), x, y), "network|net|Jacobian|J", "nan|finite|inf")


class Size(nn.Module):
    def forward(self, x):
        return torch.sqrt(x * x)


# Networks that cannot be linearized example by example ------------------------------------------------


class Random(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.first, self.head, self.noise = nn.Linear(3, 4), nn.Linear(4, 2), noise

    def forward(self, x):
        return self.head(self.noise(torch.tanh(self.first(x))))


class TimeFirst(nn.Module):
    """Examples first outside, time first inside: the two are taken for one another."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(4, 2)

    def forward(self, x):
        out = self.cell(x)
        return self.head((out[0] if isinstance(out, tuple) else out)[:, -1])


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)


def batch_statistics():
    return nn.Sequential(
        nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.BatchNorm1d(4, track_running_stats=False)), nn.Linear(4, 2)
    )


RANDOM = "random|another output at each pass"
MIXED = "mix|other examples|each other|depend"
BAD_NETWORKS = {
    "functional dropout": (lambda: Random(functional.dropout), zoo.vectors(3), [RANDOM, "training"]),
    "noise": (lambda: Random(lambda h: h + 0.1 * torch.randn_like(h)), zoo.vectors(3), [RANDOM]),
    "rare noise": (lambda: Random(lambda h: functional.dropout(h, 0.05)), zoo.vectors(3), [RANDOM]),
    "BatchNorm without statistics": (batch_statistics, zoo.vectors(3), [r"1\.1", "running"]),
    "functional batch_norm": (
        lambda: Random(lambda h: functional.batch_norm(h, None, None, training=True)),
        zoo.vectors(3),
        [MIXED],
    ),
    "LSTM, batch_first=False": (lambda: TimeFirst(nn.LSTM(3, 4)), zoo.sequences(5, 3), ["cell", "batch_first"]),
    "GRU, batch_first=False": (lambda: TimeFirst(nn.GRU(3, 4)), zoo.sequences(5, 3), ["cell", "batch_first"]),
    "TransformerEncoderLayer, batch_first=False": (
        lambda: TimeFirst(nn.TransformerEncoderLayer(4, 2, 6)),
        zoo.sequences(5, 4),
        ["cell", "batch_first"],
    ),
    "MultiheadAttention, batch_first=False": (
        lambda: TimeFirst(SelfAttention()),
        zoo.sequences(5, 4),
        [r"cell\.attention", "batch_first"],
    ),
    "x minus its mean": (
        lambda: Random(lambda h: h - h.mean(0)),
        zoo.vectors(3),
        [MIXED],
    ),
    "softmax over examples": (
        lambda: Random(lambda h: h.softmax(0)),
        zoo.vectors(3),
        [MIXED],
    ),
    "a running sum": (lambda: Random(lambda h: h.cumsum(0)), zoo.vectors(3), [MIXED]),
    "a running sum from the end": (
        lambda: Random(lambda h: h.flip(0).cumsum(0).flip(0)),
        zoo.vectors(3),
        [MIXED],
    ),
    "the neighbour": (
        lambda: Random(lambda h: h + h.roll(1, 0)),
        zoo.vectors(3),
        [MIXED],
    ),
    "the first example": (
        lambda: Random(lambda h: h - h[:1]),
        zoo.vectors(3),
        [MIXED],
    ),
    "the place in the batch": (
        lambda: Random(lambda h: h + torch.arange(len(h))[:, None]),
        zoo.vectors(3),
        [MIXED + "|order|place|position"],
    ),
    "sorted": (
        lambda: Random(lambda h: h.sort(0).values),
        zoo.vectors(3),
        [MIXED + "|order"],
    ),
    "the number of examples": (
        lambda: Random(lambda h: h / len(h)),
        zoo.vectors(3),
        [MIXED],
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", BAD_NETWORKS)
def test_networks_that_are_random_or_mix_examples(fault, use):
    make, inputs, words = BAD_NETWORKS[fault]
    case = zoo.Case(fault, make, inputs)
    net, x = case.net(), case.x(4)
    snapshot = oracles.Snapshot(net)
    call = lambda: USES[use](lambda: jacana.linearize(net), x, torch.ones(4, 2, dtype=DOUBLE))  # noqa: E731
    refuse(call, "net|network", *words, kind=UnsupportedNetwork)
    snapshot.assert_unchanged()


@pytest.mark.parametrize("fault", BAD_NETWORKS)
def test_the_regressor_refuses_them_too(fault):
    make, inputs, words = BAD_NETWORKS[fault]
    case = zoo.Case(fault, make, inputs)
    net, x = case.net(SINGLE), case.x(4, SINGLE)
    refuse(lambda: jacana.NTKRegressor(net).fit(x, torch.ones(4, 2)), "net|network", *words, kind=UnsupportedNetwork)


@pytest.mark.parametrize("fault", ["functional dropout", "x minus its mean"])
def test_the_layer_at_fault_is_named(fault):
    """Not the innocent one behind it, which only passes on what it was given."""
    block = BAD_NETWORKS[fault][0]()
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), block), nn.Linear(2, 2)).double()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    refuse(lambda: USES["condition"](lambda: jacana.linearize(net), x, y), r"1\.1", kind=UnsupportedNetwork)


@pytest.mark.parametrize("fault", ["x minus its mean", "functional dropout", "a running sum", "the neighbour"])
def test_it_is_noticed_at_new_points_too(fault):
    """Met first with one example, where nothing can be mixed, and then with many."""
    make, inputs, words = BAD_NETWORKS[fault]
    case = zoo.Case(fault, make, inputs)
    lin = jacana.linearize(case.net())
    try:
        lin(case.x(1))
    except UnsupportedNetwork:
        return
    refuse(lambda: lin.jacobian(case.x(4)), "net|network", *words, kind=UnsupportedNetwork)


def transposing():
    class Transposing(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cell(x.transpose(0, 1))[0][-1])

    return Transposing()


HONEST = {
    "LSTM with time first, transposed by the network": (transposing, zoo.sequences(5, 3)),
    "Dropout, AlphaDropout, RReLU modules": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.AlphaDropout(), nn.RReLU(), nn.Linear(4, 2)),
        zoo.vectors(3),
    ),
    "InstanceNorm, which never has statistics": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(12, 2)),
        zoo.sequences(2, 5),
    ),
    "dropout with a probability of zero": (lambda: Random(lambda h: functional.dropout(h, 0.0)), zoo.vectors(3)),
    "a frozen network with a free head": (
        lambda: nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 2)),
        zoo.vectors(3),
    ),
    "outputs of a million": (lambda: Random(lambda h: 1e6 * h), zoo.vectors(3)),
    "outputs of a millionth": (lambda: Random(lambda h: 1e-6 * h), zoo.vectors(3)),
    "a dead network": (lambda: Random(lambda h: functional.relu(h - 10)), zoo.vectors(3)),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_networks_are_not_refused(name, dtype):
    make, inputs = HONEST[name]
    case = zoo.Case(name, make, inputs)
    net, x = case.net(dtype), case.x(4, dtype)
    oracles.assert_close(jacana.linearize(net).jacobian(x), case.jacobian(net, x), dtype)


def test_one_example_of_a_network_that_could_mix():
    """Nothing to compare with: its own rows, as far as they go."""
    case = zoo.BY_NAME["conv, BatchNorm, in-place ReLU"]
    net, x = case.net(), case.x(1)
    oracles.assert_close(jacana.linearize(net).jacobian(x), case.jacobian(net, x), DOUBLE)


def test_old_weight_norm_after_a_forward_pass():
    """A deep copy of it fails: right all the same, or an error with a cure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    rows = [torch.autograd.grad(value, list(net.parameters()), retain_graph=True) for value in net(x).reshape(-1)]
    J = torch.stack([torch.cat([gradient.reshape(-1) for gradient in row]) for row in rows])
    snapshot = oracles.Snapshot(net)
    try:
        lin = jacana.linearize(net)
    except JacanaError:
        for argument, call in NETWORK_DOORS.values():
            words = ["parametrizations|remove_weight_norm", "weight_norm"]
            refuse(lambda call=call: call(net, x, y), f"{argument}|network", *words, kind=UnsupportedNetwork)
    else:
        assert lin.names == tuple(name for name, _ in net.named_parameters())
        oracles.assert_close(lin.jacobian(x), J, DOUBLE)
    snapshot.assert_unchanged()


def test_what_cannot_be_copied():
    """A lock in a layer: the layer is named, and what to do."""
    net = zoo.mlp().double()
    net[1].lock = threading.Lock()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    for argument, call in NETWORK_DOORS.values():
        refuse(lambda call=call: call(net, x, y), argument, "copy", "'1'", kind=UnsupportedNetwork)


def test_lazy_parameters():
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(4, 3), torch.ones(4, 2)
    for argument, call in NETWORK_DOORS.values():
        refuse(lambda call=call: call(net, x, y), f"{argument}|network", "lazy|initiali[sz]ed")


def test_a_network_whose_parameters_have_two_dtypes_is_right_or_refused():
    net = nn.Sequential(nn.Linear(3, 4), Widen(), nn.Linear(4, 2).double())
    x = torch.randn(4, 3)
    try:
        got = jacana.linearize(net).jacobian(x)
    except JacanaError as error:
        assert "float64" in str(error)  # noqa: PT017
        return
    oracles.assert_close(got, oracles.jacobian(net, x), SINGLE)


class Widen(nn.Module):
    def forward(self, x):
        return torch.tanh(x.double())


LATE_DOORS = {
    "lin(x)": lambda b, x: b.lin(x),
    "lin.jvp": lambda b, x: b.lin.jvp(x, b.v),
    "lin.jacobian": lambda b, x: b.lin.jacobian(x),
    "NTK": lambda b, x: jacana.NTK(b.lin, x).to_dense(),
    "prior mean": lambda b, x: b.gp.predict(x).mean,
    "posterior mean": lambda b, x: b.post.predict(x).mean,
    "posterior variance": lambda b, x: b.post.predict(x).variance,
    "condition": lambda b, x: b.gp.condition(x, targets(b, x), 0.3),
    "posterior.condition": lambda b, x: b.post.condition(x, targets(b, x)),
    "maximize_evidence": lambda b, x: jacana.maximize_evidence(b.gp, x, targets(b, x)),
    "NTKRegressor.fit": lambda b, x: b.fresh().fit(x, targets(b, x)),
    "NTKRegressor.predict": lambda b, x: b.regressor.predict(x),
}


@pytest.mark.parametrize("door", LATE_DOORS)
def test_outputs_that_are_not_finite_for_one_example_of_many(door):
    """A logarithm of a negative number at one of fifty examples, after many that were fine: never a silent NaN."""
    net = nn.Sequential(nn.Linear(3, 2), Logarithm()).double()
    net[0].weight.data.fill_(0.3)
    x = torch.rand(50, 3, dtype=DOUBLE)
    b = Bench(net, x[:6], torch.ones(6, 2, dtype=DOUBLE), x[:3])
    bad = x.clone()
    bad[31] = -20.0
    refuse(lambda: LATE_DOORS[door](b, bad), "net|network|outputs?|x|X", "nan|finite|inf", bench=b)


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x + 2.0)


def test_networks_with_weights_that_are_not_finite():
    net = zoo.mlp().double()
    net[0].weight.data[0, 0] = float("nan")
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    for name in ("lin(x)", "lin.jvp", "lin.jacobian", "NTK", "prior mean", "condition", "maximize_evidence"):
        refuse(lambda name=name: USES[name](lambda: jacana.linearize(net), x, y), "net|network|outputs?", "nan|finite")


# Vectors and options ---------------------------------------------------------------------------------

VECTOR_DOORS = {
    "lin.jvp": ("v", "p", lambda b, v: b.lin.jvp(b.x, v)),
    "lin.vjp": ("u", "nc", lambda b, u: b.lin.vjp(b.x, u)),
    "Jacobian @": ("v|vector|right-hand side|@", "p", lambda b, v: jacana.Jacobian(b.lin, b.x) @ v),
    "Jacobian.T @": ("v|u|vector|right-hand side|@", "nc", lambda b, u: jacana.Jacobian(b.lin, b.x).T @ u),
    "NTK @": ("v|u|vector|right-hand side|@", "nc", lambda b, u: jacana.NTK(b.lin, b.x) @ u),
    "NTK.T @": ("v|u|vector|right-hand side|@", "mc", lambda b, u: jacana.NTK(b.lin, b.points, b.x).T @ u),
    "sum @": ("v|u|vector|right-hand side|@", "nc", lambda b, u: (jacana.NTK(b.lin, b.x) + jacana.NTK(b.lin, b.x)) @ u),
    "2 K @": ("v|u|vector|right-hand side|@", "nc", lambda b, u: (2.0 * jacana.NTK(b.lin, b.x)) @ u),
}


def with_nan(length):
    v = torch.ones(length, dtype=DOUBLE)
    v[1] = float("nan")
    return v


BAD_VECTORS = {
    "too short": (lambda k: torch.ones(k - 1, dtype=DOUBLE), lambda k: [rf"\b{k - 1}\b", rf"\b{k}\b"]),
    "too long": (lambda k: torch.ones(k + 1, dtype=DOUBLE), lambda k: [rf"\b{k + 1}\b", rf"\b{k}\b"]),
    "a matrix with too few rows": (lambda k: torch.ones(k - 1, 2, dtype=DOUBLE), lambda k: [rf"\b{k - 1}\b"]),
    "transposed": (lambda k: torch.ones(4, k, dtype=DOUBLE), lambda k: [r"\b4\b"]),
    "four dimensions": (lambda k: torch.ones(k, 1, 1, 1, dtype=DOUBLE), lambda k: ["shape|dimension"]),
    "no dimension": (lambda k: torch.tensor(1.0, dtype=DOUBLE), lambda k: ["shape|dimension"]),
    "NaN": (with_nan, lambda k: ["nan|finite"]),
    "infinity": (lambda k: with_nan(k).nan_to_num(nan=float("inf")), lambda k: ["inf|finite"]),
    "complex": (lambda k: torch.ones(k, dtype=torch.complex128), lambda k: ["complex"]),
    "None": (lambda k: None, lambda k: ["None"]),
    "a string": (lambda k: "v", lambda k: ["str"]),
    "strings": (lambda k: np.array(["v"] * k), lambda k: ["<U1|str|dtype|ndarray"]),
}


@pytest.mark.parametrize("door", VECTOR_DOORS)
@pytest.mark.parametrize("fault", BAD_VECTORS)
def test_vectors(bench, fault, door):
    argument, kind, call = VECTOR_DOORS[door]
    length = {"p": bench.p, "nc": 12, "mc": 6}[kind]
    make, words = BAD_VECTORS[fault]
    wrong = make(length)
    refuse(lambda: call(bench, wrong), argument, *words(length), kind=InvalidData, bench=bench)


def test_operators_that_do_not_fit_together(bench):
    K, J = jacana.NTK(bench.lin, bench.x), jacana.Jacobian(bench.lin, bench.x)
    cross = jacana.NTK(bench.lin, bench.x, bench.points)
    for call in (lambda: K + J, lambda: K - cross, lambda: cross + cross.T, lambda: J + J.T):
        refuse(call, "shapes?", r"12", kind=InvalidData, bench=bench)
    with pytest.raises((JacanaError, TypeError)):
        K + "K"
    with pytest.raises((JacanaError, TypeError)):
        "two" * K
    for factor in (float("nan"), float("inf")):
        refuse(lambda factor=factor: factor * K, "factor|scalar|number|scale", "nan|inf|finite", bench=bench)


def test_diagonals_are_of_square_operators(bench):
    refuse(lambda: jacana.NTK(bench.lin, bench.x, bench.points).diagonal(), "diagonal|shape", "square", bench=bench)
    refuse(lambda: jacana.Jacobian(bench.lin, bench.x).diagonal(), "diagonal|shape", "square", bench=bench)


BATCH_DOORS = {
    "linearize": lambda b, k: jacana.linearize(b.net, batch_size=k),
    "lin(x)": lambda b, k: b.lin(b.x, batch_size=k),
    "lin.jvp": lambda b, k: b.lin.jvp(b.x, b.v, batch_size=k),
    "lin.vjp": lambda b, k: b.lin.vjp(b.x, b.y, batch_size=k),
    "lin.jacobian": lambda b, k: b.lin.jacobian(b.x, batch_size=k),
    "NTKRegressor.fit": lambda b, k: b.fresh(batch_size=k).fit(b.x, b.y),
}


@pytest.mark.parametrize("door", BATCH_DOORS)
@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "all", float("nan"), True], ids=str)
def test_batch_size(bench, batch_size, door):
    refuse(
        lambda: BATCH_DOORS[door](bench, batch_size),
        "batch_size",
        "integer|positive|int",
        kind=InvalidOption,
        bench=bench,
    )


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, -0.1, 95, float("nan"), "95%"], ids=str)
def test_level_of_an_interval(bench, level):
    for prediction in (bench.gp.predict(bench.x), bench.post.predict(bench.points, observed=True)):
        refuse(lambda p=prediction: p.interval(level), "level", "between|0|1", kind=InvalidOption, bench=bench)


@pytest.mark.parametrize("count", [-1, 1.5, "many", None], ids=str)
def test_number_of_samples(bench, count):
    for draw in (
        bench.gp.predict(bench.points).sample,
        bench.post.predict(bench.points).sample,
        bench.post.sample_weights,
    ):
        refuse(lambda draw=draw: draw(count), "n", "integer|int|positive", kind=InvalidOption, bench=bench)
    call = lambda: bench.regressor.sample_y(bench.points, n_samples=count)  # noqa: E731
    refuse(call, "n|n_samples", "integer|int|positive", kind=InvalidOption, bench=bench)


@pytest.mark.parametrize("generator", [3, "seed", np.random.default_rng(0)], ids=lambda g: type(g).__name__)
def test_generator(bench, generator):
    for draw in (
        bench.gp.predict(bench.points).sample,
        bench.post.predict(bench.points).sample,
        bench.post.sample_weights,
    ):
        call = lambda draw=draw: draw(2, generator=generator)  # noqa: E731
        refuse(call, "generator", "Generator", kind=InvalidOption, bench=bench)


def test_a_system_that_cannot_be_factorised():
    """No jitter behind the user's back: rank 9 for 40 values and a noise far below rounding."""
    net = nn.Linear(8, 1).double()
    x, y = torch.randn(40, 8, dtype=DOUBLE), torch.randn(40, dtype=DOUBLE)
    b = Bench(net, x, y, x[:3])
    call = lambda: b.gp.condition(x, y, 1e-30, method=FunctionSpace())  # noqa: E731
    refuse(call, "noise_std", "positive definite", kind=NotPositiveDefinite, bench=b)


def test_the_regressor_takes_no_argument_for_another(bench):
    """A posterior in place of a model, data in place of a posterior."""
    for wrong in (bench.post, bench.lin, bench.net, None):
        refuse(lambda w=wrong: jacana.maximize_evidence(w, bench.x, bench.y), "gp", "TangentGP", bench=bench)


# The errors ------------------------------------------------------------------------------------------


def test_errors_are_also_what_python_calls_them():
    assert issubclass(InvalidData, JacanaError)
    assert issubclass(InvalidData, ValueError)
    assert issubclass(InvalidOption, ValueError)
    assert issubclass(UnsupportedNetwork, ValueError)
    assert issubclass(NotPositiveDefinite, ArithmeticError)
    assert issubclass(JacanaError, Exception)


def test_the_judge_of_refusals_fails_on_poor_ones():
    """A wrong kind, a missing name, a missing word, no cure, too short: each is seen."""

    def raising(error):
        def call():
            raise error

        return call

    good = "x holds 1 NaN among 6 examples, expected finite numbers: drop or impute those examples"
    refuse(raising(InvalidData(good)), "x", "nan")
    for error in (
        InvalidData("x holds NaN"),
        InvalidData(good.replace("x holds", "input holds")),
        InvalidData(good.replace("NaN", "infinities")),
        InvalidData("x holds one or more NaN among 6 examples, which is nonsense"),
    ):
        with pytest.raises(AssertionError):
            refuse(raising(error), "x", "nan")
    with pytest.raises(ValueError, match="x holds"):
        refuse(raising(ValueError(good)), "x", "nan")
    with pytest.raises(pytest.fail.Exception):
        refuse(lambda: None, "x", "nan")
