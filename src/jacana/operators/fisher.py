"""The Fisher information matrix of a network at data, as an operator."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods import Likelihood
from jacana.linearization import Linearization, Products
from jacana.networks import Data, Source
from jacana.operators.operator import Operator, finite

__all__ = ["EmpiricalFisher", "Fisher"]


class _GaussNewton(Operator):
    """Σᵢ Jᵢᵀ Hᵢ Jᵢ for some Hᵢ = Rᵢ Rᵢᵀ: symmetric and positive semidefinite."""

    def __init__(self, products: Products, likelihood: Likelihood) -> None:
        if not isinstance(likelihood, Likelihood):
            raise InvalidOption(
                f"likelihood: got {type(likelihood).__name__}; expected one, e.g. jacana.Categorical()."
            )
        likelihood.check(products.n, products.c)
        self._products, self._likelihood = products, likelihood

    @property
    def shape(self) -> torch.Size:
        p = self._products.lin.n_parameters
        return torch.Size((p, p))

    @property
    def dtype(self) -> torch.dtype:
        return self._products.lin.dtype

    @property
    def device(self) -> torch.device:
        return self._products.lin.device

    @property
    def T(self) -> Operator:
        return self

    def times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "p k"]:
        return self._products.summed(
            lambda start, batch: self._weighted(start, batch.output, batch.jvp(matrix)).to(matrix)
        )

    def transposed_times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "p k"]:
        return self.times(matrix)

    def diagonal(self) -> Float[Tensor, " p"]:
        """Each entry exactly, Σᵢ ‖Rᵢᵀ Jᵢ[:, j]‖², from per-example gradients; the cost of c backward passes."""
        total = torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        for start, examples, features in self._products.features():
            total += features.mixed(self._root(start, self._products.lin(examples))).squares()
        return finite(total.to(self.dtype), "diagonal")

    @abstractmethod
    def _weighted(self, start: int, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        """H V of the examples from ``start`` on, where the network's outputs are ``f``."""

    @abstractmethod
    def _root(self, start: int, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c r"]:
        """R of the same."""


@final
class Fisher(_GaussNewton):
    """F = Jᵀ H J = Σᵢ Jᵢᵀ Hᵢ Jᵢ, shape (p, p): the Fisher information, or generalised Gauss-Newton matrix.

        Hᵢ = E_{y ~ p(y|fᵢ)} [−∇²_f log p(y | fᵢ)],     a sum over the examples, not a mean

    ``F @ v`` is one tangent and one backward pass. Products at the same data go through kept graphs, 4/3 of the cost of
    a forward and backward pass each; data that do not fit in ``memory_budget`` are passed through the network again.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x: n examples; a loader or a memory map is read again at every product, targets of a loader are dropped.
        likelihood: gives H; see :class:`~jacana.Likelihood` for one of your own.
        at: function values (n, c) that H is taken at; by default the network's own outputs.
        memory_budget: bytes that may be kept from one product to the next; by default a quarter of what is free.
        batch_size: examples in one pass.
        vectorize: whether several columns are multiplied at once; by default what was faster when it was timed.

    Raises:
        InvalidData: examples or ``at`` that cannot be used.
        InvalidOption: a likelihood that does not fit the outputs.

    References:
        Martens 2020 (arXiv 1412.1193), sections 5 and 8.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> F = jacana.Fisher(net, torch.randn(5, 2), jacana.Categorical())
        >>> (F + 2.0 * F) @ torch.ones(51, 4)  # doctest: +ELLIPSIS
        tensor([[...
        >>> bool((F.diagonal() >= 0).all())
        True
    """

    def __init__(
        self,
        lin: Linearization | nn.Module,
        x: Data,
        likelihood: Likelihood,
        at: Any = None,
        *,
        memory_budget: int | float | None = None,
        batch_size: int | None = None,
        vectorize: bool | None = None,
    ) -> None:
        products = Products(lin, x, memory_budget=memory_budget, batch_size=batch_size, vectorize=vectorize)
        super().__init__(products, likelihood)
        self._at = None if at is None else _values(at, products)

    def _weighted(self, start: int, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        stop = start + len(f)
        at = f if self._at is None else self._at[start:stop]
        return self._likelihood.part(start, stop).curvature_times(at, v)

    def _root(self, start: int, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c r"]:
        stop = start + len(f)
        at = f if self._at is None else self._at[start:stop]
        return self._likelihood.part(start, stop).curvature_root(at.double())


@final
class EmpiricalFisher(_GaussNewton):
    """E = Σᵢ gᵢ gᵢᵀ with gᵢ = Jᵢᵀ ∇_f log p(yᵢ | fᵢ), shape (p, p): the scatter of the gradients at the labels.

    It is not the Fisher information, and no approximation of it away from a well specified model at its optimum.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x: n examples, or a loader of (input, target) pairs.
        y: n targets as the likelihood wants them; None for those that the loader brings.
        likelihood: gives the gradient of log p.
        memory_budget: as for :class:`~jacana.Fisher`.
        batch_size: as there.
        vectorize: as there.

    Raises:
        InvalidData: examples or targets that cannot be used.
        InvalidOption: a likelihood that does not fit the outputs.

    References:
        Kunstner, Balles, Hennig 2019 (arXiv 1905.12558), equation 3, and why it is not the Fisher information.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(5, 2), torch.tensor([0, 2, 1, 1, 0])
        >>> E = jacana.EmpiricalFisher(net, x, y, jacana.Categorical())
        >>> int(torch.linalg.matrix_rank(E.to_dense().double(), rtol=1e-5))
        5
    """

    def __init__(
        self,
        lin: Linearization | nn.Module,
        x: Data,
        y: Any,
        likelihood: Likelihood,
        *,
        memory_budget: int | float | None = None,
        batch_size: int | None = None,
        vectorize: bool | None = None,
    ) -> None:
        products = Products(lin, x, memory_budget=memory_budget, batch_size=batch_size, vectorize=vectorize)
        super().__init__(products, likelihood)
        if y is None and isinstance(products.source, Source):
            y = products.source.targets()
        if y is None:
            raise InvalidData("y: got None; pass the targets, or a DataLoader of (input, target).")
        self._y = likelihood.targets(y, products.n, products.c).clone()

    def _weighted(self, start: int, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        gradient = self._gradient(start, f).unsqueeze(2)
        return gradient * (gradient * v).sum(1, keepdim=True)

    def _root(self, start: int, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c 1"]:
        return self._gradient(start, f.double()).unsqueeze(2)

    def _gradient(self, start: int, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        stop = start + len(f)
        return self._likelihood.part(start, stop).gradient(f, self._y[start:stop])


def _values(at: Any, products: Products) -> Float[Tensor, "n c"]:
    """Function values to take the curvature at, (n, c)."""
    try:
        values = torch.as_tensor(at).detach().to(products.lin.device, torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidData(f"at: got {type(at).__name__}; expected function values (n, c).") from error
    values = values.unsqueeze(1) if values.ndim == 1 else values
    if tuple(values.shape) != (products.n, products.c) or not bool(torch.isfinite(values).all()):
        raise InvalidData(
            f"at: got shape {tuple(values.shape)}, or values that are not finite; expected finite function values "
            f"({products.n}, {products.c})."
        )
    return values.clone()
