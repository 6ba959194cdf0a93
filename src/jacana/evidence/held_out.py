"""Held out: how sure a network that went its own way should be of labels, as the half that it has not seen tells."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from jacana.evidence.sharpest import sharpest
from jacana.likelihoods import Tempered
from jacana.posteriors import Cavity, GradientFlow, Observations, Posterior, cavity_of
from jacana.posteriors.at_mode import ModeState
from jacana.posteriors.gradient_flow import GradientFlowState

__all__ = ["held_out"]


def held_out(post: Posterior, *, progress: bool) -> Posterior:
    """The posterior of a flow, with the τ under which each half of the labels is most probable after the other half.

        Σ_i log E p(y_i | τ f_i) − ½ (log τ)²,     f_i ~ N(f(x_i; θ of the half without i) / T, cavity of the tangent)

    What was learned by leaving labels out in closed form holds for the tangent. A network that learns features on its
    way may become surer than that, and nothing but a second way without the label shows by how much. Two halves cost
    as many gradients as the flow itself.

    Halves have as many of each class as can be; they depend neither on the order of the examples nor on the names of
    the classes, and copies of an example are in the same half.

    Args:
        post: by :class:`GradientFlow`, with a :class:`Tempered` likelihood; any other stays as it is.
        progress: show bars.
    """
    method, state, told = post.method, post.state, post.likelihood
    if not (isinstance(method, GradientFlow) and isinstance(state, GradientFlowState) and isinstance(told, Tempered)):
        return post
    data, linear = state.first, state.inner
    first = _half(data)
    if bool(first.all()) or not isinstance(linear, ModeState):
        return post
    covariance = cavity_of(linear.mode, data).covariance
    mean = torch.zeros_like(data.offset)
    for half in (first, ~first):
        seen, rest = (index.nonzero().flatten() for index in (half, ~half))
        change = method.weights(data.some(seen, data.examples.some(seen)), progress=progress)
        model = data.model
        there = replace(model, lin=model.lin.moved(model.temperature * change))
        mean[rest.to(mean.device)] = there.output(data.examples.some(rest))
    tau, _ = sharpest(Cavity(mean, covariance), replace(told, sharpness=1.0), data.targets)
    return Posterior(method, state.told(replace(told, sharpness=tau)), post.reason)


def _half(data: Observations) -> Bool[Tensor, " n"]:
    """Which examples are in the first half."""
    parts = [part.detach().reshape(data.n, -1).contiguous().cpu() for part in data.examples.tensors]
    rows = torch.cat([part.view(torch.uint8) for part in parts], dim=1).numpy()
    names = [hashlib.sha256(row.tobytes()).digest() for row in rows]
    kinds = [tuple(torch.as_tensor(y).flatten().tolist()) for y in data.targets.cpu()]
    earliest: dict[tuple[float, ...], bytes] = {}
    for name, kind in zip(names, kinds, strict=True):
        earliest[kind] = min(name, earliest.get(kind, name))
    order = sorted(range(data.n), key=lambda i: (earliest[kinds[i]], names[i]))
    half: dict[bytes, bool] = {}
    for i in order:
        half.setdefault(names[i], len(half) % 2 == 0)
    return torch.tensor([half[name] for name in names])
