"""Laplace: a Gaussian at the mode, with the curvature of the data there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.at_mode import AtMode, ModeState
from jacana.posteriors.method import State
from jacana.posteriors.mode import Mode
from jacana.posteriors.sides import Side, Spread

__all__ = ["Laplace"]


@final
@dataclass(frozen=True)
class Laplace(AtMode):
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
        rtol: by how much of the prior's a latent variance may be too large, never too small. Above zero, the side of
            the data leaves out the directions that tell less, and predictions are contracted in the network's dtype:
            many of them take a fraction of the time. Zero is exact.

    Raises:
        InvalidOption: another method, a tolerance out of range.

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

    rtol: float | int = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, int | float) or not 0.0 <= self.rtol < 1.0:
            raise InvalidOption(f"rtol: got {self.rtol!r}; expected zero, or a number below one, e.g. 1e-3.")

    def state(self, side: Side, mode: Mode, *, progress: bool) -> State:
        return LaplaceState(self, side, mode, mode.precision.within(self.rtol), progress=progress)


@final
class LaplaceState(ModeState):
    """The mode and the precision there.

    Args:
        options: its method.
        side: on which it was found.
        mode: where.
        spread: of the precision, as it is asked for.
        progress: show bars when more examples come.
    """

    def __init__(self, options: AtMode, side: Side, mode: Mode, spread: Spread, *, progress: bool) -> None:
        super().__init__(options, side, mode, progress=progress)
        self._spread = spread

    @property
    def log_evidence(self) -> float:
        return self.evidence.value

    @cached_property
    def evidence(self) -> Estimate:
        found = self.mode.precision.log_determinant
        return Estimate(self.mode.value - 0.5 * found.value, 0.5 * found.std_error, found.products)

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self._spread.variance(x)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        return self._spread.blocks(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self._spread.covariance(x)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self.weights.unsqueeze(1) + self._spread.deviations(n, generator)
