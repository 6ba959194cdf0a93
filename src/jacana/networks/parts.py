"""Parts: the tensors or arrays of one call of a network, each checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacana.errors import InvalidData

__all__ = ["cast", "named_parts", "refuse_misfits", "refuse_not_finite", "to_tensor"]


def named_parts(x: Any, name: str) -> dict[str, Any]:
    """What is in ``x`` for one call, whatever its structure, by what errors call it.

    Raises:
        InvalidData: nothing, or keys that are no names.
    """
    if isinstance(x, Mapping):
        if not all(isinstance(key, str) for key in x):
            raise InvalidData(f"{name}: got a mapping with keys {list(x)}; expected names of keyword arguments.")
        parts = {f"{name}[{key!r}]": value for key, value in x.items()}
    else:
        parts = {f"{name}[{i}]": value for i, value in enumerate(x)} if isinstance(x, tuple) else {name: x}
    if not parts:
        raise InvalidData(f"{name}: got an empty {type(x).__name__}; pass at least one tensor.")
    return parts


def refuse_misfits(parts: Mapping[str, Tensor | np.ndarray]) -> None:
    """Refuse what has no examples, or other numbers of them.

    Raises:
        InvalidData: names the part.
    """
    (first, one), *_ = parts.items()
    for label, part in parts.items():
        if part.ndim == 0:
            raise InvalidData(f"{label}: got a single number; give a tensor with the examples first, (n, ...).")
        if len(part) != len(one):
            raise InvalidData(
                f"{label}: got {len(part)} examples where {first} has {len(one)}; every tensor has the "
                "examples first. Pass what is no example by forward=."
            )
        if 0 in part.shape:
            raise InvalidData(f"{label}: got shape {tuple(part.shape)}, no data; pass at least one example.")


def to_tensor(value: Any, name: str) -> Tensor:
    """A plain tensor.

    Raises:
        InvalidData: sparse, nested, quantized, on the meta device, or no numbers.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.is_nested:
            raise InvalidData(
                f"{name}: got a nested tensor, or one on the meta device; pass a plain one (pad sequences)."
            )
        if value.is_sparse or value.is_quantized:
            raise InvalidData(
                f"{name}: got a sparse or quantized tensor; expected a dense one. Convert it, e.g. x.to_dense()."
            )
        return value
    try:
        array = np.asarray(value)
        if array.dtype.byteorder not in ("=", "|"):
            array = array.astype(array.dtype.newbyteorder("="))
        return torch.as_tensor(np.array(array))  # a copy: read-only and negative strides are no concern of torch
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidData(
            f"{name}: got {type(value).__name__} that holds no plain numbers; expected a tensor or a numeric array. "
            "Convert it first, e.g. np.asarray(x, dtype=float)."
        ) from error


def refuse_not_finite(tensor: Tensor, name: str, start: int = 0) -> None:
    """Refuse NaN and infinite values; ``start`` is the number of the first example.

    Raises:
        InvalidData: says where.
    """
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = (~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)).nonzero().flatten()
        raise InvalidData(
            f"{name}: got NaN or infinite values in {len(bad)} of {len(tensor)} examples"
            f"{f' from {start:,} on' if start else ''}, the first at index {start + int(bad[0])}; expected finite "
            "numbers. Drop or impute these examples."
        )


def cast(tensor: Tensor, dtype: torch.dtype, device: torch.device, name: str) -> Tensor:
    """A tensor on the network's device, in its dtype if it is floating.

    Raises:
        InvalidData: values too large for it.
    """
    if tensor.is_inference():
        tensor = tensor.clone()
    if not tensor.is_floating_point():
        return tensor.to(device)
    converted = tensor.to(device=device, dtype=dtype)
    if converted.dtype != tensor.dtype and not bool(torch.isfinite(converted).all()):
        raise InvalidData(
            f"{name}: got values up to {float(tensor.abs().max()):.3g}, too large for the network's {dtype}; "
            "rescale the inputs or use a network in float64 (net.double())."
        )
    return converted
