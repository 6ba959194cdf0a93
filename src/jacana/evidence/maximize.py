"""Evidence: learn the noise and the prior scale from the marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption
from jacana.evidence.approximate import approximate
from jacana.evidence.fixed_point import Learned, fixed_point
from jacana.evidence.scaled import asked_for, prior_choice, scaled, with_prior, with_temperature
from jacana.evidence.search import ascend
from jacana.evidence.spectrum import spectrum, summits
from jacana.evidence.statistics import statistics
from jacana.likelihoods import Gaussian, Likelihood
from jacana.linearization import Products, fits
from jacana.networks import Data, layer_of
from jacana.posteriors import Observations, Pathwise, TangentGP, observe

__all__ = ["maximize_evidence"]

_LARGEST_SIDE = 12_000
"""Beyond this a decomposition, 10 n³ operations, takes longer than the fixed point."""

_ROWS_TO_START = 2_000
_N_SAMPLES = 16


@overload
def maximize_evidence(
    gp: TangentGP,
    x: Data,
    y: Any = None,
    *,
    prior_std: Any = "shared",
    noise_std: Any = "shared",
    method: Pathwise | None = None,
    likelihood: Gaussian | None = None,
    temperature: Any = None,
) -> tuple[TangentGP, Gaussian]: ...


@overload
def maximize_evidence(
    gp: TangentGP,
    x: Data,
    y: Any = None,
    *,
    prior_std: Any = "shared",
    noise_std: Any = "shared",
    method: Pathwise | None = None,
    likelihood: Likelihood,
    temperature: Any = None,
) -> tuple[TangentGP, Likelihood]: ...


def maximize_evidence(
    gp: TangentGP,
    x: Data,
    y: Any = None,
    *,
    prior_std: Any = "shared",
    noise_std: Any = "shared",
    method: Pathwise | None = None,
    likelihood: Likelihood | None = None,
    temperature: Any = None,
) -> tuple[TangentGP, Likelihood]:
    """The noise and the prior scales under which the data are most probable (type-II maximum likelihood).

        log p(y) = −½ (y − m)ᵀ (K + Σ)⁻¹ (y − m) − ½ log |K + Σ| − ½ n·c log 2π

    One scale with one noise is a line search over their ratio on one eigendecomposition, scanned from end to end, so
    that it ends in the best of all optima. More scales or noises climb by exact gradients from all optima of that scan
    and from spread starts, so that they are never below one scale with one noise, but the best of all is not certain;
    the shares of the kernel by layer are computed once. The smaller side is factorised: n·c by n·c, or p by p where
    there are fewer parameters. Where that is too large, a fixed point over all of the data is climbed to from the best
    of 2,000 observations of them, with traces estimated by samples; its error is 1/√n_samples of the uncertainty that
    the evidence leaves of a scale anyway. A learned noise_std lies between 1e-4 and 1e2 times the root mean square of
    y − m.

    With another likelihood, as of class labels, it is Laplace's evidence, at the mode that the linear model has for
    each choice, and the temperature T of the network's own outputs is learned beside the scales, by exact gradients,
    with a prior about one, −½ (log T / ½)²: a network that is right on all labels would be made ever more certain;
    the sides are those of :class:`Laplace`, with more than 3,000 function values and parameters on a subset.

    Args:
        gp: the model; its ``prior_std`` gives the shape of the prior that ``"shared"`` scales.
        x: n examples, or a DataLoader of (input, target).
        y: targets, (n, c) or (n,).
        prior_std: ``"shared"`` (or None) learns one factor on the prior of ``gp``; ``"layers"`` one standard deviation
            a layer; a number or a mapping is held fixed.
        noise_std: ``"shared"`` (or None) learns one σ; ``"outputs"`` one an output; a number, (c,) or (n, c) is held
            fixed.
        method: None factorises where that can be done, up to 12,000 on the smaller side; a :class:`Pathwise` gives the
            samples, the solver and the seed of the fixed point, by which a DataLoader need not fit in memory.
        likelihood: how y comes from f; by default Gaussian noise of the learned or given noise_std.
        temperature: with another likelihood, None learns T where the prior mean is the network's; a number is held
            fixed.

    Returns:
        The model with the learned prior, and the likelihood with the learned noise.

    Raises:
        InvalidData: data that cannot be used; or targets that the network already gives exactly, where every scale
            is arbitrarily small.
        InvalidOption: an unknown word, or an impossible value.

    Warns:
        NotConverged: the fixed point was not reached.

    References:
        MacKay 1992, Bayesian Interpolation, equations 2.19 and 4.8 to 4.10. Antorán et al. 2023 (arXiv 2210.04994).
        Rasmussen and Williams 2006, equations 5.8 and 5.9.

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
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        raise InvalidOption(f"likelihood: got {likelihood!r}; expected one like jacana.Categorical(), or None.")
    if likelihood is not None and not isinstance(likelihood, Gaussian):
        return _approximated(gp, x, y, likelihood, prior_std, temperature, noise_std=noise_std, method=method)
    if temperature is not None:
        raise InvalidOption(f"temperature: got {temperature!r} with Gaussian noise, for which it is not learned.")
    noise_std = noise_std if likelihood is None else likelihood
    if method is not None and not isinstance(method, Pathwise):
        raise InvalidOption(f"method: got {method!r}; expected None, or jacana.Pathwise(n_samples=16) to estimate it.")
    with torch.inference_mode(False):  # gradients of the evidence are taken, whatever mode the caller is in
        return _maximize(gp, x, y, method, *prior_choice(prior_std), *_noise_choice(noise_std))


