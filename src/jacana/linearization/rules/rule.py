"""Rule: how the parameters of one operation enter the kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacana.linearization.shares import Share

__all__ = ["Call", "Decomposition", "Rule", "Use", "unbroadcast"]


@dataclass(frozen=True)
class Call:
    """One call of an operation, as its rule reads it.

    Attributes:
        parameters: the arguments that may be parameters, by their role.
        inputs: what the gradients are made of beside the cotangent, with examples where the output has them.
        dims: the dimensions of the output that may run over the examples.
        options: whatever else the rule needs.
    """

    parameters: Mapping[str, Tensor]
    inputs: tuple[Tensor, ...]
    dims: Sequence[int]
    options: Any = None


@dataclass(frozen=True)
class Use:
    """A call with its cotangents, the examples first.

    Attributes:
        places: the number of the selected parameter in each role.
        shapes: the shape of the parameter in each role.
        inputs: (n, ...), in the network's dtype.
        cotangents: (n, c, ...), in the network's dtype.
        options: those of the call.
        dtype: of the contraction.
    """

    places: Mapping[str, int]
    shapes: Mapping[str, torch.Size]
    inputs: tuple[Tensor, ...]
    cotangents: Float[Tensor, "n c ..."]
    options: Any
    dtype: torch.dtype


class Rule(ABC):
    """An operation keyed by the torch function itself, so that modules, functional calls and shared weights are alike.

    A subclass in a file of this folder is found by itself; one defined elsewhere as well, from then on.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]]

    @abstractmethod
    def read(self, *args: Any, **kwargs: Any) -> Call | None:
        """Read a call, with the operation's own signature; None for calls that the rule does not cover."""

    @abstractmethod
    def formed(self, role: str, use: Use) -> Float[Tensor, "n c ..."]:
        """Per-example gradients of the parameter in one role, in the dtype of the contraction."""

    def share(self, uses: Sequence[Use]) -> Share | None:
        """A share that contracts better than formed gradients, for uses of the same parameters in the same roles."""
        return None

    @abstractmethod
    def example(self) -> tuple[nn.Module, Tensor]:
        """A small network around the operation and inputs for it: what the tests of all rules run on."""


class Decomposition(ABC):
    """An operation that is written out in others, which have rules."""

    operations: ClassVar[tuple[Callable[..., Any], ...]]

    @abstractmethod
    def covers(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a call, with the operation's own signature, can be written out."""

    @abstractmethod
    def write_out(self, *args: Any, **kwargs: Any) -> Any:
        """The same results by other operations."""

    @abstractmethod
    def example(self) -> tuple[nn.Module, Tensor]:
        """A small network around the operation and inputs for it: what the tests of all rules run on."""


def unbroadcast(tensor: Float[Tensor, "n c ..."], shape: Sequence[int]) -> Float[Tensor, "n c ..."]:
    """Sum what broadcasting repeated: (n, c, *shape)."""
    extra = tensor.ndim - 2 - len(shape)
    if extra:
        tensor = tensor.sum(tuple(range(2, 2 + extra)))
    repeated = [2 + i for i, size in enumerate(shape) if size == 1 and tensor.shape[2 + i] != 1]
    return tensor.sum(repeated, keepdim=True) if repeated else tensor
