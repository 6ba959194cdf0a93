"""The dense Jacobian of a network by plain reverse mode: one backward pass for each row, and nothing clever."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def call(
    net: nn.Module,
    x: Any,
    output: Callable[[Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Tensor:
    """What the network returns, as (n, c): a tensor is the one argument, a mapping keywords, a tuple positions."""
    if forward is not None:
        out = forward(net, x)
    elif isinstance(x, Mapping):
        out = net(**x)
    elif isinstance(x, tuple):
        out = net(*x)
    else:
        out = net(x)
    if output is not None:
        out = output(out)
    return out[:, None] if out.ndim == 1 else out


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def parameter_names(net: nn.Module) -> tuple[str, ...]:
    """What is selected by default: every parameter that requires a gradient, in the order of `named_parameters`."""
    return tuple(name for name, parameter in net.named_parameters() if parameter.requires_grad)


def _untouched_copy(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().clone()
    if isinstance(x, Mapping):
        return {key: _untouched_copy(value) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(_untouched_copy(value) for value in x)
    return copy.deepcopy(x)


def outputs(net: nn.Module, x: Any, output: Any = None, forward: Any = None) -> Array:
    """The network's outputs in evaluation mode, (n, c) in float64."""
    net = copy.deepcopy(net)
    with _evaluating(net), torch.no_grad():
        return call(net, _untouched_copy(x), output, forward).double().numpy()


def jacobian(
    net: nn.Module, x: Any, names: Sequence[str] | None = None, output: Any = None, forward: Any = None
) -> Array:
    """(n·c, p): row i·c + k is the gradient of output k of example i, columns in `named_parameters` order."""
    net = copy.deepcopy(net)
    chosen = set(parameter_names(net) if names is None else names)
    parameters = [parameter for name, parameter in net.named_parameters() if name in chosen]
    assert len(parameters) == len(chosen), "the oracle was asked for a parameter that is not there"
    for parameter in parameters:
        parameter.requires_grad_(True)
    rows = []
    with _evaluating(net), torch.enable_grad():
        values = call(net, _untouched_copy(x), output, forward)
        for value in values.reshape(-1):
            if value.requires_grad:
                gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            else:
                gradients = tuple(None for _ in parameters)
            rows.append(
                torch.cat(
                    [
                        torch.zeros(parameter.numel(), dtype=torch.float64) if g is None else g.double().reshape(-1)
                        for g, parameter in zip(gradients, parameters, strict=True)
                    ]
                )
            )
    return torch.stack(rows).numpy()


def differences(
    net: nn.Module,
    x: Any,
    names: Sequence[str] | None = None,
    output: Any = None,
    forward: Any = None,
    step: float = 1e-5,
) -> Array:
    """The same by central differences: no differentiation at all, so that `jacobian` has an oracle of its own."""
    net = copy.deepcopy(net)
    chosen = set(parameter_names(net) if names is None else names)
    columns = []
    for name, parameter in net.named_parameters():
        if name not in chosen:
            continue
        flat = parameter.data.view(-1)
        for j in range(flat.numel()):
            kept = flat[j].item()
            flat[j] = kept + step
            above = outputs(net, x, output, forward).reshape(-1)
            flat[j] = kept - step
            below = outputs(net, x, output, forward).reshape(-1)
            flat[j] = kept
            columns.append((above - below) / (2 * step))
    return np.stack(columns, axis=1)


def prior_deviations(
    net: nn.Module, prior_std: float | Mapping[str, float], names: Sequence[str] | None = None
) -> Array:
    """The prior standard deviation of each selected weight, (p,): the longest dotted prefix that matches wins."""
    chosen = parameter_names(net) if names is None else names
    sizes = dict(net.named_parameters())
    spread = []
    for name in (n for n in sizes if n in set(chosen)):
        if isinstance(prior_std, Mapping):
            matching = [key for key in prior_std if key == "" or name == key or name.startswith(key + ".")]
            deviation = prior_std[max(matching, key=len)]
        else:
            deviation = prior_std
        spread.append(np.full(sizes[name].numel(), float(deviation)))
    return np.concatenate(spread)
