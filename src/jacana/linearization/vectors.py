"""Vectors: what the user multiplies with, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jacana.errors import InvalidData

__all__ = ["as_vectors"]


def as_vectors(
    value: Any, name: str, lengths: tuple[int, ...], expected: str, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """One vector or several columns, finite and real, on the device and in the dtype of the products.

    Args:
        value: whatever holds numbers.
        name: of the argument.
        lengths: that it may have; a single vector has the first.
        expected: the shape in words.
        device: of the answer.
        dtype: of the answer.

    Raises:
        InvalidData: it cannot be used.
    """
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidData(f"{name}: got {type(value).__name__}; expected a tensor, {expected}.") from error
    if tensor.ndim not in (1, 2) or len(tensor) not in lengths or (tensor.ndim == 1 and len(tensor) != lengths[0]):
        raise InvalidData(f"{name}: got shape {tuple(tensor.shape)}; expected {expected}.")
    if tensor.is_complex() or not bool(torch.isfinite(tensor).all()):
        raise InvalidData(f"{name}: got complex, NaN or infinite entries; expected finite real numbers.")
    with torch.inference_mode(False):
        return (tensor.clone() if tensor.is_inference() else tensor).to(device, dtype)
