"""Conjugate gradients for many right-hand sides, preconditioned, with a residual that is true."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.errors import InvalidOption, NotConverged
from jacana.operators import Covariance
from jacana.solvers.checkpoint import Checkpoint
from jacana.solvers.form_bound import form_bounds
from jacana.solvers.goal import Goal, SmallResidual
from jacana.solvers.preconditioners import Auto, Preconditioner, Prepared
from jacana.solvers.solution import Solution
from jacana.solvers.solver import Iterative

__all__ = ["CG"]

_MARGIN = 0.7
"""The iteration goes on to this share of the tolerance: its own residual is not quite the true one."""

_SECOND_MARGIN = 0.9
"""And to this one where it only makes up for that."""

_GAIN = 0.5
"""A new start that does not bring the true residual down to this share of the last has met the limit of precision."""


@final
@dataclass(frozen=True)
class CG(Iterative):
    """Preconditioned conjugate gradients on A = K + Σ.

    Each column stops by itself. Products with K run in the network's dtype, all vectors and inner products in float64.
    When the iteration's own residual is below the tolerance, B − A X is computed once more with K contracted in
    float64: what is reported is what was reached. (Of a network with several outputs, where that takes as long as
    several steps, it is first computed by the products that the weights are made by, and if that is below, so be it;
    not for the variances of :class:`~jacana.FunctionSpace`, which entries of K are used for.) Where it is not below,
    the iteration goes on with the difference of the two alone, which rounding left mostly where K is largest, so that a
    preconditioner has it gone in a few steps; from B − A X itself it would begin again. Where rounding of the network's
    dtype leads nowhere, it goes on with products that are contracted in float64, which take longer; what is worse than
    what there was is never kept.

    Cost: one product a step and column, one float64 product a column at the end, 12 n · k numbers.

    Args:
        rtol: tolerance of ‖B − A X‖ / ‖B‖.
        max_steps: of the iteration.
        preconditioner: by default :class:`~jacana.preconditioners.PivotedCholesky`, whose rank follows the data, and
            :class:`~jacana.preconditioners.Subset` in weight space; None for none.
        checkpoint: a folder for the state of long solutions: a process that was killed goes on from there when the
            same call is made again. What is in it is checked against the system before it is used, and stays.
        every: seconds between two states; one more is written at Ctrl-C.

    Raises:
        InvalidOption: a tolerance, a number of steps or of seconds that is not positive.

    References:
        Hestenes and Stiefel 1952; Golub and Van Loan 2013, Matrix Computations, algorithm 11.5.1. van der Vorst and Ye
        2000, Residual replacement strategies for Krylov subspace iterative methods.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 300).unsqueeze(1)
        >>> method = jacana.FunctionSpace(jacana.CG(rtol=1e-6))
        >>> post = jacana.TangentGP(net).condition(x, x.sin(), noise_std=0.1, method=method)
        >>> post.solution.converged
        True
    """

    rtol: float = 1e-4
    max_steps: int = 1000
    preconditioner: Preconditioner | None = field(default_factory=Auto)
    checkpoint: str | Path | None = None
    every: float | int = 120.0

    def __post_init__(self) -> None:
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, int | float) or not 0.0 < self.rtol < 1.0:
            raise InvalidOption(f"rtol: got {self.rtol!r}; expected a relative residual between 0 and 1, e.g. 1e-4.")
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise InvalidOption(f"max_steps: got {self.max_steps!r}; expected a positive whole number.")
        if isinstance(self.every, bool) or not isinstance(self.every, int | float) or not self.every >= 0.0:
            raise InvalidOption(f"every: got {self.every!r}; expected seconds, zero or more.")
        if self.checkpoint is not None and not isinstance(self.checkpoint, str | Path):
            raise InvalidOption(f"checkpoint: got {self.checkpoint!r}; expected a folder, or None.")
        if self.preconditioner is not None and not isinstance(self.preconditioner, Preconditioner):
            raise InvalidOption(
                f"preconditioner: got {self.preconditioner!r}; expected an object like "
                "jacana.preconditioners.Nystrom(rank=500), or None."
            )

    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared | None:
        return None if self.preconditioner is None else self.preconditioner.prepare(covariance, progress=progress)

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
        began = time.perf_counter()
        goal = SmallResidual(self.rtol) if goal is None else goal
        checkpoint = None if self.checkpoint is None else Checkpoint(self.checkpoint, right, self.every)
        run = _Run(covariance, right, prepared, goal, self.max_steps, start, remainder, checkpoint)
        excess = run.excess()
        with _Bar(float(excess.max()) if excess.numel() else 0.0, progress) as bar:
            trying = excess > 1.0
            while bool(trying.any()) and run.steps < self.max_steps:
                which = trying.nonzero().flatten()
                x, remainder = run.x[:, which], run.remainder[:, which]
                precisely = run.looks_precisely
                run.descend(which, bar)
                before, excess = excess, run.excess()
                if run.looks_precisely != precisely:
                    before = torch.full_like(excess, math.inf)  # of other products: nothing to compare with
                worse = excess[which] > before[which]  # rounding can lead away: what was there is kept
                run.put_back(which[worse], x[:, worse], remainder[:, worse])
                excess[which[worse]] = before[which[worse]]
                gained = excess < _GAIN * before
                most_precise = run.is_precise or covariance.kernel.dtype == torch.float64
                if most_precise or bool((gained | (excess <= 1.0))[which].all()):
                    trying = (excess > 1.0) & gained
                else:
                    run.is_precise, trying = True, excess > 1.0
        size = torch.linalg.vector_norm(right, dim=0)
        norms = torch.linalg.vector_norm(run.remainder, dim=0)
        relative = torch.where(size > 0.0, norms / torch.where(size > 0.0, size, 1.0), 0.0)
        seconds, converged = time.perf_counter() - began, bool((excess <= 1.0).all())
        solution = Solution(
            run.x, run.remainder, relative, run.steps, run.products, seconds, converged, run.looks_precisely
        )
        if not converged:
            self._warn(solution, excess)
        return solution

    def _warn(self, solution: Solution, excess: Tensor) -> None:
        cure = (
            f"more steps (max_steps, now {self.max_steps}) or a preconditioner of larger rank"
            if solution.steps >= self.max_steps
            else "a larger noise_std, the network in float64, or a preconditioner of larger rank: rounding is the limit"
        )
        warnings.warn(
            f"CG: relative residual {float(solution.relative_residuals.max()):.1e} after {solution.steps} steps, "
            f"{float(excess.max()):.2g} times what was asked for, in {int((excess > 1.0).sum())} of {len(excess)} "
            f"columns; take {cure}, or a larger rtol.",
            NotConverged,
            stacklevel=3,
        )


class _Run:
    """X and B − A X of one solution under way."""

    def __init__(
        self,
        covariance: Covariance,
        right: Float64[Tensor, "n k"],
        prepared: Prepared | None,
        goal: Goal,
        most: int,
        start: Float64[Tensor, "n k"] | None,
        remainder: Float64[Tensor, "n k"] | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._covariance, self._right, self._prepared, self._goal, self._most = covariance, right, prepared, goal, most
        self.steps = self.products = 0
        self.is_precise = False
        self.looks_precisely = not covariance.by_products
        self.x = torch.zeros_like(right) if start is None else start.clone()
        self.remainder = right.clone() if start is None or remainder is None else remainder.clone()
        self._done = torch.zeros_like(right)  # what an iteration ended with by its own account, where that was enough
        self._all = torch.arange(right.shape[1], device=right.device)
        if start is not None and remainder is None:
            self._compute(self._all)
        self._checkpoint = checkpoint
        before = None if checkpoint is None else checkpoint.load(right)
        if before is not None:
            self._go_on_from(before)

    def _go_on_from(self, before: Float64[Tensor, "n k"]) -> None:
        """Take up what an earlier process left, in the columns where it is the better start."""
        left = self._right - self._product(before)
        better = torch.linalg.vector_norm(left, dim=0) < torch.linalg.vector_norm(self.remainder, dim=0)
        self.x, self.remainder = torch.where(better, before, self.x), torch.where(better, left, self.remainder)

    def excess(self) -> Float64[Tensor, " k"]:
        """How far every column is from the goal."""
        error = self._error(self.remainder, self._condition(self.remainder))
        return self._goal.excess(self._all, self.x, self._right, self.remainder, error)

    def descend(self, which: Tensor, bar: _Bar) -> None:
        """Conjugate gradients in some columns, until each is at the goal by its own account; then look."""
        try:
            self._descend(which, bar)
        except KeyboardInterrupt:
            if self._checkpoint is not None:
                self._checkpoint.keep(self.x, now=True)
            raise
        self._look(which)
        if self._checkpoint is not None:
            self._checkpoint.keep(self.x, now=self._checkpoint.path.exists())

    def put_back(self, which: Tensor, x: Float64[Tensor, "n k"], remainder: Float64[Tensor, "n k"]) -> None:
        """Some columns as they were; the next descent begins from there anew."""
        self.x[:, which], self.remainder[:, which], self._done[:, which] = x, remainder, 0.0

    def _descend(self, which: Tensor, bar: _Bar) -> None:
        done = self._done[:, which]
        again = (done != 0.0).any(0)
        residual, ready = self.remainder[:, which] - done, self._condition(done) if bool(again.any()) else done
        margin = torch.where(again, _SECOND_MARGIN, _MARGIN)
        self._done[:, which] = 0.0
        direction, alignment = residual, residual.new_zeros(len(which))
        for step in range(self._most - self.steps):
            conditioned, whole = self._condition(residual), residual + done
            error = self._error(whole, conditioned + ready)
            excess = self._goal.excess(which, self.x[:, which], self._right[:, which], whole, error)
            before, alignment = alignment, (residual * conditioned).sum(0)
            bar.show(excess)
            enough = excess <= margin
            self._done[:, which[enough]] = whole[:, enough]
            keep = (~enough & (alignment > 0.0)).nonzero().flatten()
            if len(keep) < len(which):
                which, before, alignment, margin = which[keep], before[keep], alignment[keep], margin[keep]
                residual, direction, conditioned = residual[:, keep], direction[:, keep], conditioned[:, keep]
                done, ready = done[:, keep], ready[:, keep]
            if not len(which):
                break
            direction = conditioned if step == 0 else conditioned.addcmul_(direction, alignment / before)
            image = self._covariance.precise_times(direction) if self.is_precise else self._covariance.times(direction)
            curvature = (direction * image).sum(0)
            length = torch.where(curvature > 0.0, alignment / torch.where(curvature > 0.0, curvature, 1.0), 0.0)
            self.x[:, which] += direction * length
            residual = residual - image * length
            self.steps, self.products = self.steps + 1, self.products + len(which)
            if self._checkpoint is not None:
                self._checkpoint.keep(self.x)

    def _look(self, which: Tensor) -> None:
        """The remainder as it is; in every column from products in float64 where others do not show it small enough."""
        self._compute(which)
        if not self.looks_precisely and bool((self.excess()[which] > 1.0).any()):
            self.looks_precisely = True
            self._compute(self._all)

    def _compute(self, which: Tensor) -> None:
        self.remainder[:, which] = self._right[:, which] - self._product(self.x[:, which])

    def _product(self, x: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        self.products += x.shape[1]
        return self._covariance.precise_times(x) if self.looks_precisely else self._covariance.times(x)

    def _error(self, residual: Float64[Tensor, "n k"], conditioned: Float64[Tensor, "n k"]) -> Float64[Tensor, " k"]:
        return form_bounds(self._prepared, self._covariance.noise, residual, conditioned)

    def _condition(self, residual: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return residual.clone() if self._prepared is None else self._prepared.solve(residual)


class _Bar:
    """How far the slowest column has come, in digits; the time that is left follows from that."""

    def __init__(self, excess: float, progress: bool) -> None:
        self._total = max(0.1, math.log10(max(excess, 1.0)))
        self._bar = tqdm(
            total=self._total, desc="solving", delay=1.0, leave=False, disable=not progress,
            bar_format="{desc} {percentage:3.0f} % {bar} [{elapsed}<{remaining}{postfix}]",
        )  # fmt: skip

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, excess: Tensor) -> None:
        """Before a step."""
        if self._bar.disable or not excess.numel():
            return
        slowest = float(excess.max())
        come = min(self._total, max(0.0, self._total - math.log10(max(slowest, 1e-300))))
        self._bar.set_postfix_str(f"{slowest:.1e} times the tolerance in {len(excess)} columns", refresh=False)
        self._bar.update(come - self._bar.n)
