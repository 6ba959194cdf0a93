"""Examples: n inputs of a network, whatever their structure, checked at the door."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from jacana.errors import InvalidData
from jacana.networks.parts import cast, named_parts, refuse_misfits, refuse_not_finite, to_tensor

__all__ = [
    "Data",
    "Examples",
    "as_examples",
    "as_pairs",
    "as_targets",
    "joined",
    "split_batch",
]

if TYPE_CHECKING:
    Data: TypeAlias = Tensor | np.ndarray | Mapping[str, Any] | tuple[Any, ...] | DataLoader[Any] | "Examples"
    """What a network takes: a tensor, a mapping (keyword arguments), a tuple (positional), or a loader of these."""
else:  # what really comes is checked at the door, with errors that name the cure
    Data = Any


@dataclass(frozen=True)
class Examples:
    """n examples as the tensors of one call: ``keys`` are the keywords, an empty tuple for positional arguments.

    ``single`` tells a lone tensor from a tuple of one; ``name`` is what errors call them.
    """

    tensors: tuple[Tensor, ...]
    keys: tuple[str, ...] = ()
    single: bool = True
    name: str = "x"

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: slice | Tensor | list[int]) -> Examples:
        return Examples(tuple(tensor[index] for tensor in self.tensors), self.keys, self.single, self.name)

    @property
    def head(self) -> Examples:
        """Some of them."""
        return self

    def some(self, index: Int64[Tensor, " k"]) -> Examples:
        """Those with these numbers."""
        return self[index.to(self.tensors[0].device)]

    def gathered(self) -> Examples:
        """All of them in memory, where they are."""
        return self

    def copied(self) -> Examples:
        """The same in memory of its own, out of reach of whoever gave them."""
        return replace(self, tensors=tuple(tensor.clone() for tensor in self.tensors))

    def detached(self) -> Examples:
        """The same without a graph."""
        return replace(self, tensors=tuple(tensor.detach() for tensor in self.tensors))

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient with respect to them is asked for."""
        return any(tensor.requires_grad for tensor in self.tensors)

    def batches(self, size: int) -> Iterator[Examples]:
        """Consecutive mini-batches of at most ``size`` examples."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @property
    def raw(self) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
        """The examples in the structure that they came in."""
        if self.keys:
            return dict(zip(self.keys, self.tensors, strict=True))
        return self.tensors[0] if self.single else self.tensors

    @property
    def kind(self) -> tuple[Any, ...]:
        """Structure, dtypes and ranks: what the way to a derivative depends on."""
        return (self.keys, self.single, tuple((tensor.dtype, tensor.ndim) for tensor in self.tensors))

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of one example: what the network may accept or not."""
        return tuple(tensor.shape[1:] for tensor in self.tensors)

    def __str__(self) -> str:
        return ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in self.tensors)

    def followed_by(self, others: Examples) -> Examples:
        """These examples and then ``others``.

        Raises:
            InvalidData: when the two have different structures.
        """
        return joined([self, others])

    @property
    def structure(self) -> str:
        """Its structure in words."""
        if self.keys:
            return f"the keywords {list(self.keys)}"
        return "one tensor" if self.single else f"a tuple of {len(self.tensors)} tensors"


def joined(parts: Sequence[Examples]) -> Examples:
    """One set of examples after the other.

    Raises:
        InvalidData: when they have different structures.
    """
    first = parts[0]
    for others in parts[1:]:
        if (first.keys, first.single) != (others.keys, others.single):
            raise InvalidData(
                f"{first.name}: got examples made of {others.structure} after examples made of {first.structure}; "
                "give the new examples in the structure of the first."
            )
        if first.shapes != others.shapes:
            raise InvalidData(
                f"{first.name}: got examples of shape {[tuple(shape) for shape in others.shapes]} after examples of "
                f"shape {[tuple(shape) for shape in first.shapes]}; they must agree (pad sequences to one length)."
            )
    tensors = tuple(torch.cat(column) for column in zip(*(part.tensors for part in parts), strict=True))
    return replace(first, tensors=tensors)


def as_examples(
    x: Data | Examples,
    dtype: torch.dtype,
    device: torch.device,
    name: str = "x",
    *,
    graph: bool = False,
    start: int = 0,
) -> Examples:
    """Check ``x`` and bring it to the network: floating tensors to ``dtype``, all to ``device``.

    With ``graph``, gradients with respect to it stay possible. A loader is read once and must give the same order each
    time: what it is multiplied with does not move along. ``start`` is the number of the first example, for errors.

    Raises:
        InvalidData: not finite, empty, lengths that differ, a dtype that cannot be cast safely, an unstable loader.
    """
    if isinstance(x, DataLoader):
        x = _read(x, name, ordered=True)[0]
    return _checked(x, dtype, device, name, graph=graph, start=start)


