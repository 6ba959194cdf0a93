"""Choice: the method for observations where none was named, by counted work and memory."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import final

import torch
from torch.utils.flop_counter import FlopCounterMode

from jacana.errors import LongWork
from jacana.likelihoods import Gaussian
from jacana.linearization import budget, explain, fits
from jacana.posteriors.function_space import FunctionSpace
from jacana.posteriors.laplace import Laplace
from jacana.posteriors.method import Method
from jacana.posteriors.observations import Observations
from jacana.posteriors.side_choice import chosen
from jacana.posteriors.weight_space import WeightSpace
from jacana.solvers import CG
from jacana.solvers.preconditioners import Diagonal

__all__ = ["Choice", "choose"]

_THREAD, _GPU = 1e10, 5e11
"""Operations a second, rather too few. Two threads take 12 s for the kernel and the factor of 10,000 observations, 8e11
operations, in results/posterior.json: a third of that. A GPU as consumers have it, in float64."""

_MINUTE, _HOUR = 60.0, 3600.0

_STEPS = 35
"""Of conjugate gradients: the most that results/posterior.json has with a preconditioner."""


@final
@dataclass(frozen=True)
class Choice:
    """What was taken, and why.

    Attributes:
        method: the method.
        reason: one sentence with what it takes by count, and what others would.
    """

    method: Method
    reason: str


@dataclass(frozen=True)
class _Way:
    """A method with what it takes."""

    method: Method
    name: str
    nbytes: int | float
    operations: int | float
    seconds: float
    fits: bool

    @property
    def figures(self) -> str:
        """Memory and work."""
        room = "" if self.fits else ", more than is free,"
        size = f"{self.nbytes / 2**30:,.1f} GiB" if self.nbytes > 2**30 else f"{self.nbytes / 2**20:,.1f} MiB"
        return f"{size}{room} and {self.operations:.1e} operations"


def choose(observations: Observations) -> Choice:
    """The factorisation of the smaller side, n·c or p, of those that fit in memory; beyond a minute the quicker one.

    Conjugate gradients stand beside them where none fits or takes less than an hour. Weight space divides by the noise,
    which must not be zero then.

    Warns:
        LongWork: it will take more than an hour.
    """
    if not isinstance(observations.likelihood, Gaussian):
        return _approximate(observations)
    kernel = explain(observations.model.lin, observations.examples).operations
    ways = _factorised(observations, kernel)
    if not any(way.fits and way.seconds <= _HOUR for way in ways):
        ways.append(_iterative(observations, kernel))
    taken = min((way for way in ways if way.fits), key=lambda way: max(way.seconds, _MINUTE))  # or the first
    if taken.seconds > _HOUR:
        warnings.warn(
            f"method: {taken.name} is estimated at up to {taken.seconds / _HOUR:.2g} hours, {taken.figures}, the "
            "least that any method takes; give fewer examples, outputs (output=) or parameters (parameters=), or a "
            "network on a GPU. A method that is named is taken without this warning.",
            LongWork,
            stacklevel=3,
        )
    others = "".join(f"; {way.name} would take {way.figures}" for way in ways if way is not taken)
    if any(way.fits and way.operations < taken.operations for way in ways):
        others += "; up to a minute the smaller side is taken"
    return Choice(taken.method, f"{taken.name}, takes {taken.figures}{others}")


def _factorised(observations: Observations, kernel: int | float) -> list[_Way]:
    """Both sides, the smaller first."""
    rows, p = observations.residual.numel(), observations.model.lin.n_parameters
    name = f"function space, factorised, for {rows:,} observations"
    ways = [_way(observations, FunctionSpace(), name, 2 * 8 * rows**2, rows**3 / 3 + kernel)]
    if not bool((observations.noise == 0.0).any()):
        name = f"weight space for {p:,} parameters"
        weights = _way(observations, WeightSpace(), name, 6 * 8 * p**2, 2.0 * (rows + p) * p**2)
        ways.insert(0 if p < rows else 1, weights)
    return ways


def _approximate(observations: Observations) -> Choice:
    """Laplace, on the side that it takes."""
    rows, p = observations.n * observations.c, observations.model.lin.n_parameters
    method = chosen(observations)
    return Choice(
        Laplace(method),
        f"the likelihood is {type(observations.likelihood).__name__}: the Laplace approximation, by "
        f"{type(method).__name__} for {rows:,} function values and {p:,} parameters",
    )


def _iterative(observations: Observations, kernel: int | float) -> _Way:
    """Columns of the kernel for a preconditioner, products with what is kept, gradients of the outputs at both ends."""
    lin, examples, c = observations.model.lin, observations.examples, observations.c
    rows = observations.residual.numel()
    rank = min(rows, 12.0 * math.sqrt(rows), budget(lin.device) / (16.0 * rows))  # the preconditioner's
    few = examples[:2]
    with FlopCounterMode(display=False) as counter:
        lin(few)
    forward = len(examples) * max(counter.get_total_flops() / len(few), 2.0 * lin.n_parameters)
    work = kernel * rank / rows + 3.0 * rows * rank**2 + (4.0 * _STEPS + 3.0 * (1.0 + 2.0 * c)) * forward
    name = f"function space by {_STEPS} steps of conjugate gradients for {rows:,} observations"
    without = bool((observations.noise == 0.0).any())  # a preconditioner of low rank divides by it
    solver = CG(preconditioner=Diagonal()) if without else CG()
    return _way(observations, FunctionSpace(solver), name, 8.0 * rows * rank, work, always=True)


def _way(
    observations: Observations,
    method: Method,
    name: str,
    nbytes: int | float,
    operations: int | float,
    *,
    always: bool = False,
) -> _Way:
    device = observations.model.lin.device
    rate = _THREAD * torch.get_num_threads() if device.type == "cpu" else _GPU
    return _Way(method, name, nbytes, operations, operations / rate, always or fits(int(nbytes), device))
