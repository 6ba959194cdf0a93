"""What the photographs are adapted and measured with: every baseline and figure against something slow and obvious."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.nn.functional import cross_entropy

from experiments import classification_metrics as metrics
from experiments.baselines import fine_tuning, laplace_torch, logistic, temperature


def images_of(tensor):
    return {image.numpy().tobytes() for image in tensor}


def problem(n=24, seed=0):
    """Three classes of images of eight by eight that a small convolutional network with statistics can learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    x = torch.randn(n, 2, 8, 8, generator=generator, dtype=torch.float64) + 0.7 * (labels.view(-1, 1, 1, 1) - 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(4, 3)
        ).double()
        net(x)  # statistics that are not their defaults
    return net.eval(), x, labels


def slow_descent(net, x, labels, rate, steps):
    """Heavy-ball descent written out, all examples at once."""
    parameters = {name: value.detach().clone() for name, value in net.named_parameters()}
    speed = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for _ in range(steps):
        own = {name: value.requires_grad_() for name, value in parameters.items()}
        p = torch.func.functional_call(net, own, (x,)).softmax(1)
        gradients = torch.autograd.grad(-p[range(len(x)), labels].log().mean(), list(own.values()))
        for name, gradient in zip(own, gradients, strict=True):
            speed[name] = 0.9 * speed[name] + gradient
            parameters[name] = own[name].detach() - rate * speed[name]
    return parameters


def test_a_run_is_descent_with_momentum_and_its_copies_are_those_of_shorter_runs(generators_untouched):
    net, x, labels = problem()
    before = copy.deepcopy(net.state_dict())
    found = fine_tuning.Descent((0.1,), (2, 5), batch_size=len(x)).run(net, x, labels, 0.1, seed=3)
    assert list(found) == [2, 5]
    for epochs, snapshot in found.items():
        slow = slow_descent(net, x, labels, 0.1, epochs)
        own = dict(snapshot.net.named_parameters())
        for name, value in slow.items():
            torch.testing.assert_close(own[name].detach(), value, rtol=1e-10, atol=1e-12)
        assert not snapshot.net.training
        assert all(p.grad is None for p in snapshot.net.parameters())
        assert torch.equal(snapshot.net[1].running_var, before["1.running_var"])
        assert not torch.equal(own["1.weight"], before["1.weight"])
    assert 0.0 <= found[2].seconds <= found[5].seconds
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_batches_cover_every_epoch_and_runs_repeat_themselves():
    net, x, labels = problem(n=21)
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    descent = fine_tuning.Descent((0.05,), (20,), batch_size=8)
    first, second = (descent.run(net, x, labels, 0.05, seed=1)[20].net for _ in range(2))
    assert [len(batch) for batch in seen] == [7] * 3 * 20 * 2
    epochs = [torch.cat(seen[3 * k : 3 * k + 3]) for k in range(2)]
    assert all(images_of(epoch) == images_of(x) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    loss = {id(one): float(cross_entropy(fine_tuning.outputs_of(one, x), labels).detach()) for one in (net, first)}
    assert loss[id(first)] < 0.5 * loss[id(net)]


def test_cross_validation_scores_what_no_run_has_seen():
    net, x, labels = problem(n=22)
    descent = fine_tuning.Descent((0.01, 0.2), (1, 4), batch_size=8)
    found = descent.cross_validate(net, x, labels, folds=3, seed=5)
    assert set(found) == {(0.01, 1), (0.01, 4), (0.2, 1), (0.2, 4)}
    for (rate, epochs), score in found.items():
        right, log = [], []
        for some, held in StratifiedKFold(3, shuffle=True, random_state=5).split(x, labels):
            tuned = fine_tuning.Descent((rate,), (epochs,), 8).run(net, x[some], labels[some], rate, 5)[epochs].net
            for image, label in zip(x[held], labels[held], strict=True):
                p = tuned(image[None]).softmax(1)[0].detach()
                right.append(float(p.argmax() == label))
                log.append(float(p[label].log()))
        assert score.accuracy == pytest.approx(np.mean(right))
        assert score.log_probability == pytest.approx(np.mean(log))
    chosen = fine_tuning.best(found)
    assert all((found[chosen].accuracy, found[chosen].log_probability) >= (s.accuracy, s.log_probability)
               for s in found.values())  # fmt: skip


def test_accuracy_decides_then_the_log_probability_then_the_order():
    Score = fine_tuning.Score
    scores = {
        (0.1, 1): Score(0.5, -1.0),
        (0.2, 1): Score(0.6, -9.0),
        (0.3, 1): Score(0.6, -2.0),
        (0.4, 1): Score(0.6, -2.0),
    }
    assert fine_tuning.best(scores) == (0.3, 1)


def test_a_run_that_diverged_is_never_chosen():
    net, x, labels = problem()
    found = fine_tuning.Descent((1e-3, 1e200), (3,), 8).cross_validate(net, x, labels, folds=2, seed=0)
    assert found[1e200, 3] == fine_tuning.Score(0.0, -np.inf)
    assert fine_tuning.best(found) == (1e-3, 3)


def test_one_label_of_a_class_is_refused():
    with pytest.raises(ValueError, match="one example"):
        fine_tuning.folds_of(torch.tensor([0, 0, 1]), 5)
    assert fine_tuning.folds_of(torch.tensor([0, 0, 1, 1, 1]), 5) == 2


def test_the_temperature_is_the_best_on_a_grid(generators_untouched):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 7, generator=generator, dtype=torch.float64)
    labels = (0.4 * logits).softmax(1).multinomial(1, generator=generator)[:, 0]
    found = temperature.fit_temperature(logits, labels)

    def loss(t):
        p = np.exp(logits.numpy() / t)
        return -np.mean(np.log(p[np.arange(300), labels] / p.sum(1)))

    assert loss(found) <= min(loss(t) for t in np.geomspace(0.05, 20.0, 500)) + 1e-9
    assert found == pytest.approx(2.5, rel=0.35)


