"""The audit: refuse a network that has no Jacobian example by example, and name the layer and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jacana.errors import InvalidData, UnsupportedNetwork
from jacana.networks.examples import Examples
from jacana.networks.network import Network, refuse_infinite

__all__ = ["audit", "refuse_batch_statistics"]

_N_PROBED = 6
_N_REPEATS = 32
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def refuse_batch_statistics(network: Network) -> None:
    """Refuse layers known to mix the examples of a batch or to write into their weights, before any data is seen.

    Raises:
        UnsupportedNetwork: names the layer.
    """
    for name, module in network.module.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
            raise UnsupportedNetwork(
                f"net: layer {name!r} ({type(module).__name__}) has no running statistics, so in evaluation mode it "
                "normalises by the batch and mixes examples; train it with track_running_stats=True, or use "
                "GroupNorm or LayerNorm."
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise UnsupportedNetwork(
                f"net: layer {name!r} ({type(module).__name__}) has max_norm={module.max_norm}, which rewrites its "
                "weights during a pass; renormalise them once and set max_norm=None."
            )

        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq:
            raise UnsupportedNetwork(
                f"net: layer {name!r} ({type(module).__name__}) has scale_grad_by_freq=True, which makes an example's "
                "gradient depend on its batch; set it to False."
            )


def audit(network: Network, examples: Examples) -> tuple[int, bool]:
    """Run the network on a few examples and check what linearization needs; ``examples`` are not all run.

    The outputs must be floating point, finite, (n, c) or (n,); the same each time; and each a function of its own
    example alone: first, last and permuted examples are compared to a tolerance of √eps of the largest output.

    Returns:
        The number of outputs c, and whether they come as (n,).

    Raises:
        InvalidData: the network fails on inputs of this shape or dtype.
        UnsupportedNetwork: names the first layer that is random or mixes examples.
    """
    n = len(examples)
    few = examples[torch.linspace(0, n - 1, min(n, _N_PROBED)).round().long()]
    with torch.no_grad():
        state = torch.get_rng_state()
        out = _output(network, few)
        drawn = not torch.equal(state, torch.get_rng_state())  # by the network, or by another thread
        flat = network.raw_output(few).ndim == 1
        order = torch.arange(len(few)).flip(0)
        tolerance = float(out.abs().max()) * max(network.eps, torch.finfo(out.dtype).eps) ** 0.5
        if any(_apart(out, _output(network, few), tolerance) for _ in range(_N_REPEATS if drawn else 1)):
            layer = _first_difference(network, few, few, torch.arange(len(few)))
            torch.set_rng_state(state)
            raise UnsupportedNetwork(
                f"net: in evaluation mode {layer} still gives another output at each pass, so there is no function to "
                "linearize; use nn.Dropout in place of F.dropout(x) (on by default: pass training=self.training), and "
                "take sampling out of the forward pass, e.g. by output=."
            )
        for index in (order, torch.tensor([0]), torch.tensor([len(few) - 1])):
            if _apart(out[index], _alone(network, few[index]), tolerance):
                layer = _first_difference(network, few, few[index], index)
                raise UnsupportedNetwork(
                    f"net: {layer} mixes the examples of a batch: an example's output changes with its neighbours or "
                    "their order. Use running statistics for BatchNorm, batch_first=True for sequences (the examples "
                    "come first), and no reduction over the batch; or arrange the call by forward=."
                )
    return out.shape[1], flat


def _alone(network: Network, examples: Examples) -> Tensor:
    try:
        return _output(network, examples)
    except InvalidData as error:
        raise UnsupportedNetwork(
            f"net: the network takes a batch of examples but not {len(examples)} of them ({error.__cause__}): it mixes "
            "examples, as batch statistics do. Use running statistics for BatchNorm, and no reduction over the batch."
        ) from error


def _output(network: Network, examples: Examples) -> Tensor:
    out = network.raw_output(examples)
    n = len(examples)
    if not isinstance(out, Tensor):
        raise UnsupportedNetwork(
            f"output: the network returns {type(out).__name__}; expected a tensor (n, c) or (n,). Take one from it, "
            "e.g. output=lambda out: out.logits."
        )
    if not out.is_floating_point():
        raise UnsupportedNetwork(
            f"output: the network returns {out.dtype}; only floating-point outputs have a Jacobian. Take the scores "
            "before argmax or rounding, by output=."
        )
    if out.ndim not in (1, 2) or len(out) != n or out.numel() == 0:
        raise UnsupportedNetwork(
            f"output: the network returns shape {tuple(out.shape)} for {n} examples; expected ({n}, c) or ({n},). "
            "Use output=lambda out: out.flatten(1), or batch_first=True where sequences come first."
        )
    refuse_infinite(out, examples)
    return out.unsqueeze(1) if out.ndim == 1 else out


def _apart(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape != b.shape or bool(((a - b).abs() > tolerance).any())


def _first_difference(network: Network, one: Examples, other: Examples, index: Tensor) -> str:
    """The first layer, innermost first, whose output on ``other`` is not its output on ``one`` at ``index``."""
    first, second = _trace(network, one), _trace(network, other)
    for (name, kind, a), (_, _, b) in zip(first, second, strict=False):
        if a.ndim == 0 or len(a) != len(one) or len(b) != len(other):
            if name and (a.shape != b.shape or index.equal(torch.arange(len(one)))):
                return f"layer {name!r} ({kind})"
            continue
        scale = float(a.abs().max()) if a.numel() else 0.0
        if a.is_floating_point() and _apart(a[index], b, scale * torch.finfo(a.dtype).eps ** 0.5):
            return f"layer {name!r} ({kind})" if name else f"the network's own forward ({kind})"
    return f"the network's own forward ({type(network.module).__name__})"


def _trace(network: Network, examples: Examples) -> list[tuple[str, str, Tensor]]:
    seen: list[tuple[str, str, Tensor]] = []
    with _hooks(network.module, seen):
        network.raw_output(examples)
    return seen


@contextmanager
def _hooks(module: nn.Module, seen: list[tuple[str, str, Tensor]]) -> Iterator[None]:
    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            tensor = next((t for t in out if isinstance(t, Tensor)), None) if isinstance(out, tuple | list) else out
            if isinstance(tensor, Tensor):
                seen.append((name, type(layer).__name__, tensor.detach().clone()))

        return layer.register_forward_hook(hook)

    handles = [watch(name, layer) for name, layer in module.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
