"""Observations: what a Gaussian process is conditioned on, checked against its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import DataLoader

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods import Gaussian
from jacana.linearization import Linearization, Prior
from jacana.networks import Data, Examples, Source, as_source, as_targets

__all__ = ["Model", "Observations", "observe"]


@dataclass(frozen=True)
class Model:
    """The prior of a tangent process: f = m + J δ, δ ~ N(0, S)."""

    lin: Linearization
    prior: Prior
    zero_mean: bool

    def mean(self, x: Examples | Source) -> Float64[Tensor, "n c"]:
        """m(x)."""
        if isinstance(x, Source):
            return torch.cat([self.mean(batch) for batch in x.batches(len(x))])
        if self.zero_mean:
            shape = (len(x), self.lin.findings(x).n_outputs)
            return torch.zeros(shape, dtype=torch.float64, device=self.lin.device)
        return self.lin(x).to(torch.float64)


@dataclass(frozen=True)
class Observations:
    """n examples, what was observed there beyond the prior mean, and the noise.

    Attributes:
        model: the prior.
        x: the examples.
        residual: y − m(x).
        likelihood: how y comes from f.
        flat: whether y was (n,).
    """

    model: Model
    x: Examples | Source
    residual: Float64[Tensor, "n c"]
    likelihood: Gaussian
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
        return self.residual.shape[1]

    @property
    def noise(self) -> Float64[Tensor, "n c"]:
        """The noise variance of each observation."""
        return self.likelihood.variances(self.n, self.c, self.residual.device)

    def followed_by(self, other: Observations) -> Observations:
        """These observations and then ``other``."""
        return Observations(
            self.model,
            self.examples.followed_by(other.examples),
            torch.cat([self.residual, other.residual]),
            self.likelihood.followed_by(other.likelihood, self.n, other.n, self.c),
            self.flat,
        )


def observe(model: Model, x: Data, y: Any, likelihood: Gaussian, *, streams: bool = False) -> Observations:
    """Check data against the network and take the prior mean off.

    Args:
        model: the prior.
        x: n examples, or a DataLoader of (input, target).
        y: targets.
        likelihood: the noise.
        streams: leave the examples of a DataLoader or a memory map where they are.

    Raises:
        InvalidData: data that cannot be used, or targets of another shape than the network's outputs.
    """
    examples: Examples | Source
    if streams and (y is None) == isinstance(x, DataLoader):  # pairs refuses what does not go together
        with torch.inference_mode(False):
            examples = as_source(x, model.lin.network.input_dtype, model.lin.device)
            given = examples.targets() if y is None and isinstance(examples, Source) else y
            targets = as_targets(given, len(examples)).to(model.lin.device)
    else:
        examples, targets = model.lin.pairs(x, y)
        examples = examples.copied()
    c = model.lin.findings(examples.head).n_outputs
    flat = targets.ndim == 1
    columns = targets.unsqueeze(1) if flat else targets
    if columns.shape[1] != c:
        raise InvalidData(
            f"y: got shape {tuple(targets.shape)}; expected ({len(columns)}, {c})"
            f"{f' or ({len(columns)},)' if c == 1 else ''}, the network's outputs. Make class labels one-hot targets; "
            "output= selects outputs of the network."
        )
    if len(columns) != len(examples):
        raise InvalidData(f"y: got {len(columns)} targets for {len(examples)} examples; give one for each example.")
    observations = Observations(model, examples, columns - model.mean(examples), likelihood, flat)
    _ = observations.noise  # a noise that does not fit is refused here
    return observations


def as_likelihood(noise_std: Any, likelihood: Gaussian | None) -> Gaussian:
    """One likelihood from its short and its long form.

    Raises:
        InvalidOption: none or both were given, or another kind of likelihood.
    """
    if (noise_std is None) == (likelihood is None):
        got = "neither" if noise_std is None else "both"
        raise InvalidOption(
            f"noise_std: got {got} of noise_std and likelihood; give one. Where the noise is unknown, learn it: "
            "gp, likelihood = jacana.maximize_evidence(gp, x, y)."
        )
    if likelihood is None:
        return Gaussian(noise_std)
    if not isinstance(likelihood, Gaussian):
        raise InvalidOption(f"likelihood: got {type(likelihood).__name__}; expected jacana.Gaussian(noise_std).")
    return likelihood
