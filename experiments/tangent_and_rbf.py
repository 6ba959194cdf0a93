"""A network's tangent kernel plus an RBF kernel on its residual: a GPyTorch model, its numbers learned by evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gpytorch
import numpy as np
import torch
from linear_operator.utils.errors import NanError, NotPSDError
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from torch import Tensor, nn

import jacana
from experiments.adaptation import NEGLIGIBLE, NOISE_FLOOR

__all__ = ["TangentAndRBF", "fit"]

SCOUTS = 300
"""Every start is tried on so many labels; the best goes on with all."""

STEPS = 60
"""L-BFGS steps at most."""


@dataclass(frozen=True)
class TangentAndRBF:
    r"""y - m(x) ~ GP(b, s² J Jᵀ + a² RBF) + noise, m the network's output or zero: both, averaged by their evidence.

    Where the map has changed much its residual is no smoother than the map itself; the evidence knows.

    Attributes:
        models: GPyTorch's model of what is left with each mean.
        log_evidences: Log marginal likelihoods of the labels that they were fitted on.
    """

    models: dict[str, _Residual]
    log_evidences: dict[str, float]

    @property
    def weights(self) -> dict[str, float]:
        """The probability of each mean given the labels."""
        most = max(self.log_evidences.values())
        shares = {name: float(np.exp(evidence - most)) for name, evidence in self.log_evidences.items()}
        return {name: share / sum(shares.values()) for name, share in shares.items()}

    def predict(self, x: Tensor, y: Tensor, at: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of observations given any number of labels: exact."""
        weights = {name: weight for name, weight in self.weights.items() if weight >= NEGLIGIBLE}
        answers = [self.models[name].conditioned(x.double(), y, at.double()) for name in weights]
        shares = np.array(list(weights.values()))[:, None] / sum(weights.values())
        means, variances = (np.stack(part) for part in zip(*answers, strict=True))
        mean = (shares * means).sum(0)
        return mean, np.sqrt((shares * (variances + (means - mean) ** 2)).sum(0))

    def summary(self) -> dict[str, Any]:
        """The numbers of the more probable one, for a record."""
        best = max(self.log_evidences, key=lambda name: self.log_evidences[name])
        model = self.models[best]
        tangent, smooth = model.covar_module.kernels
        return {
            "weights": self.weights,
            "log_evidence": self.log_evidences[best],
            "prior_std": tangent.prior_std.item(),
            "amplitude": smooth.outputscale.item() ** 0.5,
            "lengths": smooth.base_kernel.lengthscale.detach()[0].tolist(),
            "noise_std": model.likelihood.noise.item() ** 0.5,
        }


class _Residual(gpytorch.models.ExactGP):  # type: ignore[misc]
    def __init__(self, net: jacana.Linearization, mean: gpytorch.means.Mean, x: Tensor, y: Tensor) -> None:
        x, floor = x.double(), (NOISE_FLOOR * float(y.std())) ** 2
        residual = (y - mean(x)).detach()
        bound = gpytorch.constraints.GreaterThan(floor)
        super().__init__(x, residual, gpytorch.likelihoods.GaussianLikelihood(noise_constraint=bound))
        self.known, self.offset = mean, gpytorch.means.ConstantMean()
        smooth = gpytorch.kernels.RBFKernel(ard_num_dims=x.shape[1])
        self.covar_module = jacana.NeuralTangentKernel(net) + gpytorch.kernels.ScaleKernel(smooth)
        self.double()

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.offset(x), self.covar_module(x))

    def start(self, tangent: float, amplitude: float) -> _Residual:
        """With these shares of the residual's spread explained by the two kernels, and the rest by noise."""
        [x], spread = self.train_inputs, float(self.train_targets.std())
        kernel, smooth = self.covar_module.kernels
        with torch.no_grad():
            kernel.prior_std = 1.0
            unit = float(kernel(x, diag=True).mean()) ** 0.5
        kernel.prior_std = tangent * spread / unit
        smooth.outputscale = (amplitude * spread) ** 2
        smooth.base_kernel.lengthscale = 0.5 * x.std(0)
        bound = self.likelihood.noise_covar.raw_noise_constraint.lower_bound.item()
        self.likelihood.noise = max((0.1 * spread) ** 2, 2.0 * bound)
        self.offset.constant = float(self.train_targets.mean())
        return self

    def learn(self) -> float:
        """Its numbers by the greatest log marginal likelihood, from where they are; returns it."""
        [x], y = self.train_inputs, self.train_targets
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self)
        numbers = [p for p in self.parameters() if p.requires_grad]

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            nn.utils.vector_to_parameters(torch.from_numpy(point), numbers)
            try:
                value = -evidence(self(x), y)
            except (NanError, NotPSDError):  # too far out for a line search to go; it turns back
                return 1e25, np.zeros_like(point)
            slopes = torch.autograd.grad(value, numbers)
            return value.item(), nn.utils.parameters_to_vector(slopes).numpy()

        self.train()
        with gpytorch.settings.max_cholesky_size(len(x) + 1):
            start = nn.utils.parameters_to_vector(numbers).detach().numpy()
            found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
            nn.utils.vector_to_parameters(torch.from_numpy(found.x), numbers)
        self.eval()
        return -float(found.fun) * len(x)

    def conditioned(self, x: Tensor, y: Tensor, at: Tensor, block: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of observations, factorised in place: GPyTorch itself would hold several such matrices."""
        offset, noise, kernel = self.offset.constant.item(), self.likelihood.noise.item(), self.covar_module
        with torch.no_grad(), gpytorch.settings.max_cholesky_size(len(x) + 1):
            covariance = np.empty((len(x), len(x)))
            for rows in _blocks(len(x), block):
                covariance[rows] = kernel(x[rows], x).to_dense().numpy()
            covariance[np.diag_indices(len(x))] += noise
            factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
            weights = cho_solve((factor, True), (y - self.known(x)).numpy() - offset, check_finite=False)
            mean = self.known(at).numpy() + offset
            variance = kernel(at, diag=True).numpy() + noise
            for rows in _blocks(len(at), block):
                cross = kernel(at[rows], x).to_dense().numpy()
                mean[rows] += cross @ weights
                half = solve_triangular(factor, cross.T, lower=True, overwrite_b=True, check_finite=False)
                variance[rows] -= (half**2).sum(axis=0)
        return mean, variance


class _Zero(gpytorch.means.Mean):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


def fit(net: nn.Module, x: Tensor, y: Tensor) -> TangentAndRBF:
    """Both kernels' scales, the length scales, the offset and the noise, by the evidence of these labels.

    Args:
        net: The source network.
        x: Target inputs, (n, d).
        y: Target labels, (n,), float64.
    """
    linearization = jacana.linearize(net)
    means = {"network": jacana.NetworkMean(linearization), "zero": _Zero()}
    found = {name: _fit(linearization, mean, x, y) for name, mean in means.items()}
    return TangentAndRBF({k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()})


def _fit(net: jacana.Linearization, mean: gpytorch.means.Mean, x: Tensor, y: Tensor) -> tuple[_Residual, float]:
    few = min(SCOUTS, len(x))
    scouts = [
        _Residual(net, mean, x[:few], y[:few]).start(tangent, amplitude)
        for tangent, amplitude in ((1.0, 0.1), (0.1, 1.0), (0.7, 0.7))
    ]
    evidences = [scout.learn() for scout in scouts]
    best = int(np.argmax(evidences))
    if few == len(x):
        return scouts[best], evidences[best]
    model = _Residual(net, mean, x, y)
    model.load_state_dict(scouts[best].state_dict())
    return model, model.learn()


def _blocks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))
