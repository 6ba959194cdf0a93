"""The evidence's maximum without a factorisation: a fixed point whose two sides come from solved samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.errors import NotConverged
from jacana.evidence.spectrum import NOISE_RANGE
from jacana.likelihoods import Gaussian
from jacana.linearization import Prior
from jacana.operators import standard_normal
from jacana.posteriors import Observations, Pathwise, System
from jacana.solvers.preconditioners import Prepared

__all__ = ["Learned", "fixed_point"]

Point = Float64[Tensor, " d"]

_MOST = 30
_TOLERANCE = 0.5
"""A step is small once it is this share of the standard error with which the samples know it."""

_NEGLIGIBLE = 0.2
"""A slope of the evidence, in nats a unit of log s², that need not be climbed."""

_FEW = 4
"""Samples with which the way is gone first; all of them are for the last steps."""

_HISTORY = 4
_LONGEST = 2.0
_STRETCH = (0.3, 4.0)
_AWAY = 2.0
"""A step is stretched by as much while steps still grow."""

_REUSED = 2.0
"""A preconditioner is scaled, not made anew, while no scale has moved by more than this factor from the rest."""


@dataclass(frozen=True)
class Learned:
    """What is learned: log s_l² of each group of parameters, log σ_k² of each noise; and what is held.

    Attributes:
        groups: of every parameter tensor, the number of its scale.
        n_scales: how many are learned, or none.
        n_noises: none, one, or one an output.
        noise: what is held where none is.
    """

    groups: tuple[int, ...]
    n_scales: int
    n_noises: int
    noise: Gaussian

    def apart(self, point: Point) -> tuple[Tensor, Gaussian]:
        """A factor on each parameter tensor's standard deviation, and the noise."""
        std = (0.5 * point).exp()
        factors = std[list(self.groups)] if self.n_scales else torch.ones(len(self.groups), dtype=torch.float64)
        noises = std[self.n_scales :]
        noise = Gaussian(noises if self.n_noises > 1 else noises[0]) if self.n_noises else self.noise
        return factors, noise


def fixed_point(
    observations: Observations, method: Pathwise, learned: Learned, start: Point, *, progress: bool
) -> Point:
    """Climb the evidence from ``start`` to where its gradient vanishes, by the updates of MacKay, accelerated.

        s_l² ← s_l² ‖w_l‖² / γ_l,   w_l = S_l^½ J_lᵀ A⁻¹ r,   γ_l = tr(K_l A⁻¹) = E ‖S_l^½ J_lᵀ A⁻¹ u‖²
        σ²  ← σ² ‖α‖² / tr A⁻¹,     α = A⁻¹ r,               tr A⁻¹ = E ‖A⁻¹ u‖²,       u ~ N(0, A)

    for r = y − m, A = K + Σ: both sides of each from one system of n_samples + 1 columns, the same random numbers at
    every step; four samples go the way, and all of them its end. Where both sides agree,
    ∂ log p(y) / ∂ log s_l² = ½ (‖w_l‖² − γ_l) is zero.

    Args:
        observations: with the prior that the scales are factors of.
        method: n_samples, the solver, and the seed of u.
        learned: what is learned.
        start: log s², then log σ².
        progress: show a bar.

    Warns:
        NotConverged: the steps are still larger than their standard error after the most there may be.

    References:
        MacKay 1992, Bayesian Interpolation, equations 4.8 to 4.10. Antorán et al. 2023 (arXiv 2210.04994), section 3.
        Walker and Ni 2011, Anderson acceleration for fixed-point iterations.
    """
    sides = _Sides(observations, method, learned)
    bounds = _bounds(observations, learned, start)
    point = start
    with tqdm(desc="evidence", unit="step", delay=1.0, leave=False, disable=not progress) as bar:
        for count in sorted({min(_FEW, method.n_samples), method.n_samples}):
            point, step, known = _climbed(sides, point, bounds, count, bar)
    if bool((step.abs() > _TOLERANCE * known).any()):
        warnings.warn(
            f"maximize_evidence: after {_MOST} steps a scale still moves by {float(step.abs().max()):.2g} of itself, "
            f"more than the {float(known.min()):.2g} to which {method.n_samples} samples know it; take a larger rank "
            "of the preconditioner or another start (prior_std of the model).",
            NotConverged,
            stacklevel=3,
        )
    return point


def _climbed(
    sides: _Sides, point: Point, bounds: tuple[Point, Point], count: int, bar: tqdm[Any]
) -> tuple[Point, Point, Point]:
    """Where so many samples lead, the step that is left there, and its standard error."""
    low, high = bounds
    points, steps = list[Tensor](), list[Tensor]()
    for _ in range(_MOST):
        step, known = sides.step(point, count)
        bar.update()
        held = ((point <= low) & (step < 0.0)) | ((point >= high) & (step > 0.0))
        step = torch.where(held, 0.0, step)
        if bool((step.abs() <= _TOLERANCE * known).all()):
            return (point + step).clamp(low, high), step, known
        points, steps = [*points, point][-_HISTORY:], [*steps, step][-_HISTORY:]
        stretch = torch.where(step == 0.0, 1.0, _accelerated(points, steps, known) / step)
        stretch = torch.where(stretch < 0.0, _AWAY, stretch.clamp(*_STRETCH))  # every step is uphill, and stays so
        point = (point + (stretch * step).clamp(-_LONGEST, _LONGEST)).clamp(low, high)
    return point, step, known


