"""Scales and temperature from labels left out, and by Laplace's evidence: against refits and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import jacana
from jacana.evidence.approximate import evidence
from jacana.evidence.surface import Asked, Surface
from jacana.posteriors import cavity_of, mode_of, observe
from jacana.posteriors.sides import KernelSide, WeightSide

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64


def task(n=24, c=3, seed=0, width=9):
    """A network, inputs and labels that it half explains."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, c)).double()
    x = torch.randn(n, 2, dtype=DOUBLE)
    noisy = net(x).detach() + 0.5 * torch.randn(n, c, dtype=DOUBLE) + x.repeat(1, 2)[:, :c]
    return net, x, noisy.argmax(1) if c > 1 else (noisy[:, 0] > 0).double()


def likelihoods():
    return {
        "classes": (jacana.Categorical(), 3),
        "two classes": (jacana.Categorical(), 2),
        "one logit": (jacana.Bernoulli(), 1),
        "counts": (jacana.Poisson(), 1),
        "weighted": (jacana.Weighted(jacana.Categorical(), torch.linspace(0.2, 2.0, 24)), 3),
    }


def expected():
    """What cannot be left out."""
    return {**likelihoods(), "expected curvature": (jacana.HeteroscedasticGaussian(), 2)}


EVERY = pytest.mark.parametrize("name", likelihoods())


@pytest.mark.parametrize("name", expected())
@pytest.mark.parametrize("side", [KernelSide, WeightSide])
@pytest.mark.parametrize("by_layer", [False, True])
def test_the_slope_of_the_evidence_is_its_finite_difference(name, side, by_layer):
    likelihood, c = expected()[name]
    net, x, y = task(c=c)
    y = x[:, :1] + x[:, 1:].abs() * torch.randn(len(x), 1, dtype=DOUBLE) if name == "expected curvature" else y
    observations = observe(jacana.TangentGP(net, 0.7, temperature=1.3).model, x, y, likelihood)
    made = KernelSide.of(observations, layers=by_layer) if side is KernelSide else None
    surface = Surface(made or WeightSide(observations, layers=by_layer), Asked(True, by_layer, True), subset=False)

    def value(point):
        found, mode = surface.mode(point)
        return evidence(found, mode, surface.logits / surface.read(point)[1])

    point = np.linspace(-0.4, 0.3, len(surface.bounds))
    _, by_scale, by_temperature = value(point)
    # Steps on an expected curvature end where the mode has half of its digits.
    step, within = (1e-2, 2e-3) if name == "expected curvature" else (1e-5, 1e-4)
    for i, slope in enumerate([*by_scale.tolist(), by_temperature]):
        unit = step * np.eye(len(point))[i]
        numeric = (value(point + unit)[0] - value(point - unit)[0]) / (2 * step)
        assert slope == pytest.approx(numeric, rel=within, abs=0.01 * within)


def test_at_what_was_found_it_is_the_evidence_of_the_posterior():
    net, x, y = task()
    for words in ("shared", "layers"):
        likelihood = jacana.Categorical()
        gp, same = jacana.maximize_evidence(jacana.TangentGP(net), x, y, likelihood=likelihood, prior_std=words)
        assert same is likelihood

        def value(one):
            doubt = 0.5 * (np.log(one.temperature) / 0.5) ** 2
            return one.condition(x, y, likelihood=likelihood).log_evidence - doubt  # noqa: B023

        best = value(gp)
        stds = [gp.prior_std] if words == "shared" else list(gp.prior_std.values())
        assert (words == "layers") == (len(stds) == 2)
        for factor in (0.9, 1.1):
            for i in range(len(stds)):
                moved = [std * (factor if j == i else 1.0) for j, std in enumerate(stds)]
                prior = moved[0] if words == "shared" else dict(zip(gp.prior_std, moved, strict=True))
                other = jacana.TangentGP(net, prior, temperature=gp.temperature)
                assert value(other) < best + 1e-6
            assert value(jacana.TangentGP(net, gp.prior_std, temperature=gp.temperature * factor)) < best + 1e-6


