"""Watch: see the operations of a network under plain autograd, and take the selected parameters out of them.

An operation with a rule is run with its parameters detached, and zeros are added to its output: the *tap*. What the
output's gradient is at the tap, and what went into the operation, is all that the gradient of the parameter is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jacana.linearization.layout import Layout, layouts
from jacana.linearization.rules import Call, Decomposition, Rule, Use, by_operation
from jacana.linearization.shares import Formed, Share
from jacana.networks import Examples, Network

__all__ = ["shares_by_rule"]


@dataclass(frozen=True)
class _Seen:
    """One call of an operation: its rule, which parameters it uses (by number), what it was given, and its tap."""

    rule: Rule
    places: dict[str, int]
    call: Call
    tap: Tensor


class _Watch(TorchFunctionMode):
    def __init__(self, leaves: tuple[Tensor, ...], n: int, allowed: frozenset[int]) -> None:
        super().__init__()
        self._places = {id(leaf): place for place, leaf in enumerate(leaves)}
        self._n, self._allowed = n, allowed
        self._rules = by_operation()
        self.seen: list[_Seen] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = self._rules.get(func)
        if rule is None or not any(id(value) in self._places for value in _flat((args, kwargs))):
            return func(*args, **kwargs)
        if isinstance(rule, Decomposition):
            if not rule.covers(*args, **kwargs):
                return func(*args, **kwargs)
            with self:
                return rule.write_out(*args, **kwargs)
        with torch.no_grad():
            call = rule.read(*args, **kwargs)
        places = {} if call is None else self._selected(call)
        if call is None or not places:
            return func(*args, **kwargs)
        ours = {id(call.parameters[role]) for role in places}
        plain = [value.detach() if id(value) in ours else value for value in args]
        named = {key: value.detach() if id(value) in ours else value for key, value in kwargs.items()}
        out: Tensor = func(*plain, **named)
        if not layouts(tuple(out.shape), call.dims, self._n):
            return func(*args, **kwargs)
        tap = out.new_zeros(()).expand(out.shape).detach().requires_grad_()
        # A later in-place operation must not reach what is kept.
        kept = Call(call.parameters, tuple(value.detach().clone() for value in call.inputs), call.dims, call.options)
        self.seen.append(_Seen(rule, places, kept, tap))
        return out + tap

    def _selected(self, call: Call) -> dict[str, int]:
        places = {role: self._places.get(id(value), -1) for role, value in call.parameters.items()}
        return {role: place for role, place in places.items() if place in self._allowed}


def shares_by_rule(network: Network, examples: Examples, allowed: frozenset[int], dtype: torch.dtype) -> list[Share]:
    """Shares of the allowed parameters that reach the output through operations with rules alone.

    A parameter that also reaches it another way (as a view, by an operation without a rule, by one whose examples are
    not where they were looked for) is left out whole, because shares add over parameters and not over operations.
    """
    n = len(examples)
    watch = _Watch(network.leaves, n, allowed)
    with watch:
        out, leaves = network.record(examples)
    if not watch.seen:
        return []
    taps = [seen.tap for seen in watch.seen]
    found, elsewhere = _layouts(out, watch.seen, [leaves[place] for place in sorted(allowed)], n)
    outside = {place for place, reached in zip(sorted(allowed), elsewhere, strict=True) if reached}
    wanted = [i for i, seen in enumerate(watch.seen) if not outside.issuperset(seen.places.values())]
    c = out.shape[1]
    cotangents: list[Tensor] = []
    for k in range(c if wanted else 0):
        gradients = torch.autograd.grad(
            out[:, k].sum(), [taps[i] for i in wanted], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for j, (i, gradient) in enumerate(zip(wanted, gradients, strict=True)):
            layout = found[i][0]
            arranged = layout.arrange(gradient, n)
            if k == 0:
                cotangents.append(arranged.new_empty(n, c, *arranged.shape[1:]))
            cotangents[j][:, k] = arranged
    by_example, by_output = _weights(out)
    tolerance = network.eps**0.5 / 4.0
    uses: list[tuple[Rule, Use]] = []
    for i, cotangent in zip(wanted, cotangents, strict=True):
        seen, (layout, weighted) = watch.seen[i], found[i]
        expected = torch.einsum("i,k,ik...->i...", by_example, by_output, cotangent)
        if not bool(((layout.arrange(weighted, n) - expected).abs() <= tolerance * expected.abs().max()).all()):
            outside |= set(seen.places.values())
            continue
        shapes = {role: seen.call.parameters[role].shape for role in seen.places}
        inputs = tuple(layout.arrange(value, n) for value in seen.call.inputs)
        uses.append((seen.rule, Use(seen.places, shapes, inputs, cotangent, seen.call.options, dtype)))
    return _shares(uses, outside)


def _layouts(
    out: Tensor, seen: list[_Seen], leaves: list[Tensor], n: int
) -> tuple[list[tuple[Layout, Tensor]], list[bool]]:
    """Where the examples are in each tap with the gradient of weighted outputs there, and which leaves are reached.

    A layer on (time, examples, features) can have as many times as there are examples, and a network may sort its
    examples by length: weighting the examples' outputs must weight the entries of each example alike.
    """
    taps = [one.tap for one in seen]
    by_example, by_output = _weights(out)
    total = out @ by_output
    gradients = torch.autograd.grad(by_example @ total, [*taps, *leaves], retain_graph=True, allow_unused=True)
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
    chosen: list[tuple[Layout, Tensor]] = []
    for i, some in enumerate(candidates):
        layout = exact[i][0]
        if i in plain:
            off = [_mismatch(option, weighted[i], plain[i], by_example) for option in some]
            layout = some[off.index(min(off))]
        chosen.append((layout, weighted[i]))
    return chosen, [gradient is not None for gradient in gradients[len(taps) :]]


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


def _shares(uses: list[tuple[Rule, Use]], outside: set[int]) -> list[Share]:
    """One share for the uses of the same parameters in the same roles; formed gradients where uses are mixed."""
    groups: dict[tuple[Any, ...], list[tuple[Rule, Use]]] = {}
    for rule, use in uses:
        groups.setdefault((rule, tuple(use.places.items())), []).append((rule, use))
    owners: dict[int, list[tuple[Any, ...]]] = {}
    for key, members in groups.items():
        for place in members[0][1].places.values():
            owners.setdefault(place, []).append(key)
    shares: list[Share] = []
    done = set(outside)
    for key, members in groups.items():
        rule, first = members[0]
        places = list(first.places.values())
        alone = len(set(places)) == len(places) and all(owners[place] == [key] for place in places)
        if alone and not outside.intersection(places) and (share := rule.share([use for _, use in members])):
            shares.append(share)
            done |= set(places)
    for place in sorted(owners.keys() - done):
        pieces = [
            rule.formed(role, use) for rule, use in uses for role, number in use.places.items() if number == place
        ]
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        shares.append(Formed(place, total.flatten(2)))
    return shares


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]
