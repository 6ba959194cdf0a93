"""Watch: see the operations of a network under plain autograd, and take the selected parameters out of them.

An operation with a rule is run with its parameters detached, and zeros are added to its output: the *tap*. What the
output's gradient is at the tap, and what went into the operation, is all that the gradient of the parameter is made of.

What is computed from parameters, buffers and numbers alone is *settled*: it is the same for every example. A settled
tensor with a gradient (``W.T``, ``W[:k]``, a position embedding, a normalised weight) is taken out of an operation like
a parameter, and its gradient is pulled back to the parameters afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from jacana.linearization.layout import layouts
from jacana.linearization.rules import Call, Decomposition, Rule, by_operation
from jacana.linearization.shares import Window

__all__ = ["Recomputation", "Seen", "Source", "Watch"]


@dataclass(frozen=True)
class Source:
    """A settled tensor: a parameter, or what is computed from some.

    Attributes:
        tensor: with the graph that leads to the parameters.
        leaf: the number of the parameter that it is, or is a view of; None otherwise.
        window: which entries of that parameter it views; None for the parameter itself.
        edge: where that graph begins, whatever is written into the tensor later.
    """

    tensor: Tensor
    leaf: int | None
    window: Window | None
    edge: GradientEdge


@dataclass(frozen=True)
class Seen:
    """One call of an operation: its rule, the number of the source in each role, what it was given, and its tap.

    ``settled`` is the number of a call whose inputs are the same for all examples, of which the *output* is taken to
    have one entry an example; None for all other calls.
    """

    rule: Rule
    sources: dict[str, int]
    call: Call
    tap: Tensor
    settled: int | None


class Watch(TorchFunctionMode):
    """Sees a forward pass of n examples.

    Args:
        leaves: the selected parameters.
        settled: further tensors that do not depend on the examples.
        n: how many examples there are.
        allowed: the parameters that may be taken out, by number.
        fixed: the numbers of settled calls whose output does not have one entry an example, whatever its shape.
        graph: keep the graph of what goes into the operations, for gradients of gradients.
        of_sources: keep in the output the graph of what is taken out, for gradients of gradients with respect to it.
    """

    def __init__(
        self,
        leaves: Sequence[Tensor],
        settled: Iterable[Tensor],
        n: int,
        allowed: frozenset[int],
        fixed: frozenset[int] = frozenset(),
        *,
        graph: bool = False,
        of_sources: bool = False,
    ) -> None:
        super().__init__()
        self.sources = [Source(leaf, place, None, get_gradient_edge(leaf)) for place, leaf in enumerate(leaves)]
        self.seen: list[Seen] = []
        self.fixed = fixed
        self._n, self._graph, self._of_sources = n, graph, of_sources
        self._rules = by_operation()
        # Held, not only named: a number must not come to stand for another tensor.
        self._settled = {id(tensor): tensor for tensor in (*leaves, *settled)}
        self._own = {_storage(leaf) for leaf in leaves}
        self._number: dict[int, int | None] = {
            id(leaf): place if place in allowed else None for place, leaf in enumerate(leaves)
        }
        self._windows: dict[tuple[int, Window], int] = {}
        self._allowed = allowed
        self._stand_ins: dict[int, nn.Parameter] = {}
        self._stands_for: dict[int, int] = {}
        self._calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor)]
        settled = all(id(tensor) in self._settled for tensor in tensors)
        rule = self._rules.get(func)
        if rule is not None and any(self._source(tensor) is not None for tensor in tensors):
            if isinstance(rule, Decomposition):
                form = None
                if not settled:
                    form = rule.read(*_mapped(args, self._stand_in), **_mapped(kwargs, self._stand_in))
                if form is not None:
                    with self:
                        return rule.write_out(form, *args, **kwargs)
            else:
                out = self._tapped(rule, func, args, kwargs, tensors, settled)
                if out is not None:
                    return out
        result = func(*args, **kwargs)
        self._written(func, args, kwargs, result, settled)
        if settled:
            self._settled |= {id(out): out for out in _flat(result) if isinstance(out, Tensor)}
        return result

    def _tapped(
        self,
        rule: Rule,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        settled: bool,
    ) -> Tensor | None:
        """The output with its tap; None if the rule does not cover the call, which has then not been made."""
        plain, named = _mapped(args, self._stand_in), _mapped(kwargs, self._stand_in)
        with torch.set_grad_enabled(self._graph):
            call = rule.read(*plain, **named)
        if call is None or any(tensor.is_complex() for tensor in tensors):  # rules are for real numbers
            return None
        read = {role: self._stands_for.get(id(value)) for role, value in call.parameters.items()}
        sources = {role: number for role, number in read.items() if number is not None}
        given = [number for tensor in tensors if (number := self._source(tensor)) is not None]
        if not sources or sorted(given) != sorted(sources.values()):  # one of them is also what goes in
            return None
        call_number = None
        if settled:
            call_number, self._calls = self._calls, self._calls + 1
            if call_number in self.fixed:
                return None
        in_place = _writes(func)
        # A parameter that is written into has a stand-in of its own, which the tap would be no part of.
        if in_place and (self._source(args[0]) is not None or not layouts(tuple(args[0].shape), call.dims, self._n)):
            return None
        # A later in-place operation must not reach what is kept.
        own = {id(tensor) for tensor in tensors}
        inputs = tuple(value.clone() if id(value) in own else value for value in call.inputs)
        if not self._graph:
            inputs = tuple(value.detach() for value in inputs)
        out: Tensor = func(*args, **kwargs) if self._of_sources else func(*plain, **named)
        shape = tuple(out.shape)
        if not layouts(shape, call.dims, self._n):
            return None
        if settled and self._n > 1 and all(shape[dim] != self._n for dim in call.dims):
            return None
        try:
            tap = out.new_zeros(()).expand(shape).detach().requires_grad_()
        except RuntimeError:  # inside a transform of torch.func, which has taps of its own
            return None
        kept = Call(call.parameters, inputs, call.dims, call.options)
        self.seen.append(Seen(rule, sources, kept, tap, call_number))
        if in_place:
            self._written(func, args, kwargs, out, settled=False)
            return out.add_(tap)
        if _storage(out) in {_storage(tensor) for tensor in tensors}:  # a view
            return out + tap
        tapped: Tensor = _Tap.apply(out, tap)  # type: ignore[no-untyped-call]
        return tapped

    def _written(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, settled: bool
    ) -> None:
        """Forget what was known of tensors that were written into, in whatever view: their values and their graph."""
        results = {id(value) for value in _flat(result)}
        written = [
            *(args[:1] if _writes(func) else ()),
            *(v for v in _flat(args) if id(v) in results),
            kwargs.get("out"),
        ]
        storages = {_storage(value) for value in _flat(written) if isinstance(value, Tensor)} - {0} - self._own
        if not storages:
            return
        for key in [key for key, tensor in self._settled.items() if _storage(tensor) in storages]:
            self._number.pop(key, None)
            if not settled:
                del self._settled[key]

    def _stand_in(self, value: Any) -> Any:
        """The detached parameter that a rule gets to see in place of a source; other values as they are."""
        number = self._source(value) if isinstance(value, Tensor) else None
        if number is None:
            return value
        if number not in self._stand_ins:
            stand_in = nn.Parameter(self.sources[number].tensor.detach(), requires_grad=False)
            self._stand_ins[number], self._stands_for[id(stand_in)] = stand_in, number
        return self._stand_ins[number]

    def _source(self, tensor: Tensor) -> int | None:
        """The number of a settled tensor with a gradient."""
        if id(tensor) in self._number:
            return self._number[id(tensor)]
        if tensor.grad_fn is None or id(tensor) not in self._settled:  # a view made under no_grad has none
            return None
        found = self._viewed(tensor)
        if found is None:
            number: int | None = len(self.sources)
            self.sources.append(Source(tensor, None, None, get_gradient_edge(tensor)))
        elif found[0] not in self._allowed:
            number = None
        else:
            number = self._windows.setdefault(found, len(self.sources))
            if number == len(self.sources):
                self.sources.append(Source(tensor, *found, get_gradient_edge(tensor)))
        self._number[id(tensor)] = number
        return number

    def _viewed(self, tensor: Tensor) -> tuple[int, Window] | None:
        """The parameter of which a tensor shows distinct entries, and which."""
        storage = _storage(tensor)
        for place, source in enumerate(self.sources):
            if source.leaf != place or source.window is not None:
                continue
            leaf = source.tensor
            if _storage(leaf) == storage and leaf.dtype == tensor.dtype and leaf.is_contiguous():
                window = Window.of(tensor, leaf)
                if window is not None:
                    return place, window
        return None


class Recomputation:
    """Sees whether modules of a network run again in a backward pass, as checkpointed ones do: without their taps."""

    def __init__(self, root: nn.Module) -> None:
        self._own = {id(module) for module in root.modules()}
        self.happened = False

    def __enter__(self) -> Recomputation:
        self._hook = register_module_forward_pre_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _see(self, module: nn.Module, _: Any) -> None:
        self.happened = self.happened or id(module) in self._own


class _Tap(torch.autograd.Function):
    """out + 0 without a pass over memory: the gradient of ``out`` is that of the tap."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, tap: Tensor) -> Tensor:  # noqa: ARG004 - what is added is zero
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, gradient


def _storage(tensor: Tensor) -> int:
    """Where a tensor's memory is; 0 if it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _writes(func: Callable[..., Any]) -> bool:
    """Whether torch's naming says that an operation writes into its first argument."""
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, change) for item in value)
    return change(value)
