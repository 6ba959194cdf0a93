"""Linearization: f(x) ≈ f(x; θ0) + J(x) δ, with exact products J v and Jᵀ u on mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacana.errors import InvalidData, InvalidOption
from jacana.linearization.columns import Columns
from jacana.linearization.features import Features, features
from jacana.linearization.inquiry import Inquiry
from jacana.linearization.keeping import Keeping
from jacana.linearization.memory import budget, keep_freed
from jacana.linearization.probe import Findings
from jacana.linearization.vectors import as_vectors
from jacana.networks import (
    Data,
    Examples,
    Network,
    Selection,
    as_examples,
    as_pairs,
    differentiable,
    refuse_batch_statistics,
    refuse_infinite,
)

__all__ = ["Linearization", "linearize", "valid_batch_size"]

_BATCH_SIZE = 256
_BLOCK_BYTES = 2**29
"""What a block of examples may take, where that much is free."""


def linearize(
    net: nn.Module,
    parameters: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Linearization:
    """Linearize a trained network at its present weights θ0.

        f(x; θ0 + δ) ≈ f(x; θ0) + J(x) δ,     J(x) = ∂f(x; θ0)/∂θ

    The network is copied: later training of ``net`` does not reach the linearization, and ``net`` is never changed.
    Nothing is computed before the first data come; then a probe audits the network on a few examples and chooses the
    fastest exact route to its derivatives.

    Args:
        net: any trained module.
        parameters: the θ to linearize in: full names, dotted prefixes, modules, parameters, or several of these.
            By default every parameter that requires a gradient.
        output: takes from what the network returns the tensor (n, c) or (n,), e.g. ``lambda out: out.logits``.
        forward: calls the network, ``forward(net, x)``, where passing a tensor (one argument), a tuple (positional
            arguments) or a mapping (keyword arguments) does not do.
        batch_size: examples in one pass; by default 256.
        autocast: ``torch.bfloat16`` runs the network's matrix products and convolutions in that dtype, forward and
            backward, accumulated in float32; weights, outputs, products and everything after the network stay as they
            are. J is then exact to about its rounding, eps = .8 % an operation, not to float32's; it is checked to
            √eps, 9 %. Faster where the device has units for it. By default off, whatever autocast the caller has set.
            float16 is refused: gradients below 6e-8 vanish in it without a word.

    Raises:
        InvalidOption: no module, an unknown name, an empty selection, another ``autocast``.
        UnsupportedNetwork: it cannot be copied, or (at the first data) it is random or mixes examples.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> lin = jacana.linearize(net, parameters="2")
        >>> lin.n_parameters, lin.layers
        (27, {'2': ('2.weight', '2.bias')})
        >>> x = torch.randn(5, 2)
        >>> lin(x).shape, lin.jvp(x, torch.ones(27)).shape, lin.vjp(x, torch.ones(5, 3)).shape
        (torch.Size([5, 3]), torch.Size([5, 3]), torch.Size([27]))
        >>> lin.route(x)
        'forward'
    """
    network = Network(net, parameters, output, forward, autocast)
    refuse_batch_statistics(network)
    keep_freed()
    return Linearization(network, batch_size)


@final
class Linearization:
    """A network at θ0 with its exact derivatives; made by :func:`linearize`.

    All products are in the network's dtype and on its device, and take ``batch_size`` to overrule the default.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> lin, x = jacana.linearize(net), torch.randn(4, 2)
        >>> lin
        Linearization(Sequential, 33 parameters in 2 layers, torch.float32)
        >>> v, u = torch.randn(33), torch.randn(4, 1)
        >>> bool(torch.isclose((u * lin.jvp(x, v)).sum(), lin.vjp(x, u) @ v, atol=1e-4))
        True
    """

    def __init__(self, network: Network, batch_size: int | None = None) -> None:
        self.network = network
        self._batch_size = valid_batch_size(batch_size) or _BATCH_SIZE
        self._inquiry = Inquiry(network)
        self._room: int | None = None

    @property
    def n_parameters(self) -> int:
        """The number p of selected parameters."""
        return self.network.n_parameters

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the selected parameters, in ``named_parameters`` order."""
        return self.network.names

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Layer name to the selected parameters that this module owns itself."""
        return self.network.layers

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    def __repr__(self) -> str:
        kind = type(self.network.module).__name__
        return f"Linearization({kind}, {self.n_parameters:,} parameters in {len(self.layers)} layers, {self.dtype})"

    def route(self, x: Data) -> str:
        """Which exact way to J v the probe chose for inputs like ``x``.

        Returns:
            ``"forward"``, ``"forward, oneDNN off"``, ``"double backward"`` or ``"rows"``.
        """
        return self.findings(self.examples(x)).route.name

    def __call__(self, x: Data, *, batch_size: int | None = None) -> Float[Tensor, "n c"]:
        """The network's own output f(x; θ0), (n, c); a network that returns (n,) has c = 1."""
        examples = self.examples(x)
        self.findings(examples)
        with differentiable(), torch.no_grad():
            network = self.network
            out = torch.cat([network(network.values, batch) for batch in self._batches(examples, batch_size)])
        refuse_infinite(out, examples)
        return out

    def jvp(
        self, x: Data, v: Tensor, *, batch_size: int | None = None
    ) -> Float[Tensor, "n c"] | Float[Tensor, "n c k"]:
        """J(x) v, exactly: the change of the outputs for a small change of the weights.

        Args:
            x: n examples.
            v: (p,), or k columns (p, k).
            batch_size: examples in one pass.

        Returns:
            (n, c), or (n, c, k).

        Raises:
            InvalidData: examples or ``v`` that cannot be used.
        """
        examples = self.examples(x)
        route = self.findings(examples).route
        vectors = self._vectors(
            v, "v", (self.n_parameters,), f"one entry a selected parameter, p = {self.n_parameters}"
        )
        columns = vectors.unsqueeze(1) if vectors.ndim == 1 else vectors
        if columns.shape[1] == 0:
            c = self.findings(examples).n_outputs
            return columns.new_zeros(len(examples), c, 0)
        with route.context():
            parts = [route.jvp(self.network, batch, columns) for batch in self._batches(examples, batch_size)]
        product = torch.cat(parts).to(self.dtype)
        return product.squeeze(2) if vectors.ndim == 1 else product

    def vjp(self, x: Data, u: Tensor, *, batch_size: int | None = None) -> Float[Tensor, " p"] | Float[Tensor, "p k"]:
        """J(x)ᵀ u, exactly: the gradient of Σ u·f in the selected parameters.

        Args:
            x: n examples.
            u: (n, c) or (n·c,), row i·c + k for output k of example i; or k columns (n·c, k).
            batch_size: examples in one pass.

        Returns:
            (p,), or (p, k). A tensor (n·c, k) with c = 1 and one column is told from (n, c) by neither: it gives (p,).

        Raises:
            InvalidData: examples or ``u`` that cannot be used.
        """
        examples = self.examples(x)
        n, c = len(examples), self.findings(examples).n_outputs
        cotangents = self._vectors(u, "u", (n * c, n), f"(n, c) = ({n}, {c}), or ({n * c},), or ({n * c}, k)")
        if cotangents.shape == (n, c) or cotangents.ndim == 1:
            return self._vjp(examples, cotangents.reshape(n, c, 1), batch_size).squeeze(1)
        if len(cotangents) != n * c:
            raise InvalidData(
                f"u: got shape {tuple(u.shape)}; expected (n, c) = ({n}, {c}), ({n * c},) or ({n * c}, k)."
            )
        return self._vjp(examples, cotangents.reshape(n, c, -1), batch_size)

    def jacobian(self, x: Data, *, batch_size: int | None = None) -> Float[Tensor, "nc p"]:
        """The dense Jacobian, row i·c + k for output k of example i: for small cases, it holds n·c·p numbers."""
        examples = self.examples(x)
        blocks = [block.dense() for block in self.blocks(examples, dtype=self.dtype, batch_size=batch_size)]
        return torch.cat(blocks)

    # What follows serves the folders that come after; it takes checked examples and contracts in float64.

    def examples(self, x: Data | Examples, name: str = "x", *, graph: bool = False) -> Examples:
        """Checked examples in the network's dtype, on its device; with ``graph``, open to gradients."""
        with torch.inference_mode(False):  # what is made here must be fit for a backward pass
            return as_examples(x, self.network.input_dtype, self.device, name, graph=graph)

    def pairs(self, x: Data, y: Any, name: str = "x") -> tuple[Examples, Tensor]:
        """Checked examples and targets."""
        with torch.inference_mode(False):
            examples, targets = as_pairs(x, y, self.network.input_dtype, self.device, name)
            return examples, targets.to(self.device)

    def restricted(self, names: Sequence[str]) -> Linearization:
        """The same snapshot, called in the same way, in some of its selected parameters alone."""
        return Linearization(self.network.restricted(names), self._batch_size)

    def moved(self, change: Float[Tensor, " p"]) -> Linearization:
        """The linearization at θ0 + ``change``."""
        return Linearization(self.network.moved(change), self._batch_size)

    def findings(self, examples: Examples) -> Findings:
        """What the probe found for inputs like these."""
        return self._inquiry.findings(examples)

    def keeping(self, examples: Examples) -> Keeping:
        """How graphs for inputs like these are kept."""
        return self._inquiry.keeping(examples)

    def factored(self, examples: Examples) -> bool:
        """Whether what is kept of inputs like these are factors rather than graphs."""
        return self._inquiry.factored(examples)

    @property
    def columns(self) -> Columns:
        """How several columns are multiplied."""
        return self._inquiry.columns

    @property
    def batch_size(self) -> int:
        """Examples in one pass."""
        return self._batch_size

    def trusts(self, examples: Examples) -> bool:
        """Whether blocks of inputs like these have always been what the probe found."""
        return self._inquiry.trusts(examples)

    def doubt(self, examples: Examples) -> None:
        """Look at each block of inputs like these from now on."""
        self._inquiry.doubt(examples)

    def blocks(
        self, examples: Examples, *, dtype: torch.dtype = torch.float64, batch_size: int | None = None
    ) -> Iterator[Features]:
        """The features of consecutive blocks of examples, each within the memory of one block."""
        for start, stop in self.bounds(examples, batch_size):
            yield self.features(examples[start:stop], dtype)

    def bounds(
        self, examples: Examples, batch_size: int | None = None, *, room: int | None = None
    ) -> list[tuple[int, int]]:
        """How ``examples`` are cut into blocks that take no more than ``room`` bytes each, or are of one example.

        By default always in the same way: how a network rounds depends on how many examples it is given at once, and
        weights that a kernel gave are multiplied with the very numbers that it was made of.
        """
        if self._room is None:
            self._room = min(_BLOCK_BYTES, budget(self.device) // 4)
        most = min(_BLOCK_BYTES, self._room if room is None else room) // max(
            1, self.findings(examples).bytes_per_example
        )
        size = valid_batch_size(batch_size) or max(1, min(4 * self._batch_size, most))
        return [(start, min(start + size, len(examples))) for start in range(0, len(examples), size)]

    def features(
        self,
        examples: Examples,
        dtype: torch.dtype = torch.float64,
        *,
        places: frozenset[int] | None = None,
        flags: list[Tensor] | None = None,
    ) -> Features:
        """The features of one block; see :func:`~jacana.linearization.features.features`."""
        findings = self.findings(examples)
        with differentiable():
            return features(
                self.network, examples, ruled=findings.ruled, vectorises=findings.vectorises,
                dtype=dtype, places=places, flags=flags,
            )  # fmt: skip

    def _vjp(self, examples: Examples, cotangents: Tensor, batch_size: int | None) -> Float[Tensor, "p k"]:
        network, total = self.network, None
        k = cotangents.shape[2]
        with differentiable():
            start = 0
            total = torch.zeros(self.n_parameters, k, dtype=self.dtype, device=self.device)
            for batch in self._batches(examples, batch_size):
                out, leaves = network.record(batch)
                piece = cotangents[start : start + len(batch)].to(out)
                start += len(batch)
                for column in range(k if out.requires_grad else 0):
                    gradients = torch.autograd.grad(
                        out, leaves, piece[:, :, column],
                        retain_graph=column + 1 < k, allow_unused=True, materialize_grads=True,
                    )  # fmt: skip
                    total[:, column] += network.flatten(gradients)
        return total

    def _batches(self, examples: Examples, batch_size: int | None) -> Iterator[Examples]:
        return examples.batches(valid_batch_size(batch_size) or self._batch_size)

    def _vectors(self, value: Any, name: str, lengths: tuple[int, ...], expected: str) -> Tensor:
        return as_vectors(value, name, lengths, expected, device=self.device, dtype=self.dtype)


def valid_batch_size(batch_size: Any) -> int | None:
    """A number of examples, or None.

    Raises:
        InvalidOption: anything else.
    """
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InvalidOption(f"batch_size: got {batch_size!r}; expected a positive whole number of examples, or None.")
    return int(batch_size)
