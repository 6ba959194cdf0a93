"""Rule: how the parameters of one operation enter the kernel."""

from __future__ import annotations

import re
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
        places: the number of the parameter in each role.
        shapes: the shape of the parameter in each role.
        inputs: (n, ...), in the network's dtype, as :meth:`Rule.prepared` leaves them.
        cotangents: (n, c, ...), in the network's dtype; some or all of the outputs.
        options: those of the call.
        dtype: of the contraction.
    """

    places: Mapping[str, int]
    shapes: Mapping[str, torch.Size]
    inputs: tuple[Tensor, ...]
    cotangents: Float[Tensor, "n c ..."]
    options: Any
    dtype: torch.dtype

    @property
    def working(self) -> torch.dtype:
        """What gradients are formed in: the network's own dtype, but at least float32."""
        return torch.promote_types(self.cotangents.dtype, torch.float32)


class Rule(ABC):
    """An operation keyed by the torch function itself, so that modules, functional calls and shared weights are alike.

    A subclass in a file of this folder is found by itself; one defined elsewhere as well, from then on.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]]

    @property
    def name(self) -> str:
        """What tables call it."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()

    @abstractmethod
    def read(self, *args: Any, **kwargs: Any) -> Call | None:
        """Read a call, with the operation's own signature; None for calls that the rule does not cover.

        Every tensor that is a parameter, or is computed from parameters alone, comes as a detached nn.Parameter.
        """

    def prepared(self, use: Use) -> tuple[Tensor, ...]:
        """The inputs as the two methods below want them: what is the same for all outputs is computed once, here."""
        return use.inputs

    @abstractmethod
    def formed(self, role: str, use: Use) -> Float[Tensor, "n c ..."]:
        """Per-example gradients of the parameter in one role."""

    def kept(self, use: Use, c: int) -> int | None:
        """How many numbers an example with c outputs keeps in :meth:`share`; None where there is no such share.

        ``use`` has cotangents of one output, and its inputs as the call had them.
        """
        return None

    def share(self, uses: Sequence[Use]) -> Share:
        """A share in factors, for uses of the same parameters in the same roles."""
        raise NotImplementedError

    @abstractmethod
    def example(self) -> tuple[nn.Module, Tensor]:
        """A small network around the operation and inputs for it: what the tests of all rules run on."""


class Decomposition(ABC):
    """An operation that is written out in others, which have rules."""

    operations: ClassVar[tuple[Callable[..., Any], ...]]

    @abstractmethod
    def read(self, *args: Any, **kwargs: Any) -> Any | None:
        """Read a call, with the operation's own signature and parameters as nn.Parameter; None if it is not covered."""

    @abstractmethod
    def write_out(self, form: Any, *args: Any, **kwargs: Any) -> Any:
        """The same results by other operations; ``form`` is what :meth:`read` returned."""

    @abstractmethod
    def example(self) -> tuple[nn.Module, Tensor]:
        """A small network around the operation and inputs for it: what the tests of all rules run on."""


def unbroadcast(tensor: Float[Tensor, "n c ..."], shape: Sequence[int]) -> Float[Tensor, "n c ..."]:
    """Sum what broadcasting repeated: (n, c, *shape)."""
    extra = tensor.ndim - 2 - len(shape)
    sizes = tensor.shape[2 + extra :]
    stretched = [2 + extra + i for i, size in enumerate(shape) if size == 1 and sizes[i] != 1]
    dims = [*range(2, 2 + extra), *stretched]
    return tensor.sum(dims).reshape(*tensor.shape[:2], *shape) if dims else tensor
