"""StochasticMAP: the mode alone, from batches as they come by."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.errors import InvalidOption, NotConverged
from jacana.likelihoods import HeteroscedasticGaussian, Likelihood, unscaled
from jacana.posteriors.dual_ascent import DualAscent
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.posteriors.point import PointState
from jacana.solvers import Solution

__all__ = ["StochasticMAP"]

_MARGIN = 1.1


@final
@dataclass(frozen=True)
class StochasticMAP(Method):
    """The most probable weights of the linear model, as :class:`MAP` has them, from one batch of examples at a time.

        δ̂ = argmax log p(y | m + J δ) − ½ δᵀ S⁻¹ δ,     δ̂ = S Jᵀ α,     αᵢ = ∇ log p(yᵢ | fᵢ)

    A batch B draws its α towards the gradient at its examples, and the weights along, by η = 1 / (1 + λ) of the way, λ
    the largest eigenvalue of S^½ J_Bᵀ H J_B S^½ over the batches; with Nesterov's acceleration the error falls by e in
    about √(1 + λ) epochs. There is no learning rate: λ is measured again and again, as the curvature H changes, and
    where the gradient grows, the ascent goes back and takes shorter steps.

    Choose it for log p that is concave in f and data that are read in batches, from DataLoaders and memory maps, where
    Newton's method would pass over them for each step of conjugate gradients. A batch costs one product with its J and
    one with its Jᵀ. Smaller batches have a smaller λ, a wide prior or little noise a larger one. In memory are about
    6 n·c + 10 p numbers, what is kept of the batches within the budget of products, and 256 MiB of examples that wait
    to be drawn: in random order batches converge several times as fast as in that of the data.

    It ends with a certificate. In units of the prior, u = S^-½ δ, the log posterior is 1-strongly concave, so that its
    gradient g bounds the distance from the mode, ‖u − û‖ ≤ ‖g‖. ``Posterior.solution`` has u as its ``x``, g as its
    ``remainder``, from a pass over all data with products in the network's dtype, and ‖g‖ / ‖u‖ as its relative
    residual; its steps are epochs, and its products passes over the data.

    Args:
        rtol: tolerance of ‖g‖ / ‖u‖, which bounds the relative error of the weights in units of the prior.
        max_epochs: how often each batch is drawn; the passes that measure and certify come on top.
        step: η, relative to 1 / (1 + λ), at first.

    Raises:
        InvalidOption: a tolerance, number of epochs or step out of range; a likelihood with several modes; a variance,
            a sample or the evidence is asked for.
        InvalidData: a DataLoader that shuffles.

    Warns:
        NotConverged: the tolerance was not reached; what was found has the smallest bound there was.

    References:
        Shalev-Shwartz 2016, SDCA without duality, regularization, and individual convexity (arXiv 1602.01582), section
        2, for the steps. Lin, Lu, Xiao 2014, An accelerated proximal coordinate gradient method (arXiv 1407.1296),
        algorithm 1, for their acceleration.

    Example:
        >>> import jacana, torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
        >>> x = torch.randn(60, 2)
        >>> labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        >>> loader = DataLoader(TensorDataset(x, labels), batch_size=10)
        >>> post = jacana.TangentGP(net).condition(
        ...     loader, likelihood=jacana.Categorical(), method=jacana.StochasticMAP()
        ... )
        >>> post.solution.converged, post.predict(torch.tensor([[2.0, 2.0], [-2.0, -2.0]])).mean.argmax(1).tolist()
        (True, [2, 0])
    """

    exact: ClassVar[bool] = False

    rtol: float | int = 1e-3
    max_epochs: int = 300
    step: float | int = 1.0

    def __post_init__(self) -> None:
        for name, high in (("rtol", 1.0), ("step", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < high:
                raise InvalidOption(f"{name}: got {value!r}; expected a number between 0 and {high}.")
        if isinstance(self.max_epochs, bool) or not isinstance(self.max_epochs, int) or self.max_epochs < 1:
            raise InvalidOption(f"max_epochs: got {self.max_epochs!r}; expected a positive whole number.")

    @property
    def streams(self) -> bool:
        return True

    def check(self, likelihood: Likelihood) -> None:
        """Refuse what is known to be not concave in f, where no gradient bounds the distance from a mode."""
        if isinstance(unscaled(likelihood), HeteroscedasticGaussian):
            raise InvalidOption(
                "method: StochasticMAP is for log p(y | f) that is concave in f, and the likelihood is "
                "HeteroscedasticGaussian; take jacana.MAP() or jacana.Laplace()."
            )

    def condition(self, observations: Observations, *, progress: bool) -> State:
        return _climbed(self, observations, torch.zeros_like(observations.offset), progress=progress)


def _climbed(
    options: StochasticMAP, observations: Observations, start: Float64[Tensor, "n c"], *, progress: bool
) -> _StochasticState:
    """The mode, from some α on."""
    began = time.perf_counter()
    ascent = DualAscent(observations, options.step, start)
    ratio = 1.0  # of a certificate to what the batches saw: they correct each other while they come by
    bar = tqdm(range(options.max_epochs), desc="mode", unit="epoch", delay=1.0, leave=False, disable=not progress)
    for _ in bar:
        if ascent.best.bound <= options.rtol:
            break
        seen = ascent.epoch()
        bar.set_postfix_str(f"{ratio * seen / options.rtol:.1e} times the tolerance", refresh=False)
        if ratio * seen <= options.rtol:
            ratio = max(1.0, _MARGIN * ascent.certify() / (seen or 1.0))
    bar.close()
    if ascent.best.bound > options.rtol:
        ascent.certify_nearest()
    point = ascent.best
    if point.bound > options.rtol:
        warnings.warn(
            f"StochasticMAP: after {ascent.epochs} epochs the mode is known to within {point.bound:.1e} of the length "
            f"of the weights, and {options.rtol:.1e} was asked for; take more epochs (max_epochs, now "
            f"{options.max_epochs}), smaller batches, a larger rtol, a smaller prior_std, or the network in float64.",
            NotConverged,
            stacklevel=4,
        )
    solution = Solution(
        point.u, point.slope, point.u.new_tensor([point.bound]), ascent.epochs, ascent.passes,
        time.perf_counter() - began, point.bound <= options.rtol,
    )  # fmt: skip
    return _StochasticState(options, observations, point.dual, solution, progress=progress)


@final
class _StochasticState(PointState):
    """u and the α that it came with."""

    name: ClassVar[str] = "StochasticMAP()"

    def __init__(
        self,
        options: StochasticMAP,
        observations: Observations,
        dual: Float64[Tensor, "n c"],
        solution: Solution,
        *,
        progress: bool,
    ) -> None:
        super().__init__(observations)
        self._options, self._dual, self._solution, self._progress = options, dual, solution, progress

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        model = self.observations.model
        return model.prior.vector(model.lin.device) * self._solution.x.squeeze(1)

    @property
    def solution(self) -> Solution:
        return self._solution

    def extended(self, more: Observations) -> State:
        start = torch.cat([self._dual, torch.zeros_like(more.offset)])
        return _climbed(self._options, self.observations.followed_by(more), start, progress=self._progress)
