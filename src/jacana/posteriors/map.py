"""MAP: the mode alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NoReturn, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Likelihood
from jacana.networks import Examples
from jacana.posteriors.method import Method, State
from jacana.posteriors.mode import Mode, mode_of
from jacana.posteriors.observations import Observations
from jacana.posteriors.side_choice import chosen, side_of
from jacana.posteriors.sides import Side

__all__ = ["MAP"]


@final
@dataclass(frozen=True)
class MAP(Method):
    """The most probable weights of the linear model, and nothing of what else they could be.

        δ̂ = argmax log p(y | m + J δ) − ½ δᵀ S⁻¹ δ

    Newton's method, each step solved on one side or by conjugate gradients on exact Fisher products. Where log p is
    concave in f, as for classes and counts, the answer is the same from any start. Its class probabilities are those of
    the mode; variances, samples and the evidence are refused: :class:`Laplace` has them for one more factorisation.

    Args:
        method: where the algebra is done, as for :class:`Laplace`.

    Raises:
        InvalidOption: another method; a variance, a sample or the evidence is asked for.

    Warns:
        NotConverged: the mode was not reached.

    References:
        Maddox et al. 2021 (arXiv 2103.01439), section 4.2; their regulariser is not squared and their loss counts the
        data twice, this one is the negative log posterior.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))
        >>> x, labels = torch.randn(30, 2), torch.arange(30) % 2
        >>> post = jacana.TangentGP(net).condition(x, labels, likelihood=jacana.Categorical(), method=jacana.MAP())
        >>> post.weights.shape, post.predict(x).probabilities().shape
        (torch.Size([102]), torch.Size([30, 2]))
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
        return _MAPState(side, mode_of(side), method, progress=progress)


class _MAPState(State):
    """A point."""

    def __init__(self, side: Side, mode: Mode, method: Method, *, progress: bool) -> None:
        super().__init__(side.observations)
        self._side, self._mode, self._method, self._progress = side, mode, method, progress

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._side.weights(self._mode.u)

    @property
    def log_evidence(self) -> float:
        self._refuse("evidence")

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:  # noqa: ARG002 - of the base
        self._refuse("variance")

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:  # noqa: ARG002 - of the base
        self._refuse("covariance")

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:  # noqa: ARG002
        self._refuse("samples")

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        """Zeros: what is averaged over is the mode."""
        c = self.observations.c
        return torch.zeros(len(x), c, c, dtype=torch.float64, device=self._mode.f.device)

    def extended(self, more: Observations) -> State:
        side = side_of(self.observations.followed_by(more), self._method, progress=self._progress)
        return _MAPState(side, mode_of(side), self._method, progress=self._progress)

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise InvalidOption(f"method: MAP() is a point and has no {what}; condition with method=jacana.Laplace().")
