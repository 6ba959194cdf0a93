"""Stochastic dual descent: batches of rows at a time, for data of which a pass over all is long."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.errors import InvalidOption, NotConverged
from jacana.operators import NTK, Covariance, Operator
from jacana.solvers.goal import Goal, SmallResidual
from jacana.solvers.preconditioners import Prepared
from jacana.solvers.solution import Solution
from jacana.solvers.solver import Iterative

__all__ = ["SDD"]

_WINDOW = 10.0
"""The average is over about the last tenth of all steps."""

_POWER_STEPS = 10
_BLOCKS_TRIED = 8
_MARGIN = 0.9
_GROWN = 2.0
"""A residual that is so much larger than the right-hand side means that the steps are too long."""

_SHORTER = 0.4


@final
@dataclass(frozen=True)
class SDD(Iterative):
    """Stochastic dual descent on ½ αᵀ A α − αᵀ b, A = K + Σ, one mini-batch B of rows a step, with momentum.

        v ← ρ v − β g,     g_B = A_B (α + ρ v) − b_B, else 0,     α ← α + v,     ᾱ the average of the last steps

    The kernel has a root, K = R Rᵀ with R = J S^½, so that a step need not touch the other rows: beside α and v their
    images Rᵀα and Rᵀv are kept, which change by Rᵀ_B g_B alone. A step costs one product with the rows of its batch
    each way, an epoch as much as one step of conjugate gradients; the residual falls from the first batch on, fast
    where the kernel is large, and slowly where it is small: choose it for more data than :class:`CG` can pass over
    many times, at loose tolerances. β follows from the largest eigenvalue of some A_BB unless it is given.

    Cost: 6 n·k + 2 p·k numbers; an epoch is one product with A, and a step adds to α and v of all rows.

    Args:
        rtol: tolerance of ‖B − A X‖ / ‖B‖.
        max_epochs: passes over the data.
        momentum: ρ.
        step: β, relative to the reciprocal of the largest eigenvalue of A_BB, at first: where the residual grows, the
            descent begins again with a shorter one.

    Raises:
        InvalidOption: a tolerance, number of epochs, momentum or step out of range; a system in weight space.

    References:
        Lin, Padhy, Antorán, Tripp, Terenin, Szepesvári, Hernández-Lobato, Janz 2024, Stochastic gradient descent for
        Gaussian processes done right (arXiv 2310.20581), algorithm 1.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 300).unsqueeze(1)
        >>> method = jacana.FunctionSpace(jacana.SDD(rtol=0.1))
        >>> post = jacana.TangentGP(net).condition(x, x.sin(), noise_std=1.0, method=method)
        >>> post.solution.converged
        True
    """

    rtol: float | int = 1e-2
    max_epochs: int = 300
    momentum: float | int = 0.9
    step: float | int = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("rtol", 0.0, 1.0), ("momentum", -1e-300, 1.0), ("step", 0.0, float("inf"))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
                raise InvalidOption(f"{name}: got {value!r}; expected a number between {max(low, 0.0)} and {high}.")
        if isinstance(self.max_epochs, bool) or not isinstance(self.max_epochs, int) or self.max_epochs < 1:
            raise InvalidOption(f"max_epochs: got {self.max_epochs!r}; expected a positive whole number.")

    def solve(
        self,
        covariance: Covariance,
        right: Float64[Tensor, "n k"],
        *,
        prepared: Prepared | None = None,  # noqa: ARG002 - there is none
        start: Float64[Tensor, "n k"] | None = None,
        remainder: Float64[Tensor, "n k"] | None = None,  # noqa: ARG002 - the first pass finds it
        goal: Goal | None = None,
        progress: bool = False,
    ) -> Solution:
        if not isinstance(covariance.kernel, NTK):
            raise InvalidOption(
                "solver: SDD descends along rows of a kernel of the data; for WeightSpace take jacana.CG()."
            )
        began = time.perf_counter()
        goal = SmallResidual(self.rtol) if goal is None else goal
        descent = _Descent(covariance, covariance.kernel, right, self.momentum, self.step, start)
        which = torch.arange(right.shape[1], device=right.device)
        most = _GROWN * torch.linalg.vector_norm(right, dim=0)
        bar = tqdm(range(self.max_epochs), desc="solving", unit="epoch", delay=1.0, leave=False, disable=not progress)
        for _ in bar:
            guess = descent.epoch()
            if not bool((torch.linalg.vector_norm(guess, dim=0) <= most).all()):
                descent.begin_again()
                continue
            excess = goal.excess(which, descent.average, right, guess, _error(guess, covariance))
            bar.set_postfix_str(
                f"{float(excess.amax()) if len(excess) else 0.0:.1e} times the tolerance", refresh=False
            )
            if bool((excess <= _MARGIN).all()):
                x, left = descent.settled()
                excess = goal.excess(which, x, right, left, _error(left, covariance))
                if bool((excess <= 1.0).all()):
                    break
        else:
            x, left = descent.settled()
            excess = goal.excess(which, x, right, left, _error(left, covariance))
        bar.close()
        return self._reported(x, left, right, descent.epochs, time.perf_counter() - began, excess)

    def _reported(
        self, x: Tensor, left: Tensor, right: Tensor, epochs: int, seconds: float, excess: Tensor
    ) -> Solution:
        size = torch.linalg.vector_norm(right, dim=0)
        norms = torch.linalg.vector_norm(left, dim=0)
        relative = torch.where(size > 0.0, norms / torch.where(size > 0.0, size, 1.0), 0.0)
        converged = bool((excess <= 1.0).all())
        if not converged:
            warnings.warn(
                f"SDD: relative residual {float(relative.max()):.1e} after {epochs} epochs, {float(excess.max()):.2g} "
                f"times what was asked for; take more epochs (max_epochs, now {self.max_epochs}), a larger rtol, CG "
                f"with a preconditioner, or another step (now {self.step}).",
                NotConverged,
                stacklevel=4,
            )
        return Solution(x, left, relative, epochs, epochs * right.shape[1], seconds, converged)


def _error(remainder: Float64[Tensor, "n k"], covariance: Covariance) -> Float64[Tensor, " k"]:
    """RᵀΣ⁻¹r ≥ rᵀA⁻¹r."""
    weighted = remainder.square() / covariance.noise.unsqueeze(1)
    return torch.where(remainder == 0.0, 0.0, weighted).sum(0)


class _Descent:
    """α and v, with Rᵀα and Rᵀv."""

    def __init__(
        self, covariance: Covariance, kernel: NTK, right: Tensor, momentum: float, step: float, start: Tensor | None
    ) -> None:
        self._covariance, self._kernel, self._right, self._momentum = covariance, kernel, right, momentum
        self._start = torch.zeros_like(right) if start is None else start
        self._length = step / (self._largest() or 1.0)
        self.epochs = 0
        self._begin()

    def _begin(self) -> None:
        self._x, self._v, self.average = self._start.clone(), torch.zeros_like(self._right), self._start.clone()
        self._steps = 0
        self._image = self._right.new_zeros(self._kernel.n_weights, self._right.shape[1])
        if bool(self._start.any()):
            for rows, root in self._kernel.roots():
                self._image += root.transposed_times(self._start[rows].to(self._kernel.dtype))
        self._velocity = torch.zeros_like(self._image)

    def begin_again(self) -> None:
        """From the start, with shorter steps."""
        self._length *= _SHORTER
        self._begin()

    def epoch(self) -> Float64[Tensor, "n k"]:
        """One pass; gives −g of every batch as it came by, about the remainder."""
        self.epochs += 1
        seen = torch.empty_like(self._right)
        noise = self._covariance.noise.unsqueeze(1)
        for rows, root in self._kernel.roots():
            ahead = self._x[rows] + self._momentum * self._v[rows]
            image = (self._image + self._momentum * self._velocity).to(self._kernel.dtype)
            seen[rows] = self._right[rows] - root.times(image).to(torch.float64) - noise[rows] * ahead
            change = self._length * seen[rows]
            self._v *= self._momentum
            self._v[rows] += change
            self._velocity *= self._momentum
            self._velocity += root.transposed_times(change.to(self._kernel.dtype))
            self._x += self._v
            self._image += self._velocity
            self._steps += 1
            self.average.lerp_(self._x, min(1.0, _WINDOW / self._steps))
        return seen

    def settled(self) -> tuple[Float64[Tensor, "n k"], Float64[Tensor, "n k"]]:
        """The better of the iterate and the average, in each column, with B − A X in float64."""
        both = torch.cat([self._x, self.average], dim=1)
        left = torch.cat([self._right, self._right], dim=1) - self._covariance.precise_times(both)
        last, mean = left.norm(dim=0).chunk(2)
        one, other = both.chunk(2, dim=1)
        left_one, left_other = left.chunk(2, dim=1)
        return torch.where(last < mean, one, other), torch.where(last < mean, left_one, left_other)

    def _largest(self) -> float:
        """The largest eigenvalue of A_BB over some batches, by power iteration."""
        found = 0.0
        generator = torch.Generator().manual_seed(0)
        for count, (rows, root) in enumerate(self._kernel.roots()):
            if count == _BLOCKS_TRIED:
                break
            found = max(found, self._largest_of(root, self._covariance.noise[rows].unsqueeze(1), generator))
        return found

    @staticmethod
    def _largest_of(root: Operator, noise: Tensor, generator: torch.Generator) -> float:
        vector = torch.randn(len(noise), 1, generator=generator, dtype=torch.float64).to(noise.device)
        value = 0.0
        for _ in range(_POWER_STEPS):
            if not float(vector.norm()) > 0.0:
                break
            vector = vector / vector.norm()
            image = root.times(root.transposed_times(vector.to(root.dtype))).to(torch.float64)
            vector = image + noise * vector
            value = float(vector.norm())
        return value
