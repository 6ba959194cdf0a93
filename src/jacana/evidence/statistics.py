"""What the evidence of many scales and noises needs of the data, on the smaller side, computed once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.linearization import dense_kernel, layer_kernels
from jacana.networks import layer_of
from jacana.posteriors import Observations

__all__ = ["Statistics", "statistics"]


class Statistics(ABC):
    """The evidence as a differentiable function of scales (one a layer, or one) and noises (one an observation).

    Attributes:
        n, c: examples and outputs.
        n_scales: how many scales it takes.
        root_mean_square: of y − m, each output.
        size: the root of K's mean diagonal, each layer.
    """

    def __init__(self, observations: Observations, n_scales: int, size: Tensor) -> None:
        self.n, self.c = observations.n, observations.c
        self.n_scales = n_scales
        self.residual = observations.residual
        self.root_mean_square = observations.residual.square().mean(0).sqrt()
        self.size = size

    @abstractmethod
    def log_evidence(self, scales: Float64[Tensor, " l"], variances: Float64[Tensor, "n c"]) -> Float64[Tensor, ""]:
        """Log N(y − m; 0, Σ_l scale_l² K_l + Σ)."""


@final
class KernelStatistics(Statistics):
    """The side of the data: the shares K_l."""

    def __init__(self, observations: Observations, kernels: Sequence[Tensor]) -> None:
        size = torch.stack([kernel.diagonal().mean().sqrt() for kernel in kernels])
        super().__init__(observations, len(kernels), size)
        self._kernels = kernels

    def log_evidence(self, scales: Tensor, variances: Tensor) -> Tensor:
        evidence: Tensor = _KernelEvidence.apply(scales, variances, self.residual, self._kernels)  # type: ignore[no-untyped-call]
        return evidence


class _KernelEvidence(torch.autograd.Function):
    """Closed-form gradients: ∂/∂θ = ½ αᵀ(∂A/∂θ)α − ½ tr(A⁻¹ ∂A/∂θ), Rasmussen and Williams 2006, equation 5.9."""

    @staticmethod
    def forward(
        ctx: Any,
        scales: Tensor,
        variances: Tensor,
        residual: Tensor,
        kernels: Sequence[Tensor],
    ) -> Tensor:
        factors = scales.detach().tolist()
        covariance = factors[0] ** 2 * kernels[0]
        for place in range(1, len(factors)):  # one after the other: they may not fit beside each other
            covariance.add_(kernels[place], alpha=factors[place] ** 2)
        covariance.diagonal().add_(variances.detach().flatten())
        lower = torch.linalg.cholesky(covariance)
        right = residual.reshape(-1, 1)
        alpha = torch.cholesky_solve(right, lower)
        slope = torch.cholesky_inverse(lower).neg_().addmm_(alpha, alpha.T).mul_(0.5)  # ∂ log p / ∂A
        traces = [(slope * kernel).sum() for kernel in kernels]
        by_scale = 2.0 * scales.detach() * torch.stack(traces)
        ctx.save_for_backward(by_scale, slope.diagonal().clone().view_as(variances))
        fit = (right * alpha).sum() + 2.0 * lower.diagonal().log().sum()
        return -0.5 * (fit + len(right) * math.log(2.0 * math.pi))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_scale, by_variance = ctx.saved_tensors
        return gradient * by_scale, gradient * by_variance, None, None


@final
class FisherStatistics(Statistics):
    """The side of the parameters, for noise alike in all examples: J_kᵀJ_k, J_kᵀr_k and r_kᵀr_k of each output k."""

    def __init__(self, observations: Observations, *, layers: bool) -> None:
        lin = observations.model.lin
        std = observations.model.prior.vector(lin.device)
        p, c = len(std), observations.c
        self._fishers = torch.zeros(c, p, p, dtype=torch.float64, device=lin.device)
        self._rights = torch.zeros(c, p, dtype=torch.float64, device=lin.device)
        start = 0
        for block in lin.blocks(observations.examples):
            rows = (block.dense() * std).view(block.n, c, p).transpose(0, 1)
            residual = observations.residual[start : start + block.n]
            start += block.n
            self._fishers += rows.mT @ rows
            self._rights += torch.einsum("knp,nk->kp", rows, residual)
        owner = list(lin.layers)
        groups = [owner.index(layer_of(name)) if layers else 0 for name in lin.names]
        sizes = torch.tensor(lin.network.sizes, device=lin.device)
        self._group = torch.tensor(groups, device=lin.device).repeat_interleave(sizes)
        diagonal = self._fishers.diagonal(dim1=1, dim2=2).sum(0)
        n_scales = max(groups) + 1
        size = torch.zeros(n_scales, dtype=torch.float64, device=lin.device).index_add_(0, self._group, diagonal)
        super().__init__(observations, n_scales, (size / (observations.n * c)).sqrt())
        self._square = observations.residual.square().sum(0)

    def log_evidence(self, scales: Tensor, variances: Tensor) -> Tensor:
        noise = variances[0]
        scale = scales[self._group]
        fisher = scale.unsqueeze(1) * torch.einsum("k,kpq->pq", 1.0 / noise, self._fishers) * scale
        right = scale * (self._rights / noise.unsqueeze(1)).sum(0)
        lower = torch.linalg.cholesky(fisher + torch.eye(len(scale), dtype=scale.dtype, device=scale.device))
        half = torch.linalg.solve_triangular(lower, right.unsqueeze(1), upper=False)
        fit = (self._square / noise).sum() - half.square().sum()
        logs = 2.0 * lower.diagonal().log().sum() + self.n * noise.log().sum()
        return -0.5 * (fit + logs + self.n * self.c * math.log(2.0 * math.pi))


def statistics(observations: Observations, *, layers: bool, progress: bool) -> Statistics:
    """The cheaper of the two sides."""
    model = observations.model
    n_observations = observations.residual.numel()
    if model.lin.n_parameters < n_observations and observations.gaussian.noise_std.ndim < 2:
        return FisherStatistics(observations, layers=layers)
    if layers:
        return KernelStatistics(
            observations, layer_kernels(model.lin, observations.examples, model.prior, progress=progress)
        )
    kernel = dense_kernel(model.lin, observations.examples, None, model.prior, progress=progress)
    return KernelStatistics(observations, [kernel])
