"""Labels: class labels of any kind, as the outputs of a network count them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods import Bernoulli, Categorical, Likelihood, Weighted

__all__ = ["Labels"]


@final
@dataclass(frozen=True)
class Labels:
    """Labels of n examples for a network with c outputs.

    Attributes:
        classes: the label of each class, in the order of the probabilities.
        targets: as the likelihood takes them.
        likelihood: :class:`Categorical`; :class:`Bernoulli` for one output, or several labels an example.
        multilabel: whether an example may have several.
    """

    classes: NDArray[Any]
    targets: Tensor
    likelihood: Likelihood
    multilabel: bool

    @classmethod
    def of(cls, y: Any, c: int, *, classes: Any = None, class_weight: Any = None, sample_weight: Any = None) -> Labels:
        """Encode and check.

        Args:
            y: (n,) of any kind, or (n, c) of zeros and ones.
            c: outputs of the network.
            classes: the label of each output; by default those of y, sorted.
            class_weight: as scikit-learn has it.
            sample_weight: (n,).

        Raises:
            InvalidData: labels that do not fit the outputs.
            InvalidOption: ``classes`` or weights that are none.
        """
        if y is None:
            raise InvalidData("y: got None; give a label for each example, or a DataLoader of (input, label) as X.")
        given = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if given.ndim == 2 and given.shape[1] == 1:
            given = given[:, 0]
        lost = given.dtype.kind == "O" and any(label is None or label != label for label in given.ravel().tolist())
        if lost or (given.dtype.kind == "f" and not np.isfinite(given).all()):
            raise InvalidData(
                "y: got NaN, infinite or missing labels; leave out the examples whose label is not known."
            )
        try:
            check_classification_targets(given)
            kind = type_of_target(given, input_name="y")
        except (ValueError, TypeError) as error:
            raise InvalidData(f"y: {error} Expected class labels, (n,), or zeros and ones, (n, {c}).") from error
        if len(given) == 0:
            raise InvalidData("y: got no labels; give one for each example.")
        multilabel = kind == "multilabel-indicator" or (given.ndim == 2 and given.shape[1] == c)
        if multilabel:
            if given.shape[1] != c:
                raise InvalidData(f"y: got {given.shape[1]} labels an example for {c} outputs; expected (n, {c}).")
            names = np.arange(c) if classes is None else _named(classes, c)
            try:
                targets = torch.from_numpy(given.astype(np.float64))
            except (ValueError, TypeError) as error:
                raise InvalidData(
                    f"y: got {given.shape[1]} labels an example that are no numbers ({error}); expected zeros and "
                    f"ones, (n, {c}), or one label an example, (n,)."
                ) from error
        else:
            names = _classes(given, c, classes)
            order = np.argsort(names, kind="stable")
            place = np.searchsorted(names[order], given)
            found = order[np.minimum(place, len(order) - 1)]
            if not bool((names[found] == given).all()):
                unknown = sorted(set(given[names[found] != given].tolist()))[:5]
                raise InvalidData(f"y: got the labels {unknown}, which are none of classes={names.tolist()}.")
            targets = torch.from_numpy(found.astype(np.int64))

        likelihood: Likelihood = Bernoulli() if multilabel or c == 1 else Categorical()
        weights = _weights(given, class_weight, sample_weight)
        if c == 1 and not multilabel:
            targets = targets.to(torch.float64)
        return cls(names, targets, likelihood if weights is None else Weighted(likelihood, weights), multilabel)


def _named(classes: Any, n: int) -> NDArray[Any]:
    names = np.asarray(classes)
    if names.ndim != 1 or len(names) != n or len(np.unique(names)) != n:
        raise InvalidOption(
            f"classes: got {np.asarray(classes).tolist()!r}; expected {n} different labels, one for each class in the "
            "order of the network's outputs."
        )
    return names


def _classes(y: NDArray[Any], c: int, classes: Any) -> NDArray[Any]:
    """The label of each class: two where one logit tells them apart, else one an output."""
    n = 2 if c == 1 else c
    if classes is not None:
        return _named(classes, n)
    found = np.unique(y)
    if len(found) != n:
        outputs = "one output, which tells two classes apart" if c == 1 else f"{c} outputs"
        raise InvalidData(
            f"y: got {len(found)} classes, {found[:10].tolist()}, for a network with {outputs}. Name the label of each "
            "class in the order of the outputs: classes=[...], where some may be missing from y; for other classes "
            "than the network's give it a head for them first: jacana.with_head(net, ...)."
        )
    return found


def _weights(y: NDArray[Any], class_weight: Any, sample_weight: Any) -> Any:
    if class_weight is None and sample_weight is None:
        return None
    given = sample_weight.detach().cpu().numpy() if isinstance(sample_weight, Tensor) else sample_weight
    try:
        weights = np.ones(len(y)) if given is None else np.asarray(given, dtype=np.float64)
        check_consistent_length(y, weights)
    except (ValueError, TypeError) as error:
        raise InvalidOption(f"sample_weight: {error} Expected a number for each of {len(y)} examples.") from error
    try:
        return weights if class_weight is None else weights * compute_sample_weight(class_weight, y)
    except (ValueError, TypeError) as error:
        raise InvalidOption(f"class_weight: {error}") from error
