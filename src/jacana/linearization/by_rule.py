"""Per-example gradients by rules: one forward pass under a watch, and one backward pass for each output."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.layout import Layout, layouts
from jacana.linearization.rules import Rule, Use
from jacana.linearization.shares import Absent, Formed, Share, Viewed, Window
from jacana.linearization.watch import Recomputation, Seen, Source, Watch
from jacana.networks import Examples, Network

__all__ = ["shares_by_rule", "shares_with_graph"]


@dataclass
class _Operation:
    """A call that is taken out of the network: where its examples are, and what its backward passes leave."""

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
        return self.seen.rule

    @property
    def group(self) -> tuple[Rule, tuple[tuple[str, int], ...]]:
        """Uses of the same sources in the same roles belong together."""
        return self.rule, tuple(self.seen.sources.items())


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
        values, network.constants(state), len(examples), allowed, plain.fixed, graph=True, of_sources=of_values
    )
    with watch:
        out, _ = network.record(examples, state)
    return _Pass(network, watch, out, values, allowed, dtype, after=plain).shares()


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
        found = _Pass(network, watch, out, leaves, allowed, dtype, flags=flags)
        if found.misread <= fixed:
            return found
        fixed |= found.misread  # what was taken for an entry an example has as many entries by chance


class _Pass:
    """The backward passes of one recorded forward pass, and the shares that they make.

    Args:
        network: the network.
        watch: what saw the forward pass.
        out: its output.
        leaves: the parameters in it.
        allowed: those that may be covered.
        dtype: of the contraction.
        flags: where to put what must turn out true, rather than to look at it.
        after: an earlier pass of the same examples; what it found out is taken over, and the graph is kept.
    """

    def __init__(
        self,
        network: Network,
        watch: Watch,
        out: Tensor,
        leaves: Sequence[Tensor],
        allowed: frozenset[int],
        dtype: torch.dtype,
        *,
        flags: list[Tensor] | None = None,
        after: _Pass | None = None,
    ) -> None:
        self._network, self._leaves, self._allowed, self._dtype = network, leaves, allowed, dtype
        self._sources, self.fixed, self._graph = watch.sources, watch.fixed, after is not None
        self._n, self._c = out.shape
        self.misread: frozenset[int] = frozenset()
        self._outside: set[int] = set()
        if after is None:
            self._operations = self._located(out, watch.seen) if out.requires_grad else []
            self._reach = {number: self._reached(self._sources[number]) for number in self._used(self._operations)}
            self._operations = [operation for operation in self._operations if self._wanted(operation)]
            self._plan()
        else:
            self._outside, self._reach = after._outside, after._reach  # noqa: SLF001
            self._operations = [self._again(operation, watch.seen) for operation in after._operations]  # noqa: SLF001
        self._totals: dict[int, list[Tensor]] = {}
        for k in range(self._c if self._operations else 0):
            self._backward(out, k)
        if after is None:
            self._verify(out, flags)

    @property
    def transient(self) -> int:
        """The bytes of one output's cotangents and of what went into the operations."""
        uses = [operation.weighted for operation in self._operations]
        return sum(2 * use.cotangents.nbytes + sum(value.nbytes for value in use.inputs) for use in uses)

    @staticmethod
    def _used(operations: Sequence[_Operation]) -> set[int]:
        return {number for operation in operations for number in operation.seen.sources.values()}

    def _wanted(self, operation: _Operation) -> bool:
        reached = {leaf for number in operation.seen.sources.values() for leaf in self._reach[number]}
        return bool((reached & self._allowed) - self._outside)

    def _reached(self, source: Source) -> frozenset[int]:
        """The parameters that a source is computed from."""
        if source.leaf is not None:
            return frozenset({source.leaf})
        zeros = torch.zeros_like(source.tensor)
        gradients = torch.autograd.grad(source.edge, self._leaves, zeros, retain_graph=True, allow_unused=True)
        return frozenset(place for place, gradient in enumerate(gradients) if gradient is not None)

    def _located(self, out: Tensor, seen: Sequence[Seen]) -> list[_Operation]:
        """Where the examples are in each tap, by the gradient of weighted outputs there; and which leaves it reaches.

        A layer on (time, examples, features) can have as many times as there are examples, and a network may sort its
        examples by length: weighting the examples' outputs must weight the entries of each example alike.
        """
        n, taps = self._n, [one.tap for one in seen]
        by_example, by_output = _weights(out)
        total = out @ by_output
        gradients = self._gradients_of(by_example @ total, [*taps, *self._leaves])
        if gradients is None:
            self._outside |= self._allowed
            return []
        reached = gradients[len(taps) :]
        self._outside |= {place for place in self._allowed if reached[place] is not None}
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
            shapes = {role: self._sources[number].tensor.shape for role, number in one.sources.items()}
            inputs = tuple(layout.arrange(value, n) for value in one.call.inputs)
            cotangent = layout.arrange(weighted[i], n).unsqueeze(1)
            use = Use(one.sources, shapes, inputs, cotangent, one.call.options, self._dtype)
            operations.append(_Operation(i, one, layout, use, _projector(cotangent), _size(use)))
        return operations

    def _gradients_of(self, total: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
        """The gradients, None of what is not reached; None at all where layers run again, now without their taps."""
        gradients: Sequence[Tensor | None] | None = None
        with Recomputation(self._network.module) as again:
            try:
                gradients = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
            except RuntimeError:
                if not again.happened:
                    raise
        return None if again.happened else gradients

    def _again(self, operation: _Operation, seen: Sequence[Seen]) -> _Operation:
        """The operation as a later pass of the same examples sees it."""
        one = seen[operation.place]
        inputs = tuple(operation.layout.arrange(value, self._n) for value in one.call.inputs)
        use = replace(operation.weighted, inputs=inputs)
        use = replace(use, inputs=operation.rule.prepared(use))
        return _Operation(
            operation.place, one, operation.layout, use, operation.projector, operation.inputs, operation.keeps
        )

    def _plan(self) -> None:
        """Keep the factors of operations where they are smaller than the gradients that they make, and may be kept.

        They may where every parameter concerned is used by operations of one kind and role: whole, or in disjoint
        views.
        """
        groups: dict[object, list[_Operation]] = {}
        for operation in self._operations:
            groups.setdefault(operation.group, []).append(operation)
        owners: dict[int, set[object]] = {}
        for key, members in groups.items():
            for number in members[0].seen.sources.values():
                owners.setdefault(number, set()).add(key)
        mixed = {leaf for leaf in self._allowed if not self._is_clean(leaf, owners)} | self._outside
        size = {number: self._sources[number].tensor.numel() for number in owners}
        waiting = list(groups.values())
        settled = False
        while not settled:
            settled = True
            for members in list(waiting):
                sources = list(members[0].seen.sources.values())
                touched = {leaf for number in sources for leaf in self._reach[number]}
                factors = [operation.rule.kept(operation.weighted, self._c) for operation in members]
                kept = sum(numbers for numbers in factors if numbers is not None)
                formed = self._c * sum(size[number] for number in sources)
                if touched & mixed or len(set(sources)) < len(sources) or None in factors or kept > formed:
                    mixed |= touched
                    waiting.remove(members)
                    settled = False
        for members in waiting:
            for operation in members:
                operation.keeps = True
        for operation in self._operations:
            operation.weighted = replace(operation.weighted, inputs=operation.rule.prepared(operation.weighted))

    def _is_clean(self, leaf: int, owners: dict[int, set[object]]) -> bool:
        numbers = [number for number in owners if leaf in self._reach[number]]
        if any(len(owners[number]) > 1 or self._sources[number].leaf is None for number in numbers):
            return False
        windows = [window for number in numbers if (window := self._sources[number].window) is not None]
        if len(windows) < len(numbers):
            return len(numbers) == 1
        return Window.disjoint(windows, self._leaves[leaf].numel())

    def _backward(self, out: Tensor, k: int) -> None:
        """One output's cotangents, kept or made into gradients at once."""
        taps = [operation.seen.tap for operation in self._operations]
        gradients = torch.autograd.grad(
            out[:, k].sum(),
            taps,
            retain_graph=True,
            create_graph=self._graph,
            allow_unused=True,
            materialize_grads=True,
        )
        pieces: dict[int, Tensor] = {}
        for operation, gradient in zip(self._operations, gradients, strict=True):
            cotangent = operation.layout.arrange(gradient, self._n)
            if not self._graph:
                operation.projections.append(cotangent.reshape(self._n, -1) @ operation.projector)
            if operation.keeps:
                operation.cotangents.append(cotangent)
                continue
            use = replace(operation.weighted, cotangents=cotangent.unsqueeze(1))
            for role, number in operation.seen.sources.items():
                piece = operation.rule.formed(role, use).flatten(1)
                pieces[number] = pieces[number] + piece if number in pieces else piece
        for number, piece in pieces.items():
            self._totals.setdefault(number, []).append(piece)

    def _verify(self, out: Tensor, flags: list[Tensor] | None) -> None:
        """Each example's output must have its cotangents in the entries that the layout says are that example's."""
        if not self._operations:
            return
        by_example, by_output = _weights(out)
        off, scales = [], []
        for operation in self._operations:
            expected = by_example * (torch.stack(operation.projections, 1) @ by_output.to(operation.projections[0]))
            flat = operation.weighted.cotangents.reshape(self._n, -1)
            off.append((flat @ operation.projector - expected).abs().to(out))
            scales.append(torch.linalg.vector_norm(flat, dim=1).to(out))
        # An example at a time, so that a large one does not hide a small one. Cotangents that cancel to nothing are
        # noise, and noise does not add up: what it makes of the inputs is nothing beside the example's other gradients.
        inputs = torch.stack([operation.inputs.to(out) for operation in self._operations])
        sizes = torch.stack(scales)
        noise = 16.0 * self._network.eps * (sizes * inputs).amax(0) / inputs
        allowed = self._network.eps**0.5 / 4.0 * sizes + noise
        wrong = [~(gap <= most).all() for gap, most in zip(off, allowed, strict=True)]
        if flags is not None:
            flags.append(~torch.stack(wrong).any())
            return
        for operation, is_wrong in zip(self._operations, torch.stack(wrong).tolist(), strict=True):
            if is_wrong:
                self._outside |= {leaf for number in operation.seen.sources.values() for leaf in self._reach[number]}
                if operation.seen.settled is not None:
                    self.misread |= {operation.seen.settled}

    def shares(self) -> list[Share]:
        """One share for what is kept together, formed gradients for the rest, nothing for what is not used."""
        shares, seen = self._kept_shares()
        for place, gradients in self._formed().items():
            seen.add(place)
            if place not in self._outside:
                shares.append(self._named(Formed(place, gradients, self._dtype)))
        sizes = self._network.sizes
        unused = {place: sizes[place] for place in sorted(self._allowed - seen - self._outside)}
        if unused:
            shares.append(self._named(Absent(unused, self._n, self._c, self._dtype, self._network.device)))
        return shares

    def _kept_shares(self) -> tuple[list[Share], set[int]]:
        groups: dict[object, list[_Operation]] = {}
        for operation in self._operations:
            if operation.keeps:
                groups.setdefault(operation.group, []).append(operation)
        shares: list[Share] = []
        viewed: dict[int, list[Share]] = {}  # the parts that share parameters, under each of these
        touched: set[int] = set()
        for members in groups.values():
            numbers = list(members[0].seen.sources.values())
            leaves = {leaf for number in numbers for leaf in self._reach[number]}
            touched |= leaves
            uses = [replace(one.weighted, cotangents=_side_by_side(one.cotangents)) for one in members]
            for one in members:
                one.cotangents.clear()
            if leaves & self._outside:  # only now seen to be misread
                continue
            share = members[0].rule.share(uses)
            if all(self._sources[number].window is None for number in numbers):
                shares.append(self._named(share))
                continue
            together = [share, *(part for leaf in leaves for part in viewed.get(leaf, []))]
            together = list({id(part): part for part in together}.values())
            for leaf in {leaf for part in together for number in part.places for leaf in self._reach[number]}:
                viewed[leaf] = together
        for parts in {id(parts): parts for parts in viewed.values()}.values():
            sources: dict[int, tuple[int, Window | None]] = {}
            for number in (number for part in parts for number in part.places):
                (leaf,) = self._reach[number]
                sources[number] = (leaf, self._sources[number].window)
            sizes = {leaf: self._network.sizes[leaf] for leaf, _ in sources.values()}
            if self._outside.isdisjoint(sizes):
                shares.append(self._named(Viewed(parts, sources, sizes)))
        return shares, touched

    def _named(self, share: Share) -> Share:
        """Say which operations a share comes from, and how often they come."""
        uses = Counter(
            operation.rule.name
            for operation in self._operations
            if any(not self._reach[number].isdisjoint(share.places) for number in operation.seen.sources.values())
        )
        share.origin = ", ".join(f"{name} x {times}" if times > 1 else name for name, times in sorted(uses.items()))
        return share

    def _formed(self) -> dict[int, Float[Tensor, "n c q"]]:
        """The gradients of each parameter that is not kept in factors, through what was computed from it alone."""
        found: dict[int, Tensor] = {}
        for number in sorted(self._totals, reverse=True):  # computed tensors before the parameters themselves
            total = _side_by_side(self._totals.pop(number))
            if number < len(self._leaves):
                found[number] = found[number] + total if number in found else total
                continue
            places = sorted((self._reach[number] & self._allowed) - self._outside)
            for place, piece in zip(places, self._pulled(self._sources[number], places, total), strict=True):
                found[place] = found[place] + piece if place in found else piece
        return found

    def _pulled(self, source: Source, places: Sequence[int], total: Float[Tensor, "n c q"]) -> list[Tensor]:
        """Gradients with respect to a computed tensor, as gradients with respect to the parameters."""
        tensor = source.tensor
        leaves = [self._leaves[place] for place in places]
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


def _weights(out: Tensor) -> tuple[Tensor, Tensor]:
    """One weight an example and one an output, all different."""
    n, c = out.shape
    by_example = torch.linspace(1.0, 2.0, n, dtype=out.dtype, device=out.device)
    return by_example, torch.linspace(1.0, 3.0, c, dtype=out.dtype, device=out.device).square()


def _mismatch(layout: Layout, weighted: Tensor, plain: Tensor, by_example: Tensor) -> float:
    """How far the weighted gradient is from the plain one with each example's entries weighted."""
    arranged = layout.arrange(plain, len(by_example))
    expected = arranged * by_example.view(-1, *(1 for _ in arranged.shape[1:]))
    return float((layout.arrange(weighted, len(by_example)) - expected).abs().max())