def _approximated(
    gp: TangentGP,
    x: Data,
    y: Any,
    likelihood: Likelihood,
    prior_std: Any,
    temperature: Any,
    *,
    noise_std: Any,
    method: Any,
) -> tuple[TangentGP, Likelihood]:
    if noise_std not in (None, "shared"):
        raise InvalidOption(f"noise_std: got {noise_std!r} for {type(likelihood).__name__}, which has none.")
    if method is not None:
        raise InvalidOption(f"method: got {method!r}; the Laplace evidence is factorised, so leave it out.")
    base, learned = asked_for(gp, prior_std, temperature)
    observations = observe(base.model, x, y, likelihood, streams=True)
    if not (learned.scales or learned.temperature):
        return base, likelihood
    with torch.inference_mode(False):
        scales, found = approximate(observations, learned, progress=gp.progress)
    gp = scaled(base, scales, layers=learned.by_layer) if learned.scales else base
    return with_temperature(gp, found), likelihood


def _maximize(
    gp: TangentGP,
    x: Data,
    y: Any,
    method: Pathwise | None,
    by_layer: bool,
    fixed_prior: Any,
    by_output: bool,
    fixed_noise: Gaussian | None,
) -> tuple[TangentGP, Gaussian]:
    base = gp if fixed_prior is None else with_prior(gp, fixed_prior)
    model = base.model
    streams = method is not None
    observations = observe(model, x, y, Gaussian(1.0) if fixed_noise is None else fixed_noise, streams=streams)
    if fixed_prior is not None and fixed_noise is not None:
        return base, fixed_noise
    _refuse_nothing_to_explain(observations.residual)
    if method is None and not _can_be_factorised(observations):
        method = Pathwise(_N_SAMPLES)
    wanted = _Wanted(by_layer, fixed_prior is None, by_output, fixed_noise)
    if method is None:
        scales, noises = _factorised(observations, wanted, progress=gp.progress)
    else:
        scales, noises = _solved(observations, wanted, method, progress=gp.progress)
    learned = base if not wanted.scales else scaled(base, scales, layers=by_layer)
    return learned, fixed_noise or Gaussian(noises if by_output else noises[0])


