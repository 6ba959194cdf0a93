"""NTKRegressor: the scikit-learn face of regression; validation and defaults, no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from jacana.errors import InvalidOption
from jacana.estimators.columns import check_columns, remember_columns
from jacana.evidence import maximize_evidence
from jacana.linearization import linearize
from jacana.networks import Selection
from jacana.posteriors import FunctionSpace, LastLayer, Method, Pathwise, TangentGP, WeightSpace
from jacana.solvers import CG

__all__ = ["NTKRegressor"]

Array = NDArray[np.float64]
_METHODS: dict[str, Method | None] = {
    "auto": None,
    "function": FunctionSpace(),
    "weight": WeightSpace(),
    "iterative": FunctionSpace(CG()),
    "pathwise": Pathwise(),
}


class NTKRegressor(RegressorMixin, MultiOutputMixin, BaseEstimator):  # type: ignore[misc]
    """Adapt a trained network to new regression data by exact Gaussian process inference with its own Jacobian.

    Noise and prior scale are learned by evidence unless they are given; there is no learning rate and no schedule.
    Costs one kernel and one factorisation of the smaller of n·c and p.

    Args:
        net: any trained module; it is never changed.
        prior_std: None learns one standard deviation of the weight change, ``"layers"`` one a layer; a number, or a
            mapping from dotted name prefixes, is held fixed.
        noise_std: None learns one σ in the units of y, ``"outputs"`` one an output; a number or (c,) is held fixed.
        mean: ``"network"`` starts from what the network says, ``"zero"`` from nothing.
        method: ``"auto"`` or None takes the cheapest by counted work and memory; ``"function"`` or ``"weight"`` space,
            factorised; ``"iterative"``, function space by conjugate gradients; ``"pathwise"``, the same with samples;
            or an object with options.
        parameters: what to linearize in, as for :func:`linearize`; by names where the estimator is cloned, as in
            cross-validation, because a clone has a network of its own.
        output: takes the tensor (n, c) from what the network returns.
        forward: calls the network, ``forward(net, x)``.
        batch_size: examples in one pass through the network.
        progress: show a bar for work of over a second.

    Attributes:
        posterior_: the :class:`Posterior`.
        method_, method_reason_: the method that was taken, an object with its options, and one sentence that says why.
        prior_std_, noise_std_: learned or given.
        log_marginal_likelihood_value_: log p(y) at these.
        n_outputs_: c.
        n_features_in_: columns of a two-dimensional X.

    Example:
        >>> import jacana, torch, numpy as np
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1))
        >>> X = np.random.default_rng(0).normal(size=(60, 2))
        >>> y = X[:, 0] - np.sin(X[:, 1])
        >>> reg = jacana.NTKRegressor(net).fit(X[:40], y[:40])
        >>> mean, std = reg.predict(X[40:], return_std=True)
        >>> mean.shape, std.shape, bool(reg.score(X[40:], y[40:]) > 0.9)
        ((20,), (20,), True)
        >>> reg.method_, reg.method_reason_.split(",")[0]
        (FunctionSpace(solver=Cholesky(jitter=0.0)), 'function space')
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        prior_std: Any = None,
        noise_std: Any = None,
        mean: str = "network",
        method: str | Method | None = None,
        parameters: Selection = None,
        output: Callable[[Any], Tensor] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> None:
        self.net = net
        self.prior_std = prior_std
        self.noise_std = noise_std
        self.mean = mean
        self.method = method
        self.parameters = parameters
        self.output = output
        self.forward = forward
        self.batch_size = batch_size
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> NTKRegressor:
        """Learn the scales that were not given, and condition on the data.

        Args:
            X: n examples: an array or tensor with examples first, a mapping or tuple of them, a DataLoader of pairs.
            y: targets (n,) or (n, c).

        Raises:
            InvalidData: data that cannot be used.
            InvalidOption: a setting that has no meaning.
        """
        method = self._method()
        lin = linearize(self.net, self.parameters, self.output, self.forward, batch_size=self.batch_size)
        layer = method if isinstance(method, LastLayer) else None
        if layer is not None:  # its scales are those of its own kernel
            lin, method = layer.within(lin), layer.method
        learned = self.prior_std is None or isinstance(self.prior_std, str)
        gp = TangentGP(lin, 1.0 if learned else self.prior_std, self.mean, progress=self.progress)
        examples, targets = lin.pairs(X, y, "X")
        prior = "shared" if self.prior_std is None else self.prior_std
        noise = "shared" if self.noise_std is None else self.noise_std
        gp, likelihood = maximize_evidence(gp, examples, targets, prior_std=prior, noise_std=noise)
        posterior = gp.condition(examples, targets, likelihood=likelihood, method=method)
        std = likelihood.noise_std.numpy()
        self.posterior_ = posterior
        self.method_ = posterior.method if layer is None else replace(layer, method=posterior.method)
        self.method_reason_ = posterior.reason
        self.prior_std_ = gp.prior_std
        self.noise_std_: Any = float(std) if std.ndim == 0 else std.copy()
        self.log_marginal_likelihood_value_ = posterior.log_evidence
        self.n_outputs_ = posterior.n_outputs
        remember_columns(self, X)
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Array | tuple[Array, Array]:
        """Predict observations at new examples.

        Args:
            X: m examples.
            return_std: also the standard deviation of an observation, noise included, like the mean.
            return_cov: also the joint covariance (m·c, m·c) of the observations, row i·c + k output k of example i.

        Returns:
            The mean (m,) or (m, c) as y was; or the mean and what was asked for.

        Raises:
            NotFittedError: before fit.
            InvalidData: examples that cannot be used.
            InvalidOption: both return_std and return_cov.
        """
        if return_std and return_cov:
            raise InvalidOption("return_std: got True together with return_cov; ask for one of them at a time.")
        prediction = self._predict(X, observed=return_std or return_cov)
        mean = _numpy(prediction.mean)
        if return_std:
            return mean, _numpy(prediction.std)
        return (mean, _numpy(prediction.covariance)) if return_cov else mean

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """Joint samples of observations at new examples.

        Args:
            X: m examples.
            n_samples: s.
            random_state: a seed, a NumPy RandomState, or None.

        Returns:
            (m, s), or (m, c, s) where y was (n, c).
        """
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        generator = torch.Generator().manual_seed(seed)
        samples = self._predict(X, observed=True).sample(n_samples, generator=generator)
        return _numpy(samples.movedim(0, -1))

    def _predict(self, X: Any, *, observed: bool) -> Any:
        check_is_fitted(self, "posterior_")
        check_columns(self, X)
        return self.posterior_.predict(self.posterior_.examples(X, "X"), observed=observed)

    def _method(self) -> Method | None:
        if self.method is None or isinstance(self.method, Method):
            return self.method
        if not isinstance(self.method, str) or self.method not in _METHODS:
            raise InvalidOption(
                f"method: got {self.method!r}; expected {', '.join(map(repr, _METHODS))}, or an object with its "
                "options like jacana.FunctionSpace()."
            )
        return _METHODS[self.method]


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()