def as_pairs(x: Data, y: Any, dtype: torch.dtype, device: torch.device, name: str = "x") -> tuple[Examples, Tensor]:
    """Inputs and targets, from two arguments or from one loader of (input, target) in any order.

    Raises:
        InvalidData: as :func:`as_examples`; a loader without targets, or targets given twice.
    """
    if isinstance(x, DataLoader):
        if y is not None:
            raise InvalidData("y: got targets beside a DataLoader that brings its own; pass the loader alone.")
        inputs, targets = _read(x, name, ordered=False)
        if targets is None:
            raise InvalidData(f"{name}: the DataLoader gives inputs alone; let it give pairs (input, target).")
        return _checked(inputs, dtype, device, name), as_targets(targets, None)
    if y is None:
        raise InvalidData("y: got None; pass the targets, one for each example, or a DataLoader of (input, target).")
    examples = _checked(x, dtype, device, name)
    return examples, as_targets(y, len(examples), name)


def as_targets(y: Any, n: int | None, name: str = "x") -> Float64[Tensor, "n"] | Float64[Tensor, "n c"]:
    """Targets as float64, (n,) or (n, c).

    Raises:
        InvalidData: not numbers, not finite, empty, of another length than ``n``, or of another rank.
    """
    targets = to_tensor(y, "y")
    if targets.is_complex():
        raise InvalidData("y: got complex numbers; expected real ones. Stack real and imaginary parts as two outputs.")
    targets = targets.detach().to(torch.float64)
    if targets.ndim not in (1, 2):
        raise InvalidData(f"y: got shape {tuple(targets.shape)}; expected (n,) or (n, c). Flatten the outputs.")
    if n is not None and len(targets) != n:
        raise InvalidData(f"y: got {len(targets)} targets for {n} examples in {name}; give one for each example.")
    if targets.numel() == 0:
        raise InvalidData("y: got no targets; give one for each example.")
    refuse_not_finite(targets, "y")
    return targets


def _checked(
    x: Any, dtype: torch.dtype, device: torch.device, name: str, *, graph: bool = False, start: int = 0
) -> Examples:
    if isinstance(x, Examples):
        return x
    given = {label: to_tensor(value, label) for label, value in named_parts(x, name).items()}
    refuse_misfits(given)
    tensors = []
    for label, tensor in given.items():
        if tensor.is_complex():
            raise InvalidData(f"{label}: got complex numbers; expected real ones. Pass torch.view_as_real(...).")
        refuse_not_finite(tensor, label, start)
        tensors.append(cast(tensor if graph else tensor.detach(), dtype, device, label))
    keys = tuple(x) if isinstance(x, Mapping) else ()
    return Examples(tuple(tensors), keys, not isinstance(x, Mapping | tuple), name)


def _read(loader: DataLoader[Any], name: str, *, ordered: bool) -> tuple[Any, Any]:
    """All inputs and, where there are any, all targets of one pass; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        parts = [split_batch(batch) for batch in loader]
        if not parts:
            raise InvalidData(f"{name}: the DataLoader gave no batch; expected at least one example.")
        if ordered:
            again = next(iter(loader), None)
            if again is None or not _same(parts[0][0], split_batch(again)[0]):
                raise InvalidData(
                    f"{name}: the DataLoader gives other examples on a second pass, so results could not be matched "
                    "with examples; use shuffle=False and no random augmentation."
                )
    targets = [target for _, target in parts]
    if any(target is None for target in targets):
        return _join([inputs for inputs, _ in parts], name), None
    return _join([inputs for inputs, _ in parts], name), _join(targets, "y")


def split_batch(batch: Any) -> tuple[Any, Any]:
    """What a loader gives as inputs and, where there are any, targets.

    Raises:
        InvalidData: more than a pair.
    """
    if isinstance(batch, list | tuple):
        if len(batch) == 1:
            return batch[0], None
        if len(batch) == 2:
            inputs, target = batch
            return (tuple(inputs) if isinstance(inputs, list) else inputs), target
        raise InvalidData(
            f"x: the DataLoader gives {len(batch)} things a batch; expected inputs alone or a pair (input, target). "
            "Pack several inputs as a tuple or mapping: ((a, b), target)."
        )
    return batch, None


def _join(parts: list[Any], name: str) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _join([part[key] for part in parts], name) for key in first}
    if isinstance(first, tuple):
        return tuple(_join(list(column), name) for column in zip(*parts, strict=True))
    tensors = [to_tensor(part, name) for part in parts]
    if any(t.shape[1:] != tensors[0].shape[1:] for t in tensors):
        raise InvalidData(f"{name}: the DataLoader's batches differ in shape beyond the first dimension; pad them.")
    return torch.cat(tensors)


def _same(a: Any, b: Any) -> bool:
    return all(s.shape == t.shape and bool(torch.equal(s, t)) for s, t in zip(_leaves(a), _leaves(b), strict=True))


def _leaves(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [to_tensor(value, "x")]
