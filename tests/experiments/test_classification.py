"""The photographs: what is read and drawn, that nothing leaks from the test images, all of it on a small task."""

import copy
import dataclasses
import io
import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jacana
from experiments import classification, classification_report, command, data, pages, pictures, resnet
from experiments import classification_task as task
from experiments.baselines import fine_tuning
from experiments.classification import Case, asks_outside
from experiments.classification_methods import JACANA, METHODS, Methods, group, unavailable
from jacana import metrics

FOLDER = Path(os.environ.get("JACANA_DATA", Path(__file__).parents[3] / "shared" / "data"))
NEEDED = ("tinyimagenet9_jpeg.zip", "mnist.npz", "resnet20-12fca82f.th")
needs_data = pytest.mark.skipif(
    not all((FOLDER / name).is_file() for name in NEEDED),
    reason=f"no {', '.join(NEEDED)} in {FOLDER}; name it in JACANA_DATA",
)

SMALL = task.Settings(
    test_images=21,
    other_images=8,
    mnist_images=6,
    rates=(1e-3, 1e-2),
    epochs=(1, 2),
    inverse_penalties=(1e-2, 1.0),
    folds=3,
    samples=20,
    simulations=20,
    block=16,
)
HONEST = ("none", "last-layer", "fine-tuning", "temperature")


