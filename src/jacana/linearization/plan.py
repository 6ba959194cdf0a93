"""Plan: which operations of a recorded pass make gradients, where their examples are, and what is kept of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.layout import Layout, layouts
from jacana.linearization.rules import Rule, Use
from jacana.linearization.shares import Window
from jacana.linearization.watch import Recomputation, Seen, Source, Watch
from jacana.networks import Network

__all__ = ["Operation", "Plan", "weights"]


@dataclass
class Operation:
    """A call that is taken out of the network: where its examples are, and what its backward passes leave.

    Attributes:
        place: of the call in what was seen.
        seen: the call.
        layout: where its output has the examples.
        weighted: the use with the cotangents of outputs weighted by :func:`weights`.
        projector: makes one number of an example's cotangents.
        inputs: how large what went in is, example by example.
        keeps: whether cotangents are kept, rather than made into gradients at once.
        cotangents: those kept, output by output.
        projections: (n,), output by output.
    """

    place: int
    seen: Seen
    layout: Layout
    weighted: Use
    projector: Tensor
    inputs: Tensor
    keeps: bool = False
    cotangents: list[Tensor] = field(default_factory=list)
    projections: list[Tensor] = field(default_factory=list)

    @property
    def rule(self) -> Rule:
        """The rule of the operation."""
        return self.seen.rule

    @property
    def group(self) -> tuple[Rule, tuple[tuple[str, int], ...]]:
        """Uses of the same sources in the same roles belong together."""
        return self.rule, tuple(self.seen.sources.items())


class Plan:
    """What one forward and one backward pass tell of the operations.

    Args:
        network: the network.
        watch: what saw the forward pass.
        out: its output.
        leaves: the parameters in it.
        allowed: those that may be covered.
        dtype: of the contraction.

    Attributes:
        operations: those that make gradients of allowed parameters.
        outside: allowed parameters that also reach the output another way.
        reach: the parameters that each source is computed from.
    """

    def __init__(
        self,
        network: Network,
        watch: Watch,
        out: Tensor,
        leaves: Sequence[Tensor],
        allowed: frozenset[int],
        dtype: torch.dtype,
    ) -> None:
        self.network, self.leaves, self.allowed, self.dtype = network, leaves, allowed, dtype
        self.sources, self.fixed = watch.sources, watch.fixed
        self.n, self.c = out.shape
        self.outside: set[int] = set()
        located = self._located(out, watch.seen) if out.requires_grad else []
        numbers = {number for operation in located for number in operation.seen.sources.values()}
        self.reach = {number: self._reached(self.sources[number]) for number in numbers}
        self.operations = [one for one in located if (self.touched(one) & allowed) - self.outside]
        self._choose()

    def again(self, watch: Watch, leaves: Sequence[Tensor]) -> Plan:
        """The same plan for a later pass of the same examples at the same values."""
        other = copy.copy(self)
        other.sources, other.leaves = watch.sources, leaves
        other.operations = [self._again(operation, watch.seen) for operation in self.operations]
        return other

    def touched(self, operation: Operation) -> set[int]:
        """The parameters that an operation uses."""
        return {leaf for number in operation.seen.sources.values() for leaf in self.reach[number]}

    def _reached(self, source: Source) -> frozenset[int]:
        """The parameters that a source is computed from."""
        if source.leaf is not None:
            return frozenset({source.leaf})
        zeros = torch.zeros_like(source.tensor)
        gradients = torch.autograd.grad(source.edge, self.leaves, zeros, retain_graph=True, allow_unused=True)
        return frozenset(place for place, gradient in enumerate(gradients) if gradient is not None)

    def _located(self, out: Tensor, seen: Sequence[Seen]) -> list[Operation]:
        """Where the examples are in each tap, by the gradient of weighted outputs there; and which leaves it reaches.

        A layer on (time, examples, features) can have as many times as there are examples, and a network may sort its
        examples by length: weighting the examples' outputs must weight the entries of each example alike.
        """
        n, taps = self.n, [one.tap for one in seen]
        by_example, by_output = weights(out)
        total = out @ by_output
        gradients = self._gradients_of(by_example @ total, [*taps, *self.leaves])
        if gradients is None:
            self.outside |= self.allowed
            return []
        reached = gradients[len(taps) :]
        self.outside |= {place for place in self.allowed if reached[place] is not None}
        weighted = [t.new_zeros(t.shape) if g is None else g for g, t in zip(gradients, taps, strict=False)]
        candidates = [layouts(tuple(one.tap.shape), one.call.dims, n) for one in seen]
        exact = [[layout for layout in some if layout.repeats == 1] or some for some in candidates]
        plain: dict[int, Tensor] = {}
        doubtful = [i for i, some in enumerate(exact) if len(some) > 1]
        if doubtful:  # one more backward pass tells
            sums = torch.autograd.grad(
                total.sum(), [taps[i] for i in doubtful], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            plain = dict(zip(doubtful, sums, strict=True))
        operations = []
        for i, (one, some) in enumerate(zip(seen, candidates, strict=True)):
            layout = exact[i][0]
            if i in plain:
                off = [_mismatch(option, weighted[i], plain[i], by_example) for option in some]
                layout = some[off.index(min(off))]
            shapes = {role: self.sources[number].tensor.shape for role, number in one.sources.items()}
            inputs = tuple(layout.arrange(value, n) for value in one.call.inputs)
            cotangent = layout.arrange(weighted[i], n).unsqueeze(1)
            use = Use(one.sources, shapes, inputs, cotangent, one.call.options, self.dtype)
            operations.append(Operation(i, one, layout, use, _projector(cotangent), _size(use)))
        return operations

    def _gradients_of(self, total: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
        """The gradients, None of what is not reached; None at all where layers run again, now without their taps."""
        gradients: Sequence[Tensor | None] | None = None
        with Recomputation(self.network.module) as again:
            try:
                gradients = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
            except RuntimeError:
                if not again.happened:
                    raise
        return None if again.happened else gradients

    def _again(self, operation: Operation, seen: Sequence[Seen]) -> Operation:
        """The operation as a later pass of the same examples sees it."""
        one = seen[operation.place]
        inputs = tuple(operation.layout.arrange(value, self.n) for value in one.call.inputs)
        use = replace(operation.weighted, inputs=inputs)
        use = replace(use, inputs=operation.rule.prepared(use))
        return Operation(
            operation.place, one, operation.layout, use, operation.projector, operation.inputs, operation.keeps
        )

    def _choose(self) -> None:
        """Keep the factors of operations where they are smaller than the gradients that they make, and may be kept.

        They may where every parameter concerned is used by operations of one kind and role: whole, or in disjoint
        views.
        """
        groups: dict[object, list[Operation]] = {}
        for operation in self.operations:
            groups.setdefault(operation.group, []).append(operation)
        owners: dict[int, set[object]] = {}
        for key, members in groups.items():
            for number in members[0].seen.sources.values():
                owners.setdefault(number, set()).add(key)
        mixed = {leaf for leaf in self.allowed if not self._is_clean(leaf, owners)} | self.outside
        size = {number: self.sources[number].tensor.numel() for number in owners}
        waiting = list(groups.values())
        settled = False
        while not settled:
            settled = True
            for members in list(waiting):
                sources = list(members[0].seen.sources.values())
                touched = self.touched(members[0])
                factors = [operation.rule.kept(operation.weighted, self.c) for operation in members]
                kept = sum(numbers for numbers in factors if numbers is not None)
                formed = self.c * sum(size[number] for number in sources)
                if touched & mixed or len(set(sources)) < len(sources) or None in factors or kept > formed:
                    mixed |= touched
                    waiting.remove(members)
                    settled = False
        for members in waiting:
            for operation in members:
                operation.keeps = True
        for operation in self.operations:
            operation.weighted = replace(operation.weighted, inputs=operation.rule.prepared(operation.weighted))

    def _is_clean(self, leaf: int, owners: dict[int, set[object]]) -> bool:
        numbers = [number for number in owners if leaf in self.reach[number]]
        if any(len(owners[number]) > 1 or self.sources[number].leaf is None for number in numbers):
            return False
        windows = [window for number in numbers if (window := self.sources[number].window) is not None]
        if len(windows) < len(numbers):
            return len(numbers) == 1
        return Window.disjoint(windows, self.leaves[leaf].numel())


def _projector(cotangent: Float[Tensor, "n ..."]) -> Float[Tensor, " q"]:
    """Weights without a pattern that make one number of an example's entries."""
    entries = torch.arange(cotangent[0].numel(), dtype=torch.float32, device=cotangent.device)
    return entries.mul_(2.399963).cos_().to(cotangent.dtype)


def _size(use: Use) -> Float[Tensor, " n"]:
    """How large what went into an operation is for each example, and what it makes of a cotangent; 1 for a bias."""
    size = use.cotangents.new_ones(len(use.cotangents))
    for value in use.inputs:
        if value.is_floating_point():
            size = size + torch.linalg.vector_norm(value.reshape(len(value), -1), dim=1)
    return size


def weights(out: Tensor) -> tuple[Tensor, Tensor]:
    """One weight an example and one an output, all different."""
    n, c = out.shape
    by_example = torch.linspace(1.0, 2.0, n, dtype=out.dtype, device=out.device)
    return by_example, torch.linspace(1.0, 3.0, c, dtype=out.dtype, device=out.device).square()


def _mismatch(layout: Layout, weighted: Tensor, plain: Tensor, by_example: Tensor) -> float:
    """How far the weighted gradient is from the plain one with each example's entries weighted."""
    arranged = layout.arrange(plain, len(by_example))
    expected = arranged * by_example.view(-1, *(1 for _ in arranged.shape[1:]))
    return float((layout.arrange(weighted, len(by_example)) - expected).abs().max())
