"""Scale and shift of a normalised value: layer, batch (with running statistics), group, instance and RMS norm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Call, Rule, Use, unbroadcast

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


class _Affine(Rule):
    """y = w ⊙ x̂ + b: w gets Σ g ⊙ x̂ and b gets Σ g, over the positions that share them."""

    def formed(self, role: str, use: Use) -> Tensor:
        (normalised,), cotangents = use.inputs, use.cotangents.to(use.working)
        if role == "weight":
            cotangents = cotangents * normalised.to(use.working).unsqueeze(1)
        return unbroadcast(cotangents, use.options).reshape(*cotangents.shape[:2], *use.shapes[role])

    @abstractmethod
    def example(self) -> tuple[nn.Module, Tensor]: ...


def _of(weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    return {role: value for role, value in (("weight", weight), ("bias", bias)) if value is not None}


def _channels(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Call:
    """A parameter a channel, channels second."""
    shape = (normalised.shape[1], *(1 for _ in normalised.shape[2:]))
    return Call(_of(weight, bias), (normalised,), (0,), shape)


class LayerNorm(_Affine):
    """Scale and shift an entry of the normalised shape."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.layer_norm,)

    def read(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Call | None:
        normalised = F.layer_norm(input, normalized_shape, None, None, eps)
        return Call(
            _of(weight, bias), (normalised,), range(input.ndim - len(normalized_shape)), tuple(normalized_shape)
        )

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 2))
        return net, torch.randn(3, 3, 4)


class RMSNorm(_Affine):
    """A scale an entry of the normalised shape."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.rms_norm,)

    def read(
        self, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
    ) -> Call | None:
        normalised = F.rms_norm(input, normalized_shape, None, eps)
        return Call(
            _of(weight, None), (normalised,), range(input.ndim - len(normalized_shape)), tuple(normalized_shape)
        )

    def example(self) -> tuple[nn.Module, Tensor]:
        return nn.Sequential(nn.RMSNorm(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)), torch.randn(3, 3, 4)


class BatchNorm(_Affine):
    """Scale and shift a channel, with running statistics: they do not mix examples."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.batch_norm,)

    def read(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Call | None:
        if training or running_mean is None:
            return None
        return _channels(F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps), weight, bias)

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.BatchNorm1d(6))
        return net, torch.randn(3, 2, 3)


class GroupNorm(_Affine):
    """Scale and shift a channel."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.group_norm,)

    def read(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Call | None:
        return _channels(F.group_norm(input, num_groups, None, None, eps), weight, bias)

    def example(self) -> tuple[nn.Module, Tensor]:
        return nn.Sequential(nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)), torch.randn(3, 4, 3)


class InstanceNorm(_Affine):
    """Scale and shift a channel."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.instance_norm,)

    def read(
        self,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Call | None:
        normalised = F.instance_norm(input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
        return _channels(normalised, weight, bias)

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
        return net, torch.randn(3, 4, 3)
