"""Solver: options of one way to solve (K + Σ) X = B from products alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float64
from torch import Tensor

from jacana.operators import Covariance
from jacana.solvers.goal import Goal
from jacana.solvers.preconditioners import Prepared
from jacana.solvers.solution import Solution

__all__ = ["Iterative"]


class Iterative(ABC):
    """A solver that stops at a tolerance, says what it reached, and warns where it missed it."""

    rtol: float | int

    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared | None:  # noqa: ARG002 - most have none
        """What is used for all right-hand sides of one covariance: a preconditioner, if the solver has one."""
        return None

    @abstractmethod
    def solve(
        self,
        covariance: Covariance,
        right: Float64[Tensor, "n k"],
        *,
        prepared: Prepared | None = None,
        start: Float64[Tensor, "n k"] | None = None,
        remainder: Float64[Tensor, "n k"] | None = None,
        goal: Goal | None = None,
        progress: bool = False,
    ) -> Solution:
        """X with A X = B to the tolerance.

        Args:
            covariance: A.
            right: B.
            prepared: what :meth:`prepare` gave for A.
            start: where the iteration begins; by default at zero.
            remainder: B − A X at the start, where it is known.
            goal: when a column is good enough; by default by its residual.
            progress: a bar with the residual and the time that is left.

        Warns:
            NotConverged: where a column did not reach the tolerance.
        """
