"""One-hot regression: ridge regression on class indicators, scaled to logits by leaving examples out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import minimize_scalar
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Categorical, Gaussian
from jacana.posteriors.delegated import Delegated
from jacana.posteriors.label_regression import LabelRegression, counted
from jacana.posteriors.last_layer import LastLayer
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.posteriors.ridge import Ridge

__all__ = ["LeftOutLoss", "OneHotRegression"]

_NOISES = 10.0 ** (np.arange(-9, 7) / 3.0)
"""Candidates, in units of the prior's standard deviation: from 0.001 to 100, three to a decade."""

_SCALES = 10.0 ** (np.arange(-4, 11) / 2.0)
"""Where a best scale is looked for, in units that make the root mean square of what is scaled one."""

_NOTHING = 1e-8
"""What others say of an example's indicators, where it is rounding of a kernel from a network in float32."""

_SAME = 1e-9
"""The share of a loss that is rounding."""


@final
@dataclass(frozen=True)
class OneHotRegression(LabelRegression):
    """Classification as ridge regression on indicators, in closed form, and calibrated in closed form.

        r_i = e_{y_i} − softmax(m(x_i)),     m + s r = f + ε,     ε ~ N(0, σ²)
        E f* = m* + s K*ᵀ (K + σ² I)⁻¹ r,     cov f* = K** − K*ᵀ (K + σ² I)⁻¹ K*

    r is what the label adds to what the network says; with ``mean="zero"`` it is the centred indicator e_y − 1/c of
    common practice. A ridge regression finds which class leads, not by how much: its outputs are no logits. s says how
    many logits an indicator is worth, and the prior stays the one that was given.

    s and σ, where they are not given, minimise the leave-one-out loss −Σ_i log p(y_i | all other labels), with p as
    :class:`Probit` has it, of the mean and the covariance that are left when example i is: in closed form, for every s
    and σ from one decomposition of K. So the probabilities are calibrated by labels that they have not seen, each of
    them by all. One label's worth of uniform labels is added to the n (Platt's rule): s stays finite where all of those
    left out are right. σ is taken from sixteen candidates, from 0.001 to 100 times the root mean square of the prior's
    standard deviations. Where leaving out says nothing, with n = 1, s is c: Newton's first step from equal
    probabilities.

    Choose it where :class:`Laplace` takes too long: there is no mode to be found. The log-evidence is that of m + s r
    with the given s, and compares nothing where s was learned. A weight divides σ². There is no leave-one-out.

    Cost: to learn s or σ one kernel and one eigendecomposition, 10 (n·c)³ operations, or a singular value decomposition
    of J where p < n·c; then what the inner method costs.

    Args:
        noise_std: σ, in units of the prior's standard deviations, not of r; learned if None.
        scale: s; learned if None. Methods with more data than a decomposition can take need both.
        method: how the regression is computed: any method for Gaussian noise; by default the cheapest. For one layer
            write ``LastLayer(method=OneHotRegression())``.

    Raises:
        InvalidOption: a noise that is not positive, a negative scale, or a method that cannot; at conditioning, any
            likelihood but :class:`Categorical`, weighted or not.
        InsufficientMemory: at conditioning, where the decomposition does not fit.
        NotPositiveDefinite: at conditioning, a noise too small to leave examples out.

    References:
        Rifkin, Yeo, Poggio 2003, Regularized least-squares classification. Maddox et al. 2021 (arXiv 2103.01439),
        section 4.2. Platt 1999, Probabilistic outputs for support vector machines, section 2.2, for the added label.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
        >>> x = torch.randn(60, 2)
        >>> labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        >>> gp, method = jacana.TangentGP(net), jacana.OneHotRegression()
        >>> post = gp.condition(x, labels, likelihood=jacana.Categorical(), method=method)
        >>> post.predict(torch.tensor([[2.0, 2.0], [-2.0, -2.0]])).probabilities().argmax(1).tolist()
        [2, 0]
    """

    noise_std: float | int | None = None
    scale: float | int | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("noise_std", self.noise_std, "positive"), ("scale", self.scale, "zero or larger")):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
                raise InvalidOption(f"{name}: got {value!r}; expected a number, {least}, or None to learn it.")
        if self.noise_std == 0.0:
            raise InvalidOption("noise_std: got zero; expected a positive number, or None to learn it.")
        self.check_method()
        if isinstance(self.method, LastLayer):
            raise InvalidOption(
                f"method: got {self.method!r}, whose kernel is another; write LastLayer(method=OneHotRegression())."
            )

    def condition(self, observations: Observations, *, progress: bool) -> State:
        return _OneHotState(observations, self.regressed(observations, progress=progress), self, progress=progress)

    def regression(self, observations: Observations, *, progress: bool) -> Observations:
        """M + s r with its noise."""
        kept, weights = counted(observations)
        residual = Categorical().gradient(kept.offset, kept.targets)  # e_y − softmax(m)
        noise_std, scale = self.noise_std, self.scale
        if noise_std is None or scale is None:
            noise_std, scale = self._learned(kept, residual, weights, progress=progress)
        targets = kept.offset + scale * residual
        noise = (noise_std * weights.rsqrt()).unsqueeze(1).expand_as(targets)
        likelihood = Gaussian(noise if bool((weights != 1.0).any()) else noise_std)
        return replace(kept, targets=targets, likelihood=likelihood, flat=False)

    def _learned(
        self, kept: Observations, residual: Float64[Tensor, "n c"], weights: Float64[Tensor, " n"], *, progress: bool
    ) -> tuple[float, float]:
        """σ and s of the least loss; of equal ones, the noise nearest to the prior's scale."""
        ridge = Ridge.of(kept, residual, weights, progress=progress,
                         cure="give both noise_std and scale, or fewer examples.")  # fmt: skip
        unit = ridge.size or 1.0
        candidates = [unit * float(ratio) for ratio in sorted(_NOISES, key=lambda ratio: abs(math.log(ratio)))]
        best = (math.inf, 0.0, 0.0)
        for noise_std in candidates if self.noise_std is None else [float(self.noise_std)]:
            loss = LeftOutLoss(kept, weights, *ridge.left_out(noise_std))
            scale = loss.best_scale() if self.scale is None else float(self.scale)
            found = loss(scale)
            if found < best[0] * (1.0 - _SAME):
                best = (found, noise_std, scale)
        return best[1], best[2]


