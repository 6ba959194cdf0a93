"""Per-example gradients by rules: one forward pass under a watch, and one backward pass for each output."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.plan import Operation, Plan, weights
from jacana.linearization.shares import Absent, Formed, Share, Viewed, Window
from jacana.linearization.watch import Source, Watch
from jacana.networks import Examples, Network

__all__ = ["shares_by_rule", "shares_with_graph"]


def shares_by_rule(
    network: Network,
    examples: Examples,
    allowed: frozenset[int],
    dtype: torch.dtype,
    flags: list[Tensor] | None = None,
) -> tuple[list[Share], int]:
    """Shares of the allowed parameters that reach the output through operations with rules alone.

    A parameter that also reaches it another way (by an operation without a rule, by one whose examples are not where
    they were looked for) is left out whole, because shares add over parameters and not over operations.

    Args:
        network: the network.
        examples: a block of them.
        allowed: the parameters that may be covered.
        dtype: of the contraction.
        flags: trust the layouts and the output, and put in here what must turn out true of them.

    Returns:
        The shares, and the bytes that it took to compute them beside the network's own graph.
    """
    found = _passed(network, examples, allowed, dtype, flags)
    return found.shares(), found.transient


def shares_with_graph(
    network: Network,
    examples: Examples,
    allowed: frozenset[int],
    dtype: torch.dtype,
    values: Sequence[Tensor],
    *,
    of_values: bool,
) -> list[Share]:
    """The same, with the graph that leads to the examples and, if ``of_values``, to the parameters' ``values``.

    What operations there are, and where they have the examples, is found out by a plain pass at these values first.
    """
    at = [value.detach().requires_grad_() for value in values]
    plain = _passed(network, examples.detached(), allowed, dtype, values=at)
    state = network.state(values)
    watch = Watch(
        values, network.constants(state), len(examples), allowed, plain.plan.fixed, graph=True, of_sources=of_values
    )
    with watch:
        out, _ = network.record(examples, state)
    return _Pass(plain.plan.again(watch, values), out, graph=True).shares()


def _passed(
    network: Network,
    examples: Examples,
    allowed: frozenset[int],
    dtype: torch.dtype,
    flags: list[Tensor] | None = None,
    values: Sequence[Tensor] | None = None,
) -> _Pass:
    leaves = network.leaves if values is None else values
    fixed: frozenset[int] = frozenset()
    while True:
        state = network.state(() if values is None else values)
        watch = Watch(leaves, network.constants(state), len(examples), allowed, fixed)
        with watch:
            out, _ = network.record(examples, state, flags)
        found = _Pass(Plan(network, watch, out, leaves, allowed, dtype), out)
        found.verify(out, flags)
        if found.misread <= fixed:
            return found
        fixed |= found.misread  # what was taken for an entry an example has as many entries by chance


class _Pass:
    """The backward passes of a recorded forward pass, and the shares that they make.

    Args:
        plan: what is known of the operations.
        out: the output.
        graph: keep the graph of the gradients.
    """

    def __init__(self, plan: Plan, out: Tensor, *, graph: bool = False) -> None:
        self.plan, self._graph = plan, graph
        self._outside = plan.outside
        self.misread: frozenset[int] = frozenset()
        self._totals: dict[int, list[Tensor]] = {}
        for k in range(plan.c if plan.operations else 0):
            self._backward(out, k)

    @property
    def transient(self) -> int:
        """The bytes of one output's cotangents and of what went into the operations."""
        uses = [operation.weighted for operation in self.plan.operations]
        return sum(2 * use.cotangents.nbytes + sum(value.nbytes for value in use.inputs) for use in uses)

    def _backward(self, out: Tensor, k: int) -> None:
        """One output's cotangents, kept or made into gradients at once."""
        taps = [operation.seen.tap for operation in self.plan.operations]
        gradients = torch.autograd.grad(
            out[:, k].sum(),
            taps,
            retain_graph=True,
            create_graph=self._graph,
            allow_unused=True,
            materialize_grads=True,
        )
        pieces: dict[int, Tensor] = {}
        for operation, gradient in zip(self.plan.operations, gradients, strict=True):
            cotangent = operation.layout.arrange(gradient, self.plan.n)
            if not self._graph:
                operation.projections.append(cotangent.reshape(self.plan.n, -1) @ operation.projector)
            if operation.keeps:
                operation.cotangents.append(cotangent)
                continue
            use = replace(operation.weighted, cotangents=cotangent.unsqueeze(1))
            for role, number in operation.seen.sources.items():
                piece = operation.rule.formed(role, use).flatten(1)
                pieces[number] = pieces[number] + piece if number in pieces else piece
        for number, piece in pieces.items():
            self._totals.setdefault(number, []).append(piece)

    def verify(self, out: Tensor, flags: list[Tensor] | None) -> None:
        """Each example's output must have its cotangents in the entries that the layout says are that example's."""
        if not self.plan.operations:
            return
        by_example, by_output = weights(out)
        off, scales = [], []
        for operation in self.plan.operations:
            expected = by_example * (torch.stack(operation.projections, 1) @ by_output.to(operation.projections[0]))
            flat = operation.weighted.cotangents.reshape(self.plan.n, -1)
            off.append((flat @ operation.projector - expected).abs().to(out))
            scales.append(torch.linalg.vector_norm(flat, dim=1).to(out))
        # An example at a time, so that a large one does not hide a small one. Cotangents that cancel to nothing are
        # noise, and noise does not add up: what it makes of the inputs is nothing beside the example's other gradients.
        inputs = torch.stack([operation.inputs.to(out) for operation in self.plan.operations])
        sizes = torch.stack(scales)
        noise = 16.0 * self.plan.network.eps * (sizes * inputs).amax(0) / inputs
        allowed = self.plan.network.eps**0.5 / 4.0 * sizes + noise
        wrong = [~(gap <= most).all() for gap, most in zip(off, allowed, strict=True)]
        if flags is not None:
            flags.append(~torch.stack(wrong).any())
            return
        for operation, is_wrong in zip(self.plan.operations, torch.stack(wrong).tolist(), strict=True):
            if is_wrong:
                self._outside |= self.plan.touched(operation)
                if operation.seen.settled is not None:
                    self.misread |= {operation.seen.settled}

    def shares(self) -> list[Share]:
        """One share for what is kept together, formed gradients for the rest, nothing for what is not used."""
        shares, seen = self._kept_shares()
        for place, gradients in self._formed().items():
            seen.add(place)
            if place not in self._outside:
                shares.append(self._named(Formed(place, gradients, self.plan.dtype)))
        sizes = self.plan.network.sizes
        unused = {place: sizes[place] for place in sorted(self.plan.allowed - seen - self._outside)}
        if unused:
            shares.append(
                self._named(Absent(unused, self.plan.n, self.plan.c, self.plan.dtype, self.plan.network.device))
            )
        return shares

    def _kept_shares(self) -> tuple[list[Share], set[int]]:
        groups: dict[object, list[Operation]] = {}
        for operation in self.plan.operations:
            if operation.keeps:
                groups.setdefault(operation.group, []).append(operation)
        shares: list[Share] = []
        viewed: dict[int, list[Share]] = {}  # the parts that share parameters, under each of these
        touched: set[int] = set()
        for members in groups.values():
            numbers = list(members[0].seen.sources.values())
            leaves = self.plan.touched(members[0])
            touched |= leaves
            uses = [replace(one.weighted, cotangents=_side_by_side(one.cotangents)) for one in members]
            for one in members:
                one.cotangents.clear()
            if leaves & self._outside:  # only now seen to be misread
                continue
            share = members[0].rule.share(uses)
            if all(self.plan.sources[number].window is None for number in numbers):
                shares.append(self._named(share))
                continue
            together = [share, *(part for leaf in leaves for part in viewed.get(leaf, []))]
            together = list({id(part): part for part in together}.values())
            for leaf in {leaf for part in together for number in part.places for leaf in self.plan.reach[number]}:
                viewed[leaf] = together
        for parts in {id(parts): parts for parts in viewed.values()}.values():
            sources: dict[int, tuple[int, Window | None]] = {}
            for number in (number for part in parts for number in part.places):
                (leaf,) = self.plan.reach[number]
                sources[number] = (leaf, self.plan.sources[number].window)
            sizes = {leaf: self.plan.network.sizes[leaf] for leaf, _ in sources.values()}
            if self._outside.isdisjoint(sizes):
                shares.append(self._named(Viewed(parts, sources, sizes)))
        return shares, touched

    def _named(self, share: Share) -> Share:
        """Say which operations a share comes from, and how often they come."""
        uses = Counter(
            operation.rule.name
            for operation in self.plan.operations
            if not self.plan.touched(operation).isdisjoint(share.places)
        )
        share.origin = ", ".join(f"{name} x {times}" if times > 1 else name for name, times in sorted(uses.items()))
        return share

    def _formed(self) -> dict[int, Float[Tensor, "n c q"]]:
        """The gradients of each parameter that is not kept in factors, through what was computed from it alone."""
        found: dict[int, Tensor] = {}
        for number in sorted(self._totals, reverse=True):  # computed tensors before the parameters themselves
            total = _side_by_side(self._totals.pop(number))
            if number < len(self.plan.leaves):
                found[number] = found[number] + total if number in found else total
                continue
            places = sorted((self.plan.reach[number] & self.plan.allowed) - self._outside)
            for place, piece in zip(places, self._pulled(self.plan.sources[number], places, total), strict=True):
                found[place] = found[place] + piece if place in found else piece
        return found

    def _pulled(self, source: Source, places: Sequence[int], total: Float[Tensor, "n c q"]) -> list[Tensor]:
        """Gradients with respect to a computed tensor, as gradients with respect to the parameters."""
        tensor = source.tensor
        leaves = [self.plan.leaves[place] for place in places]
        if not leaves:
            return []
        rows = total.flatten(0, 1).view(-1, *tensor.shape).to(tensor.dtype)

        def pull(cotangents: Tensor, *, batched: bool) -> tuple[Tensor, ...]:
            return torch.autograd.grad(
                source.edge, leaves, cotangents, retain_graph=True, create_graph=self._graph, is_grads_batched=batched
            )

        try:
            with warnings.catch_warnings():  # that it loops where an operation has no batching rule
                warnings.simplefilter("ignore")
                pulled = pull(rows, batched=True)
        except RuntimeError:  # or that it cannot
            each = [pull(row, batched=False) for row in rows]
            pulled = tuple(torch.stack(pieces) for pieces in zip(*each, strict=True))
        return [piece.reshape(*total.shape[:2], -1) for piece in pulled]


def _side_by_side(outputs: list[Tensor]) -> Float[Tensor, "n c ..."]:
    return outputs[0].unsqueeze(1) if len(outputs) == 1 else torch.stack(outputs, 1)