def test_a_network_that_is_right_is_not_made_ever_more_certain():
    net, x, _ = task()
    labels = net(x).argmax(1)
    gp = jacana.TangentGP(jacana.linearize(net, output=lambda logits: 3.0 * logits))
    gp, _ = jacana.maximize_evidence(gp, x, labels, likelihood=jacana.Categorical())
    assert 0.2 < gp.temperature < 0.9  # 0.05, where its bound is, without a prior


def test_what_has_an_expected_curvature_cannot_be_left_out():
    net, x, _ = task(c=2)
    with pytest.raises(jacana.errors.InvalidOption, match=r"HeteroscedasticGaussian\(\).*maximize_evidence"):
        jacana.maximize_leave_one_out(jacana.TangentGP(net), x, x[:, :1], likelihood=jacana.HeteroscedasticGaussian())


def test_examples_that_do_not_count_are_not_searched_on(monkeypatch):
    from jacana.evidence import surface

    net, x, y = task(n=60)
    weights = torch.zeros(60, dtype=DOUBLE)
    weights[[3, 5, 8, 20, 33, 41, 50, 59]] = 1.0
    monkeypatch.setattr(surface, "LARGEST", 12)
    monkeypatch.setattr(surface, "_MANY", 12)
    likelihood = jacana.Weighted(jacana.Categorical(), weights)
    observations = observe(jacana.TangentGP(net).model, x, y, likelihood)
    some = Surface.of(observations, Asked(True, False, True), progress=False)._side.observations
    assert some.n == 4
    assert bool((some.likelihood.weights == 1.0).all())


def test_what_is_given_is_held():
    net, x, y = task()
    gp, likelihood = jacana.TangentGP(net), jacana.Categorical()
    for maximize in (jacana.maximize_evidence, jacana.maximize_leave_one_out):
        found, _ = maximize(gp, x, y, likelihood=likelihood, prior_std=0.3)
        assert found.prior_std == 0.3
        assert found.temperature != 1.0
        found, _ = maximize(gp, x, y, likelihood=likelihood, temperature=2.0)
        assert found.temperature == 2.0
        found, _ = maximize(gp, x, y, likelihood=likelihood, prior_std=0.3, temperature=2.0)
        assert (found.prior_std, found.temperature) == (0.3, 2.0)
        assert maximize(jacana.TangentGP(net, mean="zero"), x, y, likelihood=likelihood)[0].temperature == 1.0


@EVERY
@pytest.mark.parametrize("side", [KernelSide.of, WeightSide])
def test_a_cavity_is_the_posterior_without_the_example(name, side):
    """Where each example has little weight the curvatures at the others stay, and closed form and refit agree."""
    likelihood, c = likelihoods()[name]
    net, x, y = task(c=c)
    gp = jacana.TangentGP(net, 0.15)
    observations = observe(gp.model, x, y, likelihood)
    cavity = cavity_of(mode_of(side(observations)), observations)
    scores = cavity.log_probability(likelihood, observations.targets)
    for i in range(0, 24, 5):
        rest = torch.tensor([j for j in range(24) if j != i])
        kind = likelihood.at(rest)
        post = gp.condition(x[rest], y[rest], likelihood=kind).predict(x[i : i + 1])
        mean = post.mean.reshape(1, c)
        assert float((cavity.mean[i] - mean).abs().max()) < 0.02
        covariance = post.marginal_covariance
        assert float((cavity.covariance[i] - covariance).abs().max()) < 0.03 * float(covariance.abs().max())
        want = likelihood.at(torch.tensor([i])).log_expected(mean, covariance, observations.targets[i : i + 1])
        assert float(scores[i]) == pytest.approx(float(want), abs=0.02)


