"""Forward mode: one tangent pass a column, the cheapest route (2/3 of a forward and backward pass)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from jacana.linearization.routes.route import Route
from jacana.networks import Examples, Network, differentiable, refuse_infinite

__all__ = ["Forward", "ForwardUnfused"]


class Forward(Route):
    """Dual numbers through the network."""

    name: ClassVar[str] = "forward"

    def jvp(self, network: Network, examples: Examples, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        _load_forward_rules()
        columns = []
        for vector in vectors.unbind(1):
            with torch.no_grad(), _PaddingIsConstant(), forward_ad.dual_level():
                pairs = zip(network.values, network.split(vector), strict=True)
                duals = [forward_ad.make_dual(v, t) for v, t in pairs]  # type: ignore[no-untyped-call]
                primal, tangent = forward_ad.unpack_dual(network(duals, examples))  # type: ignore[no-untyped-call]
                refuse_infinite(primal, examples)
                columns.append(torch.zeros_like(primal) if tangent is None else tangent.clone())
        return torch.stack(columns, dim=2)


class ForwardUnfused(Forward):
    """The same without oneDNN and cuDNN, whose fused recurrent layers have no forward mode."""

    name: ClassVar[str] = "forward, oneDNN off"

    @contextmanager
    def context(self) -> Iterator[None]:
        with differentiable(fused_kernels=False):
            yield


class _PaddingIsConstant(TorchFunctionMode):
    """Reverse mode gives an embedding's padding row no gradient; forward mode must agree, and by itself does not."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            given = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | kwargs
        elif func is torch.embedding:
            given = dict(zip(("weight", "indices", "padding_idx"), args, strict=False)) | kwargs
            given["input"] = given["indices"]
            given["padding_idx"] = None if given.get("padding_idx", -1) < 0 else given["padding_idx"]
        else:
            return func(*args, **kwargs)
        padding = given.get("padding_idx")
        out = func(*args, **kwargs)
        if padding is None:
            return out
        padding = padding % len(given["weight"])  # functional calls count from the end too
        return torch.where((given["input"] == padding).unsqueeze(-1), out.detach(), out)


@cache
def _load_forward_rules() -> None:
    """The first dual number of a process makes torch compile its forward rules, with a warning that is torch's own."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore")
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))  # type: ignore[no-untyped-call]
