"""Selection: which parameters of a network are linearized, and the layers that own them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import cast

from torch import nn
from torch.nn.parameter import UninitializedParameter

from jacana.errors import InvalidOption

__all__ = ["Selection", "layer_of", "select"]

Selection = str | nn.Module | nn.Parameter | Iterable["str | nn.Module | nn.Parameter"] | None
"""A full name, a dotted prefix, a module, a parameter, or several of these; None is all that require a gradient."""


def select(net: nn.Module, parameters: Selection) -> tuple[str, ...]:
    """Canonical names of the selected parameters, in ``named_parameters`` order.

    A tied parameter has several names; any of them selects it, and it appears once, under its first.

    Raises:
        InvalidOption: an unknown name, a module or parameter of another network, or nothing selected.
    """
    canonical = {id(parameter): name for name, parameter in net.named_parameters()}
    aliases = {name: canonical[id(p)] for name, p in net.named_parameters(remove_duplicate=False)}
    for name, parameter in net.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InvalidOption(f"net: parameter {name!r} is not initialised yet; run the network once on data first.")
    if parameters is None:
        chosen = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        if not chosen:
            raise InvalidOption(
                "parameters: no parameter of the network requires a gradient; name those to linearize, "
                "e.g. parameters='head', or call net.requires_grad_(True)."
            )
    else:
        chosen = set()
        for item in _items(parameters):
            chosen |= _matches(net, item, canonical, aliases)
        if not chosen:
            raise InvalidOption("parameters: the selection is empty; name at least one parameter, prefix or module.")
    for name, parameter in net.named_parameters():
        if name in chosen and not parameter.is_floating_point():
            raise InvalidOption(
                f"parameters: {name!r} is {parameter.dtype}; only floating-point parameters have a Jacobian. "
                "Leave it out of parameters=."
            )
    return tuple(name for name, _ in net.named_parameters() if name in chosen)


def layer_of(name: str) -> str:
    """The layer that owns a parameter: its dotted name without the last part, '' for the network itself."""
    return name.rpartition(".")[0]


def _items(parameters: object) -> list[object]:
    alone = isinstance(parameters, str | nn.Module | nn.Parameter) or not isinstance(parameters, Iterable)
    return [parameters] if alone else list(cast(Iterable[object], parameters))


def _matches(net: nn.Module, item: object, canonical: dict[int, str], aliases: dict[str, str]) -> set[str]:
    if isinstance(item, nn.Parameter):
        if id(item) not in canonical:
            raise InvalidOption(
                f"parameters: got a parameter of shape {tuple(item.shape)} that is not the network's; "
                "select by name, or take it from this very network."
            )
        return {canonical[id(item)]}
    if isinstance(item, nn.Module):
        if not any(item is module for module in net.modules()):
            raise InvalidOption(
                f"parameters: got a {type(item).__name__} that is not a part of the network; "
                "select by name, or take the module from this very network."
            )
        found = {canonical[id(parameter)] for parameter in item.parameters()}
        if not found:
            raise InvalidOption(f"parameters: the selected {type(item).__name__} has no parameters; select another.")
        return found
    if not isinstance(item, str):
        raise InvalidOption(
            f"parameters: got {type(item).__name__}; give names, dotted prefixes, modules or parameters."
        )
    found = {aliases[name] for name in aliases if name == item or name.startswith(item + ".") or item == ""}
    if found:
        return found
    known = sorted({*aliases, *(layer_of(name) for name in aliases)} - {""})
    near = difflib.get_close_matches(item, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = list(dict.fromkeys(part for name in aliases for part in (layer_of(name), name) if part))
    listing = ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
    raise InvalidOption(
        f"parameters: {item!r} names no parameter or layer of the network.{hint} Layers and parameters are: {listing}."
    )
