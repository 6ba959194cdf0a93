"""Choice: the method for observations where none was named, by what each would take."""

from __future__ import annotations

from jacana.linearization import fits
from jacana.posteriors.function_space import FunctionSpace
from jacana.posteriors.method import Method
from jacana.posteriors.observations import Observations
from jacana.posteriors.weight_space import WeightSpace
from jacana.solvers import CG

__all__ = ["choose"]


def choose(observations: Observations) -> Method:
    """The factorisation of the smaller side, n·c or p, if it fits in memory, or of the other; else conjugate gradients.

    Weight space divides by the noise, which must not be zero then.
    """
    lin = observations.model.lin
    n, p = observations.residual.numel(), lin.n_parameters
    nbytes: dict[Method, int] = {FunctionSpace(): 2 * 8 * n * n}
    if not bool((observations.noise == 0.0).any()):
        nbytes[WeightSpace()] = 6 * 8 * p * p
    for method in sorted(nbytes, key=lambda method: p if isinstance(method, WeightSpace) else n):  # the smaller side
        if fits(nbytes[method], lin.device):
            return method
    return FunctionSpace(CG())
