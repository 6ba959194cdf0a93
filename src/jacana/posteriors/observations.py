"""Observations: what a Gaussian process is conditioned on, checked against its network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods import Gaussian, Likelihood, Weighted, unscaled, weights_of
from jacana.linearization import Linearization, Prior, push
from jacana.networks import Data, Examples, Source, as_source, as_targets, followed_by

__all__ = ["Model", "Observations", "observe"]


@dataclass(frozen=True)
class Model:
    """The prior of a tangent process: f = m + J δ, δ = (θ − θ0) / T ~ N(0, S), with m(x) = f(x; θ0) / T or zero.

    Attributes:
        lin: the linearization, at θ0 or elsewhere.
        prior: S.
        zero_mean: whether m = 0.
        temperature: T.
        origin: θ1 − θ0, where the linearization was made at θ1: then m(x) = (f(x; θ1) − J (θ1 − θ0)) / T.
    """

    lin: Linearization
    prior: Prior
    zero_mean: bool
    temperature: float = 1.0
    origin: Float64[Tensor, " p"] | None = None

    def output(self, x: Examples | Source) -> Float64[Tensor, "n c"]:
        """What the network says where the linearization is, f(x; θ1) / T, or zero: m(x), where that is θ0."""
        if isinstance(x, Source):
            return torch.cat([self.output(batch) for batch in x.batches(len(x))])
        if self.zero_mean:
            shape = (len(x), self.lin.findings(x).n_outputs)
            return torch.zeros(shape, dtype=torch.float64, device=self.lin.device)
        return self.lin(x).to(torch.float64) / self.temperature

    def mean(self, x: Examples | Source) -> Float64[Tensor, "n c"]:
        """m(x)."""
        if isinstance(x, Source):
            return torch.cat([self.mean(batch) for batch in x.batches(len(x))])
        output = self.output(x)
        if self.origin is None:
            return output
        return output - push(self.lin, x, self.origin.unsqueeze(1)).view_as(output) / self.temperature

    def beyond(self, weights: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        """How far δ lies from where the linearization is: m(x) + J δ = output + J times this, in one product."""
        return weights if self.origin is None else weights - self.origin / self.temperature


@dataclass(frozen=True)
class Observations:
    """n examples, what was observed there, and how it comes from f.

    Attributes:
        model: the prior.
        x: the examples.
        offset: m(x).
        targets: y, as the likelihood takes them.
        likelihood: p(y | f).
        flat: whether f is shown as (n,).
    """

    model: Model
    x: Examples | Source
    offset: Float64[Tensor, "n c"]
    targets: Shaped[Tensor, "n ..."]
    likelihood: Likelihood
    flat: bool

    @property
    def examples(self) -> Examples:
        """All of them in memory."""
        return self.x.gathered()

    @property
    def n(self) -> int:
        """The number of examples."""
        return len(self.x)

    @property
    def c(self) -> int:
        """The number of outputs."""
        return self.offset.shape[1]

    @cached_property
    def residual(self) -> Float64[Tensor, "n c"]:
        """Y − m(x), of observations with Gaussian noise."""
        return self.targets - self.offset

    @property
    def gaussian(self) -> Gaussian:
        """The likelihood, where it is Gaussian.

        Raises:
            InvalidOption: it is another one.
        """
        if not isinstance(self.likelihood, Gaussian):
            raise InvalidOption(
                f"likelihood: got {type(self.likelihood).__name__}; expected jacana.Gaussian(noise_std) for this. For "
                "any other take method=jacana.Laplace() or jacana.Variational()."
            )
        return self.likelihood

    @property
    def noise(self) -> Float64[Tensor, "n c"]:
        """The noise variance of each observation."""
        return self.gaussian.variances(self.n, self.c, self.offset.device)

    def some(self, index: Int64[Tensor, " m"], x: Examples) -> Observations:
        """Those with these numbers, at the examples ``x`` that have them."""
        here = index.to(self.offset.device)
        return replace(
            self, x=x, offset=self.offset[here], targets=self.targets[here], likelihood=self.likelihood.at(index)
        )

    def counting(self) -> Observations:
        """Those whose weight is not zero; these, where there are no others."""
        index = weights_of(self.likelihood, self.n).nonzero().flatten()
        return self if len(index) == self.n else self.some(index, self.x.some(index))

    def distinct(self) -> Observations:
        """Each example with its target once, of the weight of all its copies; these, where there are no copies.

        It is the same posterior. But what leaves an example out has to leave out its copies too, which would tell its
        label.
        """
        base = unscaled(self.likelihood)
        if base.at(torch.arange(1)) is not base:
            return self  # examples may have different noise
        parts = [part.detach().reshape(self.n, -1) for part in (*self.examples.tensors, self.targets)]
        rows = torch.cat([part.contiguous().view(torch.uint8).cpu() for part in parts], dim=1).numpy()
        kinds = [row.tobytes() for row in rows]  # as they lie in memory
        weights = weights_of(self.likelihood, self.n)
        heaviest: dict[bytes, int] = {}
        for i in weights.argsort(descending=True, stable=True).tolist():
            heaviest.setdefault(kinds[i], i)
        if len(heaviest) == self.n:
            return self
        total = torch.zeros_like(weights)
        total.index_add_(0, torch.tensor([heaviest[kind] for kind in kinds]), weights)
        index = torch.tensor(sorted(heaviest.values()))
        some = self.some(index, self.x.some(index))
        times = torch.where(weights[index] > 0.0, total[index] / weights[index], 1.0)
        return replace(some, likelihood=Weighted(some.likelihood, times))

    def followed_by(self, other: Observations) -> Observations:
        """These observations and then ``other``."""
        likelihood = (
            self.likelihood.followed_by(other.likelihood, self.n, other.n, self.c)
            if isinstance(self.likelihood, Gaussian) and isinstance(other.likelihood, Gaussian)
            else self.likelihood
        )
        return Observations(
            self.model,
            followed_by(self.x, other.x),
            torch.cat([self.offset, other.offset]),
            torch.cat([self.targets, other.targets]),
            likelihood,
            self.flat,
        )


def observe(model: Model, x: Data, y: Any, likelihood: Likelihood, *, streams: bool = False) -> Observations:
    """Check data against the network and the likelihood, and take the prior mean at them.

    Args:
        model: the prior.
        x: n examples, or a DataLoader of (input, target).
        y: targets.
        likelihood: how y comes from f.
        streams: leave the examples of a DataLoader or a memory map where they are.

    Raises:
        InvalidData: data that cannot be used, or targets of another shape than the network's outputs.
        InvalidOption: a likelihood that does not fit the outputs.
    """
    examples: Examples | Source
    if streams and (y is None) == isinstance(x, DataLoader):  # pairs refuses what does not go together
        examples = as_source(x, model.lin.network.input_dtype, model.lin.device)
        with torch.inference_mode(False):
            given = examples.targets() if y is None and isinstance(examples, Source) else y
            targets = as_targets(given, len(examples)).to(model.lin.device)
    else:
        examples, targets = model.lin.pairs(x.gathered() if isinstance(x, Source) else x, y)
        examples = examples.copied()
    c = model.lin.findings(examples.head).n_outputs
    if len(targets) != len(examples):
        raise InvalidData(f"y: got {len(targets)} targets for {len(examples)} examples; give one for each example.")
    if isinstance(likelihood, Gaussian):
        columns = targets.unsqueeze(1) if targets.ndim == 1 else targets
        if columns.shape[1] != c:
            raise InvalidData(
                f"y: got shape {tuple(targets.shape)}; expected ({len(columns)}, {c})"
                f"{f' or ({len(columns)},)' if c == 1 else ''}, the network's outputs. For class labels pass "
                "likelihood=jacana.Categorical(); output= selects outputs of the network."
            )
    likelihood.check(len(examples), c)
    checked = likelihood.targets(targets, len(examples), c).to(model.lin.device, copy=True)
    flat = targets.ndim == 1 and c == 1
    return Observations(model, examples, model.mean(examples), checked, likelihood, flat)


def valid_temperature(temperature: Any) -> float:
    """A positive number.

    Raises:
        InvalidOption: anything else.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0.0 < float(temperature) < math.inf:
        raise InvalidOption(f"temperature: got {temperature!r}; expected a positive number that divides the logits.")
    return float(temperature)


def as_likelihood(noise_std: Any, likelihood: Likelihood | None) -> Likelihood:
    """One likelihood from its short and its long form.

    Raises:
        InvalidOption: none or both were given, or no likelihood.
    """
    if (noise_std is None) == (likelihood is None):
        got = "neither" if noise_std is None else "both"
        raise InvalidOption(
            f"noise_std: got {got} of noise_std and likelihood; give one. Where the noise is unknown, learn it: "
            "gp, likelihood = jacana.maximize_evidence(gp, x, y)."
        )
    if likelihood is None:
        return Gaussian(noise_std)
    if not isinstance(likelihood, Likelihood):
        raise InvalidOption(
            f"likelihood: got {type(likelihood).__name__}; expected one, e.g. jacana.Gaussian(noise_std) or "
            "jacana.Categorical()."
        )
    return likelihood
