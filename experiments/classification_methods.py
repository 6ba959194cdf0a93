"""The methods that the classification experiment compares, all with the same network and the same labels."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import jacana
from experiments.baselines import features_of
from experiments.baselines.fine_tuning import Descent, Score, Snapshot, best, folds_of, outputs_of, score
from experiments.baselines.laplace_torch import fit_laplace_torch, version
from experiments.baselines.logistic import fit_logistic
from experiments.baselines.temperature import fit_temperature, hold_out
from experiments.classification_metrics import Says, entropy
from experiments.classification_task import Settings

__all__ = ["METHODS", "Fitted", "Methods", "group", "unavailable"]

METHODS = {
    "none": "no adaptation",
    "last-layer": "last layer",
    "fine-tuning": "fine-tuning",
    "temperature": "fine-tuning, temperature of a fifth",
    "oracle": "fine-tuning picked on test",
    "oracle-temperature": "picked on test, temperature too",
    "laplace-torch": "picked on test, laplace-torch",
    "jacana": "Jacana",
    "jacana-flow": "Jacana, gradient flow",
    "jacana-relinearized": "Jacana, relinearized",
    "jacana-one-hot": "Jacana, one-hot regression",
    "jacana-dirichlet": "Jacana, Dirichlet regression",
    "jacana-last-layer": "Jacana, last layer",
    "jacana-no-norms": "Jacana, normalisation layers held",
}
"""Name on the command line to name in tables, in their order."""

JACANA: dict[str, dict[str, Any]] = {
    "jacana": {"relinearize": 0},
    "jacana-flow": {"method": "flow"},
    "jacana-relinearized": {"relinearize": 10},
    "jacana-one-hot": {"method": "OneHotRegression"},
    "jacana-dirichlet": {"method": "DirichletRegression"},
    "jacana-last-layer": {"method": "LastLayer"},
    "jacana-no-norms": {"norms": False},
}
"""Options of ``jacana.NTKClassifier``; a method is one of its words, or made of its public name by default."""

SHARING = ("fine-tuning", "oracle", "oracle-temperature", "laplace-torch")
"""Methods that share runs of gradient descent on all labels."""


@dataclass(frozen=True)
class Fitted:
    """A method that has learned.

    Attributes:
        predict: What it says of images (m, 3, 32, 32).
        picked: What was chosen or learned.
        seconds: CPU seconds, every choice included, and what it shares with other methods.
    """

    predict: Callable[[Tensor], Says]
    picked: dict[str, Any]
    seconds: float


class _Picked(NamedTuple):
    """The best run of the grid on the test set."""

    net: nn.Module
    logits: Tensor
    picked: dict[str, Any]
    seconds: float


def unavailable(method: str) -> str | None:
    """Why a method cannot run here; None where it can."""
    if method == "laplace-torch" and version() is None:
        return "laplace-torch is not installed (pip install laplace-torch)"
    if method in JACANA:
        wanted = ("NTKClassifier", JACANA[method].get("method", "NTKClassifier"))
        missing = [name for name in wanted if not (name.islower() or hasattr(jacana, name))]
        if missing:
            return f"this version of jacana has no {missing[0]}"
    return None


def group(method: str) -> str:
    """Methods of one group are best fitted by one `Methods`, because they share work."""
    return SHARING[0] if method in SHARING else method


class Methods:
    """Every method with one network and one set of labels.

    Args:
        net: The source network; never touched.
        x: Labelled images.
        labels: Their classes, (n,).
        test: Test images and their classes: for the methods alone whose names say so.
        settings: All settings.
        seed: For the methods that draw.
    """

    def __init__(
        self, net: nn.Module, x: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], settings: Settings, seed: int
    ) -> None:
        self._net, self._x, self._labels, self._test = net, x, labels, test
        self._settings, self._seed = settings, seed
        many = int(labels.bincount().min()) >= settings.many
        self._folds = settings.many_folds if many else settings.folds
        self._descent = Descent(settings.rates, settings.epochs, settings.batch_size, settings.momentum)
        self._runs: dict[float, dict[int, Snapshot]] = {}

    def fit(self, method: str) -> Fitted:
        """Fit one of `METHODS`."""
        if method in JACANA:
            return self._jacana(**JACANA[method])
        own: dict[str, Callable[[], Fitted]] = {
            "none": lambda: Fitted(self._softmax(self._net), {}, 0.0),
            "last-layer": self._last_layer,
            "fine-tuning": self._fine_tuning,
            "temperature": self._temperature,
            "oracle": self._oracle,
            "oracle-temperature": self._oracle_temperature,
            "laplace-torch": self._laplace_torch,
        }
        return own[method]()

    def _softmax(self, net: nn.Module, temperature: float = 1.0) -> Callable[[Tensor], Says]:
        """Probabilities and their entropy."""

        def predict(x: Tensor) -> Says:
            p = (outputs_of(net, x, self._settings.block) / temperature).softmax(dim=1).numpy()
            return Says(p, entropy(p))

        return predict

    def _last_layer(self) -> Fitted:
        start = time.process_time()
        model, chosen = fit_logistic(
            self._features(self._x),
            self._labels.numpy(),
            inverse_penalties=self._settings.inverse_penalties,
            folds=folds_of(self._labels, self._folds),
            seed=self._seed,
        )

        def predict(x: Tensor) -> Says:
            p = model.predict_proba(self._features(x))
            return Says(p, entropy(p))

        return Fitted(predict, {"C": chosen}, time.process_time() - start)

    def _features(self, x: Tensor) -> np.ndarray:
        return np.concatenate([features_of(self._net, part) for part in torch.split(x, self._settings.block)])

    def _fine_tuning(self) -> Fitted:
        start = time.process_time()
        scores = self._descent.cross_validate(self._net, self._x, self._labels, self._folds, self._seed)
        rate, epochs = best(scores)
        seconds = time.process_time() - start
        tuned = self._run(rate)[epochs]
        picked = {"rate": rate, "epochs": epochs, "scores": _shown(scores)}
        return Fitted(self._softmax(tuned.net), picked, seconds + tuned.seconds)

    def _run(self, rate: float) -> dict[int, Snapshot]:
        """The run at one rate on all labels."""
        if rate not in self._runs:
            self._runs[rate] = self._descent.run(self._net, self._x, self._labels, rate, self._seed)
        return self._runs[rate]

    def _temperature(self) -> Fitted:
        """Fine-tuning that holds some labels out, from its choices too, and learns a temperature from them."""
        start = time.process_time()
        some, held = hold_out(self._labels, self._settings.held_out, self._seed)
        x, labels = self._x[some], self._labels[some]
        scores = self._descent.cross_validate(self._net, x, labels, self._folds, self._seed)
        rate, epochs = best(scores)
        tuned = replace(self._descent, epochs=(epochs,)).run(self._net, x, labels, rate, self._seed)[epochs]
        temperature = fit_temperature(outputs_of(tuned.net, self._x[held]), self._labels[held])
        picked = {"rate": rate, "epochs": epochs, "temperature": temperature, "scores": _shown(scores)}
        return Fitted(self._softmax(tuned.net, temperature), picked, time.process_time() - start)

    @functools.cached_property
    def _on_test(self) -> _Picked:
        """What nobody can choose honestly: the run of the grid, on all labels, that is best on the test set."""
        images, labels = self._test
        runs = {rate: self._run(rate) for rate in self._descent.rates}
        grid = {(rate, n): snapshot for rate, run in runs.items() for n, snapshot in run.items()}
        logits = {choice: outputs_of(snapshot.net, images) for choice, snapshot in grid.items()}
        scores = {choice: score(found, labels) for choice, found in logits.items()}
        rate, epochs = best(scores)
        picked = {"rate": rate, "epochs": epochs, "test_scores": _shown(scores)}
        seconds = sum(run[max(run)].seconds for run in runs.values())
        return _Picked(grid[rate, epochs].net, logits[rate, epochs], picked, seconds)

    def _oracle(self) -> Fitted:
        return Fitted(self._softmax(self._on_test.net), self._on_test.picked, self._on_test.seconds)

    def _oracle_temperature(self) -> Fitted:
        net, logits, picked, seconds = self._on_test
        temperature = fit_temperature(logits, self._test[1])
        return Fitted(self._softmax(net, temperature), {**picked, "temperature": temperature}, seconds)

    def _laplace_torch(self) -> Fitted:
        """The peer gets the best network of the grid, so that no choice of rate spoils what it adds."""
        net, _, picked, seconds = self._on_test
        start = time.process_time()
        own = self._settings
        approximation = fit_laplace_torch(copy.deepcopy(net), self._x, self._labels, batch_size=own.block)
        seconds += time.process_time() - start

        def predict(x: Tensor) -> Says:
            parts = [approximation.predict(part, own.samples, self._seed) for part in torch.split(x, own.block)]
            return Says(*(np.concatenate(pieces) for pieces in zip(*parts, strict=True)))

        precision = approximation.prior_precision
        return Fitted(predict, {**picked, "prior_precision": precision, "version": version()}, seconds)

    def _jacana(self, *, method: str | None = None, relinearize: int = 0, norms: bool = True) -> Fitted:
        start = time.process_time()
        options: dict[str, Any] = {} if norms else {"parameters": _without_norms(self._net)}
        if method is not None:
            options["method"] = method if method.islower() else _public(method)()
        classifier = _public("NTKClassifier")(self._net, relinearize=relinearize, progress=False, **options)
        classifier.fit(self._x, self._labels.numpy())
        seconds = time.process_time() - start

        def predict(x: Tensor) -> Says:
            latent = classifier.predict_latent(x)  # once for both: its covariances are what takes time
            return Says(latent.probabilities().numpy(), latent.mutual_information().numpy())

        return Fitted(predict, _learned(classifier), seconds)


def _without_norms(net: nn.Module) -> list[str]:
    """The names of all parameters but those of batch normalisation."""
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return [name for name, _ in net.named_parameters() if name.rpartition(".")[0] not in norms]


def _public(name: str) -> Any:
    """A public name of the package, looked up when it is needed."""
    return getattr(jacana, name)


def _learned(classifier: Any) -> dict[str, Any]:
    """The numbers and words among a classifier's fitted attributes, which end in an underscore as scikit-learn's do."""

    def plain(value: Any) -> bool:
        return isinstance(value, Real | str) or (isinstance(value, Mapping) and all(map(plain, value.values())))

    found = {name: value for name, value in vars(classifier).items() if name.endswith("_") and name[0] != "_"}
    return {name: value for name, value in found.items() if plain(value)}


def _shown(scores: Mapping[tuple[float, int], Score]) -> dict[str, Any]:
    """Scores of a grid, for a record."""
    return {f"{rate:g}, {epochs}": asdict(value) for (rate, epochs), value in scores.items()}
