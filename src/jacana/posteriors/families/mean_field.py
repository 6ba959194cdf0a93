"""MeanField: Gaussians with independent weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.linearization import budget, fits, require
from jacana.networks import Examples
from jacana.operators import Estimate, standard_normal
from jacana.posteriors.families.family import Family, Spreads
from jacana.posteriors.observations import Model, Observations
from jacana.posteriors.sides import Precision, Side, Spread

__all__ = ["MeanField"]


@final
@dataclass(frozen=True)
class MeanField(Family):
    """Gaussians with independent weights.

        w = S^-½ δ ~ N(w̄, diag(s²));     the best has  1 / s_j² = 1 + Σ_i [S^½ J_iᵀ E H(f_i) J_i S^½]_jj

    To compare with, as in the paper. It leaves out that weights are correlated, and the more of them there are, the
    less the data say of each alone: its bound is below that of :class:`FullCovariance`, and where data lie its
    variances of f stay nearer to the prior's. Prefer that one; the steps of the mean need its factorisation in either
    family. Costs two more passes over J a step, or none where its n·c·p numbers fit in memory.

    References:
        Blundell, Cornebise, Kavukcuoglu, Wierstra 2015 (arXiv 1505.05424), for the family. Maddox et al. 2021 (arXiv
        2103.01439), section 4.2, where the scales had no gradient. Khan and Rue 2023, The Bayesian learning rule (arXiv
        2107.04562), for the step.

    Example:
        >>> import jacana, torch
        >>> net, x = torch.nn.Linear(2, 1, bias=False), torch.eye(2)  # J = I: independent also in the posterior
        >>> post = jacana.TangentGP(net).condition(
        ...     x, torch.zeros(2), 0.5, method=jacana.Variational(jacana.families.MeanField())
        ... )
        >>> post.predict(x).variance  # 1 / (1 + 1 / 0.25)
        tensor([0.2000, 0.2000], dtype=torch.float64)
    """

    def spreads(self, side: Side) -> Spreads:
        return partial(_Independent, _Rows(side.observations))


class _Rows:
    """J S^½ of the data, kept where it fits, else made again at every pass."""

    def __init__(self, data: Observations) -> None:
        self.data, self.std = data, data.model.prior.vector(data.model.lin.device)
        rows, p = data.n * data.c, len(self.std)
        self._kept: list[Tensor] | None = None
        if fits(2 * 8 * rows * p, self.std.device):
            self._kept = list(_scaled(data.model, data.examples, self.std))

    def squares(self, root: Float64[Tensor, "n c r"]) -> Float64[Tensor, " p"]:
        """The diagonal of S^½ Jᵀ R Rᵀ J S^½."""
        total, start = torch.zeros_like(self.std), 0
        if self._kept is None:
            for block in self.data.model.lin.blocks(self.data.examples):
                total += block.mixed(root[start : start + block.n]).squares()
                start += block.n
            return total * self.std.square()
        for rows in self._kept:
            total += (root[start : start + len(rows)].mT @ rows).square().sum((0, 1))
            start += len(rows)
        return total

    def covariances(self, scale: Float64[Tensor, " p"]) -> Float64[Tensor, "n c c"]:
        """J_i S^½ diag(s²) S^½ J_iᵀ."""
        kept = self._kept
        if kept is None:
            return _blocks(self.data.model, self.data.examples, self.std * scale)
        return torch.cat([_gram(rows * scale) for rows in kept])


class _Independent(Spread):
    """N(0, S^½ diag(s²) S^½)."""

    def __init__(self, rows: _Rows, root: Float64[Tensor, "n c r"], precision: Precision) -> None:  # noqa: ARG002
        found = rows.squares(root)
        scale = (1.0 + found).rsqrt()
        self._determinant = float(found.log1p().sum())
        self._fitted = rows.covariances(scale)
        self._model, self._std = rows.data.model, rows.std * scale

    @property
    def log_determinant(self) -> Estimate:
        return Estimate(self._determinant, 0.0, 0)

    def fitted(self) -> Float64[Tensor, "n c c"]:
        return self._fitted

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return torch.cat([rows.square().sum(2) for rows in _scaled(self._model, x, self._std)])

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        return _blocks(self._model, x, self._std)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        values = len(x) * self._model.lin.findings(x).n_outputs
        require(2 * 8 * values * len(self._std), self._std.device, f"the joint covariance of {values:,} values",
                "ask for fewer examples at once, or for .variance.")  # fmt: skip
        root = torch.cat([rows.flatten(0, 1) for rows in _scaled(self._model, x, self._std)])
        covariance = root @ root.T
        return 0.5 * (covariance + covariance.T)

    def deviations(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        noise = standard_normal(len(self._std), n, generator=generator, device=self._std.device)
        return self._std.unsqueeze(1) * noise


def _scaled(model: Model, x: Examples, std: Float64[Tensor, " p"]) -> Iterator[Float64[Tensor, "m c p"]]:
    """J diag(std) in blocks of examples of which the dense rows, too, are within the memory of one block."""
    lin, c = model.lin, model.lin.findings(x).n_outputs
    most = max(1, budget(lin.device) // (4 * 8 * c * len(std)))
    start, stop = lin.bounds(x)[0]
    for block in lin.blocks(x, batch_size=min(most, stop - start)):
        yield (block.dense() * std).view(block.n, c, -1)


def _blocks(model: Model, x: Examples, std: Float64[Tensor, " p"]) -> Float64[Tensor, "m c c"]:
    return torch.cat([_gram(rows) for rows in _scaled(model, x, std)])


def _gram(rows: Float64[Tensor, "m c p"]) -> Float64[Tensor, "m c c"]:
    blocks = rows @ rows.mT
    return 0.5 * (blocks + blocks.mT)