def test_the_temperature_stays_in_its_bounds():
    logits = torch.eye(3, dtype=torch.float64)
    assert temperature.fit_temperature(logits, torch.arange(3)) == temperature.BOUNDS[0]
    assert temperature.fit_temperature(logits, (torch.arange(3) + 1) % 3) == temperature.BOUNDS[1]


@pytest.mark.parametrize(("per_class", "held_per_class"), [(3, 1), (10, 2)])
def test_a_fifth_is_held_out_and_one_of_each_class_at_the_least(per_class, held_per_class):
    labels = torch.arange(7).repeat(per_class)
    some, held = temperature.hold_out(labels, 0.2, seed=0)
    assert sorted(torch.cat([some, held]).tolist()) == list(range(7 * per_class))
    assert labels[held].bincount().tolist() == [held_per_class] * 7


def test_the_penalty_is_that_of_the_greatest_held_out_log_probability():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    features = rng.normal(size=(30, 4)) * [1.0, 10.0, 0.1, 1.0] + np.eye(3, 4)[labels] * [2.0, 0.0, 0.0, 0.0]
    choices = (1e-3, 1e-1, 1e3)
    model, chosen = logistic.fit_logistic(features, labels, inverse_penalties=choices, folds=3, seed=2)
    score = {}
    for c in choices:
        folds = []
        for some, held in StratifiedKFold(3, shuffle=True, random_state=2).split(features, labels):
            scaled = (features - features[some].mean(0)) / features[some].std(0)
            fitted = LogisticRegression(C=c, max_iter=10_000).fit(scaled[some], labels[some])
            folds.append(np.mean(fitted.predict_log_proba(scaled[held])[np.arange(len(held)), labels[held]]))
        score[c] = np.mean(folds)
    assert chosen == max(score, key=score.get)
    assert model.predict_proba(features).shape == (30, 3)


@pytest.mark.skipif(
    laplace_torch.version() is None, reason="laplace-torch is not installed (pip install laplace-torch)"
)
def test_laplace_torch_says_probabilities_and_where_it_knows_little():
    net, x, labels = problem()
    net, x = net.float(), x.float()
    before = copy.deepcopy(net.state_dict())
    fitted = laplace_torch.fit_laplace_torch(copy.deepcopy(net), x, labels, batch_size=10)
    p, information = fitted.predict(x, samples=200, seed=0)
    _, far = fitted.predict(20.0 * x, samples=200, seed=0)
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-5)
    assert (information > -1e-6).all()
    assert far.mean() > information.mean()
    np.testing.assert_array_equal(p, fitted.predict(x, samples=200, seed=0)[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # MacKay's probit: logits over sqrt(1 + pi / 8 variance) are flatter than the network's own.
    assert (p.max(1) < net(x).softmax(1).detach().numpy().max(1)).all()


# --- figures --------------------------------------------------------------------------------------------------------


def test_what_is_no_distribution_has_no_figures():
    good = metrics.Says(np.full((4, 2), 0.5), np.zeros(4))
    assert metrics.figures(good, [0, 1, 0, 1], {"mnist": good}, simulations=2)["auroc_mnist"] == 0.5
    for bad in (
        metrics.Says(np.full((4, 2), np.nan), np.zeros(4)),
        metrics.Says(np.full((4, 2), 0.6), np.zeros(4)),
        metrics.Says(np.full((4, 2), 0.5), np.full(4, np.inf)),
        metrics.Says(np.full((4, 2), 0.5), np.zeros(3)),
    ):
        with pytest.raises(ValueError, match="mnist: "):
            metrics.figures(good, [0, 1, 0, 1], {"mnist": bad}, simulations=2)
