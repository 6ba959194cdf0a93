"""Dirichlet regression: class labels as log-normal observations of unnormalised probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Gaussian
from jacana.posteriors.delegated import Delegated
from jacana.posteriors.label_regression import LabelRegression, counted
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations

__all__ = ["DirichletRegression"]


@final
@dataclass(frozen=True)
class DirichletRegression(LabelRegression):
    """Classification as one Gaussian regression, whose noise is known: each label is a Dirichlet distribution.

        α_ik = α + 1[y_i = k],     σ²_ik = log(1 + 1/α_ik),     ỹ_ik = log α_ik − σ²_ik / 2
        ỹ_ik = f_ik + ε_ik,     ε_ik ~ N(0, σ²_ik)

    A Dirichlet variable is a vector of independent Gamma(α_ik, 1) over their sum; each is taken for a log-normal one of
    the same mean and variance, so that its logarithm is normal, and f a logit. There is no mode to be found: it costs
    one factorisation where :class:`Laplace` takes ten, and no noise has to be learned. The noise goes by the label,
    hence by output and example, 0.7 for the label's own class and 4.6 for the others (variances, α = 0.01).

    With ``mean="zero"`` it is the paper's model. The network's logits, where these are the mean, say nothing of the
    level of an example, the constant that softmax does not see; but ỹ has one, that of Gamma(·, 1). So each example's
    ỹ_i is moved to the level where its logits fit best, Σ_k (ỹ_ik − m_ik) / σ²_ik = 0: a constant added to the logits
    changes nothing, and what is learned is what the network and the label disagree in.

    The log-evidence is that of ỹ: to compare prior scales or parameters of one network by, as the paper does, but not
    with other methods. A weight divides σ². There is no leave-one-out.

    Costs what the inner method does; in function space (n·c)³/3 operations.

    Args:
        concentration: α, what each class has before any label. Smaller ones trust the labels more.
        method: how the regression is computed: any method for Gaussian noise; by default the cheapest, as without
            labels.

    Raises:
        InvalidOption: a concentration that is not positive; a method that cannot; at conditioning, any likelihood but
            :class:`Categorical`, weighted or not.

    References:
        Milios, Camoriano, Michiardi, Rosasco, Filippone 2018, Dirichlet-based Gaussian processes for large-scale
        calibrated classification (arXiv 1805.10915), equations 4 to 6.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
        >>> x = torch.randn(60, 2)
        >>> labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        >>> gp, method = jacana.TangentGP(net), jacana.DirichletRegression()
        >>> post = gp.condition(x, labels, likelihood=jacana.Categorical(), method=method)
        >>> post.predict(torch.tensor([[2.0, 2.0], [-2.0, -2.0]])).probabilities().argmax(1).tolist()
        [2, 0]
    """

    concentration: float | int = 0.01
    method: Method | None = None

    def __post_init__(self) -> None:
        a = self.concentration
        if isinstance(a, bool) or not isinstance(a, int | float) or not 0.0 < a < math.inf:
            raise InvalidOption(f"concentration: got {a!r}; expected a positive number, e.g. 0.01.")
        self.check_method()

    def condition(self, observations: Observations, *, progress: bool) -> State:
        return _DirichletState(observations, self.regressed(observations, progress=progress), self)

    def regression(self, observations: Observations, *, progress: bool = False) -> Observations:  # noqa: ARG002
        """ỹ with its noise."""
        kept, weights = counted(observations)
        values, variances = self._log_normal(kept.targets, kept.c)
        if not kept.model.zero_mean:
            share = variances.reciprocal() / variances.reciprocal().sum(1, keepdim=True)
            values = values + (share * (kept.offset - values)).sum(1, keepdim=True)
        noise = Gaussian((variances / weights.unsqueeze(1)).sqrt())
        return replace(kept, targets=values, likelihood=noise, flat=False)

    def _log_normal(self, labels: Int64[Tensor, " n"], c: int) -> tuple[Float64[Tensor, "n c"], Float64[Tensor, "n c"]]:
        """ỹ and σ²."""
        alpha = self.concentration + torch.nn.functional.one_hot(labels, c).to(torch.float64)
        variances = alpha.reciprocal().log1p()
        return alpha.log() - 0.5 * variances, variances


@final
class _DirichletState(Delegated):
    """The posterior of the regression."""

    def __init__(self, observations: Observations, inner: State, method: DirichletRegression) -> None:
        super().__init__(observations, inner)
        self._method = method

    def extended(self, more: Observations) -> State:
        inner = self.inner.extended(self._method.regression(more))
        return _DirichletState(self.observations.followed_by(more), inner, self._method)
