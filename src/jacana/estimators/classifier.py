"""NTKClassifier: the scikit-learn face of classification; validation and defaults, no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from jacana.errors import InvalidOption
from jacana.estimators.columns import check_columns, remember_columns
from jacana.estimators.labels import Labels
from jacana.evidence import held_out, left_out, maximize_evidence
from jacana.likelihoods import Tempered
from jacana.linearization import linearize
from jacana.networks import Selection, as_source, as_targets
from jacana.posteriors import (
    MAP,
    DirichletRegression,
    GradientFlow,
    LabelRegression,
    Laplace,
    LastLayer,
    Method,
    Nonlinear,
    OneHotRegression,
    Posterior,
    Relinearized,
    StochasticMAP,
    TangentGP,
    Variational,
)
from jacana.prediction import Prediction
from jacana.predictive import Predictive

__all__ = ["NTKClassifier"]

Array = NDArray[np.float64]
_DEFAULT = Laplace(rtol=1e-3)
_POINTS = (MAP, StochasticMAP)
_METHODS: dict[str, Method] = {
    "auto": _DEFAULT,
    "flow": GradientFlow(method=_DEFAULT),
    "laplace": Laplace(),
    "map": MAP(),
    "variational": Variational(),
    "dirichlet": DirichletRegression(),
    "one-hot": OneHotRegression(),
    "last-layer": LastLayer(),
}


_FEW = 600
"""Function values by which the better mean is told."""

_CRITERIA = ("leave-one-out", "evidence")
_MEANS = {"network": ("network",), "zero": ("zero",), "auto": ("network", "zero")}


class NTKClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Adapt a trained classifier to new labels by Gaussian process inference with its own Jacobian.

    The prior scale and the temperature of the network's logits are learned by evidence unless they are given; there is
    no learning rate and no schedule. The outputs of the network are logits, one a class; one output tells two classes
    apart. Where the classes are others than the network's, give it a head for them first: :func:`with_head`.

    Args:
        net: any trained module; it is never changed.
        classes: the label of each class in the order of the network's outputs; by default the labels of y, sorted.
            Named, some may be missing from y.
        prior_std: None learns one standard deviation of the weight change, ``"layers"`` one a layer; a number, or a
            mapping from dotted name prefixes, is held fixed.
        temperature: None learns what the network's logits are divided by; a number is held fixed.
        criterion: what scale and temperature are learned by: ``"leave-one-out"``, :func:`maximize_leave_one_out`, or
            ``"evidence"``, :func:`maximize_evidence`.
        mean: ``"network"`` starts from what the network says, ``"zero"`` from nothing; ``"auto"`` from what the
            criterion prefers, told by some of the labels.
        method: None or ``"auto"`` takes ``Laplace(rtol=1e-3)``, on the side that is cheaper, with latent variances that
            are up to a thousandth of the prior's too large; ``"laplace"`` is exact; ``"flow"`` moves its mean along the
            network's own gradient flow, :class:`GradientFlow`, the way to fine-tuning's accuracy; ``"map"``,
            ``"variational"``, ``"dirichlet"``, ``"one-hot"``, ``"last-layer"``; or an object with options.
        predictive: how probabilities are averaged; by default :class:`Probit`.
        relinearize: the most steps to the network's own mode, :class:`Relinearized`: then the mean is what the network
            says there. None makes the log posterior worse, and they end where little more is promised.
            What was learned stays: the new tangent has seen every label, so that none can be left out of it.
        class_weight: None, ``"balanced"`` or a mapping, as in scikit-learn.
        parameters: what to linearize in, as for :func:`linearize`; by names where the estimator is cloned, as in
            cross-validation, because a clone has a network of its own.
        output: takes the tensor (n, c) from what the network returns.
        forward: calls the network, ``forward(net, x)``.
        batch_size: examples in one pass through the network.
        progress: show a bar for work of over a second.

    Attributes:
        classes_: the label of each column of the probabilities.
        posterior_: the :class:`Posterior`.
        method_, method_reason_: the method that was taken, and one sentence that says why.
        prior_std_, temperature_, mean_: learned or given.
        power_, sharpness_: what each label is worth, and how sure what is said of new ones is made, see
            :class:`Tempered`; one where they were not learned. After a flow the second is of two halves of the labels.
        log_marginal_likelihood_value_: log p(y) at these, by the method's approximation, each label counted as
            ``power_``: fits with different powers cannot be compared by it. None where the method has none.
        n_features_in_: columns of a two-dimensional X.

    References:
        Maddox et al. 2021 (arXiv 2103.01439), section 4.2.

    Example:
        >>> import jacana, torch, numpy as np
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 30), torch.nn.Tanh(), torch.nn.Linear(30, 2))
        >>> X = np.random.default_rng(0).normal(size=(80, 2))
        >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
        >>> clf = jacana.NTKClassifier(net).fit(X[:60], y[:60])
        >>> clf.classes_.tolist(), clf.predict_proba(X[60:]).shape, bool(clf.score(X[60:], y[60:]) > 0.8)
        (['other', 'same'], (20, 2), True)
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        classes: Any = None,
        prior_std: Any = None,
        temperature: float | int | None = None,
        criterion: str = "leave-one-out",
        mean: str = "network",
        method: str | Method | None = None,
        predictive: Predictive | None = None,
        relinearize: int = 0,
        class_weight: Any = None,
        parameters: Selection = None,
        output: Callable[[Any], Tensor] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> None:
        self.net = net
        self.classes = classes
        self.prior_std = prior_std
        self.temperature = temperature
        self.criterion = criterion
        self.mean = mean
        self.method = method
        self.predictive = predictive
        self.relinearize = relinearize
        self.class_weight = class_weight
        self.parameters = parameters
        self.output = output
        self.forward = forward
        self.batch_size = batch_size
        self.progress = progress

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> NTKClassifier:
        """Learn the scales that were not given, and condition on the labels.

        Args:
            X: n examples: an array or tensor with examples first, a mapping or tuple of them, a DataLoader of pairs.
            y: labels (n,) of any kind, or (n, c) of zeros and ones where an example may have several.
            sample_weight: (n,), how often each example counts.

        Raises:
            InvalidData: data or labels that cannot be used.
            InvalidOption: a setting that has no meaning.
        """
        method = self._method()
        for name, words in (("criterion", _CRITERIA), ("mean", tuple(_MEANS))):
            if not isinstance(value := getattr(self, name), str) or value not in words:
                raise InvalidOption(f"{name}: got {value!r}; expected {' or '.join(map(repr, words))}.")
        if self.predictive is not None and not isinstance(self.predictive, Predictive):
            raise InvalidOption(f"predictive: got {self.predictive!r}; expected an object like jacana.Probit().")
        lin = linearize(self.net, self.parameters, self.output, self.forward, batch_size=self.batch_size)
        layer = method if isinstance(method, LastLayer) else None
        if layer is not None:  # its scales are those of its own kernel
            lin, method = layer.within(lin), layer.method or _DEFAULT
        method = self._relinearized(method)
        learned = self.prior_std is None or isinstance(self.prior_std, str)
        start = 1.0 if learned else self.prior_std
        models = [
            TangentGP(lin, start, mean, self.temperature or 1.0, progress=self.progress) for mean in _MEANS[self.mean]
        ]
        examples: Any  # or, where the method takes them from where they are, a source of them
        examples = as_source(X, lin.network.input_dtype, lin.device, "X") if _streamed(X, y, method) else None
        if isinstance(X, DataLoader):
            if sample_weight is not None and not _in_order(X):
                raise InvalidOption(
                    "sample_weight: got weights beside a DataLoader with an order of its own, so that it is not known "
                    "whose they are; take shuffle=False and no sampler."
                )
            if examples is None:
                examples, y = lin.pairs(X, y, "X")
            else:
                y = as_targets(examples.targets(), len(examples), "X")
            y = y.to(torch.int64) if bool((y == y.round()).all()) else y  # targets are numbers; labels count
        elif examples is None:
            examples = lin.examples(X, "X")
        labels = Labels.of(
            y, lin.findings(examples.head).n_outputs, classes=self.classes, class_weight=self.class_weight,
            sample_weight=sample_weight,
        )  # fmt: skip
        posterior = self._adapted(models, examples, labels, method)
        self.classes_, self._multilabel = labels.classes, labels.multilabel
        self.posterior_ = posterior
        self.method_ = posterior.method
        if layer is not None and not isinstance(posterior.method, Nonlinear):
            self.method_ = replace(layer, method=posterior.method)
        self.method_reason_ = (
            "the default" if method is _DEFAULT and posterior.reason == "as asked" else posterior.reason
        )
        model = posterior.observations.model
        self.prior_std_, self.temperature_ = model.prior.given, model.temperature
        self.mean_ = "zero" if model.zero_mean else "network"
        point = isinstance(_inner(posterior.method), _POINTS)
        self.log_marginal_likelihood_value_ = None if point else posterior.log_evidence
        told = posterior.likelihood
        self.power_, self.sharpness_ = (
            (float(told.power), float(told.sharpness)) if isinstance(told, Tempered) else (1.0, 1.0)
        )
        remember_columns(self, X)
        return self

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, (m, k) in the order of ``classes_``; of each label where several may hold.

        Raises:
            NotFittedError: before fit.
            InvalidData: examples that cannot be used.
        """
        return self._columns(self.predict_latent(X).probabilities(self.predictive))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each example, (m,); or (m, c) of zeros and ones where several may hold."""
        p = self.predict_proba(X)
        return (p > 0.5).astype(np.int64) if self._multilabel else self.classes_[p.argmax(1)]

    def decision_function(self, X: Any) -> Array:
        """The mean of the logits, (m, k); for two classes how far the second is above the first, (m,)."""
        mean = _numpy(self.predict_latent(X).mean.reshape(-1, self.posterior_.n_outputs))
        if self._multilabel or mean.shape[1] > 2:
            return mean
        return mean[:, 0] if mean.shape[1] == 1 else mean[:, 1] - mean[:, 0]

    def predict_latent(self, X: Any) -> Prediction:
        """The Gaussian of the logits: its mean, the covariance of each example's, joint samples, probabilities.

        One of these for all that is wanted of the same examples computes their covariances once.
        """
        check_is_fitted(self, "posterior_")
        check_columns(self, X)
        return self.posterior_.predict(self.posterior_.examples(X, "X"))

    def uncertainty(self, X: Any) -> Array:
        """The mutual information of each example's label and the model in nats, (m,): what labelling it would tell."""
        return _numpy(self.predict_latent(X).mutual_information())

    def sample_proba(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """Class probabilities of joint samples of the logits over all examples, (s, m, k)."""
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        latent = self.predict_latent(X).sample(n_samples, generator=torch.Generator().manual_seed(seed))
        likelihood = self.posterior_.likelihood
        samples = latent.reshape(n_samples, -1, self.posterior_.n_outputs)
        return np.stack([self._columns(likelihood.probabilities(f)) for f in samples])

    def _adapted(self, models: list[TangentGP], examples: Any, labels: Labels, method: Method) -> Posterior:
        """The posterior of the model with the best score, its scales learned."""
        prior = "shared" if self.prior_std is None else self.prior_std
        words: dict[str, Any] = {"prior_std": prior, "temperature": self.temperature, "likelihood": labels.likelihood}
        if self.criterion == "leave-one-out":
            own = isinstance(method, LabelRegression)  # these have a noise and a scale of their own
            point = isinstance(_inner(method), _POINTS)  # what smooths an average would sharpen it too much
            words |= {"power": 1.0 if own else None, "sharpness": 1.0 if own or point else None}
            if len(models) > 1:  # which mean is better is seen by few labels, and one scale for all layers
                rough = words | {"power": None, "sharpness": None, "most": _FEW}
                rough |= {"prior_std": "shared"} if prior == "layers" else {}
                models = [max(models, key=lambda gp: left_out(gp, examples, labels.targets, **rough).score)]
            found = left_out(models[0], examples, labels.targets, **words).condition(examples, labels.targets, method)
            return found if own or point else held_out(found, progress=self.progress)
        learned = [maximize_evidence(gp, examples, labels.targets, **words)[0] for gp in models]

        def conditioned(gp: TangentGP, method: Method) -> Posterior:
            return gp.condition(examples, labels.targets, likelihood=labels.likelihood, method=method)

        if len(learned) > 1:  # by the approximation that the scales are of, whatever the method
            learned = [max(learned, key=lambda gp: conditioned(gp, Laplace()).log_evidence)]
        return conditioned(learned[0], method)

    def _columns(self, p: Tensor) -> Array:
        found = _numpy(p)
        return np.column_stack([1.0 - found, found]) if found.shape[1] == 1 and not self._multilabel else found

    def _method(self) -> Method:
        if self.method is None or isinstance(self.method, Method):
            return _DEFAULT if self.method is None else self.method
        if not isinstance(self.method, str) or self.method not in _METHODS:
            raise InvalidOption(
                f"method: got {self.method!r}; expected {', '.join(map(repr, _METHODS))}, or an object with its "
                "options like jacana.Laplace()."
            )
        return _METHODS[self.method]

    def _relinearized(self, method: Method) -> Method:
        """The method at the network's own mode, where that is asked for."""
        steps = self.relinearize
        if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0:
            raise InvalidOption(f"relinearize: got {steps!r}; expected zero or a positive whole number.")
        if (steps or isinstance(method, Nonlinear)) and self.mean != "network":
            raise InvalidOption(
                f"mean: got {self.mean!r} with {f'relinearize={steps}' if steps else repr(method)}, and a network that "
                "is not its own prior mean has nothing to follow; take mean='network'."
            )
        if not steps:
            return method
        if not isinstance(method, Laplace | MAP):
            raise InvalidOption(
                f"method: got {method!r} with relinearize={steps}; expected 'laplace' or 'map', which are made at a "
                "point of the network, or relinearize=0."
            )
        return Relinearized(int(steps), method)


def _in_order(loader: DataLoader[Any]) -> bool:
    """Whether it gives the examples of its dataset one after the other."""
    batches = loader.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else loader.sampler if batches is None else None
    return isinstance(loader.dataset, IterableDataset) or isinstance(sampler, SequentialSampler)


def _streamed(X: Any, y: Any, method: Method) -> bool:
    """Whether examples stay where they are."""
    return method.streams and (not isinstance(X, DataLoader) or (y is None and _in_order(X)))


def _inner(method: Method) -> Method:
    """Whose uncertainty there is."""
    return method.method if isinstance(method, Nonlinear) else method


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()
