"""Held out: how sure a network that went its own way should be of labels, as the half that it has not seen tells."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from jacana.evidence.sharpest import sharpest
from jacana.likelihoods import Tempered
from jacana.networks import places
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
    the classes, nor on last digits. Copies of an example are one of their weight. A label that is there but once is
    asked of nobody: the half without it cannot know it.

    Args:
        post: by :class:`GradientFlow`, with a :class:`Tempered` likelihood; any other stays as it is.
        progress: show bars.
    """
    method, state, told = post.method, post.state, post.likelihood
    if not (isinstance(method, GradientFlow) and isinstance(state, GradientFlowState) and isinstance(told, Tempered)):
        return post
    everything = replace(state.first, likelihood=replace(told, sharpness=1.0))
    data = everything.counting().distinct()
    linear = state.inner if data is everything else method.method.condition(data, progress=progress)
    kinds = _kinds(data.targets)
    first = _half(data, kinds)
    asked = _there_twice(kinds)
    if bool(first.all()) or not len(asked) or not isinstance(linear, ModeState):
        return post
    mean = torch.zeros_like(data.offset)
    for half in (first, ~first):
        seen, rest = (index.nonzero().flatten() for index in (half, ~half))
        change = method.weights(data.some(seen, data.examples.some(seen)), progress=progress)
        model = data.model
        there = replace(model, lin=model.lin.moved(model.temperature * change))
        mean[rest.to(mean.device)] = there.output(data.examples.some(rest))
    here = asked.to(mean.device)
    cavity = Cavity(mean[here], cavity_of(linear.mode, data).covariance[here])
    tau, _ = sharpest(cavity, data.likelihood.at(asked), data.targets[here])
    return Posterior(method, state.told(replace(told, sharpness=tau)), post.reason)


def _kinds(targets: Tensor) -> list[tuple[float, ...]]:
    """The label, or labels, of each example."""
    rows = targets.detach().to("cpu", torch.float64).reshape(len(targets), -1)
    return [tuple(row) for row in rows.tolist()]


def _half(data: Observations, kinds: list[tuple[float, ...]]) -> Bool[Tensor, " n"]:
    """Which examples are in the first half: every other one of each kind, by their places."""
    place = places(data.x).tolist()
    earliest: dict[tuple[float, ...], float] = {}
    for kind, at in zip(kinds, place, strict=True):
        earliest[kind] = min(at, earliest.get(kind, at))
    order = sorted(range(data.n), key=lambda i: (earliest[kinds[i]], kinds[i], place[i]))
    first = torch.zeros(data.n, dtype=torch.bool)
    first[order[::2]] = True
    return first


def _there_twice(kinds: list[tuple[float, ...]]) -> Int64[Tensor, " k"]:
    """Examples whose label another one has; all, where an example may have several labels."""
    times = Counter(kinds)
    several = any(len(kind) > 1 for kind in kinds)
    return torch.tensor([i for i, kind in enumerate(kinds) if several or times[kind] > 1], dtype=torch.int64)