def test_with_gaussian_noise_the_cavity_is_exact():
    net, x, _ = task()
    y = x.sin() @ torch.ones(2, 3, dtype=DOUBLE)
    gp = jacana.TangentGP(net)
    observations = observe(gp.model, x, y, jacana.Gaussian(0.3))
    cavity = cavity_of(mode_of(KernelSide.of(observations)), observations)
    left_out = gp.condition(x, y, 0.3).leave_one_out()
    torch.testing.assert_close(cavity.mean, left_out.mean, rtol=1e-8, atol=1e-10)
    noise = 0.09 * torch.eye(3, dtype=DOUBLE)
    torch.testing.assert_close(cavity.covariance + noise, left_out.covariance, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        cavity.log_probability(observations.likelihood, observations.targets), left_out.log_probability
    )


def test_labels_left_out_are_as_probable_as_can_be():
    net, x, y = task()
    likelihood = jacana.Categorical()

    def score(std, temperature, power):
        tempered = jacana.Tempered(likelihood, power)
        observations = observe(jacana.TangentGP(net, std, temperature=temperature).model, x, y, tempered)
        cavity = cavity_of(mode_of(KernelSide.of(observations)), observations)
        value = cavity.log_probability(likelihood, observations.targets).sum()
        return float(value) - 0.5 * (np.log(temperature) / 0.5) ** 2 - 0.5 * (np.log(power) / 1.5) ** 2

    gp, found = jacana.maximize_leave_one_out(jacana.TangentGP(net), x, y, likelihood=likelihood)
    assert isinstance(found, jacana.Tempered)
    assert found.likelihood is likelihood
    best = score(gp.prior_std, gp.temperature, found.power)
    for factor in (0.7, 1.4):
        assert score(gp.prior_std * factor, gp.temperature, found.power) < best + 0.02
        assert score(gp.prior_std, gp.temperature * factor, found.power) < best + 0.02
        assert score(gp.prior_std, gp.temperature, found.power * factor) < best + 0.02
    grid = [score(std, t, w) for std in np.geomspace(0.01, 10, 7) for t in (0.5, 1.0, 2.0) for w in (0.3, 1.0, 3.0)]
    assert best > max(grid) - 0.05


