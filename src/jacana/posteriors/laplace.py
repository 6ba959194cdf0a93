"""Laplace: a Gaussian at the mode, with the curvature of the data there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Likelihood
from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.method import Method, State
from jacana.posteriors.mode import Mode, mode_of
from jacana.posteriors.observations import Observations
from jacana.posteriors.side_choice import chosen, side_of
from jacana.posteriors.sides import Side

__all__ = ["Laplace"]


@final
@dataclass(frozen=True)
class Laplace(Method):
    """The Laplace approximation of the linear model, at its own mode, with its curvature on the training data.

        δ̂ = argmax log p(y | m + J δ) − ½ δᵀ S⁻¹ δ,     δ | y ≈ N(δ̂, (S⁻¹ + Jᵀ H J)⁻¹)
        log p(y) ≈ log p(y | m + J δ̂) − ½ δ̂ᵀ S⁻¹ δ̂ − ½ log |I + H^½ K H^½|

    For class labels, counts and whatever else has a likelihood; with Gaussian noise it is exact. Where log p is concave
    in f there is one mode, and Newton's method ends there from any start. H keeps the covariance between the outputs of
    an example. Costs about ten factorisations of one side: (n·(c−1))³/3 each on the data's for :class:`Categorical`,
    2 n·c p² on the parameters'.

    Args:
        method: where the algebra is done: :class:`FunctionSpace` or :class:`WeightSpace` factorise a side;
            ``WeightSpace(CG())`` and :class:`Pathwise` (variances from its samples) need Fisher products alone, for
            DataLoaders too. By default the smaller of n·c and p is factorised up to 12,000 where it fits, and
            beyond, :class:`Pathwise` is taken.

    Raises:
        InvalidOption: another method.

    Warns:
        NotConverged: the mode was not reached.

    References:
        MacKay 1992, The evidence framework applied to classification networks. Rasmussen and Williams 2006, Gaussian
        Processes for Machine Learning, sections 3.4 and 3.5. Khan, Immer, Abedi, Korzepa 2019 (arXiv 1906.01930) and
        Immer, Korzepa, Bauer 2021 (arXiv 2008.08400), for the linearized network. Maddox et al. 2021 (arXiv
        2103.01439), section 4.2.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
        >>> x = torch.randn(60, 2)
        >>> labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        >>> post = jacana.TangentGP(net).condition(x, labels, likelihood=jacana.Categorical(), method=jacana.Laplace())
        >>> p = post.predict(torch.tensor([[2.0, 2.0], [-2.0, -2.0]])).probabilities()
        >>> p.argmax(1).tolist()
        [2, 0]
    """

    exact: ClassVar[bool] = False

    method: Method | None = None

    def __post_init__(self) -> None:
        if self.method is not None and not isinstance(self.method, Method):
            raise InvalidOption(f"method: got {self.method!r}; expected one like jacana.FunctionSpace(), or None.")

    @property
    def streams(self) -> bool:
        return self.method is not None and self.method.streams

    def check(self, likelihood: Likelihood) -> None:
        pass

    def condition(self, observations: Observations, *, progress: bool) -> State:
        method = chosen(observations) if self.method is None else self.method
        side = side_of(observations, method, progress=progress)
        return LaplaceState(side, mode_of(side), method, progress=progress)


@final
class LaplaceState(State):
    """The mode and the precision there."""

    def __init__(self, side: Side, mode: Mode, method: Method, *, progress: bool) -> None:
        super().__init__(side.observations)
        self._side, self.mode, self._method, self._progress = side, mode, method, progress

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._side.weights(self.mode.u)

    @property
    def log_evidence(self) -> float:
        return self.evidence.value

    @cached_property
    def evidence(self) -> Estimate:
        found = self.mode.precision.log_determinant
        return Estimate(self.mode.value - 0.5 * found.value, 0.5 * found.std_error, found.products)

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self.mode.precision.variance(x)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        return self.mode.precision.blocks(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self.mode.precision.covariance(x)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self.weights.unsqueeze(1) + self.mode.precision.deviations(n, generator)

    def extended(self, more: Observations) -> State:
        side = side_of(self.observations.followed_by(more), self._method, progress=self._progress)
        return LaplaceState(side, mode_of(side), self._method, progress=self._progress)