def _accelerated(points: list[Tensor], steps: list[Tensor], known: Point) -> Tensor:
    """Anderson's step: to where the last steps, taken for linear in the point, vanish in units of what is known."""
    if len(points) == 1:
        return steps[-1]
    moved = torch.stack([points[-1] - point for point in points[:-1]], dim=1)
    changed = torch.stack([steps[-1] - step for step in steps[:-1]], dim=1)
    scaled = changed / known.unsqueeze(1)
    ridge = 1e-3 * (float(torch.linalg.matrix_norm(scaled)) or 1.0) * torch.eye(scaled.shape[1], dtype=torch.float64)
    wanted = torch.cat([steps[-1] / known, torch.zeros(len(ridge), dtype=torch.float64)])
    weights = torch.linalg.lstsq(torch.cat([scaled, ridge]), wanted.unsqueeze(1)).solution
    return steps[-1] - ((moved + changed) @ weights).squeeze(1)


def _bounds(observations: Observations, learned: Learned, start: Point) -> tuple[Point, Point]:
    squares = observations.residual.square()
    typical = squares.mean()
    size = torch.where(squares.mean(0) > 0.0, squares.mean(0), typical) if learned.n_noises > 1 else typical
    low, high = start - 25.0, start + 25.0
    for bounds, ratio in ((low, NOISE_RANGE[0]), (high, NOISE_RANGE[1])):
        bounds[learned.n_scales :] = (ratio**2 * size).log().cpu()
    return low, high


class _Sides:
    """Both sides of the fixed point, at any scales and noises."""

    def __init__(self, observations: Observations, method: Pathwise, learned: Learned) -> None:
        self._observations, self._method, self._learned = observations, method, learned
        lin = observations.model.lin
        generator = torch.Generator().manual_seed(method.seed)
        count = method.n_samples
        self._weights = standard_normal(lin.n_parameters, count, generator=generator, device=lin.device)
        rows = observations.residual.numel()
        self._noise = standard_normal(rows, count, generator=generator, device=lin.device)
        self._system: System | None = None
        self._solved: Tensor | None = None
        self._prepared: tuple[Prepared, Tensor] | None = None

    def step(self, point: Point, count: int) -> tuple[Point, Point]:
        """The logarithm of the ratio of both sides of every update, and its standard error by so many samples."""
        learned = self._learned
        system, std = self._at(point)
        root = system.covariance.noise.sqrt().unsqueeze(1)
        drawn = system.values(std.unsqueeze(1) * self._weights[:, :count])
        drawn += root * self._noise[:, :count]
        residual = self._observations.residual
        right = torch.cat([residual.reshape(-1, 1), drawn], dim=1)
        before = self._solved
        if before is not None and before.shape != right.shape:  # samples that are new start from nothing
            before = torch.cat([before, before.new_zeros(len(right), right.shape[1] - before.shape[1])], dim=1)
        found = system.solve(right, before, system.sample_goal())
        self._solved = found.x
        squares = torch.zeros(0, right.shape[1], dtype=torch.float64, device=residual.device)
        if learned.n_scales:
            pulled = (std.unsqueeze(1) * system.pulled(found)).square()
            by_tensor = torch.stack([part.sum(0) for part in torch.split(pulled, self._sizes)])
            squares = _grouped(by_tensor, list(learned.groups), learned.n_scales)
        if learned.n_noises:
            c = self._observations.c
            of_outputs = found.x.square().view(-1, c, right.shape[1]).sum(0)
            places = list(range(c)) if learned.n_noises > 1 else [0] * c
            squares = torch.cat([squares, _grouped(of_outputs, places, learned.n_noises)])
        tiny = torch.finfo(torch.float64).tiny
        ours, samples = squares[:, 0].clamp_min(tiny), squares[:, 1:].clamp_min(tiny)
        expected = samples.mean(1)
        spread = samples.std(1) if samples.shape[1] > 1 else 2.0**0.5 * expected  # of one sample: the most it may be
        error = spread / expected / samples.shape[1] ** 0.5
        error += _NEGLIGIBLE / expected  # a layer that explains nothing may have any scale
        return (ours / expected).log().cpu(), error.cpu()

    @property
    def _sizes(self) -> list[int]:
        return list(self._observations.model.lin.network.sizes)

    def _at(self, point: Point) -> tuple[System, Float64[Tensor, " p"]]:
        """The system with these scales and noises, and the standard deviation of every weight."""
        factors, noise = self._learned.apart(point)
        model = self._observations.model
        stds = [std * float(factor) for std, factor in zip(model.prior.stds, factors, strict=True)]
        prior = Prior.of(model.lin.network, dict(zip(model.lin.names, stds, strict=True)))
        here = replace(self._observations, model=replace(model, prior=prior), likelihood=noise)
        system = System(
            here, self._method.solver, progress=False, products=None if self._system is None else self._system.products,
            prepare=self._preparing(factors),
        )  # fmt: skip
        self._system = system
        return system, prior.vector(model.lin.device)

    def _preparing(self, factors: Tensor) -> Callable[[System], Prepared | None]:
        """The preconditioner of an earlier point, scaled, where all scales have moved alike."""

        def prepare(system: System) -> Prepared | None:
            if self._prepared is not None:
                before, scales = self._prepared
                moved = factors / scales
                common = float(moved.min())  # so that M stays below A
                alike = bool((moved < _REUSED * common).all())
                rescaled = before.rescaled(common**2, system.covariance.noise) if alike else None
                if rescaled is not None:
                    return rescaled
            prepared = system.prepared_anew()
            self._prepared = None if prepared is None else (prepared, factors)
            return prepared

        return prepare


def _grouped(rows: Float64[Tensor, "r k"], places: list[int], n: int) -> Float64[Tensor, "n k"]:
    """The sums of the rows that go together."""
    total = torch.zeros(n, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return total.index_add_(0, torch.tensor(places, device=rows.device), rows)
