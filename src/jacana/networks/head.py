"""Head: the last linear layer of a classifier, selected from and added to for a new set of labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jacana.errors import InvalidData, InvalidOption, UnsupportedNetwork
from jacana.networks.context import differentiable
from jacana.networks.examples import Data, Examples, as_examples, as_pairs, split_batch
from jacana.networks.network import Network
from jacana.networks.readout import Readout
from jacana.networks.softmax_regression import fit_logits

__all__ = ["with_head"]


def with_head(
    net: nn.Module,
    outputs: Iterable[int | None],
    x: Data | None = None,
    y: Any = None,
    *,
    layer: str | None = None,
    penalty: float | None = None,
    output: Callable[[Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int = 256,
) -> nn.Module:
    """A copy of a classifier whose last layer has other outputs: old ones that are kept, new ones that are fitted.

    A kept output has its old weights and bias, bit for bit. The new ones are the optimum of a convex problem on the
    features φ before the last layer, with the kept logits held fixed beside them:

        min over W, b of  −Σᵢ log softmax(φᵢ Wᵀ + b, kept logits)[yᵢ] + ½ λ s² ‖W‖²,     s² = (1/n) Σᵢ ‖φᵢ − φ̄‖²

    Choose it before :func:`linearize` or :class:`TangentGP` where a task has labels that the network does not know: a
    linearization starts from the outputs that are there, and the tangent kernel of a random head knows little of the
    task. s² makes λ a pure number, 1 / λ the prior variance of a new logit at an average example, so that scaling the
    features changes no prediction. The biases are free, which takes examples of kept outputs beside those of new ones:
    the latter alone do not tell how rare they are.

    Costs a pass over ``x`` and some hundred products with the features (n, d), in float64 and in memory, for each new
    output; the choice of λ ten times as much.

    Args:
        net: a network whose outputs come from a last ``nn.Linear``. A network of one output, a Bernoulli's logit, may
            not have it kept beside new ones: it is no logit of a softmax.
        outputs: an entry for each output of the new network, in its order: the number of the old output that is kept
            (once or several times), or None for a new one.
        x: n examples, as for :func:`linearize`; or a DataLoader of (input, label), read whole. Where all outputs are
            kept, a few show which layer is the last one, and without them it must be plain, or named.
        y: (n,), the place in ``outputs`` of each example's label, 0, …, len(outputs) − 1: at least one for each new
            output, and one for any kept. Where all outputs are kept it is not looked at.
        layer: the dotted name of the last linear layer. By default it is the one whose output is what the network
            returns; what follows a named one may still choose among positions or average them, as long as it does so
            with each output apart. This is verified on ``x``, and without ``x`` believed.
        penalty: λ. None takes the best for held-out fifths of the data (each class spread over them in the order of
            the data) by their log-probability, from 100 down to 10⁻⁶ by factors of √10 until it has fallen twice; and
            .1 where a new output, or all kept ones together, have a single example: none can be held out.
        output: takes the logits (n, c) from what the network returns, e.g. ``lambda out: out.logits``.
        forward: calls the network, ``forward(net, x)``.
        batch_size: examples in one pass.

    Returns:
        A deep copy of ``net`` in evaluation mode with a new ``nn.Linear``, in the old one's dtype, on its device, and
        trainable if that was; it has a bias if that had, or if there are new outputs. What was tied to the old weights,
        like an embedding, keeps them and is tied no more. Attributes that tell the number of classes are as they were.

    Raises:
        InvalidData: examples or labels that cannot be used; no example of a new output, or none of a kept one.
        InvalidOption: outputs or a layer that the network has not, a penalty that is not positive, or a last layer that
            cannot be told without ``x`` or ``layer``.
        UnsupportedNetwork: no linear layer gives the outputs; or the network is random, or mixes examples.

    Warns:
        NotConverged: the fit has stopped before the optimum; the distance is told.

    References:
        Malladi, Wettig, Yu, Chen, Arora 2023, A kernel-based view of language model fine-tuning (arXiv 2210.05643),
        section 6: tangent kernels do well where outputs fit the task from the start.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> x, y = torch.randn(60, 2), torch.arange(60) % 3
        >>> x[y == 1] += 4.0  # of something new
        >>> new = jacana.with_head(net, [2, None, 0], x, y)
        >>> bool(torch.allclose(new(x)[:, [0, 2]], net(x)[:, [2, 0]], atol=1e-6))
        True
        >>> bool((new(x)[y == 1].argmax(1) == 1).double().mean() > 0.9)
        True
        >>> jacana.with_head(net, [2, 0])[-1]  # to select needs no data
        Linear(in_features=16, out_features=2, bias=True)
    """
    entries = _entries(outputs)
    _refuse_settings(layer, penalty, batch_size)
    network = Network(net, _floating(net), output, forward)
    examples: Examples | None = None
    labels = None
    if None in entries:
        if x is None:
            raise InvalidData("x: got None; new outputs are fitted to examples: pass them as x, and their labels as y.")
        examples, targets = as_pairs(x, y, network.input_dtype, network.device)
        labels = _labels(targets, entries)
    elif x is not None:
        examples = as_examples(_first(x), network.input_dtype, network.device)
    with differentiable(), torch.no_grad():
        old = Readout.find(network, layer, examples, written=output is None)
        _refuse_outputs(entries, old.linear.out_features)
        head = _selected(old.linear, entries)
        if labels is not None and examples is not None:
            features = [old.features(batch).numpy() for batch in examples.batches(batch_size)]
            _fit(head, np.concatenate(features), labels, entries, penalty)
        made = _replaced(net, network.module, old.linear, head)
        if examples is not None:
            old.verify(head, Network(made, _floating(made), output, forward))
    return made


def _entries(outputs: Iterable[int | None]) -> list[int | None]:
    """The numbers of kept outputs, and None.

    Raises:
        InvalidOption: others, none, or one that is to be fitted alone.
    """
    try:
        given = list(outputs)
    except TypeError:
        given = []
    if not given or not all(e is None or (isinstance(e, Integral) and not isinstance(e, bool)) for e in given):
        raise InvalidOption(
            f"outputs: got {outputs!r}; expected an entry for each output of the new network, the number of an old "
            "output or None. Give for instance [0, 3, None]."
        )
    if given == [None]:
        raise InvalidOption("outputs: got [None]; expected two or more where some are fitted. Add the others.")
    return [None if entry is None else int(entry) for entry in given]


def _refuse_settings(layer: object, penalty: object, batch_size: object) -> None:
    if layer is not None and not isinstance(layer, str):
        raise InvalidOption(f"layer: got {type(layer).__name__}; expected the dotted name of a layer, e.g. 'head'.")
    number = isinstance(penalty, Real) and not isinstance(penalty, bool) and 0.0 < float(penalty) < math.inf
    if penalty is not None and not number:
        raise InvalidOption(f"penalty: got {penalty!r}; expected a positive number, or None to choose it.")
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise InvalidOption(f"batch_size: got {batch_size!r}; expected a whole number from 1.")


def _refuse_outputs(entries: list[int | None], n_old: int) -> None:
    wrong = [entry for entry in entries if entry is not None and not 0 <= entry < n_old]
    if wrong:
        raise InvalidOption(
            f"outputs: got the number {wrong[0]} of an old output; expected 0 to {n_old - 1}, or None for a new one."
        )
    if n_old == 1 and None in entries and 0 in entries:
        raise InvalidOption(
            "outputs: got a new output beside the only old one, which is the logit of a Bernoulli and not of a "
            "softmax; give [None, None, ...] to fit all of them."
        )


def _labels(targets: Float64[Tensor, "..."], entries: list[int | None]) -> Int64[np.ndarray, " n"]:
    """The place in ``entries`` of the label of each example.

    Raises:
        InvalidData: no such places, or an output of which there is no example.
    """
    k = len(entries)
    if targets.ndim != 1:
        raise InvalidData(f"y: got shape {tuple(targets.shape)}; expected (n,), a label for each example. Flatten it.")
    given = targets.cpu().numpy()
    if not bool((given == np.floor(given)).all()) or given.min() < 0 or given.max() >= k:
        raise InvalidData(
            f"y: got labels from {given.min():g} to {given.max():g}; expected whole numbers from 0 to {k - 1}, the "
            f"place of each label in outputs, which has {k} entries. Encode them first."
        )
    labels = given.astype(np.int64)
    counts = np.bincount(labels, minlength=k)
    missing = [place for place, entry in enumerate(entries) if entry is None and counts[place] == 0]
    if missing:
        raise InvalidData(
            f"y: got no example of the new outputs at {missing} of outputs; expected at least one of each. Add some, "
            "or leave these outputs out."
        )
    kept = [place for place, entry in enumerate(entries) if entry is not None]
    if kept and counts[kept].sum() == 0:
        raise InvalidData(
            "y: got examples of new outputs alone, which are most probable where they are always said; expected some "
            f"of the kept outputs, at {kept} of outputs, too. Add some, as many as is natural."
        )
    return labels


def _floating(net: object) -> list[str] | None:
    """The parameters that a network is held by; other dtypes are constants."""
    if not isinstance(net, nn.Module):
        return None  # which the network itself refuses
    if not any(isinstance(module, nn.Linear) for module in net.modules()):
        raise UnsupportedNetwork(
            f"net: got a {type(net).__name__} without an nn.Linear; expected outputs from a last nn.Linear. Write a "
            "1x1 convolution at one position as flatten and nn.Linear."
        )
    return [name for name, parameter in net.named_parameters() if parameter.is_floating_point()]


def _first(x: Data) -> Any:
    """Of a loader, the inputs of its first batch."""
    if not isinstance(x, DataLoader):
        return x
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(x), None)
    if batch is None:
        raise InvalidData("x: the DataLoader gave no batch; expected at least one example.")
    return split_batch(batch)[0]


def _selected(old: nn.Linear, entries: list[int | None]) -> nn.Linear:
    """A layer with the kept rows, and zeros."""
    weight = old.weight
    biased = old.bias is not None or None in entries
    empty = nn.Linear(old.in_features, len(entries), biased, "meta", weight.dtype)  # draws no random numbers
    head = empty.to_empty(device=weight.device)
    head.weight.zero_()
    if biased:
        head.bias.zero_()
    for place, entry in enumerate(entries):
        if entry is not None:
            head.weight[place] = weight[entry]
            if old.bias is not None:
                head.bias[place] = old.bias[entry]
    return head.eval()


def _fit(
    head: nn.Linear,
    features: Float64[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    entries: list[int | None],
    penalty: float | None,
) -> None:
    """Write the new rows."""
    new = [place for place, entry in enumerate(entries) if entry is None]
    kept = [place for place, entry in enumerate(entries) if entry is not None]
    numbers = np.full(len(entries), len(new))
    numbers[new] = np.arange(len(new))
    fixed = None
    if kept:  # of the kept logits only the sum of their exponentials matters
        weight, bias = head.weight[kept].cpu().double().numpy(), head.bias[kept].cpu().double().numpy()
        fixed = logsumexp(features @ weight.T + bias, axis=1)
    found = fit_logits(features, numbers[labels], fixed, len(new), penalty)
    head.weight[new] = torch.from_numpy(found.weight).to(head.weight)
    head.bias[new] = torch.from_numpy(found.bias).to(head.bias)


def _replaced(net: nn.Module, private: nn.Module, old: nn.Linear, head: nn.Linear) -> nn.Module:
    """The private copy with another head, and what was turned on it for linearizing turned back."""
    for name, parameter in net.named_parameters():
        private.get_parameter(name).requires_grad_(parameter.requires_grad)
    for original, module in zip(net.modules(), private.modules(), strict=True):
        if isinstance(original, nn.Embedding | nn.EmbeddingBag):
            vars(module)["sparse"] = original.sparse
    head.requires_grad_(any(parameter.requires_grad for parameter in old.parameters()))
    for name, module in list(private.named_modules(remove_duplicate=False)):
        if module is old:
            if not name:
                return head
            private.set_submodule(name, head)
    return private