def jpeg(rng, colour):
    pixels = np.clip(np.array(colour) + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images of each of nine colours in each part; the first of the birds is in both."""
    made, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    with zipfile.ZipFile(made / "tinyimagenet9_jpeg.zip", "w") as archive:
        for name in (*pictures.SHARED, *task.OTHERS):
            colour = rng.uniform(0, 255, 3)
            for part, k in itertools.product(("train", "val"), range(6)):
                image = jpeg(rng, colour)
                first = image if (part, k) == ("train", 0) else first
                shown = first if (name, part, k) == ("bird", "val", 3) else image
                archive.writestr(f"{part}/{name}/n01/{k}.JPEG", shown)
    np.savez(made / "mnist.npz", x_test=rng.integers(0, 256, (9, 28, 28), dtype=np.uint8), y_test=np.arange(9))
    return made


@pytest.fixture
def small_network(monkeypatch):
    """Eight layers with random weights in the place of the trained ResNet."""

    def made(folder, depth):
        with torch.random.fork_rng():
            torch.manual_seed(depth)
            return resnet.ResNet(1).eval()

    monkeypatch.setattr(task, "trained", made)
    return made(None, 20)


class Said:
    """Stands for `jacana.Prediction`."""

    def __init__(self, p):
        self._p = p

    def probabilities(self):
        return self._p

    def mutual_information(self):
        return torch.special.entr(self._p).sum(1)


class Nearest:
    """Stands for `jacana.NTKClassifier`: classes by their mean image."""

    def __init__(self, net, *, method=None, relinearize=0, parameters=None, progress=True):
        assert not progress
        assert parameters is None or [name for name in parameters if "bn" in name] == []
        self.method, self.relinearize = method, relinearize

    def fit(self, X, labels):
        assert isinstance(labels, np.ndarray)
        self.classes_ = np.unique(labels)
        self.means = torch.stack([X[torch.from_numpy(labels == k)].mean((0, 2, 3)) for k in self.classes_])
        self.prior_std_, self.scales_, self.method_ = 2.0 + self.relinearize, {"head": 1.0}, self.method
        return self

    def predict_latent(self, X):
        return Said((-torch.cdist(X.mean((2, 3)), self.means)).softmax(1).double())


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(jacana, "NTKClassifier", Nearest, raising=False)
    for name in ("OneHotRegression", "DirichletRegression"):
        monkeypatch.setattr(jacana, name, type(name, (), {}), raising=False)


# --- data -----------------------------------------------------------------------------------------------------------


def images_of(tensor):
    return {image.numpy().tobytes() for image in tensor}


def test_labels_and_test_images_are_apart_even_where_the_file_repeats_itself(folder, generators_untouched):
    found = task.load(folder, dataclasses.replace(SMALL, test_images=42, other_images=24))
    assert len(found.test) == 42
    assert len(found.pool) == 41  # one of the birds is a test image
    assert len(images_of(found.pool)) == 41
    assert not images_of(found.pool) & images_of(found.test)
    assert torch.equal(found.test_labels.bincount(), torch.full((7,), 6))
    assert found.pool_labels.bincount().tolist() == [6, 5, 6, 6, 6, 6, 6]
    assert {name: images.shape for name, images in found.outside.items()} == {
        "others": (24, 3, 32, 32),
        "mnist": (6, 3, 32, 32),
    }
    classes, places = pictures.tiny_imagenet(folder, "val", pictures.SHARED)
    where = {image.numpy().tobytes(): int(k) for image, k in zip(classes, places, strict=True)}
    assert [where[image.numpy().tobytes()] for image in found.test] == found.test_labels.tolist()


def test_what_is_drawn_once_is_the_same_for_all_settings_that_do_not_say_otherwise(folder):
    few, other = (task.load(folder, dataclasses.replace(SMALL, momentum=value)) for value in (0.9, 0.5))
    assert torch.equal(few.test, other.test)
    assert torch.equal(few.outside["others"], other.outside["others"])


def test_more_labels_of_a_seed_hold_its_fewer(folder):
    found = task.load(folder, dataclasses.replace(SMALL, test_images=42))
    (some, labels), (more, _), (others, _) = found.draw(2, 0), found.draw(4, 0), found.draw(2, 1)
    assert labels.tolist() == list(range(7)) * 2
    assert torch.equal(some, more[:14])
    assert not torch.equal(some, others)
    assert images_of(some) <= images_of(found.pool)
    for k, image in zip(labels[:7], some[:7], strict=True):
        own = images_of(found.pool[found.pool_labels == k])
        assert image.numpy().tobytes() in own
    with pytest.raises(ValueError, match=r"too few bird;"):
        found.draw(6, 0)


def test_too_few_images_are_refused(folder):
    with pytest.raises(ValueError, match="test_images: the file has 42 images, expected 43"):
        task.load(folder, dataclasses.replace(SMALL, test_images=43))
    with pytest.raises(data.MissingData, match=r"tinyimagenet9_jpeg\.zip"):
        task.load(None, SMALL)


def test_digits_are_framed_and_normalised(folder):
    with np.load(folder / "mnist.npz") as stored:
        digits = stored["x_test"] / 255.0
    found = task.load(folder, dataclasses.replace(SMALL, mnist_images=9)).outside["mnist"].numpy()
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    raw = found * std + mean
    np.testing.assert_allclose(raw[:, 0], raw[:, 2], atol=1e-6)
    assert np.abs(raw[:, :, [0, 1, 30, 31]]).max() < 1e-6
    assert np.abs(raw[:, :, :, [0, 1, 30, 31]]).max() < 1e-6
    inner = raw[:, 1, 2:30, 2:30]
    order = [int(np.abs(digits - one).sum((1, 2)).argmin()) for one in inner]
    assert sorted(order) == list(range(9))
    np.testing.assert_allclose(inner, digits[order], atol=1e-6)


def test_the_network_keeps_the_logits_that_match(small_network, generators_untouched):
    before = copy.deepcopy(small_network.state_dict())
    net = task.source(None, SMALL)
    assert not net.training
    x = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
    kept = [1, 2, 3, 5, 6, 8, 9]
    assert [pictures.CLASSES[k] for k in kept] == list(pictures.SHARED)
    torch.testing.assert_close(net(x), small_network(x)[:, kept])
    assert all(torch.equal(value, before[name]) for name, value in small_network.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [True] * len(list(net.parameters()))
    assert (net.linear.out_features, net.linear.bias.shape) == (7, (7,))


@needs_data
@pytest.mark.slow
def test_the_shared_photographs_are_those_that_the_data_folder_describes():
    found = task.load(FOLDER, task.Settings())
    assert (len(found.test), len(found.pool)) == (1250, 12_499)  # one bird of 12,500 is in both parts of the file
    assert found.test_labels.bincount().tolist() == [200, 200, 150, 300, 100, 100, 200]
    assert {name: len(images) for name, images in found.outside.items()} == {"others": 2200, "mnist": 1000}
    with torch.no_grad():
        right = task.source(FOLDER, task.Settings())(found.test).argmax(1) == found.test_labels
    assert round(float(right.float().mean()), 3) == 0.613
    assert found.draw(200, 0)[1].bincount().tolist() == [200] * 7


# --- methods and the whole ------------------------------------------------------------------------------------------


def test_test_labels_decide_nothing_but_what_says_so(folder, small_network):
    photographs, net = task.load(folder, SMALL), task.source(folder, SMALL)
    x, labels = photographs.draw(4, 0)
    images, truth = photographs.test, photographs.test_labels
    says = {}
    for shift in (0, 1):
        methods = Methods(net, x, labels, (images, (truth + shift) % 7), SMALL, 0)
        says[shift] = {name: methods.fit(name) for name in (*HONEST, "oracle", "oracle-temperature")}
    for name in HONEST:
        first, second = (says[shift][name] for shift in (0, 1))
        assert first.picked == second.picked
        for one, other in zip(first.predict(images), second.predict(images), strict=True):
            np.testing.assert_array_equal(one, other)
    first, second = (says[shift]["oracle"].picked["test_scores"] for shift in (0, 1))
    assert first != second
    assert says[0]["fine-tuning"].picked["rate"] in SMALL.rates
    assert says[0]["fine-tuning"].picked["epochs"] in SMALL.epochs
    assert says[0]["last-layer"].picked["C"] in SMALL.inverse_penalties


def test_the_best_on_test_is_not_below_any_of_its_grid_and_its_temperature_not_above_one(folder, small_network):
    photographs, net = task.load(folder, SMALL), task.source(folder, SMALL)
    x, labels = photographs.draw(3, 0)
    test = photographs.test, photographs.test_labels
    methods = Methods(net, x, labels, test, SMALL, 0)
    found = {name: methods.fit(name) for name in ("oracle", "oracle-temperature")}
    p = {name: fitted.predict(test[0]).probabilities for name, fitted in found.items()}
    accuracies = []
    for rate, epochs in itertools.product(SMALL.rates, SMALL.epochs):
        run = fine_tuning.Descent((rate,), (epochs,), SMALL.batch_size).run(net, x, labels, rate, 0)
        accuracies.append(metrics.accuracy(fine_tuning.outputs_of(run[epochs].net, test[0]), test[1]))
    assert metrics.accuracy(p["oracle"], test[1]) == max(accuracies)
    nll = {name: metrics.negative_log_likelihood(value, test[1]) for name, value in p.items()}
    assert nll["oracle-temperature"] <= nll["oracle"]
    assert found["oracle"].seconds > 0.0


def test_jacana_is_asked_for_by_its_public_names(folder, small_network, fakes):
    photographs, net = task.load(folder, SMALL), task.source(folder, SMALL)
    x, labels = photographs.draw(3, 0)
    methods = Methods(net, x, labels, (photographs.test, photographs.test_labels), SMALL, 0)
    fitted = {name: methods.fit(name) for name in JACANA}
    assert fitted["jacana"].picked == {"prior_std_": 2.0, "scales_": {"head": 1.0}}
    assert fitted["jacana-relinearized"].picked["prior_std_"] == 12.0
    says = fitted["jacana"].predict(photographs.test)
    direct = Nearest(net, progress=False).fit(x, labels.numpy()).predict_latent(photographs.test)
    np.testing.assert_allclose(says.probabilities, direct.probabilities(), rtol=1e-5)
    np.testing.assert_allclose(says.uncertainty, direct.mutual_information(), rtol=1e-5)


def test_what_cannot_run_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.delattr(jacana, "NTKClassifier", raising=False)
    assert "no NTKClassifier" in unavailable("jacana")
    assert "no NTKClassifier" in unavailable("jacana-last-layer")
    monkeypatch.setattr("experiments.classification_methods.version", lambda: None)
    assert "pip install laplace-torch" in unavailable("laplace-torch")
    assert unavailable("fine-tuning") is None
    _, planned = classification.parse(["--labels", "20", "5", "--methods", "jacana", "oracle", "none"])
    assert (planned.methods, list(planned.left_out)) == (("none", "oracle"), ["jacana"])
    assert planned.seeds == {5: 10, 20: 10}


def test_seeds_are_fewer_where_labels_are_many_unless_they_are_given():
    assert classification.parse([])[1].seeds == {5: 10, 20: 10, 50: 3, 200: 3}
    asked, planned = classification.parse(["--seeds", "2", "--labels", "100", "200", "--workers", "1"])
    assert (planned.seeds, asked.seeds, asked.workers) == ({100: 2, 200: 2}, 2, 1)
    assert classification.parse(["--quick"])[1].seeds == {classification.QUICK_LABELS: 1}


@pytest.mark.parametrize("wrong", [["--labels", "0"], ["--threads", "0"], ["--seeds", "0"], ["--methods", "magic"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        classification.parse(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with classification.threads_of(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_groups_share_runs_and_nothing_else():
    groups = {name: group(name) for name in METHODS}
    assert groups["oracle"] == groups["laplace-torch"] == groups["fine-tuning"]
    assert len(set(groups.values())) == len(METHODS) - 3


@pytest.mark.parametrize(
    ("case", "asks"),
    [
        (Case(5, 0, "jacana"), True),
        (Case(50, 2, "jacana-relinearized"), True),
        (Case(50, 3, "jacana"), False),
        (Case(200, 0, "jacana"), False),
        (Case(200, 0, "fine-tuning"), True),
        (Case(5, 0, "jacana-one-hot"), False),
    ],
)
def test_who_is_asked_of_images_of_no_class(case, asks):
    assert asks_outside(case) is asks


def test_a_single_seed_has_no_error_bar(tmp_path):
    figures = (*classification_report.FIGURES, *classification_report.OTHER_SCORES)
    rows = [
        {"labels": labels, "seed": seed, "method": "jacana", **dict.fromkeys(figures, 0.5)}
        for labels, seeds in ((5, 2), (200, 1))
        for seed in range(seeds)
    ]
    record = command.read(command.write(tmp_path / "record.json", classification_report.summary(rows)))
    assert classification_report.draw(record["table"]).axes
    assert "| 0.500 | 0.500 |" in classification_report.markdown(record, 200)


def test_the_whole_of_it_resumes(folder, small_network, fakes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classification, "QUICK", SMALL)
    monkeypatch.setattr(classification, "OUTSIDE_SEEDS", 1)
    names = [name for name in METHODS if name != "laplace-torch"]
    asked = ["--quick", "--no-progress", "--seeds", "2", "--workers", "1", "--labels", "3"]
    asked += ["--data", str(folder), "--out", str(tmp_path), "--methods", *names]
    classification.main(asked)
    assert "less fine-tuning" in capsys.readouterr().out
    assert (tmp_path / "classification-quick.png").stat().st_size > 10_000
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "classification-quick-parts").iterdir()}
    assert sorted(path.name for path in parts) == sorted(f"3-{seed}-{name}.json" for seed in (0, 1) for name in names)
    record = json.loads((tmp_path / "classification-quick-3.json").read_text())
    rows = record["results"]["rows"]
    assert [(row["seed"], row["method"]) for row in rows] == [(seed, name) for seed in (0, 1) for name in names]
    assert record["results"]["environments"][0]["threads"] == 1
    assert "date" not in record["results"]["environments"][0]
    jacana_rows = [row for row in rows if row["method"] == "jacana"]
    assert all(row["accuracy"] > 0.5 for row in jacana_rows)
    scores = [{name: row[name] for name in row if name.startswith("auroc")} for row in rows]
    assert all(0.0 <= value <= 1.0 for some in scores for value in some.values())
    assert [bool(some) for some in scores] == [
        row["seed"] == 0 and row["method"] not in classification.MOST_SEEDS for row in rows
    ]

    # What is on record is not done again.
    with monkeypatch.context() as patch:
        patch.setattr(classification, "run_job", None)
        shutil.move(tmp_path / "classification-quick-parts", tmp_path / "parts")
        classification.main([*asked[: asked.index("--methods")], "--methods", "none"])
        shutil.move(tmp_path / "parts", tmp_path / "classification-quick-parts")
    again = json.loads((tmp_path / "classification-quick-3.json").read_text())["results"]
    assert (again["rows"], again["environments"]) == (rows, record["results"]["environments"])

    # A part that is missing is done again, to the same figures; the others are not touched.
    (tmp_path / "classification-quick-3.json").unlink()
    lost = tmp_path / "classification-quick-parts" / "3-1-oracle.json"
    was = json.loads(lost.read_text())["part"]
    lost.unlink()
    classification.main(asked)
    now = json.loads(lost.read_text())["part"]
    timed = ("seconds", "seconds_predicting")
    assert {k: v for k, v in now.items() if k not in timed} == {k: v for k, v in was.items() if k not in timed}
    assert {path: path.stat().st_mtime_ns for path in parts if path != lost} == {
        path: time for path, time in parts.items() if path != lost
    }

    # Other settings are other results.
    monkeypatch.setattr(classification, "QUICK", dataclasses.replace(SMALL, simulations=21))
    some = asked[: asked.index("--methods")]
    classification.main([*some, "--methods", "none", "jacana"])
    changed = {path.name for path, time in parts.items() if path != lost and path.stat().st_mtime_ns != time}
    assert changed == {f"3-{seed}-{name}.json" for seed in (0, 1) for name in ("none", "jacana")}


# --- the report -----------------------------------------------------------------------------------------------------


def row(labels, seed, method, accuracy):
    figures = dict.fromkeys((*classification_report.FIGURES, *classification_report.OTHER_SCORES), 0.5)
    return {"labels": labels, "seed": seed, "method": method, **figures, "accuracy": accuracy}


ROWS = [
    *(row(5, seed, "fine-tuning", 0.5 + 0.1 * seed) for seed in range(4)),
    *(row(5, seed, "jacana", 0.6 + 0.1 * seed + 0.01 * (seed - 1)) for seed in (2, 0, 1)),
    {name: value for name, value in row(5, 0, "none", 0.3).items() if name != "auroc_mnist_by_entropy"},
    row(20, 0, "oracle", 0.9),
]


def test_differences_are_paired_over_the_seeds_that_both_have():
    found = json.loads(json.dumps(classification_report.summary(ROWS)).replace("NaN", "null"))
    table = {(one["labels"], one["method"]): one["accuracy"] for one in found["table"]}
    assert list(table) == [(5, "none"), (5, "fine-tuning"), (5, "jacana"), (20, "oracle")]
    assert table[5, "fine-tuning"]["mean"] == pytest.approx(0.65)
    none, paired = found["less_fine_tuning"]
    assert [none[name]["repetitions"] for name in ("accuracy", "auroc_mnist_by_entropy")] == [1, 0]
    assert (paired["labels"], paired["method"], paired["accuracy"]["repetitions"]) == (5, "jacana", 3)
    assert paired["accuracy"]["mean"] == pytest.approx(0.1)
    assert paired["accuracy"]["standard_error"] == pytest.approx(0.01 / np.sqrt(3))
    text = classification_report.markdown(found, 5)
    assert "| fine-tuning | 0.650 ± 0.065 |" in text
    assert "| **Jacana** | 0.700 ± 0.064 |" in text
    assert "| *fine-tuning picked on test* | 0.900 | 0.500 |" in classification_report.markdown(found, 20)
    assert "| **Jacana** | +0.100 ± 0.006 | +0.000 ± 0.000 |" in classification_report.markdown_paired(found, 5)
    shown = classification_report.show(found)
    assert "5 labels a class" in shown
    assert "+0.100 ± 0.006" in shown


def test_the_pages_have_a_place_for_each_table(tmp_path):
    (tmp_path / "classification-5.json").write_text(json.dumps({"results": classification_report.summary(ROWS)}))
    page = "\n".join(f"<!-- {mark} -->\nold\n<!-- end -->" for mark in ("classification-5", "classification-5-paired"))
    found = pages.filled(page, tmp_path)
    assert "old" not in found
    assert "0.650 ± 0.065" in found
    assert "+0.100 ± 0.006" in found
    marks = {mark: record for mark, (record, _) in pages.TABLES.items() if record.startswith("classification")}
    assert marks == {f"classification-{n}-short": f"classification-{n}" for n in (5, 50)} | {
        f"classification-{n}{kind}": f"classification-{n}" for n in (5, 20, 50, 200) for kind in ("", "-paired")
    }
    short = classification_report.markdown_short(classification_report.summary(ROWS), 5).splitlines()
    assert short[-1].startswith("| **Jacana** | 0.700 ± 0.064 | 0.500 ± 0.000 |")


def test_every_method_has_a_style_and_a_title():
    assert set(classification_report.STYLES) == set(METHODS)
    assert len(set(METHODS.values())) == len(METHODS)
    assert len(set(classification_report.STYLES.values())) == len(METHODS)
