"""Gram: the exact tangent kernel on data as a dense matrix, in the shape that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn

from jacana.errors import InvalidData, InvalidOption
from jacana.linearization.features import Features
from jacana.linearization.gradients import contract_with_graph, named_weights, recorded
from jacana.linearization.kernel import WHOLE, View, contract
from jacana.linearization.linearization import Linearization, linearize
from jacana.linearization.prior import Prior, PriorStd
from jacana.networks import Data, Examples

__all__ = ["gram"]


@overload
def gram(
    lin: Linearization | nn.Module,
    x1: Data,
    x2: Data | None = None,
    prior_std: PriorStd = 1.0,
    outputs: str = "full",
    *,
    layers: Literal[False] = False,
    dtype: torch.dtype = torch.float64,
    weights: Mapping[str, Tensor] | None = None,
    memory_budget: int | float | None = None,
    progress: bool = False,
) -> Tensor: ...


@overload
def gram(
    lin: Linearization | nn.Module,
    x1: Data,
    x2: Data | None = None,
    prior_std: PriorStd = 1.0,
    outputs: str = "full",
    *,
    layers: Literal[True] | Sequence[str],
    dtype: torch.dtype = torch.float64,
    weights: Mapping[str, Tensor] | None = None,
    memory_budget: int | float | None = None,
    progress: bool = False,
) -> dict[str, Tensor]: ...


def gram(
    lin: Linearization | nn.Module,
    x1: Data,
    x2: Data | None = None,
    prior_std: PriorStd = 1.0,
    outputs: str = "full",
    *,
    layers: bool | Sequence[str] = False,
    dtype: torch.dtype = torch.float64,
    weights: Mapping[str, Tensor] | None = None,
    memory_budget: int | float | None = None,
    progress: bool = False,
) -> Tensor | dict[str, Tensor]:
    """The exact finite-width neural tangent kernel, K = J₁ S J₂ᵀ, without forming the Jacobian.

        y_t = W a_t + b adds  Σ_{t,s} (s_W² a_t·a'_s + s_b²) (g_kt·g'_ls)  to K between outputs (n, k) and (m, l)

    with g the cotangents ∂f_k/∂y_t: operations that have a rule are contracted like this, or by their per-example
    gradients a chunk at a time, whichever counts fewer operations; parameters without a rule go through autodiff.
    With x2 None only one half is computed.

    Where inputs or ``weights`` require a gradient (and gradients are enabled) the answer has one: the kernel can be
    differentiated with respect to them. It is then computed in one piece and keeps the graph of every pass, some c
    times what a training step on all examples keeps; otherwise no graph is kept. A network with checkpointed layers has
    gradients with respect to inputs alone.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x1: n examples.
        x2: m examples; by default ``x1`` itself.
        prior_std: S^½, a positive number, or a mapping from dotted name prefixes to numbers.
        outputs: the shape of the answer, each computed directly:

            - ``"full"``: (n·c, m·c), row i·c + k for output k of example i;
            - ``"separate"``: (c, n, m), each output with itself;
            - ``"trace"``: (n, m), the sum of these; ``"mean"``: the trace over c;
            - ``"pseudo"``: (n, m), the kernel of the summed outputs over √c: one backward pass whatever c;
            - ``"diagonal"``: (n·c,) and ``"blocks"``: (n, c, c), of ``x1`` with itself.
        layers: True for one matrix a layer, which sum to K; or dotted prefixes of parameter names, a matrix each.
        dtype: of the contraction. What the network computed is cast before it is multiplied; float32 is faster and
            too rough for a small noise.
        weights: selected parameters by name, with values to take the kernel at in place of θ0.
        memory_budget: bytes that the answer and everything held or computed on the way to it may take, beside the probe
            at the first data; what the system's allocator keeps of freed memory is not counted. By default the answer
            may take what is free, and the rest a quarter of what is free.
        progress: a bar while it works.

    Returns:
        The matrix, or a mapping from layers (or prefixes) to matrices.

    Raises:
        InvalidData: examples that cannot be used.
        InvalidOption: an unknown shape, prefix or dtype, or ``prior_std`` not positive.
        InsufficientMemory: it does not fit.

    References:
        Novak, Sohl-Dickstein, Schoenholz 2022 (arXiv 2206.08720), section 3. Mohamadi, Bae, Sutherland 2023
        (arXiv 2206.12543), equation 2, for the pseudo-NTK.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> x, z = torch.randn(5, 2), torch.randn(4, 2)
        >>> jacana.gram(net, x, z).shape, jacana.gram(net, x, outputs="separate").shape
        (torch.Size([15, 12]), torch.Size([3, 5, 5]))
        >>> K, shares = jacana.gram(net, x), jacana.gram(net, x, layers=True)
        >>> list(shares), bool(torch.allclose(K, shares["0"] + shares["2"]))
        (['0', '2'], True)
        >>> (slope,) = torch.autograd.grad(jacana.gram(net, x, z.requires_grad_()).sum(), z)
        >>> slope.shape
        torch.Size([4, 2])
    """
    lin = lin if isinstance(lin, Linearization) else linearize(lin)
    answer = _ANSWERS.get(outputs) if isinstance(outputs, str) else None
    if answer is None:
        raise InvalidOption(f"outputs: got {outputs!r}; expected one of {', '.join(map(repr, _ANSWERS))}.")
    if dtype not in (torch.float32, torch.float64):
        raise InvalidOption(f"dtype: got {dtype!r}; expected torch.float64, or torch.float32 for speed.")
    if memory_budget is not None:
        if isinstance(memory_budget, bool | str) or not memory_budget >= 1 or memory_budget != int(memory_budget):
            raise InvalidOption(f"memory_budget: got {memory_budget!r}; expected a whole number of bytes, or None.")
        memory_budget = int(memory_budget)
    prior = Prior.of(lin.network, prior_std)
    values, graph = named_weights(lin, weights), torch.is_grad_enabled()
    first = lin.examples(x1, "x1", graph=graph)
    second = None if x2 is None else lin.examples(x2, "x2", graph=graph)
    asked = [first.requires_grad, second is not None and second.requires_grad]
    graph = graph and any([*asked, *(value.requires_grad for value in values.values())])
    if second is not None and outputs in ("diagonal", "blocks"):
        raise InvalidData(f"x2: outputs={outputs!r} is of one set of examples with itself; leave x2 out.")
    groups = _groups(lin, layers)
    named = list(zip(lin.names, prior.variances, strict=True))
    ask = _Ask(
        lin,
        first,
        second,
        [[v if name in group else 0.0 for name, v in named] for group in groups.values()],
        dtype,
        values if graph or values else None,
        memory_budget,
        progress,
    )
    kernels = answer(ask)
    if not graph:
        kernels = [kernel.detach() for kernel in kernels]
    return kernels[0] if layers is False else dict(zip(groups, kernels, strict=True))


@dataclass(frozen=True)
class _Ask:
    """What is asked for, checked.

    ``variances`` has a row for each matrix that is wanted; ``weights``, if not None, asks for the graph that leads to
    them and to the examples.
    """

    lin: Linearization
    x1: Examples
    x2: Examples | None
    variances: list[list[float]]
    dtype: torch.dtype
    weights: dict[int, Tensor] | None
    memory_budget: int | None
    progress: bool

    @property
    def c(self) -> int:
        return self.lin.findings(self.x1).n_outputs

    def kernels(self, view: View, lin: Linearization | None = None) -> list[list[Tensor]]:
        if self.weights is not None:
            return contract_with_graph(
                lin or self.lin, self.x1, self.x2, self.variances, view, self.weights, dtype=self.dtype
            )
        return contract(
            lin or self.lin,
            self.x1,
            self.x2,
            self.variances,
            view,
            dtype=self.dtype,
            memory_budget=self.memory_budget,
            progress=self.progress,
        )

    def over_blocks(self, of_block: Callable[[Features, list[float]], Tensor]) -> list[Tensor]:
        if self.weights is not None:
            features = recorded(self.lin, self.x1, self.weights, self.dtype)
            return [of_block(features, of_group) for of_group in self.variances]
        found: list[list[Tensor]] = [[] for _ in self.variances]
        for start, stop in self.lin.bounds(self.x1, room=self.memory_budget):
            block = self.lin.features(self.x1[start:stop], self.dtype)
            for parts, of_group in zip(found, self.variances, strict=True):
                parts.append(of_block(block, of_group))
        return [torch.cat(parts) for parts in found]


def _groups(lin: Linearization, layers: bool | Sequence[str]) -> dict[str, set[str]]:
    """The parameters of each matrix that is asked for."""
    if layers is False:
        return {"": set(lin.names)}
    if layers is True:
        return {layer: set(names) for layer, names in lin.layers.items()}
    if not layers or not all(isinstance(prefix, str) for prefix in layers):
        raise InvalidOption(
            f"layers: got {layers!r}, no prefix; pass True for all layers, or prefixes of parameter names."
        )
    groups: dict[str, set[str]] = {}
    for prefix in [layers] if isinstance(layers, str) else layers:
        groups[prefix] = {name for name in lin.names if name == prefix or name.startswith(f"{prefix}.")}
        if not groups[prefix]:
            raise InvalidOption(
                f"layers: {prefix!r} names no selected parameter; selected are {list(lin.names[:8])}"
                f"{' ...' if len(lin.names) > 8 else ''}."
            )
    return groups


def _outputs(features: Features) -> list[Features]:
    return [features.of_output(k) for k in range(features.c)]


_EACH = View(_outputs, rows=lambda _: 1, count=lambda c: c)
_TRACE = View(lambda features: [features.folded()], rows=lambda _: 1, count=lambda _: 1)


def _full(ask: _Ask) -> list[Tensor]:
    return [kernel for (kernel,) in ask.kernels(WHOLE)]


def _separate(ask: _Ask) -> list[Tensor]:
    return [torch.stack(kernels) for kernels in ask.kernels(_EACH)]


def _trace(ask: _Ask) -> list[Tensor]:
    return [kernel for (kernel,) in ask.kernels(_TRACE)]


def _mean(ask: _Ask) -> list[Tensor]:
    return [kernel / ask.c for kernel in _trace(ask)]


def _pseudo(ask: _Ask) -> list[Tensor]:
    scale = 1.0 / math.sqrt(ask.c)
    summed = Linearization(ask.lin.network.followed_by(lambda out: scale * out.reshape(len(out), -1).sum(1)))
    return [kernel for (kernel,) in ask.kernels(WHOLE, summed)]


def _blocks(ask: _Ask) -> list[Tensor]:
    return ask.over_blocks(lambda features, variances: features.blocks(variances))


def _diagonal(ask: _Ask) -> list[Tensor]:
    def squares(features: Features, variances: list[float]) -> Tensor:
        return torch.stack([one.blocks(variances).flatten() for one in _outputs(features)], dim=1).flatten()

    return ask.over_blocks(squares)


_ANSWERS: dict[str, Callable[[_Ask], list[Tensor]]] = {
    "full": _full,
    "separate": _separate,
    "trace": _trace,
    "mean": _mean,
    "pseudo": _pseudo,
    "diagonal": _diagonal,
    "blocks": _blocks,
}
