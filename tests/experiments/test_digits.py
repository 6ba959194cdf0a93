"""The rotated digits: what is compared, on what, and that nothing leaks from the test digits."""

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate

from experiments import digits, digits_report


@pytest.fixture(scope="module")
def task():
    return digits.Task.draw(0)


@pytest.fixture(scope="module")
def net(task):
    settings = digits.SETTINGS | {"epochs": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "SETTINGS", settings)
        return digits.train_source(*task.source, seed=0)


def test_the_split_is_balanced_disjoint_and_complete(task):
    x, labels = task.labelled
    assert x.shape == (100, 1, 8, 8)
    for k in range(1, 11):  # any prefix of whole rounds is balanced
        assert torch.equal(labels[: 10 * k].bincount(minlength=10), torch.full((10,), k))
    assert len(task.source[0]) + len(x) + len(task.test[0]) == 1797
    assert len(task.upright[0]) == len(x) + len(task.test[0])
    known = {image.numpy().tobytes() for image in x}
    assert not any(image.numpy().tobytes() in known for image in task.test[0])


def test_the_target_is_rotated_by_sixty_degrees(task):
    """Turned back by sixty degrees the target looks like the upright digits, and by no other angle as much."""
    upright, rotated = task.upright_test[:, 0].numpy(), task.test[0][:, 0].numpy()
    likeness = {
        angle: np.corrcoef(rotate(rotated, angle, axes=(1, 2), order=1, reshape=False).ravel(), upright.ravel())[0, 1]
        for angle in range(-180, 180, 20)
    }
    assert max(likeness, key=likeness.get) == -60
    assert likeness[-60] > 0.85


def test_another_seed_is_another_split(task):
    other = digits.Task.draw(1)
    assert not torch.equal(task.labelled[0], other.labelled[0])
    assert torch.equal(task.labelled[0], digits.Task.draw(0).labelled[0])


def test_training_draws_from_its_own_seed(task, generators_untouched):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "SETTINGS", digits.SETTINGS | {"epochs": 1})
        first, second = (digits.train_source(*task.source, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_temperature_is_the_best_on_a_grid():
    generator = torch.Generator().manual_seed(0)
    outputs = 0.01 * torch.randn(200, 10, generator=generator, dtype=torch.float64)
    labels = (100.0 * outputs).softmax(1).multinomial(1, generator=generator)[:, 0]

    def loss(temperature):
        return float(torch.nn.functional.cross_entropy(outputs / temperature, labels))

    found = digits.temperature_of(outputs, labels)
    assert loss(found) <= min(loss(t) for t in np.geomspace(1e-4, 1.0, 200)) + 1e-6
    assert found == pytest.approx(0.01, rel=0.35)


@pytest.mark.parametrize("method", [digits.last_layer, digits.classifier], ids=lambda method: method.__name__)
def test_jacana_and_the_last_layer_see_no_test_label(task, net, method):
    """Labels of the test digits change figures, never predictions."""
    words = {"seed": 0} if method is digits.last_layer else {"parameters": "head", "prior_std": 0.3}
    outcome = method(net, task, **words)
    images, labels = task.test
    shuffled = digits.Task(task.source, task.upright, task.upright_test, task.labelled, (images, labels.roll(1)))
    again = method(net, shuffled, **words)
    assert np.array_equal(outcome.probabilities, again.probabilities)
    assert outcome.accuracy > 0.5 > again.accuracy


def run_of(seed, right):
    """A run of two methods whose probabilities are what they claim: ``right`` of all are right."""
    labels = np.arange(300) % 10
    p = np.full((300, 10), (1.0 - right) / 9.0)
    says = np.where(np.arange(300) < 300 * right, labels, (labels + 1) % 10)
    p[np.arange(300), says] = right
    outcome = digits_report.Outcome(right, -np.log(right), 0.0, 1.0, {}, p)
    pictures = np.zeros((300, 8, 8))
    return digits_report.Run(seed, 0.99, dict.fromkeys(digits_report.ROWS, outcome), pictures, pictures, labels)


def test_the_summary_has_means_errors_and_reliability():
    runs = [run_of(0, 0.8), run_of(1, 0.9)]
    found = digits_report.summary(runs)
    accuracy = found["methods"]["Jacana"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(0.85)
    assert accuracy["standard_error"] == pytest.approx(0.05)
    assert found["accuracy_of_jacana_minus"]["last layer"]["mean"] == 0.0
    curve = found["reliability"]["Jacana"]
    assert np.mean(curve["accuracy"]) == pytest.approx(0.85)
    assert np.mean(curve["confidence"]) == pytest.approx(0.85)
    assert "0.850 ± 0.050" in digits_report.show(found)
    assert "**Jacana** | 0.850 ± 0.050" in digits_report.markdown(found)


def test_the_picture_is_drawn(tmp_path):
    plots = pytest.importorskip("experiments.plots")
    runs = [run_of(0, 0.8), run_of(1, 0.9)]
    with plots.style():
        made = plots.figure(12.0, 4.2)
        digits_report.draw(made, digits_report.summary(runs), runs[0])
        assert plots.save(made, tmp_path / "digits.png").stat().st_size > 10_000
