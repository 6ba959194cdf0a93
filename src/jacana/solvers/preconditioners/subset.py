"""Subset: the Fisher matrix of some of the examples, for posteriors in weight space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.operators import Covariance, FisherRoot, WhitenedFisher, standard_normal
from jacana.solvers.preconditioners.preconditioner import Preconditioner, Prepared

__all__ = ["Subset"]

_ROWS = 4096


@final
@dataclass(frozen=True)
class Subset(Preconditioner):
    """M = I + (n/m) R_Sᵀ R_S with R_S = H_S^½ J_S S^½ of m examples S, drawn uniformly: for ``WeightSpace(CG())``.

        M⁻¹ = I − R_Sᵀ (m/n I + R_S R_Sᵀ)⁻¹ R_S

    Nothing of size p² or p · m is held: R_S R_Sᵀ is the structured kernel of the examples, and M⁻¹ is applied by their
    products. It is as good as the examples are many against the degrees of freedom that the data determine.

    Cost: the kernel of m examples and its factorisation, (m·c)²; a step m/n of a product in float64.

    Args:
        size: m, the examples; by default as many as give 4,096 rows.
        seed: of the draw.

    Raises:
        InvalidOption: no size; or a system in function space.

    References:
        Erdogdu and Montanari 2015, Convergence rates of sub-sampled Newton methods (arXiv 1508.02810).

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 300).unsqueeze(1)
        >>> method = jacana.WeightSpace(jacana.CG(preconditioner=jacana.preconditioners.Subset(50)))
        >>> jacana.TangentGP(net).condition(x, x.sin(), noise_std=0.1, method=method).solution.converged
        True
    """

    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1):
            raise InvalidOption(f"size: got {self.size!r}; expected a positive whole number of examples, or None.")

    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared:  # noqa: ARG002 - of the base
        fisher = covariance.kernel
        if not isinstance(fisher, WhitenedFisher):
            raise InvalidOption(
                "preconditioner: Subset is for WeightSpace; for the kernel of data take PivotedCholesky() or Nystrom()."
            )
        n, c = fisher.n_examples, fisher.n_outputs
        count = min(n, max(1, _ROWS // c) if self.size is None else self.size)
        generator = torch.Generator().manual_seed(self.seed)
        index = torch.randperm(n, generator=generator)[:count].sort().values
        return _Subset(fisher.root(index.to(fisher.device)), count / n)


class _Subset(Prepared):
    """R_S and the factor of μ I + R_S R_Sᵀ, μ = m/n."""

    def __init__(self, root: FisherRoot, share: float) -> None:
        self._root = root
        inner = root.gram()
        self.rank = len(inner)
        whole = share == 1.0
        while True:  # where rounding hides m/n, a larger one makes a weaker M, that is still below A if the first was
            lower, failed = torch.linalg.cholesky_ex(inner + share * torch.eye(len(inner)).to(inner))
            if not int(failed):
                break
            share *= 10.0
        self._lower, self._share = lower, share
        self.freedom = self.rank - share * float(torch.cholesky_inverse(self._lower).diagonal().sum())
        self.is_below = whole

    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        inner = torch.cholesky_solve(self._root.times(right), self._lower)
        return right - self._root.transposed_times(inner)

    @property
    def log_determinant(self) -> float:
        return 2.0 * float(self._lower.diagonal().log().sum()) - self.rank * math.log(self._share)

    def sample(self, k: int, generator: torch.Generator | None) -> Float64[Tensor, "n k"]:
        p, device = self._root.shape[1], self._lower.device
        drawn = standard_normal(p + self.rank, k, generator=generator, device=device)
        return drawn[:p] + self._root.transposed_times(drawn[p:]) / math.sqrt(self._share)
