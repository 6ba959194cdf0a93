"""Last layer: inference in the parameters of one layer, all others held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Likelihood
from jacana.linearization import Linearization, Prior
from jacana.posteriors.choice import choose
from jacana.posteriors.delegated import Delegated
from jacana.posteriors.method import Method, State
from jacana.posteriors.nonlinear import Nonlinear
from jacana.posteriors.observations import Observations

__all__ = ["LastLayer"]


@final
@dataclass(frozen=True)
class LastLayer(Method):
    """The posterior of a prior that lets the last layer move, and nothing else.

        f = m + J_L δ_L,     δ_L ~ N(0, S_L),     all other δ = 0

    The cheap baseline: a last layer has few parameters, its Jacobian is the activations before it, and no pass goes
    back through the network. Its kernel is a part of the full one, K = K_L + (what other layers add), so that every
    variance is smaller than the full posterior's, most of all off the data: it is that of a prior which holds the other
    layers fixed, and does not know what else they could have been. Its evidence may be compared with the full model's.

    Costs what the inner method costs with p the layer's parameters; a mean is one Jacobian-vector product, in weights
    that are zero in all other layers.

    Args:
        layer: the dotted prefix of another layer, or of several; by default the last in ``named_parameters`` order.
        method: how the layer is inferred; by default the cheaper of :class:`FunctionSpace` and :class:`WeightSpace`,
            and where the noise is not Gaussian :class:`Laplace`.

    Raises:
        InvalidOption: no method; or, at conditioning, a layer that the network has not or that is not selected.

    References:
        Lázaro-Gredilla and Figueiras-Vidal 2010, Marginalized neural network mixtures for large-scale regression.
        Snoek et al. 2015, Scalable Bayesian optimization using deep neural networks (arXiv 1502.05700), section 3.
        Daxberger et al. 2021, Laplace Redux (arXiv 2106.14806), section 3.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> gp, x = jacana.TangentGP(net), torch.linspace(-1, 1, 50).unsqueeze(1)
        >>> post = gp.condition(x, x.sin(), noise_std=0.1, method=jacana.LastLayer())
        >>> post.weights.shape, int((post.weights != 0).sum())
        (torch.Size([61]), 21)
        >>> full = gp.condition(x, x.sin(), noise_std=0.1)
        >>> far = torch.tensor([[5.0]])
        >>> bool(post.predict(far).variance < full.predict(far).variance)
        True
    """

    exact: ClassVar[bool] = False

    layer: str | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and not isinstance(self.layer, str):
            raise InvalidOption(
                f"layer: got {self.layer!r}; expected the dotted name of a layer, or None for the last."
            )
        if isinstance(self.method, Nonlinear):
            raise InvalidOption(
                f"method: got {self.method!r}, which moves the layer, and the rest with it; take "
                "jacana.linearize(net, parameters=layer), and condition that with it."
            )
        if self.method is not None and (not isinstance(self.method, Method) or isinstance(self.method, LastLayer)):
            raise InvalidOption(
                f"method: got {self.method!r}; expected one for the layer, like jacana.WeightSpace(), or None."
            )

    @property
    def streams(self) -> bool:
        return self.method is not None and self.method.streams

    def check(self, likelihood: Likelihood) -> None:
        """Refuse what the inner method does; the default takes any."""
        if self.method is not None:
            self.method.check(likelihood)

    def within(self, lin: Linearization) -> Linearization:
        """The linearization in the layer's parameters alone.

        Raises:
            InvalidOption: there are none.
        """
        return lin.restricted(_names(lin, self.layer))

    def condition(self, observations: Observations, *, progress: bool) -> State:
        model = observations.model
        lin = self.within(model.lin)
        stds = dict(zip(model.lin.names, model.prior.stds, strict=True))
        prior = Prior.of(lin.network, {name: stds[name] for name in lin.names})
        inner = replace(observations, model=replace(model, lin=lin, prior=prior))
        method = choose(inner).method if self.method is None else self.method
        return _LastLayerState(observations, method.condition(inner, progress=progress))


def _names(lin: Linearization, layer: str | None) -> Sequence[str]:
    """The selected parameters of a layer, or of the last."""
    if layer is None:
        return list(lin.layers.values())[-1]
    names = [name for name in lin.names if layer in ("", name) or name.startswith(f"{layer}.")]
    if not names:
        shown = ", ".join(map(repr, list(lin.layers)[:12])) + (", ..." if len(lin.layers) > 12 else "")
        raise InvalidOption(f"layer: {layer!r} names no linearized layer or parameter; the layers are {shown}.")
    return names


class _LastLayerState(Delegated):
    """The posterior of the layer's weights, and zeros."""

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._padded(self.inner.weights.unsqueeze(1)).squeeze(1)

    @property
    def precision(self) -> tuple[Float64[Tensor, "n c c"], Float64[Tensor, "n c"]]:
        return self.inner.precision

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self._padded(self.inner.sample_weights(n, generator))

    def extended(self, more: Observations) -> State:
        inner = self.inner.extended(replace(more, model=self.inner.observations.model))
        return _LastLayerState(self.observations.followed_by(more), inner)

    def _padded(self, weights: Float64[Tensor, "q k"]) -> Float64[Tensor, "p k"]:
        network = self.observations.model.lin.network
        moving = iter(torch.split(weights, list(self.inner.observations.model.lin.network.sizes)))
        names = set(self.inner.observations.model.lin.names)
        pieces = [
            next(moving) if name in names else weights.new_zeros(size, weights.shape[1])
            for name, size in zip(network.names, network.sizes, strict=True)
        ]
        return torch.cat(pieces)
