"""Figures of merit against loops over examples, against scikit-learn, and under the laws that each must keep."""

from __future__ import annotations

import importlib
import itertools
import math

import matplotlib as mpl
import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import binom

from jacana import metrics
from jacana.errors import InvalidData, InvalidOption

EPS = float(np.finfo(np.float64).eps)


def drawn(n, k, seed=0, sharpness=0.4, levels=None):
    """Probabilities and labels drawn from them; with ``levels``, so coarse that many confidences are equal."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, sharpness), size=n)
    if levels is not None:
        counts = np.round(p * levels)
        counts[np.arange(n), p.argmax(1)] += levels - counts.sum(1)
        p = counts / levels
    labels = (p.cumsum(1) < rng.uniform(size=(n, 1))).sum(1).clip(0, k - 1)
    return p, labels


def given_data():
    return st.builds(
        drawn,
        st.integers(1, 25),
        st.integers(2, 5),
        st.integers(0, 10_000),
        levels=st.sampled_from([None, 4, 10]),
    )


# --- slow oracles ----------------------------------------------------------------------------------------------------


def slow_error(p, labels, n_bins, binning):
    """Bin by bin; where a cut parts equal confidences, signed gaps are averaged over every order of examples."""
    n = len(p)
    sure = [max(row) for row in p]
    right = [float(list(row).index(max(row)) == label) for row, label in zip(p, labels, strict=True)]
    if binning == "width":
        total = 0.0
        for b in range(n_bins):
            inside = [i for i in range(n) if b / n_bins < sure[i] <= (b + 1) / n_bins]
            total += abs(sum(right[i] - sure[i] for i in inside))
        return total / n
    ranked = sorted(range(n), key=lambda i: sure[i])
    groups = [list(group) for group in np.array_split(np.arange(n), n_bins)]
    total = 0.0
    for group in groups:
        gap = 0.0
        for place in group:
            tied = [i for i in ranked if sure[i] == sure[ranked[place]]]
            gap += sum(right[i] for i in tied) / len(tied) - sure[ranked[place]]
        total += abs(gap)
    return total / n


def slow_risks(sure, wrong):
    """Risks at each coverage, averaged over all permutations of the data, each sorted by confidence."""
    n = len(sure)
    total, count = np.zeros(n), 0
    for permutation in itertools.permutations(range(n)):
        order = sorted(permutation, key=lambda i: -sure[i])
        total += np.cumsum([wrong[i] for i in order]) / np.arange(1, n + 1)
        count += 1
    return total / count


# --- scores ----------------------------------------------------------------------------------------------------------


@given(given_data())
def test_scores_against_loops(data):
    p, labels = data
    n, k = p.shape
    hits = sum(int(list(row).index(max(row)) == y) for row, y in zip(p, labels, strict=True))
    assert metrics.accuracy(p, labels) == hits / n
    surprise = sum(-math.log(max(row[y], 2.2250738585072014e-308)) for row, y in zip(p, labels, strict=True)) / n
    assert metrics.negative_log_likelihood(p, labels) == pytest.approx(surprise, rel=20 * EPS, abs=20 * EPS)
    apart = sum((p[i, j] - (j == labels[i])) ** 2 for i in range(n) for j in range(k)) / n
    assert metrics.brier_score(p, labels) == pytest.approx(apart, rel=20 * EPS, abs=20 * EPS)


def test_scores_against_scikit_learn():
    p, labels = drawn(60, 4, sharpness=2.0)  # no probability so small that scikit-learn clips it
    kinds = {"labels": [0, 1, 2, 3]}
    assert metrics.accuracy(p, labels) == sklearn.metrics.accuracy_score(labels, p.argmax(1))
    assert metrics.negative_log_likelihood(p, labels) == pytest.approx(sklearn.metrics.log_loss(labels, p, **kinds))
    # Of two classes scikit-learn has always given the score of the positive one alone: half of ours.
    two, of_two = drawn(60, 2)
    assert metrics.brier_score(two, of_two) == pytest.approx(2 * sklearn.metrics.brier_score_loss(of_two, two[:, 1]))


def test_a_perfect_model_and_the_worst():
    labels = np.array([0, 1, 2, 1])
    perfect, worst = np.eye(3)[labels], np.eye(3)[(labels + 1) % 3]
    for figure in (metrics.negative_log_likelihood, metrics.brier_score, metrics.expected_calibration_error):
        assert figure(perfect, labels) == 0.0
    assert metrics.accuracy(perfect, labels) == 1.0
    assert metrics.accuracy(worst, labels) == 0.0
    assert metrics.negative_log_likelihood(worst, labels) == pytest.approx(-math.log(2.2250738585072014e-308))
    assert metrics.brier_score(worst, labels) == 2.0
    assert metrics.expected_calibration_error(worst, labels) == 1.0
    assert metrics.risk_coverage(perfect, labels).area == 0.0
    assert metrics.risk_coverage(worst, labels).area == 1.0


def test_the_truth_is_the_best_that_can_be_said():
    """Proper scores: no other probabilities score better on average over labels drawn from the true ones."""
    truth = np.array([0.5, 0.3, 0.2])
    for figure in (metrics.negative_log_likelihood, metrics.brier_score):

        def expected(said, figure=figure):
            return sum(truth[k] * figure(said[None, :], [k]) for k in range(3))

        at_truth = expected(truth)
        for other in np.random.default_rng(0).dirichlet(np.ones(3), size=50):
            assert expected(other) > at_truth


def test_accuracy_takes_any_scores():
    assert metrics.accuracy(torch.tensor([[-3.0, 12.0], [5.0, -1.0]]), torch.tensor([1, 1])) == 0.5


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binning", ["mass", "width"])
@given(data=given_data(), n_bins=st.integers(1, 12))
def test_calibration_error_against_loops(binning, data, n_bins):
    p, labels = data
    found = metrics.expected_calibration_error(p, labels, n_bins, binning)
    assert found == pytest.approx(slow_error(p, labels, n_bins, binning), abs=100 * EPS)


@pytest.mark.parametrize("binning", ["mass", "width"])
@given(data=given_data(), seed=st.integers(0, 100))
def test_figures_do_not_depend_on_the_order_of_examples_or_classes(binning, data, seed):
    p, labels = data
    rng = np.random.default_rng(seed)
    order, columns = rng.permutation(len(p)), rng.permutation(p.shape[1])
    distinct = np.sort(p, axis=1)
    unique_top = bool(
        (distinct[:, -1] > distinct[:, -2]).all()
    )  # which of two equally probable classes is a convention
    shuffled, renamed = (p[order], labels[order]), (p[:, columns], np.argsort(columns)[labels])
    for other in (shuffled, renamed) if unique_top else (shuffled,):
        for figure in (
            metrics.accuracy,
            metrics.negative_log_likelihood,
            metrics.brier_score,
            lambda q, y: metrics.expected_calibration_error(q, y, 4, binning),
            lambda q, y: metrics.risk_coverage(q, y).area,
        ):
            assert figure(*other) == pytest.approx(figure(p, labels), abs=100 * EPS)


def test_equal_confidences_are_one_bin_wherever_cuts_fall():
    """One confidence for all, 90 % right: the error is the plain difference, not the noise of fifteen small groups."""
    p = np.tile([0.8, 0.2], (100, 1))
    labels = np.repeat([0, 1], [90, 10])
    assert metrics.expected_calibration_error(p, labels) == pytest.approx(0.1)
    assert metrics.expected_calibration_error(p, labels, binning="width") == pytest.approx(0.1)


def test_edges_of_bins_of_equal_width_belong_to_the_lower_bin():
    p = np.array([[0.6, 0.4], [0.61, 0.39]])
    # (.4, .6] has the first alone: |1 − .6| + |0 − .61|, where one bin for both would have |1 − 1.21|.
    assert metrics.expected_calibration_error(p, [0, 1], 5, "width") == pytest.approx((0.4 + 0.61) / 2)


def test_bins_differ_by_one_example_at_most():
    sure = np.linspace(0.5, 1.0, 11)
    p = np.stack([sure, 1.0 - sure], axis=1)
    ax = metrics.reliability_diagram(p, np.zeros(11, int), n_bins=4, ax=Figure().subplots())
    want = [group.mean() for group in np.array_split(sure, 4)]
    assert ax.lines[1].get_xdata() == pytest.approx(want)


def test_a_calibrated_model_has_no_excess_and_uniform_p_values():
    """200 data sets whose labels are drawn from the probabilities, by which the excess must be zero on average."""
    found = [metrics.calibration_excess(*drawn(80, 3, seed), n_draws=200, random_state=seed) for seed in range(200)]
    excess = np.array([one.excess for one in found])
    # Five standard errors: a false alarm in 1.7 million.
    assert abs(excess.mean()) < 5 * excess.std() / math.sqrt(200)
    assert np.mean([one.ece for one in found]) > 0.05  # which the plain error is far from
    for level in (0.05, 0.25, 0.5):
        alarms = sum(one.p_value <= level for one in found)
        # The draws' own noise, 1/200, widens the level; then the tail of the binomial, 1e-6 on each side.
        assert binom.ppf(1e-6, 200, level - 0.01) <= alarms <= binom.ppf(1 - 1e-6, 200, level + 0.01)


def test_a_boastful_and_a_modest_model_are_found():
    p, labels = drawn(400, 3, sharpness=1.0)
    for power in (3.0, 0.3):
        bent = p**power / (p**power).sum(1, keepdims=True)
        found = metrics.calibration_excess(bent, labels, n_draws=300)
        assert found.p_value == 0.0
        assert found.excess > 0.05
        assert found.ece == metrics.expected_calibration_error(bent, labels)
        assert found.excess == pytest.approx(found.ece - found.expected)


@pytest.mark.parametrize("binning", ["mass", "width"])
def test_the_expected_error_is_the_mean_over_all_labellings(binning):
    """With six examples of two classes every outcome can be written down with its probability."""
    p, labels = drawn(6, 2, levels=8)
    errors, weights = [], []
    for ys in itertools.product(range(2), repeat=6):
        errors.append(metrics.expected_calibration_error(p, ys, 3, binning))
        weights.append(np.prod(p[np.arange(6), ys]))
    errors, weights = np.array(errors), np.array(weights)
    mean = weights @ errors
    deviation = math.sqrt(weights @ (errors - mean) ** 2 / 20_000)
    found = metrics.calibration_excess(p, labels, 3, 20_000, binning=binning)
    assert abs(found.expected - mean) < 5 * deviation
    tail = weights @ (errors >= found.ece - 1e-12)
    assert abs(found.p_value - tail) < 5 * math.sqrt(tail * (1 - tail) / 20_000) + 1e-12


def test_simulation_is_of_its_seed_alone(generators_untouched):
    p, labels = drawn(50, 3)
    first, second = (metrics.calibration_excess(p, labels, n_draws=50, random_state=3) for _ in range(2))
    assert first == second
    assert first.expected != metrics.calibration_excess(p, labels, n_draws=50, random_state=4).expected


def test_simulation_in_parts_is_the_same(monkeypatch):
    p, labels = drawn(50, 3)
    whole = metrics.calibration_excess(p, labels, n_draws=50)
    monkeypatch.setattr(importlib.import_module("jacana.metrics.calibration"), "_DRAWN_AT_ONCE", 7 * 50)
    assert metrics.calibration_excess(p, labels, n_draws=50) == whole


# --- detection -------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.integers(-5, 5).map(float) | st.sampled_from([math.inf, -math.inf]), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_detection_against_pairs(inside, outside):
    pairs = [(s > t) + 0.5 * (s == t) for s in outside for t in inside]
    assert metrics.out_of_distribution_auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs), abs=10 * EPS)


def test_detection_against_scikit_learn():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=40).round(1), rng.normal(1.0, size=30).round(1)
    want = sklearn.metrics.roc_auc_score(np.repeat([0, 1], [40, 30]), np.concatenate([inside, outside]))
    assert metrics.out_of_distribution_auroc(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(want)
    assert metrics.out_of_distribution_auroc(np.exp(inside), np.exp(outside)) == pytest.approx(want)
    assert metrics.out_of_distribution_auroc(outside, inside) == pytest.approx(1 - want)
    assert metrics.out_of_distribution_auroc([0.0, 1.0], [2.0]) == 1.0


# --- selective prediction --------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([None, 4]))
def test_risks_against_all_orders(seed, n, levels):
    p, labels = drawn(n, 3, seed, levels=levels)
    found = metrics.risk_coverage(p, labels)
    want = slow_risks(p.max(1), (p.argmax(1) != labels).astype(float))
    assert found.risk == pytest.approx(want, abs=20 * EPS)
    assert found.coverage == pytest.approx(np.arange(1, n + 1) / n)
    assert found.area == pytest.approx(want.mean(), abs=20 * EPS)


def test_risk_ends_at_the_error_rate_and_an_empty_confidence_says_nothing():
    p, labels = drawn(200, 3)
    error = 1 - metrics.accuracy(p, labels)
    assert metrics.risk_coverage(p, labels).risk[-1] == pytest.approx(error)
    assert metrics.risk_coverage(p, labels, confidence=np.zeros(200)).risk == pytest.approx(np.full(200, error))
    oracle = metrics.risk_coverage(p, labels, confidence=torch.tensor(p.argmax(1) == labels))
    assert oracle.area < metrics.risk_coverage(p, labels).area
    assert oracle.area == pytest.approx(error + (1 - error) * math.log(1 - error), abs=1 / 200)


# --- what comes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_in_floats_out(kind):
    logits = torch.randn(40, 7, dtype=torch.float64, requires_grad=True)
    p, labels = logits.softmax(1).to(kind), torch.randint(0, 7, (40,))
    plain = p.detach().double().numpy()
    for figure in (metrics.accuracy, metrics.negative_log_likelihood, metrics.brier_score):
        assert type(figure(p, labels)) is float
        assert figure(p, labels) == figure(p, labels.numpy())
    assert metrics.accuracy(p, labels) == metrics.accuracy(plain, labels)
    assert metrics.brier_score(p.tolist() if kind == torch.float64 else p, labels.tolist()) > 0.0


def test_sums_of_many_float32_probabilities_are_allowed():
    p = (5 * torch.randn(20, 50_000)).softmax(1)
    assert metrics.negative_log_likelihood(p, torch.zeros(20, dtype=torch.int64)) > 0.0


@pytest.mark.parametrize(
    "classes",
    [["b", "a", "c"], np.array(["b", "a", "c"]), (7, 3, 5), torch.tensor([7, 3, 5]), [True, None, 2.5], [0, 1, 2]],
    ids=str,
)
def test_labels_of_any_kind(classes):
    p, labels = drawn(30, 3)
    names = [classes[label] for label in labels]
    for form in (names, np.array(names, dtype=object)):
        assert metrics.accuracy(p, form, classes=classes) == metrics.accuracy(p, labels)
        assert metrics.risk_coverage(p, form, classes=classes).area == metrics.risk_coverage(p, labels).area
    assert metrics.calibration_excess(p, names, n_draws=5, classes=classes).ece == pytest.approx(
        metrics.expected_calibration_error(p, labels)
    )


P = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
BAD_DATA = {
    "one dimension": (P[:, 0], [0, 1, 1], r"got shape \(3,\).*np\.stack"),
    "one class": (P[:, :1], [0, 0, 0], "two classes or more"),
    "no example": (P[:0], [], "got shape"),
    "negative": (P - [[0.6, -0.6]], [0, 1, 1], "outside 0 to 1.*softmax"),
    "logits": (8.0 * P, [0, 1, 1], "outside 0 to 1"),
    "sums": (0.9 * P, [0, 1, 1], "sum 0.9 in row 0.*Divide"),
    "sums, slightly": (P[:2] * (1 + 3e-6), [0, 1], "expected 1 within 2e-06"),
    "NaN": (np.where(P == 1.0, np.nan, P), [0, 1, 1], "NaN in 1 of 3 rows, the first at index 2"),
    "words": ([["a", "b"]], [0], "expected real numbers"),
    "complex": (P.astype(complex), [0, 1, 1], "expected real numbers"),
    "ragged": ([[0.5, 0.5], [1.0]], [0, 1], "no plain numbers"),
    "sparse": (torch.tensor(P).to_sparse(), [0, 1, 1], "no plain numbers"),
    "labels too few": (P, [0, 1], r"labels: got shape \(2,\); expected \(3,\)"),
    "labels one-hot": (P, np.eye(2)[[0, 1, 1]], r"labels: got shape \(3, 2\)"),
    "labels too large": (P, [0, 1, 2], "labels from 0 to 2; expected 0 to 1"),
    "labels negative": (P, [0, 1, -1], "labels from -1 to 1"),
    "labels with fractions": (P, [0, 1, 0.5], "fraction"),
    "labels NaN": (P, [0, 1, math.nan], "labels: got NaN"),
    "labels infinite": (P, [0, 1, math.inf], "labels from 0 to inf"),
    "labels words": (P, ["a", "b", "b"], "labels: got labels that are no numbers.*classes="),
    "labels ragged": (P, [[0], [1, 2], 3], "labels: got labels that are no numbers"),
}
FIGURES = {
    "negative_log_likelihood": metrics.negative_log_likelihood,
    "brier_score": metrics.brier_score,
    "expected_calibration_error": metrics.expected_calibration_error,
    "calibration_excess": metrics.calibration_excess,
    "risk_coverage": metrics.risk_coverage,
    "reliability_diagram": metrics.reliability_diagram,
    "risk_coverage_plot": metrics.risk_coverage_plot,
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused_at_every_door(figure, name):
    p, labels, message = BAD_DATA[name]
    with pytest.raises(InvalidData, match=message):
        figure(p, labels)


@pytest.mark.usefixtures("as_users_run_it")
def test_bad_options_are_refused():
    p, labels = drawn(5, 2)
    error, excess, accuracy = metrics.expected_calibration_error, metrics.calibration_excess, metrics.accuracy
    refused = {
        "n_bins: got 0": lambda: error(p, labels, 0),
        "n_bins: got True": lambda: error(p, labels, True),
        "n_bins: got 2.0": lambda: metrics.reliability_diagram(p, labels, 2.0),
        "n_draws: got -1": lambda: excess(p, labels, n_draws=-1),
        "binning: got 'size'; expected 'mass' or 'width'": lambda: excess(p, labels, binning="size"),
        "classes: got 3 names, 3 of them different, for 2": lambda: accuracy(p, labels, classes=list("abc")),
        "classes: got 2 names, 1 of them": lambda: accuracy(p, labels, classes=[0, 0]),
        r"classes: got shape \(\)": lambda: accuracy(p, labels, classes="ab"),
        "classes: .*unhashable": lambda: accuracy(p, labels, classes=[{}, {}]),
    }
    for message, call in refused.items():
        with pytest.raises(InvalidOption, match=message):
            call()
    with pytest.raises(InvalidData, match=r"labels: got \{\}, which is none of classes"):
        accuracy(p, [{}] * 5, classes=list("ab"))
    with pytest.raises(InvalidData, match="labels: got 'c', which is none of classes; expected one of 'a', 'b'"):
        metrics.accuracy(p, list("abcab"), classes=list("ab"))
    with pytest.raises(InvalidData, match="labels: got 4 labels for 5 rows"):
        metrics.accuracy(p, list("abab"), classes=list("ab"))
    with pytest.raises(InvalidData, match=r"confidence: got shape \(4,\); expected \(5,\)"):
        metrics.risk_coverage(p, labels, confidence=np.ones(4))
    with pytest.raises(InvalidData, match=r"scores_out: got shape \(0,\)"):
        metrics.out_of_distribution_auroc([1.0], [])
    with pytest.raises(InvalidData, match=r"scores_in: got shape \(5, 2\).*Of probabilities take"):
        metrics.out_of_distribution_auroc(p, [1.0])


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def headless():
    before = mpl.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.mark.parametrize("binning", ["mass", "width"])
def test_a_reliability_diagram_shows_the_bins(headless, binning):
    p, labels = drawn(300, 3, sharpness=1.0)
    ax = metrics.reliability_diagram(torch.tensor(p), labels, n_bins=6, binning=binning)
    ax.figure.canvas.draw()
    confidence, accuracy = (np.asarray(values) for values in ax.lines[1].get_data())
    sure, right = p.max(1), p.argmax(1) == labels
    if binning == "mass":
        groups = np.array_split(np.argsort(sure), 6)
    else:
        number = np.ceil(sure * 6)
        groups = [np.flatnonzero(number == b) for b in range(1, 7) if (number == b).any()]
    assert confidence == pytest.approx([sure[g].mean() for g in groups])
    assert accuracy == pytest.approx([right[g].mean() for g in groups])
    error = metrics.expected_calibration_error(p, labels, 6, binning)
    assert ax.get_title(loc="left") == f"ECE {error:.3f}"
    # A band about the diagonal, wider than nothing; the labels are drawn from p, so that most points are inside it.
    (outline,) = ax.collections[0].get_paths()
    at = [outline.vertices[np.isclose(outline.vertices[:, 0], x), 1] for x in confidence]
    low, high = np.array([y.min() for y in at]), np.array([y.max() for y in at])
    assert (low < high).all()
    assert ((low <= confidence) & (confidence <= high)).all()


def test_the_band_is_that_of_binomials(headless):
    """Equal probabilities for all: accuracies in the one bin of a calibrated model are a binomial's."""
    p = np.tile([0.7, 0.3], (100, 1))
    ax = metrics.reliability_diagram(p, np.zeros(100, int), n_bins=1)
    (outline,) = ax.collections[0].get_paths()
    heights = outline.vertices[:, 1]
    want = binom.ppf([0.025, 0.975], 100, 0.7) / 100
    assert [heights.min(), heights.max()] == pytest.approx(want, abs=0.02)  # two examples: the draws' noise