@final
class LeftOutLoss:
    """−Σ_i w_i log p(y_i | all other labels), and of one more label that could be any, by the scale.

    Args:
        observations: labels, with the network's logits m.
        weights: w.
        mean: of g at each example given all others.
        covariance: of f there.
    """

    def __init__(
        self,
        observations: Observations,
        weights: Float64[Tensor, " n"],
        mean: Float64[Tensor, "n c"],
        covariance: Float64[Tensor, "n c c"],
    ) -> None:
        self._logits, self._labels = observations.offset, observations.targets
        self._weights, self._mean, self._covariance = weights, mean, covariance

    def __call__(self, scale: float) -> float:
        """The loss in nats."""
        p = Categorical().probit(self._logits + scale * self._mean, self._covariance)
        logs = p.clamp_min(torch.finfo(p.dtype).tiny).log()
        own = logs.gather(1, self._labels.unsqueeze(1)).squeeze(1)
        anything = logs.mean(1) / self._weights.sum()
        return -float((self._weights * (own + anything)).sum())

    def best_scale(self) -> float:
        """The scale of the least loss: a scan of its logarithm, then Brent's method; zero where no other is better."""
        size = float(self._mean.square().mean().sqrt())
        if size <= _NOTHING:
            return float(self._logits.shape[1])
        spread = 1.0 + float(self._covariance.diagonal(dim1=1, dim2=2).mean())
        grid = _SCALES * math.sqrt(spread) / size
        losses = [self(float(scale)) for scale in grid]
        i = int(np.argmin(losses))
        found = minimize_scalar(
            lambda t: self(math.exp(t)),
            bounds=(math.log(grid[max(i - 1, 0)]), math.log(grid[min(i + 1, len(grid) - 1)])),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return min((self(0.0), 0.0), (float(found.fun), math.exp(float(found.x))))[1]


@final
class _OneHotState(Delegated):
    """The posterior of the regression, with the s and σ that it has."""

    def __init__(self, observations: Observations, inner: State, method: OneHotRegression, *, progress: bool) -> None:
        super().__init__(observations, inner)
        self._method, self._progress = method, progress

    def extended(self, more: Observations) -> State:
        """What was learned is learned again, from all labels."""
        method, together = self._method, self.observations.followed_by(more)
        if method.noise_std is None or method.scale is None:
            return method.condition(together, progress=self._progress)
        inner = self.inner.extended(method.regression(more, progress=self._progress))
        return _OneHotState(together, inner, method, progress=self._progress)
