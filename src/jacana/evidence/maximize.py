"""Evidence: learn the noise and the prior scale from the marginal likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from jacana.errors import InvalidData, InvalidOption
from jacana.evidence.search import ascend
from jacana.evidence.spectrum import spectrum, summits
from jacana.evidence.statistics import statistics
from jacana.likelihoods import Gaussian
from jacana.linearization import Prior
from jacana.networks import Data
from jacana.posteriors import Model, TangentGP, observe

__all__ = ["maximize_evidence"]


def maximize_evidence(
    gp: TangentGP,
    x: Data,
    y: Any = None,
    *,
    prior_std: Any = "shared",
    noise_std: Any = "shared",
) -> tuple[TangentGP, Gaussian]:
    """The noise and the prior scales under which the data are most probable (type-II maximum likelihood).

        log p(y) = −½ (y − m)ᵀ (K + Σ)⁻¹ (y − m) − ½ log |K + Σ| − ½ n·c log 2π

    One scale with one noise is a line search over their ratio on one eigendecomposition, scanned from end to end, so
    that it ends in the best of all optima. More scales or noises climb by exact gradients from all optima of that scan
    and from spread starts, so that they are never below one scale with one noise, but the best of all is not certain;
    the shares of the kernel by layer are computed once. The smaller side is factorised: n·c by n·c, or p by p where
    there are fewer parameters. A learned noise_std lies between 1e-4 and 1e2 times the root mean square of y − m.

    Args:
        gp: the model; its ``prior_std`` gives the shape of the prior that ``"shared"`` scales.
        x: n examples, or a DataLoader of (input, target).
        y: targets, (n, c) or (n,).
        prior_std: ``"shared"`` (or None) learns one factor on the prior of ``gp``; ``"layers"`` one standard deviation
            a layer; a number or a mapping is held fixed.
        noise_std: ``"shared"`` (or None) learns one σ; ``"outputs"`` one an output; a number, (c,) or (n, c) is held
            fixed.

    Returns:
        The model with the learned prior, and the likelihood with the learned noise.

    Raises:
        InvalidData: data that cannot be used; or targets that the network already gives exactly, where every scale
            is arbitrarily small.
        InvalidOption: an unknown word, or an impossible value.

    References:
        MacKay 1992, Bayesian Interpolation, equation 2.19. Rasmussen and Williams 2006, equations 5.8 and 5.9.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(1)
        >>> y = (3 * x).sin() + 0.1 * torch.randn(40, 1)
        >>> gp, likelihood = jacana.maximize_evidence(jacana.TangentGP(net), x, y)
        >>> bool(0.05 < likelihood.noise_std < 0.2)
        True
        >>> post = gp.condition(x, y, likelihood=likelihood)
    """
    if not isinstance(gp, TangentGP):
        raise InvalidOption(f"gp: got {type(gp).__name__}; expected jacana.TangentGP(net).")
    with torch.inference_mode(False):  # gradients of the evidence are taken, whatever mode the caller is in
        return _maximize(gp, x, y, *_prior_choice(prior_std), *_noise_choice(noise_std))


def _maximize(
    gp: TangentGP, x: Data, y: Any, layers: bool, fixed_prior: Any, by_output: bool, fixed_noise: Gaussian | None
) -> tuple[TangentGP, Gaussian]:
    base = gp if fixed_prior is None else TangentGP(gp.linearization, fixed_prior, gp.mean, progress=gp.progress)
    lin = base.linearization
    model = Model(lin, Prior.of(lin.network, base.prior_std), base.mean == "zero")
    observations = observe(model, x, y, Gaussian(1.0) if fixed_noise is None else fixed_noise)
    if fixed_prior is not None and fixed_noise is not None:
        return base, fixed_noise
    largest = float(observations.residual.abs().max())
    if largest and not 1e-100 < largest < 1e100:
        raise InvalidData(f"y: got values {largest:.1e} away from the prior mean, beyond float64's squares; rescale y.")
    if largest == 0.0:
        raise InvalidData(
            "y: the prior mean already gives every target exactly, so the evidence grows without end as the scales "
            "shrink; give noise_std and prior_std, or a mean that leaves something to explain."
        )
    many = layers or by_output or (fixed_noise is not None and fixed_noise.noise_std.numel() > 1)
    starts = summits(
        spectrum(observations, progress=gp.progress),
        scale=1.0 if fixed_prior is not None else None,
        noise=None if fixed_noise is None else float(fixed_noise.noise_std.square().mean().sqrt()),
    )
    if not many:
        scale, noise = starts[0]
        return _with_prior(base, [scale] * len(lin.layers), layers=False), fixed_noise or Gaussian(noise)
    found = statistics(observations, layers=layers, progress=gp.progress)
    scales, noises = ascend(found, starts, learn_scales=fixed_prior is None, by_output=by_output, noise=fixed_noise)
    learned = _with_prior(base, scales if layers else scales[:1] * len(lin.layers), layers=layers)
    return learned, fixed_noise or Gaussian(noises if by_output else noises[0])


def _with_prior(gp: TangentGP, factors: list[float], *, layers: bool) -> TangentGP:
    """``gp`` with its prior scaled by a factor a layer."""
    lin = gp.linearization
    if layers:
        prior = Prior.of(lin.network, gp.prior_std)
        stds = dict(zip(lin.names, prior.stds, strict=True))
        scaled: Any = {}
        for (layer, names), factor in zip(lin.layers.items(), factors, strict=True):
            if len({stds[name] for name in names}) == 1 and not _inside(layer, lin.layers):
                scaled[layer] = factor * stds[names[0]]
            else:
                scaled.update({name: factor * stds[name] for name in names})
    elif isinstance(gp.prior_std, Mapping):
        scaled = {key: factors[0] * value for key, value in gp.prior_std.items()}
    else:
        scaled = factors[0] * gp.prior_std
    return TangentGP(lin, scaled, gp.mean, progress=gp.progress)


def _inside(layer: str, layers: Mapping[str, Any]) -> bool:
    """Whether other selected layers lie inside this one, so that its name would be a prefix of theirs."""
    return any(other != layer and (layer == "" or other.startswith(f"{layer}.")) for other in layers)


def _prior_choice(prior_std: Any) -> tuple[bool, Any]:
    if prior_std is None:
        return False, None
    if isinstance(prior_std, str):
        if prior_std not in ("shared", "layers"):
            raise InvalidOption(
                f"prior_std: got {prior_std!r}; expected 'shared' or 'layers' to learn it, or a value to hold fixed."
            )
        return prior_std == "layers", None
    return False, prior_std


def _noise_choice(noise_std: Any) -> tuple[bool, Gaussian | None]:
    if noise_std is None:
        return False, None
    if isinstance(noise_std, str):
        if noise_std not in ("shared", "outputs"):
            raise InvalidOption(
                f"noise_std: got {noise_std!r}; expected 'shared' or 'outputs' to learn it, or a value to hold fixed."
            )
        return noise_std == "outputs", None
    return False, noise_std if isinstance(noise_std, Gaussian) else Gaussian(noise_std)
