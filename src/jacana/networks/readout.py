"""Readout: the last linear layer of a network, whose outputs are the network's own."""

from __future__ import annotations

import difflib
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from jacana.errors import InvalidData, InvalidOption, UnsupportedNetwork
from jacana.networks.audit import audit, refuse_batch_statistics
from jacana.networks.examples import Examples
from jacana.networks.network import Network, refuse_infinite

__all__ = ["Readout"]

_N_PROBED = 6
_IDLE = (nn.Identity, nn.Dropout)
"""What gives back what it takes, in evaluation mode."""


@final
class Readout:
    """A linear layer, and on a few examples the proof that the network's outputs are made of its own one by one.

    Args:
        network: audited, if there are examples.
        linear: a layer of its private copy.
        name: what errors call it.
        few: examples; None believes it.

    Raises:
        UnsupportedNetwork: the outputs are others.
    """

    def __init__(self, network: Network, linear: nn.Linear, name: str, few: Examples | None) -> None:
        self.linear = linear
        self._network, self._name, self._few = network, name, few
        if few is not None:
            self._seen = self.features(few)
            _refuse_others(network, linear, name, few, self._seen)

    @classmethod
    def find(cls, network: Network, layer: str | None, examples: Examples | None, *, written: bool) -> Readout:
        """That of the name, or the one whose output the network returns, or that of a sequence.

        Args:
            network: with a linear layer.
            layer: its name, if known.
            examples: inputs; some of them are run.
            written: whether what the network returns is taken as it is, so that the last in a sequence is the last.

        Raises:
            InvalidOption: no such layer, or too little is known to tell.
            UnsupportedNetwork: none gives the outputs.
        """
        if examples is None:
            name = _last_written(network, written) if layer is None else layer
            linear = _linear(network.module, name)
            _refuse_unusual(linear, name)
            return cls(network, linear, f"layer {name!r}", None)
        refuse_batch_statistics(network)
        n = len(examples)
        few = examples[torch.linspace(0, n - 1, min(n, _N_PROBED)).round().long()]
        audit(network, few)
        name = _returned(network, few) if layer is None else layer
        return cls(network, _linear(network.module, name), f"layer {name!r}", few)

    def verify(self, head: nn.Linear, network: Network) -> None:
        """Prove, where there are examples, that a network with ``head`` in this layer's place gives its outputs.

        Raises:
            UnsupportedNetwork: it does not.
        """
        if self._few is not None:
            _refuse_others(network, head, "the new layer", self._few, self._seen)

    def features(self, examples: Examples) -> Float64[Tensor, "n d"]:
        """What the network would return if the layer gave back what it takes: on the CPU.

        Raises:
            UnsupportedNetwork: then it fails, or gives something else.
        """

        def pass_on(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> Any:
            return args[0] if args else kwargs["input"]

        handle = self.linear.register_forward_hook(pass_on, with_kwargs=True)
        try:
            out = self._network.raw_output(examples)
        except (InvalidData, InvalidOption) as error:
            raise _not_its_own(
                self._name, f"with another number of them the network fails: {error.__cause__}"
            ) from error
        finally:
            handle.remove()
        shape = (len(examples), self.linear.in_features)
        if not isinstance(out, Tensor) or out.shape != shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise _not_its_own(self._name, f"its features come out as {got}, not {shape}")
        refuse_infinite(out, examples)
        return out.detach().cpu().double()


def _refuse_others(
    network: Network, layer: nn.Linear, name: str, few: Examples, features: Float64[Tensor, "m d"]
) -> None:
    """Refuse a network whose outputs are not what the layer makes of its features."""
    out = network.raw_output(few)
    bias = None if layer.bias is None else layer.bias.cpu().double()
    want = functional.linear(features, layer.weight.cpu().double(), bias)
    if not isinstance(out, Tensor) or out.shape != want.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise _not_its_own(name, f"the network returns {got}, the layer {tuple(want.shape)}")
    apart, size = float((out.cpu().double() - want).abs().max()), float(want.abs().max())
    if not apart <= max(network.eps, torch.finfo(out.dtype).eps) ** 0.5 * size:
        raise _not_its_own(name, f"they differ by {apart:.1e} where they are up to {size:.1e}")


def _not_its_own(name: str, why: str) -> UnsupportedNetwork:
    return UnsupportedNetwork(
        f"net: the outputs are not those of {name} one by one ({why}); expected nothing after it that changes or mixes "
        "them, no hooks and no forward of its own. Take the logits by output=, or name another layer by layer=."
    )


def _returned(network: Network, few: Examples) -> str:
    """The name of the linear layer whose output is the very tensor that the network returns."""
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _, __, out: seen.append((name, out)))

    linear = [(name, module) for name, module in network.module.named_modules() if isinstance(module, nn.Linear)]
    handles = [watch(name, module) for name, module in linear]
    try:
        out = network.raw_output(few)
    finally:
        for handle in handles:
            handle.remove()
    for name, given in seen:
        if given is out:
            return name
    last = f"the last one to run is {seen[-1][0]!r}, and something is done after it" if seen else "none of them runs"
    raise UnsupportedNetwork(
        f"net: no nn.Linear gives the outputs themselves ({last}); expected a network that returns the logits of its "
        "last layer. Take them by output=; or name the layer by layer=, if each output is made of one of its own alone."
    )


def _last_written(network: Network, written: bool) -> str:
    """The name of the last layer of a network that is written as a sequence, where nothing is run."""
    name, module = "", network.module
    while type(module) is nn.Sequential:
        working = [(key, child) for key, child in module.named_children() if type(child) not in _IDLE]
        if not working:
            break
        key, module = working[-1]
        name = f"{name}.{key}" if name else key
    if isinstance(module, nn.Linear) and written:
        return name
    *_, last = [key for key, module in network.module.named_modules() if isinstance(module, nn.Linear)]
    raise InvalidOption(
        f"layer: got None, and without examples nothing tells which layer of a {type(network.module).__name__} is the "
        f"last; pass a few as x, or name it, e.g. layer={last!r}."
    )


def _linear(net: nn.Module, name: str) -> nn.Linear:
    modules = dict(net.named_modules(remove_duplicate=False))
    module = modules.get(name)
    if isinstance(module, nn.Linear):
        return module
    known = [key for key, other in modules.items() if isinstance(other, nn.Linear)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(map(repr, known[-12:]))
    what = "names no layer of the network" if module is None else f"is a {type(module).__name__}"
    raise InvalidOption(f"layer: {name!r} {what}; expected an nn.Linear.{hint} Choose among {shown}.")


def _refuse_unusual(layer: nn.Linear, name: str) -> None:
    """Refuse a layer that may compute something else than its weights say, where nothing is run."""
    held = isinstance(layer.weight, nn.Parameter) or parametrize.is_parametrized(layer, "weight")
    if type(layer).forward is not nn.Linear.forward or not held:
        raise InvalidOption(
            f"x: got None, and the last layer {name!r} is a {type(layer).__name__} that need not be what its weights "
            "say; expected a few examples. Pass some, on which that is verified."
        )
