"""Operations written out so that their backward pass, which is linear in the cotangent, has a cheap transpose.

The transpose of u ↦ Jᵀu is v ↦ J v: one more backward pass, through the first one. torch's own second derivatives of a
convolution and of batch normalisation also prepare for derivatives in everything else, at up to three times the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from jacana.linearization.rules.convolution import each

__all__ = ["WrittenOut"]

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_TRANSPOSED = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}
_OPTIONS = ("stride", "padding", "dilation", "groups")
_TRANSPOSED_OPTIONS = ("stride", "padding", "output_padding", "groups", "dilation")


@final
class WrittenOut(TorchFunctionMode):
    """Under this mode, gradients may be transposed (differentiated in the cotangent), and in nothing else."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS or func in _TRANSPOSED:
            given = _convolution(func, *_cast(args), **dict(zip(kwargs, _cast(kwargs.values()), strict=True)))
            if given is not None:
                return _Convolution.apply(*given)  # type: ignore[no-untyped-call]
        if func is F.batch_norm:
            normalised = _batch_norm(*args, **kwargs)
            if normalised is not None:
                return normalised
        return func(*args, **kwargs)


def _cast(values: Iterable[Any]) -> list[Any]:
    """Tensors as autocast hands them to a convolution: inside a Function it would do so again at every pass."""
    values = list(values)
    device = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
    if not torch.is_autocast_enabled(device):
        return values
    dtype = torch.get_autocast_dtype(device)
    return [
        value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value for value in values
    ]


def _convolution(
    func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
) -> tuple[Any, ...] | None:
    """The arguments of ``torch.convolution``; None for what it does not take."""
    d = _CONVOLUTIONS.get(func) or _TRANSPOSED[func]
    transposed = func in _TRANSPOSED
    options = dict(zip(_TRANSPOSED_OPTIONS if transposed else _OPTIONS, rest, strict=False)) | named
    if input.ndim != d + 2 or isinstance(options.get("padding"), str) or input.dtype != weight.dtype:
        return None

    def option(name: str, default: int) -> tuple[int, ...]:
        return each(options.get(name, default), d)

    return (
        input, weight, bias,
        (option("stride", 1), option("padding", 0), option("dilation", 1), transposed, option("output_padding", 0),
         options.get("groups", 1)),
    )  # fmt: skip


class _Convolution(Function):
    """y = W * x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.biased = options, None if bias is None else list(bias.shape)
        return torch.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        return (*_Gradients.apply(cotangents[0], x, weight, ctx.biased, ctx.options, wanted), None)  # type: ignore[no-untyped-call]


class _Gradients(Function):
    """g ↦ (Wᵀ * g, g * x, Σ g): linear in g, with the transpose t ↦ W * t_x + t_W * x + t_b."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, biased: list[int] | None, options: Any, wanted: list[bool]
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return torch.ops.aten.convolution_backward(g, x, weight, biased, *options, wanted)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        of_x, of_weight, of_bias = tangents
        x, weight = ctx.saved_tensors
        out = None
        with torch.no_grad():
            if of_weight is not None:
                out = torch.convolution(x, of_weight, of_bias, *ctx.options)
            if of_x is not None:
                through = torch.convolution(of_x, weight, of_bias if out is None else None, *ctx.options)
                out = through if out is None else out.add_(through)
            if out is None and of_bias is not None:
                out = torch.convolution(torch.zeros_like(x), weight, of_bias, *ctx.options)
        return out, None, None, None, None, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """(x − mean) · w / √(var + eps) + b with fixed statistics; None for statistics of the batch, or mixed dtypes."""
    given = [tensor for tensor in (running_mean, running_var, weight, bias) if tensor is not None]
    if training or running_mean is None or running_var is None or any(t.dtype != input.dtype for t in given):
        return None

    def along(tensor: Tensor) -> Tensor:
        return tensor.view(-1, *(1 for _ in input.shape[2:]))

    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    centred = input - along(running_mean)
    return centred * along(scale) if bias is None else torch.addcmul(along(bias), centred, along(scale))