def test_pictures_go_where_they_are_told(headless):
    p, labels = drawn(50, 3)
    for draw in (metrics.reliability_diagram, metrics.risk_coverage_plot):
        ax = Figure().subplots()
        assert draw(p, labels, ax=ax) is ax
        assert plt.get_fignums() == []
        assert draw(p, labels).figure.number in plt.get_fignums()
        plt.close("all")


def test_risk_coverage_curves_have_the_area_that_is_said(headless):
    models = {f"model {seed}": drawn(40, 3, seed)[0] for seed in range(8)}
    labels = drawn(40, 3)[1]
    ax = metrics.risk_coverage_plot(models, labels)
    ax.figure.canvas.draw()
    styles = set()
    for line, (name, p) in zip(ax.lines, models.items(), strict=True):
        area = metrics.risk_coverage(p, labels).area
        x, y = (np.asarray(values) for values in line.get_data())
        assert np.diff(x) @ y[1:] == pytest.approx(area)
        assert line.get_drawstyle() == "steps-pre"
        assert line.get_label() == f"{name}, area {area:.3f}"
        styles.add((line.get_color(), line.get_linestyle()))
    assert len(styles) == 8
    alone = metrics.risk_coverage_plot(models["model 0"], labels)
    assert alone.get_title(loc="left") == f"area {metrics.risk_coverage(models['model 0'], labels).area:.3f}"
    assert alone.get_legend() is None


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    def fails(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(ImportError, match=r"pip install 'jacana\[plot\]'.*matplotlib\.pyplot"):
        metrics.reliability_diagram(*drawn(5, 2))
