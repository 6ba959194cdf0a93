"""Network: a module as a pure function of its selected parameters and its inputs, at a snapshot of θ0."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from jacana.errors import InvalidData, InvalidOption, UnsupportedNetwork
from jacana.networks.context import differentiable
from jacana.networks.examples import Examples
from jacana.networks.selection import Selection, layer_of, select

__all__ = ["Network", "refuse_infinite"]

Output = Callable[[Any], Tensor]
Forward = Callable[[nn.Module, Any], Any]


class Network:
    """f(θ, x) of a private copy of ``net`` in evaluation mode, with θ the selected parameters.

    The user's module is read once, here, and never again: no later training, mode or hook of it reaches this copy,
    and nothing that happens here reaches it.

    Args:
        net: any trained module.
        parameters: what θ is made of, see :data:`~jacana.networks.selection.Selection`.
        output: takes from what the network returns the tensor (n, c) or (n,).
        forward: calls the network, ``forward(net, x)``, where inputs as arguments or keywords do not do.
        autocast: the dtype in which operations run that autocast holds safe in it; None for their own.

    Raises:
        InvalidOption: ``net`` is no module, the selection names nothing, or ``autocast`` is no dtype of its.
        UnsupportedNetwork: the module cannot be copied.
    """

    def __init__(
        self,
        net: nn.Module,
        parameters: Selection = None,
        output: Output | None = None,
        forward: Forward | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise InvalidOption(f"net: got {type(net).__name__}; expected a trained torch.nn.Module.")
        for name, option in (("output", output), ("forward", forward)):
            if option is not None and not callable(option):
                raise InvalidOption(f"{name}: got {type(option).__name__}; expected a function.")
        if autocast not in (None, torch.bfloat16):
            raise InvalidOption(
                f"autocast: got {autocast!r}; expected torch.bfloat16 or None. In float16 gradients below 6e-8 vanish."
            )
        names = select(net, parameters)
        private, self._computed = _private_copy(net)
        self._caller = _Caller(private, output, forward)
        self.autocast = autocast
        self._choose(names)

    def _choose(self, names: tuple[str, ...]) -> None:
        """Make θ of these parameters of the private copy."""
        self.names = names
        snapshot = dict(self._caller.net.named_parameters())
        self.leaves: tuple[Tensor, ...] = tuple(snapshot[name].requires_grad_() for name in self.names)
        self.values: tuple[Tensor, ...] = tuple(leaf.detach() for leaf in self.leaves)
        self._keys = tuple(_places(self._caller, leaf) for leaf in self.leaves)
        self._buffers = tuple((_places(self._caller, buffer), buffer) for buffer in self._caller.buffers())
        self.sizes: tuple[int, ...] = tuple(value.numel() for value in self.values)
        dtypes = [value.dtype for value in self.values]
        self.dtype: torch.dtype = dtypes[0]
        for dtype in dtypes[1:]:
            self.dtype = torch.promote_types(self.dtype, dtype)
        self.device: torch.device = self.values[0].device
        floating = [p.dtype for p in self.module.parameters() if p.is_floating_point()]
        self.input_dtype: torch.dtype = floating[0]
        rounded = [*floating, *([] if self.autocast is None else [self.autocast])]
        self.eps: float = max(torch.finfo(dtype).eps for dtype in rounded)  # what the network itself rounds to

    @property
    def module(self) -> nn.Module:
        """The private copy."""
        return self._caller.net

    @property
    def n_parameters(self) -> int:
        """The number p of selected parameters."""
        return sum(self.sizes)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Layer name to the names of the selected parameters that this module owns itself."""
        layers: dict[str, tuple[str, ...]] = {}
        for name in self.names:
            layers[layer_of(name)] = (*layers.get(layer_of(name), ()), name)
        return layers

    def __call__(self, values: Sequence[Tensor], examples: Examples) -> Float[Tensor, "n c"]:
        """The network's output at the parameter values ``values`` (one tensor a name)."""
        out = self._call(self.state(values), examples)
        return out.unsqueeze(1) if out.ndim == 1 else out

    def record(
        self, examples: Examples, state: dict[str, Tensor] | None = None, flags: list[Tensor] | None = None
    ) -> tuple[Float[Tensor, "n c"], tuple[Tensor, ...]]:
        """The output at θ0 with its reverse graph, and the leaves that it is differentiated by.

        An output that is not finite is refused, or leaves a False in ``flags`` if these are given.

        The leaves are the copy's own parameters: a checkpointed layer runs again during the backward pass, out of
        reach of a functional call.
        """
        out = self._call(self.state() if state is None else state, examples)
        if flags is None:
            refuse_infinite(out, examples)
        else:
            flags.append(torch.isfinite(out.detach()).all())
        return (out.unsqueeze(1) if out.ndim == 1 else out), self.leaves

    def followed_by(self, output: Output) -> Network:
        """The same network, sharing this copy's parameters, with a function of its output (n, c) or (n,) after it."""
        other = copy.copy(self)
        caller = _Caller(self._caller.net, _composed(self._caller.output, output), self._caller.call)
        vars(other)["_caller"] = caller
        return other

    def restricted(self, names: Sequence[str]) -> Network:
        """The same snapshot, its weights shared, with fewer parameters selected; the others are constants there."""
        memo: dict[int, Any] = {
            id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
            for parameter in self._caller.parameters()
        }
        other = copy.copy(self)
        caller, computed = copy.deepcopy((self._caller, self._computed), memo)
        vars(other).update(_caller=caller, _computed=computed)
        other._choose(tuple(name for name in self.names if name in set(names)))  # noqa: SLF001 - another of this class
        return other

    def moved(self, change: Float[Tensor, " p"]) -> Network:
        """The same network with the selected parameters moved."""
        other = copy.copy(self)
        with torch.inference_mode(False), torch.no_grad():  # what is copied must be fit for a backward pass
            caller, computed = copy.deepcopy((self._caller, self._computed))
            vars(other).update(_caller=caller, _computed=computed)
            other._choose(self.names)  # noqa: SLF001 - another of this class
            for leaf, piece in zip(other.leaves, self.split(change), strict=True):
                leaf.add_(piece.to(leaf).view_as(leaf))
        return other

    def raw_output(self, examples: Examples) -> Any:
        """What the network and ``output`` return at θ0, unchecked: what the audit looks at."""
        return self._call(self.state(self.values), examples)

    def constants(self, state: dict[str, Tensor]) -> list[Tensor]:
        """Every tensor that the network has of itself in a pass with this state: the same for all examples."""
        kept = [value for module in self.module.modules() for value in vars(module).values()]
        return [*state.values(), *self.module.parameters(), *(value for value in kept if isinstance(value, Tensor))]

    def state(self, values: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """Every place of every parameter and buffer; buffers as clones, because a network may write into them."""
        state = {key: buffer.clone() for keys, buffer in self._buffers for key in keys}
        for keys, value in zip(self._keys, values, strict=False):
            state.update(dict.fromkeys(keys, value))
        return state

    def _call(self, state: dict[str, Tensor], examples: Examples) -> Any:
        # Ties are resolved by _places: functional_call's own way leaves a module with two names with other weights.
        modules = list(self._caller.modules())
        before = [dict(vars(module)) for module in modules]  # a network may keep results of a pass on itself
        try:
            with self._precision():
                try:
                    out = functional_call(self._caller, state, (examples.copied(),), tie_weights=False)
                except InvalidData as error:
                    if self.autocast is None:
                        raise
                    raise InvalidData(f"{error} It ran with autocast={self.autocast}: try without.") from error
            self._refuse_stale()
            low = self.autocast is not None and isinstance(out, Tensor) and out.dtype == self.autocast
            return out.to(self.dtype) if low else out
        finally:
            for module, attributes in zip(modules, before, strict=True):
                vars(module).clear()
                vars(module).update(attributes)

    def _precision(self) -> AbstractContextManager[Any]:
        """Weights cast once are not remembered: what has been cast may be differentiated in other ways later."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast, cache_enabled=False)

    def _refuse_stale(self) -> None:
        """Refuse tensors that an earlier pass of the user's left on a module and that this pass has not made anew.

        What is computed from parameters once and then kept has no way back to them in a copy.
        """
        for module, name, tensor in self._computed:
            if vars(module).get(name) is tensor:
                raise UnsupportedNetwork(
                    f"net: {type(module).__name__}.{name} is a tensor with a gradient that an earlier pass computed "
                    "and kept; the Jacobian cannot go through it. Set it to None, or pass the network unused."
                )

    def split(self, vector: Float[Tensor, " p"]) -> tuple[Tensor, ...]:
        """A flat vector as tensors shaped, typed and placed like the parameters."""
        pieces = torch.split(vector, list(self.sizes))
        return tuple(piece.reshape(v.shape).to(v) for piece, v in zip(pieces, self.values, strict=True))

    def flatten(self, tensors: Sequence[Tensor]) -> Float[Tensor, " p"]:
        """Tensors shaped like the parameters as one flat vector."""
        return torch.cat([tensor.reshape(-1).to(self.device, self.dtype) for tensor in tensors])


def refuse_infinite(out: Tensor, examples: Examples) -> None:
    """Refuse outputs that are not finite; the inputs are, so it is the network that fails.

    Raises:
        UnsupportedNetwork: says where.
    """
    finite = torch.isfinite(out.detach().reshape(len(out), -1)).all(dim=1)
    if not bool(finite.all()):
        raise UnsupportedNetwork(
            f"{examples.name}: the network's output is NaN or infinite for {int((~finite).sum())} of {len(out)} finite "
            "examples; check its weights, and scale the inputs as in training, or drop these examples."
        )


class _Caller(nn.Module):
    """The network together with how it is called, so that one ``functional_call`` reaches its parameters."""

    def __init__(self, net: nn.Module, output: Output | None, forward: Forward | None) -> None:
        super().__init__()
        self.net = net
        self.output = output
        self.call = forward

    def forward(self, examples: Examples) -> Any:
        try:
            if self.call is not None:
                out = self.call(self.net, examples.raw)
            elif examples.keys:
                out = self.net(**dict(zip(examples.keys, examples.tensors, strict=True)))
            else:
                out = self.net(*examples.tensors)
        except Exception as error:  # a user's forward may raise anything
            raise InvalidData(
                f"{examples.name}: the network fails on inputs of shape and dtype {examples} (examples first): "
                f"{type(error).__name__}: {error}. Check the shape against what the network was trained on; integers "
                "are passed as they are (token ids), so cast features to float; or say how to call it by forward=."
            ) from error
        if self.output is None:
            return out
        try:
            return self.output(out)
        except Exception as error:
            raise InvalidOption(
                f"output: the function fails on the {type(out).__name__} that the network returns: "
                f"{type(error).__name__}: {error}. Take the tensor (n, c) from it, e.g. output=lambda out: out.logits."
            ) from error


def _composed(first: Output | None, second: Output) -> Output:
    return second if first is None else lambda out: second(first(out))


def _places(root: nn.Module, tensor: Tensor) -> tuple[str, ...]:
    """The names of a parameter or buffer, one for each module that holds it."""
    places = []
    for prefix, module in root.named_modules():  # each module once, whatever its names
        held = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        places += [f"{prefix}.{name}" for name, other in held if other is tensor]
    return tuple(places)


Computed = list[tuple[nn.Module, str, Tensor]]
"""Tensors with a graph that modules keep, as detached in a copy: the module, the attribute, and the tensor."""


def _private_copy(net: nn.Module) -> tuple[nn.Module, Computed]:
    if isinstance(net, torch.jit.ScriptModule):
        raise UnsupportedNetwork(
            "net: got a TorchScript module, which has no gradients by name; pass the eager module."
        )
    for name, module in net.named_modules():
        own = vars(module).get("forward")
        if any(isinstance(value, nn.Module | Tensor) for value in _enclosed(own)):
            raise UnsupportedNetwork(
                f"net: layer {name!r} has a forward of its own that closes over modules or tensors of the original "
                "network, out of reach of a copy; write it as a method of a module class."
            )
    with differentiable():
        memo: dict[int, Any] = {}
        for module in net.modules():  # tensors computed in an earlier pass (the old weight_norm) do not deepcopy
            for value in vars(module).values():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    memo[id(value)] = value.detach().clone()
        detached = {id(value) for value in memo.values()}
        try:
            private = copy.deepcopy(net, memo)
        except Exception as error:
            culprit = next((f" in layer {name!r}" for name, m in net.named_modules() if name and not _copies(m)), "")
            raise UnsupportedNetwork(
                f"net: copy.deepcopy of the network fails{culprit}: {error}. Jacana works on a private copy; remove "
                "what cannot be copied (locks, open files, generators, computed tensors), e.g. with "
                "torch.nn.utils.remove_weight_norm for the old weight_norm, or load the weights into a new instance."
            ) from error
        for module in private.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False  # the same Jacobian, in tensors that can be contracted
        computed = [
            (module, name, value)
            for module in private.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and id(value) in detached
        ]
        try:
            return private.eval().requires_grad_(False), computed
        except RuntimeError as error:
            raise UnsupportedNetwork(
                f"net: its parameters cannot be frozen on a copy: {error}. A scripted or traced module inside? Use the "
                "eager module."
            ) from error


def _enclosed(function: Any) -> list[Any]:
    """What a plain function holds on to: the values that it closes over and its defaults."""
    if not isinstance(function, FunctionType):
        return []
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _copies(module: nn.Module) -> bool:
    try:
        copy.deepcopy(module)
    except Exception:  # noqa: BLE001
        return False
    return True