def test_clean_labels_are_worth_more_than_noisy_ones():
    """Many examples of a rule that the network can learn, and the same with a quarter of the labels at random."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 30), nn.Tanh(), nn.Linear(30, 2)).double()
    x = torch.randn(120, 2, dtype=DOUBLE)
    clean = (x[:, 0] * x[:, 1] > 0).long()
    noisy = clean.clone()
    noisy[::4] = torch.randint(2, (30,))
    gp, powers = jacana.TangentGP(net, mean="zero"), []
    for labels in (clean, noisy):
        _, found = jacana.maximize_leave_one_out(gp, x, labels, likelihood=jacana.Categorical())
        powers.append(found.power)
    assert powers[0] > 2.0 * powers[1]


def test_what_is_said_of_new_labels_is_as_sure_as_those_left_out_want_it():
    net, x, y = task()
    likelihood = jacana.Categorical()
    learned = {"prior_std": 2.0, "temperature": 1.5, "power": 0.5}
    _, found = jacana.maximize_leave_one_out(jacana.TangentGP(net), x, y, likelihood=likelihood, **learned)
    assert found.power == 0.5
    gp = jacana.TangentGP(net, 2.0, temperature=1.5)

    observations = observe(gp.model, x, y, jacana.Tempered(likelihood, 0.5))
    cavity = cavity_of(mode_of(KernelSide.of(observations)), observations)

    def score(tau):
        probabilities = jacana.Probit().probabilities(likelihood, tau * cavity.mean, tau**2 * cavity.covariance)
        return float(probabilities[range(24), y].log().sum()) - 0.5 * np.log(tau) ** 2

    assert abs(np.log(found.sharpness)) > 0.05
    assert score(found.sharpness) > max(score(found.sharpness * factor) for factor in (0.9, 1.1, 1.0 / found.sharpness))
    post = gp.condition(x, y, likelihood=found, method=jacana.Laplace())
    same = gp.condition(x, y, likelihood=jacana.Tempered(likelihood, 0.5), method=jacana.Laplace())
    assert torch.equal(post.predict(x).mean, same.predict(x).mean)
    assert torch.equal(post.predict(x).covariance, same.predict(x).covariance)


def test_counts_have_no_sharpness():
    net, x, y = task(c=1)
    _, found = jacana.maximize_leave_one_out(jacana.TangentGP(net), x, y, likelihood=jacana.Poisson())
    assert (found.sharpness, found.power != 1.0) == (1.0, True)
    with pytest.raises(jacana.errors.InvalidOption, match=r"sharpness: got 2\.0 for Poisson; it is for classes"):
        jacana.maximize_leave_one_out(jacana.TangentGP(net), x, y, likelihood=jacana.Poisson(), sharpness=2.0)


def test_a_power_and_a_sharpness_are_held_or_not_learned_twice():
    net, x, y = task()
    gp, likelihood = jacana.TangentGP(net), jacana.Categorical()

    def learned(likelihood=likelihood, **words):
        return jacana.maximize_leave_one_out(gp, x, y, likelihood=likelihood, **words)

    assert learned(power=1.0, sharpness=1.0)[1] is likelihood
    held = learned(power=4.0, sharpness=0.5)[1]
    assert (held.power, held.sharpness, held.likelihood) == (4.0, 0.5, likelihood)
    some = learned(power=4.0)[1]
    assert (some.power, some.sharpness != 1.0, some.likelihood) == (4.0, True, likelihood)
    assert learned(sharpness=0.5)[1].sharpness == 0.5
    tempered = jacana.Tempered(likelihood, 2.0)
    assert learned(tempered)[1] is tempered
    fixed = {"prior_std": 0.5, "temperature": 1.0, "power": 1.0}
    found, told = learned(**fixed)
    assert (found.prior_std, found.temperature, told.power) == (0.5, 1.0, 1.0)
    assert learned(**fixed, sharpness=1.0)[1] is likelihood


def test_layers_keep_their_proportions():
    net, x, y = task()
    likelihood = jacana.Categorical()
    gp = jacana.TangentGP(net)
    by_evidence, _ = jacana.maximize_evidence(gp, x, y, likelihood=likelihood, prior_std="layers")
    found, _ = jacana.maximize_leave_one_out(gp, x, y, likelihood=likelihood, prior_std="layers")
    ratios = [found.prior_std[key] / value for key, value in by_evidence.prior_std.items()]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-8)


def test_a_subset_is_enough_where_there_are_many(monkeypatch):
    from jacana.evidence import surface

    net, x, y = task(n=60)
    monkeypatch.setattr(surface, "LARGEST", 30)
    observations = observe(jacana.TangentGP(net).model, x, y, jacana.Categorical())
    assert Surface.of(observations, Asked(True, False, True), progress=False).logits.shape == (10, 3)
    gp, _ = jacana.maximize_leave_one_out(jacana.TangentGP(net), x, y, likelihood=jacana.Categorical())
    assert gp.prior_std > 0


def test_the_way_that_few_examples_tell_ends_where_all_lead(monkeypatch):
    import importlib

    module = importlib.import_module("jacana.evidence.left_out")
    net, x, y = task(n=80, width=40)
    observations = observe(jacana.TangentGP(net).model, x, y, jacana.Categorical())
    asked = Asked(True, by_layer=False, temperature=True, power=True)
    looked: list[int] = []

    def counted(surface, point):
        looked.append(len(surface.logits))
        return cost(surface, point)

    cost = module._cost
    monkeypatch.setattr(module, "_cost", counted)
    found = {}
    for rough in (10_000, 90):
        monkeypatch.setattr(module, "_ROUGH", rough)
        looked.clear()
        found[rough] = (*module._search(Surface.of(observations, asked, progress=False)), looked.count(80))
        assert set(looked) == ({80} if rough == 10_000 else {30, 80})
    assert found[90][1] == pytest.approx(found[10_000][1], abs=0.01)
    assert found[90][0] == pytest.approx(found[10_000][0], abs=0.15)
    assert found[90][2] < 0.7 * found[10_000][2]


@pytest.mark.parametrize("seed", [0, 8, 9])
def test_where_labels_say_nothing_their_order_says_nothing_either(seed):
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU())
    net = nn.Sequential(*inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y, order = torch.randn(60, 1, 8, 8, dtype=DOUBLE), torch.randint(3, (60,)), torch.randperm(60)

    def learned(x, y):
        gp, likelihood = jacana.maximize_leave_one_out(jacana.TangentGP(net), x, y, likelihood=jacana.Categorical())
        return gp.prior_std, gp.temperature, likelihood.power, likelihood.sharpness

    assert learned(x[order], y[order]) == pytest.approx(learned(x, y), rel=1e-9)


def test_a_thinned_surface_is_that_of_its_examples():
    net, x, y = task(n=40, width=40)
    likelihood = jacana.Weighted(jacana.Categorical(), torch.arange(1, 41, dtype=DOUBLE) / 10)
    model = jacana.TangentGP(net, {"0": 0.5, "2": 0.8}, temperature=1.3).model
    observations = observe(model, x, y, likelihood)
    for by_layer in (False, True):
        asked = Asked(True, by_layer=by_layer, temperature=True)
        surface = Surface(KernelSide.of(observations, layers=by_layer), asked, subset=False)
        assert surface.thinned(120) is surface
        thinned, apart = surface.thinned(60), Surface.of(observations, asked, most=60, progress=False)
        point = np.linspace(-0.4, 0.3, len(surface.bounds))
        one, other = (evidence(*some.mode(point), some.logits / some.read(point)[1]) for some in (thinned, apart))
        assert one[0] == pytest.approx(other[0], rel=1e-12)
        assert torch.allclose(one[1], other[1], rtol=1e-9, atol=1e-12)
        assert thinned.settled(point, model, likelihood) is None


@pytest.mark.parametrize("maximize", [jacana.maximize_evidence, jacana.maximize_leave_one_out])
def test_what_cannot_be_is_refused(maximize, as_users_run_it):
    net, x, y = task()
    gp, likelihood = jacana.TangentGP(net), jacana.Categorical()
    for wrong, error in (
        ({"prior_std": "every"}, "prior_std"),
        ({"prior_std": -1.0}, "prior_std"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
    ):
        with pytest.raises(jacana.errors.InvalidOption, match=error):
            maximize(gp, x, y, likelihood=likelihood, **wrong)
    with pytest.raises(jacana.errors.InvalidOption, match="likelihood"):
        maximize(gp, x, y, likelihood="softmax")
    with pytest.raises(jacana.errors.InvalidOption, match="gp"):
        maximize(net, x, y, likelihood=likelihood)


def test_noise_and_temperature_do_not_go_together(as_users_run_it):
    net, x, y = task()
    gp = jacana.TangentGP(net)
    with pytest.raises(jacana.errors.InvalidOption, match="noise_std"):
        jacana.maximize_evidence(gp, x, y, likelihood=jacana.Categorical(), noise_std=0.1)
    with pytest.raises(jacana.errors.InvalidOption, match="method"):
        jacana.maximize_evidence(gp, x, y, likelihood=jacana.Categorical(), method=jacana.Pathwise())
    with pytest.raises(jacana.errors.InvalidOption, match="temperature"):
        jacana.maximize_evidence(gp, x, x, temperature=1.0)
