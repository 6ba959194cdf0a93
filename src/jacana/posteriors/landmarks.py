"""Landmarks: some examples Z, the features that they make, and the prior given the function there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.errors import NotPositiveDefinite
from jacana.likelihoods import Gaussian
from jacana.linearization import budget, dense_kernel, diagonal_blocks, pull, push
from jacana.networks import Examples, joined
from jacana.posteriors.function_space import FunctionSpaceState
from jacana.posteriors.joseph import EPS
from jacana.posteriors.observations import Model, Observations
from jacana.posteriors.triangle import Triangle
from jacana.solvers import Cholesky, Factor

__all__ = ["Landmarks", "Projected"]


@final
class Landmarks:
    """φ(x) = L⁻¹ K(Z, x) with L Lᵀ = K(Z, Z) + τ I, and Q = φᵀφ, which is never above K.

    τ is the smallest number, from the rounding error of K(Z, Z) on, that makes it positive definite. With it K − Q is
    what the prior leaves after an observation of zeros at Z with the noise variance τ: a posterior in function space,
    whose variances hold every digit.

    Args:
        model: the prior.
        examples: Z.
        c: outputs.

    Attributes:
        rank: r, the features.
        rest: the state of N(0, K − Q).
    """

    def __init__(self, model: Model, examples: Examples, c: int) -> None:
        shift, self._factor = _factorised(dense_kernel(model.lin, examples, None, model.prior))
        self._model, self.examples, self.rank = model, examples, len(examples) * c
        self._variances = model.prior.vector(model.lin.device).square().unsqueeze(1)
        nothing = torch.zeros(len(examples), c, dtype=torch.float64, device=model.lin.device)
        zeros = Observations(model, examples, nothing, nothing, Gaussian(math.sqrt(shift)), flat=False)
        self.rest = FunctionSpaceState(zeros, Cholesky(), self._factor)

    def features(self, x: Examples) -> Float64[Tensor, "r mc"]:
        """φ(x)."""
        return self._factor.half_solve(dense_kernel(self._model.lin, self.examples, x, self._model.prior))

    def weights_for(self, coefficients: Float64[Tensor, "r k"]) -> Float64[Tensor, "p k"]:
        """S J_Zᵀ L⁻ᵀ a: the weights δ with J(x) δ = φ(x)ᵀ a for every x."""
        return self._variances * pull(self._model.lin, self.examples, self._factor.complete(coefficients))

    def unexplained(self, pulled: Float64[Tensor, "p k"]) -> Float64[Tensor, "p k"]:
        """S (Jᵀv − what the features have of it), so that J of it is (K − Q) v."""
        weights = self._variances * pulled
        known = self._factor.half_solve(push(self._model.lin, self.examples, weights))
        return weights - self.weights_for(known)


def _factorised(kernel: Float64[Tensor, "r r"]) -> tuple[float, Factor]:
    """τ and the factor of K + τ I; of the identity, where K is zero and so are all features."""
    size = float(kernel.diagonal().sum()) or 1.0
    shift = EPS * size
    while True:
        try:
            return shift, Cholesky().factor(kernel + torch.diag(kernel.new_full((len(kernel),), shift)))
        except NotPositiveDefinite:
            if not shift < size:
                raise
            shift *= 10.0


@final
@dataclass(frozen=True)
class Projected:
    """Observations as the features see them, summed up.

    Attributes:
        triangle: the posterior of the coefficients a in f = φᵀa: its root is that of A = I + Σ_i φ_i Σ_i⁻¹ φ_iᵀ.
        trace: tr Σ^-½ (K − Q) Σ^-½, what the features do not see.
        doubt: how far rounding may have moved it.
    """

    triangle: Triangle
    trace: float
    doubt: float = 0.0

    def after(self, observations: Observations, landmarks: Landmarks, *, progress: bool) -> Projected:
        """With other observations too, of which no more are in memory at a time than there are landmarks, or a few."""
        model, c = observations.model, observations.c
        sigma, residual = observations.noise.sqrt(), observations.residual
        left: list[float] = []
        doubts: list[float] = []

        def rows() -> Iterator[Float64[Tensor, "k q"]]:
            room = budget(model.lin.device) // (4 * 8 * landmarks.rank * c)
            size = max(len(landmarks.examples), min(model.lin.batch_size, room))  # as many pay for the landmarks' own
            bar = tqdm(total=observations.n, desc="features", unit="example", delay=1.0, leave=False,
                       disable=not progress)  # fmt: skip
            with bar:
                start = 0
                for examples in _chunks(observations, size):
                    stop = start + len(examples)
                    std, missing = sigma[start:stop].reshape(-1, 1), residual[start:stop].reshape(-1, 1)
                    features = landmarks.features(examples).T / std
                    variances = diagonal_blocks(model.lin, examples, model.prior).diagonal(dim1=1, dim2=2)
                    prior = (variances.reshape(-1, 1) / std.square()).sum()
                    left.append(float(prior - features.square().sum()))
                    doubts.append(EPS * landmarks.rank * float(prior))
                    yield torch.cat([features, missing / std], dim=1)
                    bar.update(len(examples))
                    start = stop

        triangle = self.triangle.after(rows())
        return Projected(triangle, self.trace + sum(left), self.doubt + sum(doubts))


def _chunks(observations: Observations, size: int) -> Iterator[Examples]:
    """The examples, ``size`` and more at a time however few a loader gives at once."""
    waiting: list[Examples] = []
    for batch in observations.x.batches(size):
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)
