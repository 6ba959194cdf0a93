"""NTKClassifier: scikit-learn's conventions, on labels of any kind."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

import jacana
from jacana.evidence import left_out

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

CLASSES = ["ant", "bee", "cat"]
FIXED = {"prior_std": 0.5, "temperature": 1.0, "criterion": "evidence"}
"""Nothing is learned but the posterior."""


def net(c=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, c))


def data(n=60, seed=0, c=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    angle = np.arctan2(X[:, 1], X[:, 0]) + np.pi
    return X, np.minimum((angle * c / (2 * np.pi)).astype(int), c - 1)


def classifier(c=3, **words):
    return jacana.NTKClassifier(net(c), progress=False, **words)


@pytest.mark.parametrize("kind", ["numbers", "words", "negative", "floats", "booleans", "tensor", "column"])
def test_labels_of_any_kind(kind):
    X, y = data(c=2)
    named = {
        "numbers": y, "words": np.array(CLASSES)[y], "negative": 2 * y - 1, "floats": y.astype(float),
        "booleans": y.astype(bool), "tensor": torch.from_numpy(y), "column": y[:, None],
    }[kind]  # fmt: skip
    clf = classifier(2, **FIXED).fit(X, named)
    flat = np.asarray(named).ravel()
    assert clf.classes_.tolist() == sorted(set(flat.tolist()))
    assert clf.predict(X).dtype == np.unique(flat).dtype
    assert clf.score(X, flat) > 0.9
    np.testing.assert_array_equal(clf.classes_[clf.predict_proba(X).argmax(1)], clf.predict(X))
    plain = classifier(2, **FIXED).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), plain.predict_proba(X))


def test_it_learns_and_says_what():
    X, y = data(120)
    clf = classifier().fit(X[:80], y[:80])
    assert clf.score(X[80:], y[80:]) > 0.85
    p = clf.predict_proba(X)
    assert p.shape == (120, 3)
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-12)
    assert clf.prior_std_ > 0
    assert clf.temperature_ > 0
    assert clf.log_marginal_likelihood_value_ < 0
    assert isinstance(clf.method_, jacana.Laplace)
    assert "the Laplace approximation, by " in clf.method_reason_
    assert clf.power_ > 0
    assert clf.n_features_in_ == 2
    latent = clf.posterior_.predict(torch.from_numpy(X))
    np.testing.assert_allclose(clf.decision_function(X), latent.mean.numpy())
    moved = clf.sharpness_ * latent.mean, clf.sharpness_**2 * latent.marginal_covariance
    told = jacana.Probit().probabilities(jacana.Categorical(), *moved)
    np.testing.assert_allclose(p, told.numpy(), rtol=1e-12)
    assert abs(np.log(clf.sharpness_)) > 1e-3
    one_hot = classifier(method="one-hot").fit(X[:80], y[:80])  # it has a scale of its own
    assert (one_hot.power_, one_hot.sharpness_) == (1.0, 1.0)


def test_what_was_computed_to_learn_is_not_another_posterior():
    """The default takes the kernel from the search; named, the method computes it anew."""
    X, y = data()
    found, named = classifier().fit(X, y), classifier(method="laplace").fit(X, y)
    assert found.prior_std_ == named.prior_std_
    np.testing.assert_allclose(found.predict_proba(X), named.predict_proba(X), rtol=1e-9)
    more = found.posterior_.condition(torch.from_numpy(X[:5]).float(), torch.from_numpy(y[:5]))
    again = named.posterior_.condition(torch.from_numpy(X[:5]).float(), torch.from_numpy(y[:5]))
    torch.testing.assert_close(more.weights, again.weights, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("criterion", ["leave-one-out", "evidence"])
@pytest.mark.parametrize(("order", "mean"), [([0, 1, 2], "network"), ([2, 0, 1], "zero")])
def test_the_mean_that_labels_prefer(criterion, order, mean):
    """A network that knows the classes is where to start from; one that is sure of wrong ones is not."""
    torch.manual_seed(0)
    X, y = data(90)
    source = net()
    x, labels = torch.from_numpy(X).float(), torch.from_numpy(y)
    adam = torch.optim.Adam(source.parameters(), 0.05)
    for _ in range(150):
        adam.zero_grad()
        nn.functional.cross_entropy(source(x[:60]), labels[:60]).backward()
        adam.step()
    clf = jacana.NTKClassifier(source, mean="auto", criterion=criterion, progress=False)
    clf.fit(X[60:], np.array(order)[y[60:]])
    assert clf.mean_ == mean


@pytest.mark.parametrize(
    "method",
    [
        "auto",
        "laplace",
        "map",
        "variational",
        "dirichlet",
        "one-hot",
        "last-layer",
        jacana.Laplace(),
        jacana.StochasticMAP(),
    ],
)
def test_every_method_by_its_word(method):
    X, y = data()
    clf = classifier(method=method, **FIXED).fit(X, y)
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-9)
    assert clf.score(X, y) > (0.5 if method == "last-layer" else 0.8)


def test_far_away_it_does_not_know():
    X, y = data()
    clf = classifier().fit(X, y)
    near, far = clf.uncertainty(X), clf.uncertainty(20.0 * X)
    assert np.median(far) > 2 * np.median(near)


def test_one_logit_and_two_of_them_are_the_same_classifier():
    X, y = data(c=2)
    one = net(1)
    two = nn.Sequential(*one[:2], nn.Linear(16, 2))
    with torch.no_grad():
        two[2].weight[0], two[2].bias[0] = 0.0, 0.0
        two[2].weight[1], two[2].bias[1] = one[2].weight[0], one[2].bias[0]
    prior = {"0": 0.5, "2": 0.5}
    a = jacana.NTKClassifier(one, prior_std=prior, temperature=1.0, criterion="evidence").fit(X, y)

    def beside_zero(f):
        return torch.stack([torch.zeros_like(f[:, 0]), f[:, 1]], 1)

    words = {"prior_std": prior, "temperature": 1.0, "criterion": "evidence"}
    b = jacana.NTKClassifier(two, output=beside_zero, **words).fit(X, y)
    assert a.predict_proba(X).shape == (60, 2)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), atol=1e-5)


def test_several_labels_an_example():
    X, _ = data()
    Y = np.stack([X[:, 0] > 0, X[:, 1] > 0, X.sum(1) > 0], 1).astype(int)
    clf = classifier().fit(X, Y)
    assert clf.predict_proba(X).shape == clf.predict(X).shape == (60, 3)
    assert (clf.predict(X) == Y).mean() > 0.9


def test_weights_count_as_repetitions():
    X, y = data(30)
    weights = np.where(np.arange(30) < 10, 2.0, 1.0)
    a = classifier(**FIXED).fit(X, y, sample_weight=weights)
    b = classifier(**FIXED).fit(np.concatenate([X, X[:10]]), np.concatenate([y, y[:10]]))
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=1e-5)
    balanced = classifier(class_weight="balanced", **FIXED).fit(X, y)
    by_hand = classifier(**FIXED).fit(X, y, sample_weight=30 / (3 * np.bincount(y)[y]))
    np.testing.assert_allclose(balanced.predict_proba(X), by_hand.predict_proba(X), atol=1e-8)


def test_a_class_may_be_missing_where_they_are_named():
    X, y = data()
    seen = y != 1
    with pytest.raises(jacana.errors.InvalidData, match="classes="):
        classifier().fit(X[seen], y[seen])
    clf = classifier(classes=CLASSES, **FIXED).fit(X[seen], np.array(CLASSES)[y[seen]])
    assert clf.classes_.tolist() == CLASSES
    assert clf.predict_proba(X[seen])[:, 1].mean() < 0.2
    alone = classifier(classes=[0, 1, 2], **FIXED).fit(X[y == 1], y[y == 1])
    assert alone.score(X[y == 1], y[y == 1]) == 1.0


def test_names_are_in_the_order_of_the_outputs():
    X, y = data()
    order = [2, 0, 1]
    swapped = net()
    with torch.no_grad():
        swapped[2].weight.copy_(swapped[2].weight[order].clone())
        swapped[2].bias.copy_(swapped[2].bias[order].clone())
    a = classifier(**FIXED).fit(X, y)
    b = jacana.NTKClassifier(swapped, classes=order, **FIXED).fit(X, y)
    np.testing.assert_allclose(a.predict_proba(X)[:, order], b.predict_proba(X), atol=1e-4)
    np.testing.assert_array_equal(a.predict(X), b.predict(X))


@pytest.mark.parametrize(
    ("X", "y", "words", "match"),
    [
        (data()[0], np.linspace(0, 1, 60), {}, "y"),
        (data()[0], np.zeros(60), {}, "classes"),
        (data()[0], np.where(np.arange(60) == 7, np.nan, data()[1]), {}, "y: got NaN"),
        (data()[0], np.arange(60) % 5, {}, "with_head"),
        (data()[0], data()[1][:50], {}, "50"),
        (data()[0], np.full(60, "zebra"), {"classes": CLASSES}, "zebra"),
        (data()[0], data()[1], {"classes": ["a", "a", "b"]}, "classes"),
        (data()[0], data()[1], {"classes": ["a", "b"]}, "classes"),
        (data()[0], data()[1], {"method": "best"}, "method"),
        (data()[0], data()[1], {"relinearize": -1}, "relinearize"),
        (data()[0], data()[1], {"relinearize": 1, "mean": "zero"}, "mean"),
        (data()[0], data()[1], {"relinearize": 1, "mean": "auto"}, "mean"),
        (data()[0], data()[1], {"mean": "maybe"}, "mean"),
        (data()[0], data()[1], {"criterion": "luck"}, "criterion"),
        (data()[0], data()[1], {"predictive": "mean"}, "predictive"),
        (data()[0], data()[1], {"class_weight": "fair"}, "class_weight"),
        (data()[0], data()[1], {"temperature": -1.0}, "temperature"),
        (data()[0] * np.nan, data()[1], {}, "X"),
        (data()[0][:0], data()[1][:0], {}, "X"),
    ],
)
def test_what_cannot_be_is_refused(X, y, words, match):
    with pytest.raises(jacana.errors.JacanaError, match=match):
        classifier(**words).fit(X, y)


def test_relinearizing_never_makes_the_log_posterior_worse():
    X, y = data(40)
    x = torch.from_numpy(X).float()
    labels = torch.from_numpy(y)
    original = net()
    theta0 = torch.nn.utils.parameters_to_vector(original.parameters()).detach().double()
    gp = jacana.TangentGP(original, prior_std=2.0, temperature=0.8)

    def objective(model):
        network = model.lin.network.module
        theta = torch.nn.utils.parameters_to_vector(network.parameters()).detach().double()
        f = network(x).detach().double() / 0.8
        change = (theta - theta0) / 0.8
        return float(f.log_softmax(1)[torch.arange(40), labels].sum() - 0.5 * change.square().sum() / 4.0)

    values = [objective(gp.model)]
    for _ in range(4):
        gp = gp.relinearize(gp.condition(x, labels, likelihood=jacana.Categorical()))
        values.append(objective(gp.model))
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[0] + 5.0
    before = torch.nn.utils.parameters_to_vector(original.parameters()).detach().double()
    assert torch.equal(before, theta0)


def test_relinearizing_a_linear_network_changes_nothing():
    torch.manual_seed(0)
    linear = nn.Linear(2, 3).double()
    X, y = data(40)
    x, labels = torch.from_numpy(X), torch.from_numpy(y)
    gp, likelihood = jacana.TangentGP(linear, 0.7, temperature=1.5), jacana.Categorical()
    post = gp.condition(x, labels, likelihood=likelihood)
    again = gp.relinearize(post).condition(x, labels, likelihood=likelihood)
    torch.testing.assert_close(again.weights, post.weights, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(again.predict(x).mean, post.predict(x).mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(again.predict(x).covariance, post.predict(x).covariance, rtol=1e-6, atol=1e-8)
    assert again.log_evidence == pytest.approx(post.log_evidence, rel=1e-9)


def test_it_goes_through_scikit_learn():
    X, y = data()
    search = GridSearchCV(classifier(prior_std=0.5, criterion="evidence"), {"temperature": [1.0, 100.0]}, cv=2).fit(
        X, y
    )
    assert search.best_params_["temperature"] in (1.0, 100.0)
    pipeline = make_pipeline(StandardScaler(), classifier(**FIXED)).fit(X, y)
    assert pipeline.predict_proba(X).shape == (60, 3)
    predicted = cross_val_predict(classifier(**FIXED), X, y, cv=3, method="predict_proba")
    assert predicted.shape == (60, 3)
    copy = clone(classifier(relinearize=2))
    assert copy.get_params()["relinearize"] == 2
    with pytest.raises(NotFittedError):
        copy.predict(X)


def test_loaders_and_columns():
    X, y = data()
    loader = DataLoader(TensorDataset(torch.from_numpy(X).float(), torch.from_numpy(y)), batch_size=7)
    a, b = classifier(**FIXED).fit(loader), classifier(**FIXED).fit(X, y)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=1e-6)
    with pytest.raises(jacana.errors.InvalidData, match="expecting 2"):
        b.predict(np.zeros((3, 5)))


@pytest.mark.parametrize(
    ("method", "atol"),
    [(jacana.StochasticMAP(rtol=1e-2), 1e-2), (jacana.Laplace(jacana.Pathwise(4)), 1e-4)],
    ids=["StochasticMAP", "Laplace"],
)
def test_a_method_that_streams_leaves_data_where_they_are(method, atol, monkeypatch, tmp_path):
    """Only what the scales are learned on is taken into memory, where they are learned."""
    X, y = data(80)
    X = X.astype(np.float32)
    file = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.float32, X.shape)
    file[:] = X
    pairs = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), batch_size=7)
    want = classifier(**FIXED, method=method).fit(X, y).predict_proba(X)
    monkeypatch.setattr("jacana.networks.source.Source.gathered", None)
    for given in ((pairs,), (file, y)):
        found = classifier(**FIXED, method=method).fit(*given)
        np.testing.assert_allclose(found.predict_proba(X), want, atol=atol)
    monkeypatch.undo()
    learned = classifier(method=method, temperature=1.0).fit(pairs)
    assert learned.prior_std_ == pytest.approx(classifier(method=method, temperature=1.0).fit(X, y).prior_std_)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_label_that_is_missing_is_called_so(missing):
    X, y = data(40)
    y = np.array(["a", "b", "c"], dtype=object)[y]
    y[3] = missing
    with pytest.raises(jacana.errors.InvalidData, match="missing"):
        classifier(**FIXED).fit(X, y)


@pytest.mark.parametrize("criterion", ["leave-one-out", "evidence"])
@pytest.mark.parametrize("method", [None, "flow"])
def test_examples_of_weight_zero_are_not_there(criterion, method):
    X, y = data(40)
    far = np.full((10, 2), 1e3) + np.arange(10)[:, None]
    want = classifier(criterion=criterion, method=method).fit(X, y)
    found = classifier(criterion=criterion, method=method).fit(
        np.concatenate([X, far]), np.concatenate([y, np.zeros(10, dtype=y.dtype)]), np.repeat([1.0, 0.0], [40, 10])
    )
    assert found.prior_std_ == pytest.approx(want.prior_std_, rel=1e-3)
    assert found.sharpness_ == pytest.approx(want.sharpness_, rel=1e-3)
    np.testing.assert_allclose(found.predict_proba(X), want.predict_proba(X), atol=1e-3)


def test_the_subset_that_scales_are_learned_on_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1_000, 2))
    y = (X[:, 0] + 0.5 * rng.normal(size=1_000) > 0.0).astype(int)
    order = rng.permutation(1_000)

    def fitted(X, y):
        gp = jacana.TangentGP(classifier().net, progress=False)
        return left_out(
            gp, torch.from_numpy(X), torch.from_numpy(y), likelihood=jacana.Categorical(), prior_std=None,
            temperature=1.0, power=1.0, sharpness=None, most=100,
        )  # fmt: skip

    one, other = fitted(X, y), fitted(X[order], y[order])
    assert one.gp.prior_std == pytest.approx(other.gp.prior_std, rel=1e-6)
    assert one.score == pytest.approx(other.score, rel=1e-6)


def test_samples_are_joint():
    X, y = data()
    clf = classifier(**FIXED).fit(X, y)
    twice = np.concatenate([X[:1], X[:1]])
    samples = clf.sample_proba(twice, 5, random_state=3)
    assert samples.shape == (5, 2, 3)
    np.testing.assert_allclose(samples[:, 0], samples[:, 1], atol=1e-9)
    np.testing.assert_array_equal(samples, clf.sample_proba(twice, 5, random_state=3))


def test_the_network_stays_as_it_was():
    X, y = data()
    given = net()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    jacana.NTKClassifier(given, relinearize=2).fit(X, y).predict_proba(X)
    assert given.training
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert all(parameter.grad is None for parameter in given.parameters())


@pytest.mark.parametrize("prior_std", [None, "layers"])
@pytest.mark.parametrize("inner", [None, jacana.OneHotRegression()], ids=["Laplace", "one-hot"])
def test_the_last_layer_is_learned_as_if_there_were_no_other(prior_std, inner):
    X, y = data(60)
    clf = classifier(method=jacana.LastLayer(method=inner), prior_std=prior_std).fit(X, y)
    alone = classifier(parameters="2", method=inner, prior_std=prior_std).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), alone.predict_proba(X), rtol=1e-9)
    assert clf.prior_std_ == alone.prior_std_
    assert isinstance(clf.method_, jacana.LastLayer)
    assert clf.method_.method == alone.method_


def test_a_point_is_not_sharpened_for_an_average():
    X, y = data(60)
    assert classifier(method="map").fit(X, y).sharpness_ == 1.0


@pytest.mark.parametrize("method", ["map", "one-hot", "laplace"])
def test_means_are_compared_by_one_evidence(method):
    X, y = data(60)
    found = {
        mean: classifier(mean=mean, criterion="evidence").fit(X, y).log_marginal_likelihood_value_
        for mean in ("network", "zero")
    }
    best = max(found, key=found.get)
    assert classifier(mean="auto", criterion="evidence", method=method).fit(X, y).mean_ == best


def test_weights_beside_a_loader_that_shuffles_are_refused():
    X, y = data(40)
    pairs = TensorDataset(torch.from_numpy(X), torch.from_numpy(np.unique(y, return_inverse=True)[1]))
    weights = np.linspace(0.1, 2.0, 40)
    orders = [
        {"batch_size": 8, "shuffle": True},
        {"batch_size": 8, "sampler": list(range(40))},
        {"batch_size": 8, "sampler": WeightedRandomSampler(weights, 40)},
        {"batch_sampler": BatchSampler(RandomSampler(pairs), 8, drop_last=False)},
        {"batch_sampler": [list(range(20)), list(range(20, 40))]},
        {"batch_size": None, "shuffle": True},
    ]
    for order in orders:
        with pytest.raises(jacana.errors.InvalidOption, match=r"sample_weight: .* shuffle=False"):
            classifier(**FIXED).fit(DataLoader(pairs, **order), sample_weight=weights)
    found = classifier(**FIXED).fit(DataLoader(pairs, 8), sample_weight=weights)
    same = classifier(**FIXED).fit(X, y, weights)
    np.testing.assert_allclose(found.predict_proba(X), same.predict_proba(X), rtol=1e-6)
    with pytest.raises(jacana.errors.InvalidOption, match=r"^sample_weight: .* each of 40 examples"):
        classifier(**FIXED).fit(X, y, weights[:5])


def test_columns_have_names():
    X, y = data(40)
    clf = classifier(**FIXED).fit(pd.DataFrame(X, columns=["height", "width"]), y)
    assert clf.feature_names_in_.tolist() == ["height", "width"]
    np.testing.assert_array_equal(
        clf.predict_proba(pd.DataFrame(X, columns=["height", "width"])), classifier(**FIXED).fit(X, y).predict_proba(X)
    )
    for names in (["width", "height"], ["height", "depth"]):
        with pytest.raises(jacana.errors.InvalidData, match=r"(?s)X: got other columns.*feature names"):
            clf.predict_proba(pd.DataFrame(X, columns=names))
    assert not hasattr(clf.fit(X, y), "feature_names_in_")


def test_labels_of_a_loader_are_whole_numbers():
    X, y = data(40)
    clf = classifier(**FIXED).fit(DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), 8))
    assert clf.classes_.dtype == np.int64
    np.testing.assert_array_equal(clf.predict(X), classifier(**FIXED).fit(X, y).predict(X))
    with pytest.raises(jacana.errors.InvalidData, match="y: got None"):
        classifier(**FIXED).fit(X, None)


def test_numbers_of_numpy_are_numbers():
    X, y = data(30)
    clf = classifier(relinearize=np.int64(1), temperature=np.float32(1.5), prior_std=np.float32(0.5)).fit(X, y)
    assert clf.temperature_ == 1.5


def test_a_posterior_of_another_network_is_not_relinearized():
    X, y = data(30)
    post = classifier(prior_std=0.5, temperature=1.0).fit(X, y).posterior_
    with pytest.raises(jacana.errors.InvalidOption, match="another network"):
        jacana.TangentGP(nn.Linear(2, 3)).relinearize(post)
    with pytest.raises(jacana.errors.InvalidOption, match="another network"):  # of the same shape
        jacana.TangentGP(net(seed=1), 0.5).relinearize(post)
    once = jacana.TangentGP(net(), 0.5).relinearize(post)
    again = once.condition(X, torch.from_numpy(y), likelihood=jacana.Categorical())
    for gp in (jacana.TangentGP(net(), 0.5), once):  # wherever the tangent is
        assert isinstance(gp.relinearize(again), jacana.TangentGP)


def test_several_labels_an_example_are_numbers():
    X, _ = data(30)
    with pytest.raises(jacana.errors.InvalidData, match=r"y: got 3 labels an example that are no numbers"):
        classifier(**FIXED).fit(X, np.array([CLASSES] * 30))
