"""Which side the algebra of a posterior is done on."""

from __future__ import annotations

from jacana.errors import InvalidOption
from jacana.linearization import fits
from jacana.posteriors.function_space import FunctionSpace
from jacana.posteriors.method import Method
from jacana.posteriors.observations import Observations
from jacana.posteriors.pathwise import Pathwise
from jacana.posteriors.sides import KernelSide, ProductSide, Side, WeightSide
from jacana.posteriors.weight_space import WeightSpace

__all__ = ["chosen", "side_of"]

_LARGEST_SIDE = 12_000
"""Beyond as many rows or parameters several factorisations take longer than iterations."""


def chosen(observations: Observations) -> Method:
    """The smaller side where it can be factorised several times, else samples."""
    lin = observations.model.lin
    rows, p = observations.n * observations.c, lin.n_parameters
    side: Method = FunctionSpace() if rows <= p else WeightSpace()
    squares = 5 if rows <= p else 6
    small = min(rows, p)
    return side if small <= _LARGEST_SIDE and fits(squares * 8 * small**2, lin.device) else Pathwise()


def side_of(observations: Observations, method: Method, *, progress: bool) -> Side:
    """The side that a method names.

    Raises:
        InvalidOption: a method that works in another way.
    """
    if isinstance(method, FunctionSpace) and method.solver == FunctionSpace().solver:
        return KernelSide.of(observations, progress=progress)
    if isinstance(method, WeightSpace) and method.solver is None:
        return WeightSide(observations)
    if isinstance(method, WeightSpace | Pathwise) and method.solver is not None:
        n_samples = method.n_samples if isinstance(method, Pathwise) else None
        seed = method.seed if isinstance(method, Pathwise) else 0
        return ProductSide(observations, method.solver, n_samples=n_samples, seed=seed, progress=progress)
    raise InvalidOption(
        f"method: got {method!r}; expected jacana.FunctionSpace() or jacana.WeightSpace(), which factorise a side, "
        "jacana.WeightSpace(jacana.CG()) or jacana.Pathwise(), which need products alone, or None for the cheapest."
    )
