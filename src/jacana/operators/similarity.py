"""Similarity: how alike two tasks are to one network, or two networks on one task, by their Jacobian features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from jacana.errors import InvalidData, InvalidOption
from jacana.linearization import Linearization, gram, linearize
from jacana.networks import Data

__all__ = ["Similarity", "compare_networks", "compare_tasks"]


@final
@dataclass(frozen=True)
class Similarity:
    """Numbers from 0 (nothing in common) to 1 (equal up to a factor).

    Attributes:
        cosine: of the two matrices, tr(A B) / (‖A‖ ‖B‖) in the Frobenius norm.
        bures: normalised Bures similarity (fidelity), tr((A^½ B A^½)^½) / √(tr A tr B).
        cka: centred kernel alignment, the cosine of centred kernels; None where two tasks are compared.

    Example:
        >>> import jacana, torch
        >>> jacana.compare_tasks(torch.nn.Linear(2, 1).double(), torch.ones(3, 2), torch.ones(2, 2))
        Similarity(cosine=1.0, bures=1.0, cka=None)
    """

    cosine: float
    bures: float
    cka: float | None = None


def compare_tasks(
    lin: Linearization | nn.Module, x1: Data, x2: Data, *, layers: bool = False
) -> Similarity | dict[str, Similarity]:
    """How alike the Fisher matrices F = JᵀJ of one network are on two sets of data.

        cosine = ‖J₁J₂ᵀ‖² / (‖J₁J₁ᵀ‖ ‖J₂J₂ᵀ‖),     bures = ‖J₁J₂ᵀ‖_* / √(tr J₁J₁ᵀ tr J₂J₂ᵀ)

    from the three kernels, so that nothing of the size of the parameters squared is formed. With unit noise this is the
    Fisher information of regression.

    Cost: three dense kernels and a singular value decomposition of the smaller side, for each layer.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x1: n examples of one task.
        x2: m examples of another.
        layers: a comparison for each layer, from the same passes.

    Returns:
        The similarity, or a mapping from layers.

    Raises:
        InvalidData: examples that cannot be used.

    References:
        Maddox et al. 2021 (arXiv 2103.01439), section 2, for the motive. Achille et al. 2019 (arXiv 1902.03545) compare
        tasks by Fisher matrices.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        >>> x = torch.randn(20, 2)
        >>> found = jacana.compare_tasks(net, x, x)
        >>> round(found.cosine, 6), round(found.bures, 6)
        (1.0, 1.0)
    """
    lin = lin if isinstance(lin, Linearization) else linearize(lin)
    crosses, firsts, seconds = (gram(lin, a, b, layers=True) for a, b in ((x1, x2), (x1, None), (x2, None)))
    if layers:
        return {name: _of_tasks(crosses[name], firsts[name], seconds[name]) for name in crosses}
    return _of_tasks(*(torch.stack(list(shares.values())).sum(0) for shares in (crosses, firsts, seconds)))


def compare_networks(
    first: Linearization | nn.Module,
    second: Linearization | nn.Module,
    x: Data,
    *,
    layers: bool = False,
    outputs: str = "full",
) -> Similarity | dict[str, Similarity]:
    """How alike the tangent kernels K = J Jᵀ of two networks are on the same data.

        cosine = tr(K₁K₂) / (‖K₁‖ ‖K₂‖),     cka = the same of C K C with C = I − 1/n,     bures of K₁ and K₂

    Args:
        first: a linearization, or a network to linearize in all its trainable parameters.
        second: another; layers are compared by their names.
        x: n examples.
        layers: a comparison for each layer that both have.
        outputs: ``"full"`` for the kernels of all outputs, which must be as many and mean the same in both; ``"trace"``
            for their sum over outputs (n, n), which does not change when outputs are permuted or rotated.

    Returns:
        The similarity, or a mapping from layers.

    Raises:
        InvalidData: examples that cannot be used, or networks with other numbers of outputs.
        InvalidOption: other ``outputs``.

    References:
        Cortes, Mohri, Rostamizadeh 2012, Algorithms for learning kernels based on centered alignment, definition 4.
        Kornblith et al. 2019 (arXiv 1905.00414). Tang et al. 2020 (arXiv 2003.11991) for the Bures similarity.

    Example:
        >>> import jacana, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)) for _ in "ab")
        >>> x = torch.randn(20, 2)
        >>> list(jacana.compare_networks(a, b, x, layers=True))
        ['0', '2']
    """
    if outputs not in ("full", "trace"):
        raise InvalidOption(f"outputs: got {outputs!r}; expected 'full' or 'trace'.")
    kernels = [gram(net, x, layers=True, outputs=outputs) for net in (first, second)]
    sizes = [len(next(iter(shares.values()))) for shares in kernels]
    if sizes[0] != sizes[1]:
        raise InvalidData(
            f"second: its kernel on x has {sizes[1]} rows, that of first {sizes[0]}; compare outputs='trace'."
        )
    if layers:
        both = [name for name in kernels[0] if name in kernels[1]]
        return {name: _of_networks(kernels[0][name], kernels[1][name]) for name in both}
    return _of_networks(*(torch.stack(list(shares.values())).sum(0) for shares in kernels))


def _of_tasks(cross: Tensor, first: Tensor, second: Tensor) -> Similarity:
    nuclear = torch.linalg.svdvals(cross).sum()
    return Similarity(
        _share(cross.square().sum(), first.norm() * second.norm()),
        _share(nuclear, (first.trace() * second.trace()).sqrt()),
    )


def _of_networks(first: Float64[Tensor, "r r"], second: Float64[Tensor, "r r"]) -> Similarity:
    nuclear = torch.linalg.svdvals(_root(first).T @ _root(second)).sum()
    bures = _share(nuclear, (first.trace() * second.trace()).sqrt())
    return Similarity(_cosine(first, second), bures, _cosine(_centred(first), _centred(second)))


def _cosine(first: Tensor, second: Tensor) -> float:
    return _share((first * second).sum(), first.norm() * second.norm())


def _share(part: Tensor, whole: Tensor) -> float:
    """Their ratio; nothing has nothing in common."""
    return float(part / whole) if bool(whole > 0.0) else 0.0


def _centred(kernel: Tensor) -> Tensor:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def _root(kernel: Tensor) -> Tensor:
    """R with R Rᵀ = K; what rounding made negative is zero."""
    values, vectors = torch.linalg.eigh(kernel)
    return vectors * values.clamp(min=0.0).sqrt()
