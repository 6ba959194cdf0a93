"""Prior: the standard deviation of every weight change, S = diag(prior_std²), one number or one a layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.networks import Network

__all__ = ["Prior", "PriorStd", "longest_prefix"]

PriorStd = float | Mapping[str, float]
"""A positive number, or a mapping from dotted prefixes of parameter names to positive numbers, longest prefix first."""


@dataclass(frozen=True)
class Prior:
    """δ ~ N(0, S): ``stds`` has one standard deviation a parameter tensor, ``sizes`` their numbers of entries."""

    stds: tuple[float, ...]
    sizes: tuple[int, ...]
    given: PriorStd

    @classmethod
    def of(cls, network: Network, prior_std: PriorStd) -> Prior:
        """Resolve what the user gave for this network's selected parameters.

        Raises:
            InvalidOption: not positive and finite, a prefix that names nothing, or parameters left uncovered.
        """
        if isinstance(prior_std, Mapping):
            for key, value in prior_std.items():
                if not isinstance(key, str):
                    raise InvalidOption(
                        f"prior_std: got the key {key!r}; use dotted prefixes of parameter names as keys."
                    )
                _positive(value, f"prior_std[{key!r}]")
            stds = _by_prefix(network.names, prior_std)
            given: PriorStd = dict(prior_std)
        else:
            given = _positive(prior_std)
            stds = [given] * len(network.names)
        return cls(tuple(stds), network.sizes, given)

    @property
    def variances(self) -> list[float]:
        """s² of each parameter tensor."""
        return [std * std for std in self.stds]

    def times(self, factor: float) -> Prior:
        """All of them ``factor`` times as large."""
        given: PriorStd = (
            {key: factor * std for key, std in self.given.items()}
            if isinstance(self.given, Mapping)
            else factor * self.given
        )
        return Prior(tuple(factor * std for std in self.stds), self.sizes, given)

    def vector(self, device: torch.device) -> Float64[Tensor, " p"]:
        """The standard deviation of every single weight."""
        stds = torch.tensor(self.stds, dtype=torch.float64, device=device)
        return stds.repeat_interleave(torch.tensor(self.sizes, device=device))


def longest_prefix(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest of the dotted prefixes that a parameter's name has; "" is one of every name."""
    fits = [prefix for prefix in prefixes if prefix in ("", name) or name.startswith(f"{prefix}.")]
    return max(fits, key=len) if fits else None


def _by_prefix(names: tuple[str, ...], prior_std: Mapping[str, float]) -> list[float]:
    stds = []
    used = set()
    for name in names:
        longest = longest_prefix(name, prior_std)
        if longest is None:
            raise InvalidOption(
                f"prior_std: parameter {name!r} is covered by none of the prefixes {list(prior_std)}; add one for it, "
                "or '' for all others."
            )
        used.add(longest)
        stds.append(_positive(prior_std[longest]))
    if unused := [key for key in prior_std if key not in used and key != ""]:
        raise InvalidOption(
            f"prior_std: {unused} name no selected parameter (or are overruled by longer prefixes); selected are "
            f"{list(names[:8])}{' ...' if len(names) > 8 else ''}."
        )
    return stds


def _positive(value: object, name: str = "prior_std") -> float:
    if isinstance(value, Tensor | np.ndarray) and value.shape in ((), (1,)):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise InvalidOption(
            f"{name}: got {value!r}; expected a positive finite standard deviation, or a mapping from parameter "
            "name prefixes to such numbers. Learn it with jacana.maximize_evidence, or leave it out."
        )
    return float(value)
