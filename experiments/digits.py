"""Rotated digits: a network trained on upright digits meets digits turned by 60 degrees, with ten labels a class.

The source network is a small convolutional one with batch normalisation, trained on half of scikit-learn's digits
(8 by 8 pixels). The target is the other half, rotated: ten labelled digits a class, all others for testing. Compared,
from the same source network and the same hundred labels:

* *no adaptation*: the source network as it is;
* *last layer*: logistic regression on the last features, standardised, its penalty by five-fold cross-validation;
* *fine-tuning*: all parameters by Adam on the cross-entropy, rate and steps by five-fold cross-validation; beside it
  the best of the same grid on the test set, which nobody can choose honestly;
* *Jacana*: ``jacana.NTKClassifier(net, mean="auto", prior_std="layers")``, a Laplace approximation with the network's
  tangent kernel. Its mean (zero, or what the network says), scales and temperatures are learned from the hundred
  labels.

Probabilities of Jacana and of the last layer are their own. Those of the network itself and of fine-tuning are a
softmax over one temperature, the one with the smallest negative log-likelihood on predictions of the *target labels*
that the method made without them, which are cross-validation's for fine-tuning; no adaptation saw none of the labels.

Seconds are CPU seconds of one thread, of a whole adaptation: every choice and the test predictions included.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import rotate
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import jacana
from experiments import plots
from experiments.baselines import features_of, fine_tune, fine_tune_grid
from experiments.baselines.logistic import fit_logistic
from experiments.command import parse, record
from experiments.digits_report import BEST_OF_GRID, Outcome, Run, draw, show, summary
from experiments.metrics import accuracy, ece, nll
from experiments.parallel import each

__all__ = ["SETTINGS", "Task", "main", "network", "run", "run_seed", "train_source"]

SETTINGS: dict[str, Any] = {
    "source_examples": 900,
    "angle": 60.0,
    "labels_per_class": 10,
    "epochs": 30,
    "learning_rate": 3e-3,
    "weight_decay": 1e-4,
    "source_batch_size": 50,
    "jacana": {"mean": "auto", "prior_std": "layers"},
    "inverse_penalties": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3),
    "last_layer_folds": 5,
    "fine_tuning_rates": (1e-3, 3e-3, 1e-2),
    "fine_tuning_steps": (0, 25, 50, 100, 200, 400),
    "fine_tuning_batch_size": 20,
    "fine_tuning_folds": 5,
}
"""Every number that decides the results."""

N_CLASSES = 10

Tick = Callable[[], None]


@dataclass(frozen=True)
class Task:
    """The data of one seed: images (n, 1, 8, 8) in [0, 1] and labels (n,).

    Attributes:
        source: Upright digits to train the source network on.
        upright: Other upright digits, those that ``labelled`` and ``test`` show rotated.
        upright_test: Of these, the images of ``test``.
        labelled: The labelled target digits, class after class in turn, so that any first 10 k hold k of each.
        test: All other target digits.
    """

    source: tuple[Tensor, Tensor]
    upright: tuple[Tensor, Tensor]
    upright_test: Tensor
    labelled: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def draw(cls, seed: int) -> Task:
        """Split the digits at random and rotate the target's."""
        images, labels = load_digits(return_X_y=True)
        x, y = images.reshape(-1, 8, 8) / 16.0, labels
        order = np.random.default_rng(seed).permutation(len(y))
        source, held = np.split(order, [SETTINGS["source_examples"]])
        turned = rotate(x, SETTINGS["angle"], axes=(1, 2), order=1, reshape=False)
        by_class = [held[y[held] == k] for k in range(N_CLASSES)]
        labelled = np.stack([some[: SETTINGS["labels_per_class"]] for some in by_class], axis=1).ravel()
        test = held[~np.isin(held, labelled)]

        def pair(pictures: np.ndarray, index: np.ndarray) -> tuple[Tensor, Tensor]:
            return torch.as_tensor(pictures[index], dtype=torch.float32)[:, None], torch.as_tensor(y[index])

        return cls(pair(x, source), pair(x, held), pair(x, test)[0], pair(turned, labelled), pair(turned, test))


