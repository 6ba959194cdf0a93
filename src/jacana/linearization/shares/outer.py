"""Outer: the gradient of W in y = W a at T positions is Σ_t g_t ⊗ a_t, kept as its factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.shares.formed import Formed
from jacana.linearization.shares.share import ELEMENTWISE, WORK_BYTES, Share, add_factored, add_product, within_work

__all__ = ["Outer"]


class Outer(Share):
    """Weight (g, a) and bias (g,) of y_t = W a_t + b, from inputs A (n, T, a) and cotangents G (n, c, T, g).

        J_W J'_Wᵀ + J_b J'_bᵀ between (n, k) and (m, l)  =  Σ_{t,s} (A[n,t]·A'[m,s] + 1) (G[n,k,t]·G'[m,l,s])

    Contracted either factored, as written, where no array of the weight's size is formed, or formed: Σ_t g_t ⊗ a_t a
    chunk of its rows at a time, and then one product of matrices. The fewer operations win.

    References:
        Novak, Sohl-Dickstein, Schoenholz 2022 (arXiv 2206.08720), section 3.2.
    """

    ways: ClassVar[tuple[str, ...]] = ("factored", "formed")

    def __init__(
        self,
        weight: int | None,
        bias: int | None,
        activations: Float[Tensor, "n t a"],
        cotangents: Float[Tensor, "n c t g"],
        dtype: torch.dtype,
    ) -> None:
        places = [place for place in (weight, bias) if place is not None]
        super().__init__(places, cotangents.shape[0], cotangents.shape[1], dtype)
        self.weight, self.bias = weight, bias
        self.activations, self.cotangents = activations, cotangents

    @classmethod
    def joined(cls, uses: Sequence[Outer]) -> Outer:
        """Several uses of the same parameters are more positions."""
        first = uses[0]
        if len(uses) == 1:
            return first
        activations = torch.cat([use.activations for use in uses], dim=1)
        cotangents = torch.cat([use.cotangents for use in uses], dim=2)
        return cls(first.weight, first.bias, activations, cotangents, first.dtype)

    @property
    def positions(self) -> int:
        """T."""
        return self.activations.shape[1]

    @property
    def _widths(self) -> tuple[int, int]:
        return self.activations.shape[2], self.cotangents.shape[3]

    def dense(self, place: int) -> Float[Tensor, "nc q"]:
        if place == self.bias:
            return self.cotangents.to(self.dtype).sum(2).flatten(0, 1)
        return self.formed_rows(0, self._widths[1])

    def accumulate(
        self,
        kernel: Float[Tensor, "nc mc"],
        other: Share,
        variances: Sequence[float],
        *,
        symmetric: bool = False,
        way: str | None = None,
    ) -> None:
        of_weight = 0.0 if self.weight is None else variances[self.weight]
        of_bias = 0.0 if self.bias is None else variances[self.bias]
        if not isinstance(other, Outer) or of_weight == 0.0:
            for place in self.places:
                if variances[place] > 0.0:
                    left = self.dense(place)
                    right = left if other is self else other.dense(place)
                    add_product(kernel, left, right, variances[place], symmetric=symmetric)
            return
        counts = self._counts(self.n, other.n, other.positions)
        if (way or min(counts, key=counts.__getitem__)) == "factored":
            self._factored(kernel, other, of_weight, of_bias, symmetric)
            return
        inputs = within_work(self.activations, self.dtype)
        other_inputs = inputs if other is self else within_work(other.activations, self.dtype)
        for start, stop in self._chunks(self.n if other is self else self.n + other.n):
            left = self.formed_rows(start, stop, inputs)
            right = left if other is self else other.formed_rows(start, stop, other_inputs)
            add_product(kernel, left, right, of_weight, symmetric=symmetric)
        if of_bias > 0.0 and self.bias is not None:
            left = self.dense(self.bias)
            add_product(kernel, left, other.dense(self.bias), of_bias, symmetric=symmetric)

    def _factored(self, kernel: Tensor, other: Outer, of_weight: float, of_bias: float, symmetric: bool) -> None:
        inputs, cotangents = (within_work(tensor, self.dtype) for tensor in self.held())
        other_inputs, other_cotangents = inputs, cotangents
        if other is not self:
            other_inputs, other_cotangents = (within_work(tensor, self.dtype) for tensor in other.held())

        def alike(rows: slice, columns: slice) -> Tensor:
            left, right = inputs[rows].to(self.dtype), other_inputs[columns].to(self.dtype)
            products = left.flatten(0, 1) @ right.flatten(0, 1).T
            return products.mul_(of_weight).add_(of_bias).view(*left.shape[:2], *right.shape[:2])

        add_factored(kernel, cotangents, other_cotangents, alike, symmetric=symmetric)

    def arithmetic(self, n: int, m: int) -> dict[str, float]:
        return self._counts(n, m, self.positions)

    def _counts(self, n: int, m: int, s: int) -> dict[str, float]:
        a, g = self._widths
        c, t = self.c, self.positions
        factored = 2.0 * n * t * m * s * a + (2.0 * g + ELEMENTWISE) * n * m * c * c * t * s
        formed = 2.0 * (n * t + m * s) * c * a * g + 2.0 * n * m * c * c * a * g
        return {"factored": factored, "formed": formed}

    def blocks(self, variances: Sequence[float]) -> Float[Tensor, "n c c"]:
        total = torch.zeros(self.n, self.c, self.c, dtype=self.dtype, device=self.cotangents.device)
        if self.bias is not None and variances[self.bias] > 0.0:
            sums = self.cotangents.to(self.dtype).sum(2)
            total += variances[self.bias] * (sums @ sums.mT)
        if self.weight is None:
            return total
        if self.positions == 1:
            inputs, cotangents = self.activations[:, 0].to(self.dtype), self.cotangents[:, :, 0].to(self.dtype)
            norms = inputs.square().sum(1)[:, None, None]
            return total + variances[self.weight] * norms * (cotangents @ cotangents.mT)
        for start, stop in self._chunks(self.n):
            formed = self.formed_rows(start, stop).view(self.n, self.c, -1)
            total += variances[self.weight] * (formed @ formed.mT)
        return total

    def of_output(self, k: int) -> Outer:
        return Outer(self.weight, self.bias, self.activations, self.cotangents[:, k : k + 1], self.dtype)

    def folded(self) -> Outer:
        folded = self.cotangents.transpose(1, 2).flatten(2).unsqueeze(1)
        return Outer(self.weight, self.bias, self.activations, folded, self.dtype)

    def mixed(self, weights: Float[Tensor, "n c r"]) -> Outer:
        mixed = weights.to(self.dtype).mT @ self.cotangents.to(self.dtype).flatten(2)
        cotangents = mixed.view(*mixed.shape[:2], *self.cotangents.shape[2:])
        return Outer(self.weight, self.bias, self.activations, cotangents, self.dtype)

    def squares(self) -> dict[int, Float[Tensor, " q"]]:
        if self.positions > 1:
            return super().squares()
        inputs = self.activations[:, 0].to(self.dtype).square()
        cotangents = self.cotangents[:, :, 0].to(self.dtype).square().sum(1)
        found = {} if self.weight is None else {self.weight: (cotangents.T @ inputs).flatten()}
        return found if self.bias is None else found | {self.bias: cotangents.sum(0)}

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> dict[int, Float[Tensor, "q k"]]:
        if self._forms(cotangents.shape[1]):
            pieces = [self.formed_rows(start, stop).T @ cotangents for start, stop in self._chunks(self.n)]
            found = {self.weight: torch.cat(pieces)} if self.weight is not None else {}
            return found if self.bias is None else found | {self.bias: self.dense(self.bias).T @ cotangents}
        inputs, own = self.activations.to(self.dtype), self.cotangents.to(self.dtype)
        weights, biases = [], []
        for column in cotangents.unbind(1):
            weighted = torch.einsum("nc,nctg->ntg", column.view(self.n, self.c), own)
            biases.append(weighted.sum((0, 1)))
            weights.append((weighted.flatten(0, 1).T @ inputs.flatten(0, 1)).flatten())
        a, g = self._widths
        pulled = {}
        if self.weight is not None:
            pulled[self.weight] = torch.stack(weights, 1) if weights else cotangents.new_zeros(g * a, 0)
        if self.bias is not None:
            pulled[self.bias] = torch.stack(biases, 1) if biases else cotangents.new_zeros(g, 0)
        return pulled

    def push(self, tangents: Mapping[int, Float[Tensor, "q k"]]) -> Float[Tensor, "nc k"]:
        a, g = self._widths
        k = next(iter(tangents.values())).shape[1]
        if self.weight is not None and self._forms(k):
            rows = tangents[self.weight].view(g, a, k)
            product = torch.zeros(self.n * self.c, k, dtype=self.dtype, device=rows.device)
            for start, stop in self._chunks(self.n):
                product.addmm_(self.formed_rows(start, stop), rows[start:stop].flatten(0, 1))
            return product if self.bias is None else product.addmm_(self.dense(self.bias), tangents[self.bias])
        inputs, own = self.activations.to(self.dtype), self.cotangents.to(self.dtype)
        columns = []
        for j in range(k):
            change = 0.0 if self.weight is None else inputs @ tangents[self.weight][:, j].view(g, a).T
            if self.bias is not None:
                change = change + tangents[self.bias][:, j].expand(self.n, self.positions, g)
            columns.append(torch.einsum("nctg,ntg->nc", own, change).flatten())
        return torch.stack(columns, 1) if columns else inputs.new_zeros(self.n * self.c, 0)

    def formed(self) -> Sequence[Share]:
        if self.positions == 1:
            return [self]
        return [Formed(place, self.dense(place).view(self.n, self.c, -1), self.dtype) for place in self.places]

    def held(self) -> tuple[Tensor, ...]:
        return (self.activations, self.cotangents)

    def holding(self, tensors: Sequence[Tensor]) -> Outer:
        return Outer(self.weight, self.bias, tensors[0], tensors[1], self.dtype)

    def formed_rows(self, start: int, stop: int, inputs: Tensor | None = None) -> Float[Tensor, "nc q"]:
        """Rows ``start`` to ``stop`` of the weight's gradients, Σ_t g_t ⊗ a_t; ``inputs`` if these have been cast."""
        inputs = self.activations if inputs is None else inputs
        cotangents = self.cotangents[..., start:stop].transpose(2, 3).flatten(1, 2)
        size = max(1, WORK_BYTES // max(1, inputs[0].numel() * self.dtype.itemsize))
        pieces = [
            torch.bmm(cotangents[i : i + size].to(self.dtype), inputs[i : i + size].to(self.dtype))
            for i in range(0, self.n, size)
        ]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(self.n * self.c, -1)

    def _forms(self, k: int) -> bool:
        """Whether k columns are multiplied with the weight's gradients, rather than position by position."""
        (a, g), rows = self._widths, self.n * self.c
        by_position = self.n * self.positions * (a * g + self.c * g) * k
        return self.weight is not None and self.n * self.positions * self.c * a * g + rows * a * g * k < by_position

    def _chunks(self, examples: int) -> list[tuple[int, int]]:
        """The weight's rows in chunks whose gradients fit in the work space."""
        a, g = self._widths
        size = max(1, min(g, WORK_BYTES // (examples * self.c * a * self.dtype.itemsize)))
        return [(start, min(start + size, g)) for start in range(0, g, size)]
