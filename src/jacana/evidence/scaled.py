"""A process with another prior: scales that were learned, and a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jacana.errors import InvalidOption
from jacana.evidence.surface import Asked
from jacana.linearization import Prior, PriorStd
from jacana.posteriors import TangentGP
from jacana.posteriors.observations import valid_temperature

__all__ = ["asked_for", "prior_choice", "scaled", "with_prior", "with_temperature"]


def with_prior(gp: TangentGP, prior_std: PriorStd) -> TangentGP:
    """``gp`` with another prior.

    Raises:
        InvalidOption: an impossible one.
    """
    prior = Prior.of(gp.linearization.network, prior_std)
    return TangentGP.of(replace(gp.model, prior=prior), progress=gp.progress)


def with_temperature(gp: TangentGP, temperature: Any) -> TangentGP:
    """``gp`` with another temperature.

    Raises:
        InvalidOption: an impossible one.
    """
    return TangentGP.of(replace(gp.model, temperature=valid_temperature(temperature)), progress=gp.progress)


def scaled(gp: TangentGP, factors: list[float], *, layers: bool) -> TangentGP:
    """``gp`` with its prior scaled by a factor a layer."""
    lin = gp.linearization
    if layers:
        prior = Prior.of(lin.network, gp.prior_std)
        stds = dict(zip(lin.names, prior.stds, strict=True))
        given: Any = {}
        for (layer, names), factor in zip(lin.layers.items(), factors, strict=True):
            if len({stds[name] for name in names}) == 1 and not _inside(layer, lin.layers):
                given[layer] = factor * stds[names[0]]
            else:
                given.update({name: factor * stds[name] for name in names})
    else:
        given = gp.model.prior.times(factors[0]).given
    return with_prior(gp, given)


def _inside(layer: str, layers: Mapping[str, Any]) -> bool:
    """Whether other selected layers lie inside this one, so that its name would be a prefix of theirs."""
    return any(other != layer and (layer == "" or other.startswith(f"{layer}.")) for other in layers)


def asked_for(gp: TangentGP, prior_std: Any, temperature: Any) -> tuple[TangentGP, Asked]:
    """``gp`` with what is held fixed, and what is to be learned.

    Raises:
        InvalidOption: an unknown word, or an impossible value.
    """
    by_layer, fixed = prior_choice(prior_std)
    base = gp if fixed is None else with_prior(gp, fixed)
    if temperature is not None:
        base = with_temperature(base, temperature)
    return base, Asked(fixed is None, by_layer, temperature is None and not base.model.zero_mean)


def prior_choice(prior_std: Any) -> tuple[bool, Any]:
    """Whether each layer has a scale of its own to learn, or what is held fixed.

    Raises:
        InvalidOption: an unknown word.
    """
    if prior_std is None:
        return False, None
    if isinstance(prior_std, str):
        if prior_std not in ("shared", "layers"):
            raise InvalidOption(
                f"prior_std: got {prior_std!r}; expected 'shared' or 'layers' to learn it, or a value to hold fixed."
            )
        return prior_std == "layers", None
    return False, prior_std