def network() -> nn.Sequential:
    """A small convolutional network with batch normalisation: 38,570 parameters and a linear head."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 16, 3, padding=1)),
        ("norm1", nn.BatchNorm2d(16)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(16, 32, 3, padding=1)),
        ("norm2", nn.BatchNorm2d(32)),
        ("relu2", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("hidden", nn.Linear(512, 64)),
        ("relu3", nn.ReLU()),
        ("head", nn.Linear(64, N_CLASSES)),
    ]
    return nn.Sequential(OrderedDict(layers))


def train_source(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    """Train the source network: AdamW on the cross-entropy, one cycle of the learning rate."""
    size, epochs = SETTINGS["source_batch_size"], SETTINGS["epochs"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
        rate = SETTINGS["learning_rate"]
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=SETTINGS["weight_decay"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * (len(x) // size))
        for _ in range(epochs):
            for batch in torch.randperm(len(x))[: len(x) // size * size].view(-1, size):
                optimizer.zero_grad(set_to_none=True)
                cross_entropy(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return net.eval()


def temperature_of(outputs: Tensor, labels: Tensor) -> float:
    """The temperature under which a softmax of these outputs makes the labels most probable."""
    scale = float(outputs.std())

    def loss(log: float) -> float:
        return float(cross_entropy(outputs / (scale * np.exp(log)), labels))

    return scale * float(np.exp(minimize_scalar(loss, bounds=(-7.0, 7.0), method="bounded").x))


def judge(p: np.ndarray, labels: Tensor, seconds: float, choices: dict[str, Any]) -> Outcome:
    """Measure what a method says of the test digits."""
    k = labels.numpy()
    return Outcome(accuracy(p, k), nll(p, k), ece(p, k), seconds, choices, p)


def tempered(outputs: Tensor, temperature: float) -> np.ndarray:
    """A softmax of outputs over a temperature."""
    return (outputs.double() / temperature).softmax(dim=1).numpy()


def no_adaptation(net: nn.Module, task: Task) -> Outcome:
    """The source network as it is; its temperature alone learns from the target labels."""
    start = time.process_time()
    x, labels = task.labelled
    with torch.no_grad():
        temperature = temperature_of(net(x).double(), labels)
        p = tempered(net(task.test[0]), temperature)
    return judge(p, task.test[1], time.process_time() - start, {"temperature": temperature})


def last_layer(net: nn.Module, task: Task, seed: int) -> Outcome:
    """Logistic regression on what the head sees."""
    start = time.process_time()
    x, labels = task.labelled
    penalties, folds = SETTINGS["inverse_penalties"], SETTINGS["last_layer_folds"]
    model, chosen = fit_logistic(
        features_of(net, x), labels.numpy(), inverse_penalties=penalties, folds=folds, seed=seed
    )
    p = model.predict_proba(features_of(net, task.test[0]))
    return judge(p, task.test[1], time.process_time() - start, {"C": chosen})


def classifier(net: nn.Module, task: Task, **options: Any) -> Outcome:
    """Jacana with these options."""
    start = time.process_time()
    fitted = jacana.NTKClassifier(net, progress=False, **options).fit(*task.labelled)
    p = fitted.predict_proba(task.test[0])
    choices = {
        "mean": fitted.mean_,
        "prior_std": fitted.prior_std_,
        "temperature": fitted.temperature_,
        "power": fitted.power_,
        "sharpness": fitted.sharpness_,
        "method": fitted.method_reason_,
    }
    return judge(p, task.test[1], time.process_time() - start, choices)


def fine_tuning(net: nn.Module, task: Task, seed: int, tick: Tick) -> tuple[Outcome, Outcome]:
    """All parameters by Adam: what cross-validation chose, and the best of the same grid on the test set."""
    start = time.process_time()
    x, labels = task.labelled
    same: dict[str, Any] = {"loss": cross_entropy, "batch_size": SETTINGS["fine_tuning_batch_size"], "seed": seed}
    rates, steps, folds = (SETTINGS[f"fine_tuning_{name}"] for name in ("rates", "steps", "folds"))
    tuned = fine_tune(net, x, labels, rates=rates, steps=steps, folds=folds, **same)
    held_out = torch.empty(len(x), N_CLASSES)
    for held in torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).tensor_split(folds):
        rest = torch.ones(len(x), dtype=torch.bool)
        rest[held] = False
        grid = fine_tune_grid(net, x[rest], labels[rest], rates=[tuned.rate], steps=[tuned.steps], **same)
        with torch.no_grad():
            held_out[held] = grid[tuned.rate, tuned.steps](x[held])
    temperature = temperature_of(held_out.double(), labels)
    with torch.no_grad():
        p = tempered(tuned.net(task.test[0]), temperature)
    choices = {
        "rate": tuned.rate,
        "steps": tuned.steps,
        "temperature": temperature,
        "scores": {f"{rate:g}, {count}": score for (rate, count), score in tuned.scores.items()},
    }
    honest = judge(p, task.test[1], time.process_time() - start, choices)
    tick()
    start = time.process_time()
    grid = fine_tune_grid(net, x, labels, rates=rates, steps=steps, **same)
    with torch.no_grad():
        found = {
            (rate, count): judge(
                tempered(other(task.test[0]), temperature), task.test[1], 0.0, {"rate": rate, "steps": count}
            )
            for (rate, count), other in grid.items()
        }
    best = max(found.values(), key=lambda one: (one.accuracy, -one.nll))
    return honest, replace(best, seconds=time.process_time() - start)


def run_seed(seed: int, tick: Tick) -> Run:
    """Everything for one seed; ``tick`` is called after each of `TICKS` parts."""
    task = Task.draw(seed)
    net = train_source(*task.source, seed)
    with torch.no_grad():
        source_accuracy = accuracy(net(task.upright[0]).numpy(), task.upright[1].numpy())
    outcomes = {"no adaptation": no_adaptation(net, task)}
    tick()
    outcomes["last layer"] = last_layer(net, task, seed)
    outcomes["Jacana"] = classifier(net, task, **SETTINGS["jacana"])
    tick()
    outcomes["fine-tuning"], outcomes[BEST_OF_GRID] = fine_tuning(net, task, seed, tick)
    tick()
    pictures = (task.upright_test.numpy()[:, 0], task.test[0].numpy()[:, 0])
    return Run(seed, source_accuracy, outcomes, *pictures, task.test[1].numpy())


TICKS = 4


def run(seeds: int, *, progress: bool = True) -> list[Run]:
    """All seeds, as many at a time as there are cores."""
    return each(run_seed, range(seeds), ticks=TICKS * seeds, description="digits", progress=progress)


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    asked = parse("digits", "Upright digits, then digits turned by 60 degrees.", seeds=5, argv=argv)
    start = time.perf_counter()
    runs = run(asked.seeds, progress=asked.progress)
    found = summary(runs)
    with plots.style():
        made = plots.figure(12.0, 4.2)
        draw(made, found, runs[0])
        picture = plots.save(made, asked.path(".png"))
    written = record(asked.path(".json"), asked, settings=SETTINGS, results=found, seconds=time.perf_counter() - start)
    print(show(found), written, picture, sep="\n")


if __name__ == "__main__":
    main()