def _refuse_nothing_to_explain(residual: Tensor) -> None:
    largest = float(residual.abs().max())
    if largest and not 1e-100 < largest < 1e100:
        raise InvalidData(f"y: got values {largest:.1e} away from the prior mean, beyond float64's squares; rescale y.")
    if largest == 0.0:
        raise InvalidData(
            "y: the prior mean already gives every target exactly, so the evidence grows without end as the scales "
            "shrink; give noise_std and prior_std, or a mean that leaves something to explain."
        )


def _can_be_factorised(observations: Observations) -> bool:
    """Whether the smaller side can be decomposed, and sooner than the fixed point is found."""
    side = min(observations.residual.numel(), observations.model.lin.n_parameters)
    return side <= _LARGEST_SIDE and fits(4 * 8 * side * side, observations.model.lin.device)


@dataclass(frozen=True)
class _Wanted:
    """What is to be learned."""

    by_layer: bool
    scales: bool
    by_output: bool
    noise: Gaussian | None


def _factorised(observations: Observations, wanted: _Wanted, *, progress: bool) -> tuple[list[float], list[float]]:
    """Scales, one a layer, and noises of the largest evidence, on a factorisation of the smaller side."""
    noise = None if wanted.noise is None else observations.gaussian
    n_layers = len(observations.model.lin.layers)
    starts = summits(
        spectrum(observations, progress=progress),
        scale=None if wanted.scales else 1.0,
        noise=None if noise is None else float(noise.noise_std.square().mean().sqrt()),
    )
    if not (wanted.by_layer or wanted.by_output or (noise is not None and noise.noise_std.numel() > 1)):
        return [starts[0][0]] * n_layers, [starts[0][1]]
    found = statistics(observations, layers=wanted.by_layer, progress=progress)
    scales, noises = ascend(found, starts, learn_scales=wanted.scales, by_output=wanted.by_output, noise=noise)
    return (scales if wanted.by_layer else scales[:1] * n_layers), noises


def _solved(
    observations: Observations, wanted: _Wanted, method: Pathwise, *, progress: bool
) -> tuple[list[float], list[float]]:
    """The same by a fixed point over all of the data, from the best of one scale and one noise for some of them."""
    lin, c = observations.model.lin, observations.c
    shared = replace(wanted, by_layer=False, by_output=False)
    scales, noises = _factorised(_some(observations, method.seed), shared, progress=progress)
    layers = list(lin.layers)
    groups = tuple(layers.index(layer_of(name)) if wanted.by_layer else 0 for name in lin.names)
    learned = Learned(
        groups,
        (len(layers) if wanted.by_layer else 1) if wanted.scales else 0,
        0 if wanted.noise is not None else (c if wanted.by_output else 1),
        wanted.noise or Gaussian(1.0),
    )
    start = torch.tensor([*scales[: learned.n_scales], *(noises[:1] * learned.n_noises)], dtype=torch.float64)
    point = fixed_point(observations, method, learned, 2.0 * start.log(), progress=progress)
    found = (0.5 * point).exp().tolist()
    scales, noises = found[: learned.n_scales], found[learned.n_scales :]
    return (scales if wanted.by_layer else (scales or [1.0]) * len(layers)), noises


def _some(observations: Observations, seed: int) -> Observations:
    """As many of the examples, drawn at random, as are decomposed at once."""
    n = min(observations.n, max(1, _ROWS_TO_START // observations.c))
    order = torch.randperm(observations.n, generator=torch.Generator().manual_seed(seed))
    size = observations.residual.square().sum(1).cpu()
    if not bool(size[order[:n]].any()):  # what is to be explained is rare, and one of it has to be there
        largest = size.argmax()
        order = torch.cat([largest[None], order[order != largest]])
    index = order[:n].sort().values
    return observations.some(index, Products(observations.model.lin, observations.x).some(index))


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
