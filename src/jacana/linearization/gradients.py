"""Gradients: the kernel with the graph that leads to its inputs and to the weights that it is taken at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.errors import InvalidOption, UnsupportedNetwork
from jacana.linearization.features import Features, features_with_graph
from jacana.linearization.kernel import View
from jacana.linearization.linearization import Linearization
from jacana.networks import Examples, differentiable

__all__ = ["contract_with_graph", "named_weights", "recorded"]


def named_weights(lin: Linearization, weights: Mapping[str, Tensor] | None) -> dict[int, Tensor]:
    """Values in place of θ0, by the number of the parameter, in its dtype and on its device.

    Raises:
        InvalidOption: a name that is no selected parameter, another shape, or values that are not finite.
    """
    found = {}
    for name, value in (weights or {}).items():
        if name not in lin.names:
            raise InvalidOption(f"weights: {name!r} is no selected parameter; selected are {list(lin.names[:8])} ...")
        place = lin.names.index(name)
        own = lin.network.values[place]
        if not isinstance(value, Tensor) or value.shape != own.shape or not value.is_floating_point():
            got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise InvalidOption(f"weights: got {got} for {name!r}; expected floating point, shape {tuple(own.shape)}.")
        if not bool(torch.isfinite(value).all()):
            raise InvalidOption(f"weights: got NaN or infinite values for {name!r}; expected finite numbers.")
        found[place] = value.to(own.device, own.dtype)
    return found


def recorded(lin: Linearization, examples: Examples, weights: Mapping[int, Tensor], dtype: torch.dtype) -> Features:
    """The features of all examples at once, at some weights, with their graph."""
    findings = lin.findings(examples)
    with differentiable():
        if any(value.requires_grad for value in weights.values()):
            _refuse_wrong_derivatives(lin, examples)
        return features_with_graph(
            lin.network, examples, weights, ruled=findings.ruled, vectorises=findings.vectorises, dtype=dtype
        )


def _refuse_wrong_derivatives(lin: Linearization, examples: Examples) -> None:
    """Refuse a network of which torch itself has a wrong second derivative: weight_norm fails torch's gradgradcheck.

    Raises:
        UnsupportedNetwork: says which.
    """
    out, _ = lin.network.record(examples[:1])
    waiting, seen = [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("WeightNorm"):
            raise UnsupportedNetwork(
                "net: torch's second derivative of weight_norm is wrong, so the kernel has no gradient with respect to "
                "weights; take the parametrization off, e.g. torch.nn.utils.parametrize.remove_parametrizations."
            )
        waiting += [following for following, _ in node.next_functions]


def contract_with_graph(
    lin: Linearization,
    x1: Examples,
    x2: Examples | None,
    variances: Sequence[Sequence[float]],
    view: View,
    weights: Mapping[int, Tensor],
    *,
    dtype: torch.dtype,
) -> list[list[Float[Tensor, "nc mc"]]]:
    """What :func:`~jacana.linearization.kernel.contract` gives, in one piece and with its graph."""
    left = recorded(lin, x1, weights, dtype)
    right = left if x2 is None else recorded(lin, x2, weights, dtype)
    kernels: list[list[Tensor]] = []
    for of_group in variances:
        kernels.append([])
        for ours, theirs in zip(view.parts(left), view.parts(right), strict=True):
            kernel = torch.zeros(ours.n_rows, theirs.n_rows, dtype=dtype, device=lin.device)
            ours.accumulate(kernel, theirs, of_group, symmetric=x2 is None)
            if x2 is None:
                kernel = kernel.tril() + kernel.tril(-1).T
            kernels[-1].append(kernel)
    return kernels
