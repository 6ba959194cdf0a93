"""Classified: examples with the probabilities of their classes and their labels, checked at the door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption

__all__ = ["Classified", "Values", "as_count", "as_numbers", "classified"]

if TYPE_CHECKING:
    Values: TypeAlias = ArrayLike | Tensor | Sequence[object]
    """An array of numbers, or of labels of any kind, of NumPy or torch."""
else:  # what really comes is checked at the door, with errors that name the cure
    Values = Any

_TOLERANCE = 1e-6
"""By how much, a class, the probabilities of an example may miss one."""


@final
@dataclass(frozen=True)
class Classified:
    """n examples: the probabilities of their classes, and the columns that are right.

    Args:
        probabilities: (n, k).
        labels: (n,), numbers of columns.
    """

    probabilities: Float64[np.ndarray, "n k"]
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Bool[np.ndarray, " n"]:
        """Whether the most probable class, the first of several, is the label."""
        return self.probabilities.argmax(axis=1) == self.labels

    @property
    def confidence(self) -> Float64[np.ndarray, " n"]:
        """The probability of the most probable class."""
        return self.probabilities.max(axis=1)

    @property
    def of_labels(self) -> Float64[np.ndarray, " n"]:
        """The probability of the label."""
        return self.probabilities[np.arange(len(self)), self.labels]


def classified(
    probabilities: Values, labels: Values, classes: Values | None = None, *, any_scores: bool = False
) -> Classified:
    """Check probabilities and labels and bring them to NumPy.

    Args:
        probabilities: (n, k), from 0 to 1, of sum one within 1e-6·k (in half precision within eps·k).
        labels: (n,).
        classes: the label of each column; None for 0, …, k − 1.
        any_scores: they need be no probabilities; only their order counts.

    Raises:
        InvalidData: other shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: ``classes`` that do not name each column once.
    """
    p, eps = as_numbers(probabilities, "probabilities")
    if p.ndim != 2 or p.shape[1] < 2 or len(p) == 0:
        raise InvalidData(
            f"probabilities: got shape {p.shape}; expected (n, k), a row for each example and a column for each of two "
            "classes or more. Of the probability p of one of two classes make np.stack([1 - p, p], axis=1)."
        )
    if not any_scores:
        _refuse_improbable(p, max(_TOLERANCE, eps) * p.shape[1])
    return Classified(p, _columns(labels, len(p), p.shape[1], classes))


def as_numbers(values: Values, name: str) -> tuple[Float64[np.ndarray, "..."], float]:
    """An array in float64 without NaN, and the machine precision that it came in (0 for integers).

    Raises:
        InvalidData: no real numbers, or NaN.
    """
    eps = 0.0
    try:
        if isinstance(values, Tensor):
            tensor = values.detach().cpu()
            if tensor.is_floating_point():
                eps, tensor = torch.finfo(tensor.dtype).eps, tensor.to(torch.float64)  # NumPy knows no bfloat16
            given = tensor.numpy()
        else:
            given = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidData(
            f"{name}: got a {type(values).__name__} that holds no plain numbers ({error}); expected an array or a "
            "tensor. Convert it first, e.g. np.asarray(values, dtype=float)."
        ) from error
    if given.dtype.kind not in "biuf":
        raise InvalidData(
            f"{name}: got entries of {given.dtype}; expected real numbers. Convert them first, e.g. "
            "np.asarray(values, dtype=float)."
        )
    if given.dtype.kind == "f" and not isinstance(values, Tensor):
        eps = float(np.finfo(given.dtype).eps)
    numbers = given.astype(np.float64)
    rows = np.atleast_1d(numbers)
    bad = np.flatnonzero(np.isnan(rows).any(axis=tuple(range(1, rows.ndim))))
    if len(bad):
        raise InvalidData(
            f"{name}: got NaN in {len(bad)} of {len(rows)} rows, the first at index {bad[0]}; expected numbers. Find "
            "what made them, or drop these examples."
        )
    return numbers, eps


def as_count(value: Any, name: str) -> int:
    """A whole number from one.

    Raises:
        InvalidOption: anything else.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidOption(f"{name}: got {value!r}; expected a whole number from 1.")
    return int(value)


def _refuse_improbable(p: Float64[np.ndarray, "n k"], tolerance: float) -> None:
    """Refuse entries below 0 or above 1, and rows whose sum is not one."""
    outside = np.flatnonzero(((p < 0.0) | (p > 1.0 + tolerance)).any(axis=1))
    if len(outside):
        row = p[outside[0]]
        raise InvalidData(
            f"probabilities: got entries from {row.min():.9g} to {row.max():.9g} in row {outside[0]} and in "
            f"{len(outside)} of {len(p)} rows entries outside 0 to 1; expected probabilities. Of logits take "
            "logits.softmax(1)."
        )
    sums = p.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1.0) > tolerance)
    if len(wrong):
        raise InvalidData(
            f"probabilities: got the sum {sums[wrong[0]]:.9g} in row {wrong[0]} and others than 1 in {len(wrong)} of "
            f"{len(p)} rows; expected 1 within {tolerance:.1g}. Divide each row by its sum if it is meant to be so; "
            "independent probabilities of several labels have no single class."
        )


def _columns(labels: Values, n: int, k: int, classes: Values | None) -> Int64[np.ndarray, " n"]:
    """The number of the column that each label names."""
    if classes is not None:
        numbers = _numbered(_items(classes, "classes", InvalidOption), k)
        return _named(_items(labels, "labels", InvalidData), n, numbers)
    given = as_numbers(labels, "labels")[0] if _numeric(labels) else None
    if given is None:
        raise InvalidData(
            f"labels: got labels that are no numbers; expected integers from 0 to {k - 1}. Give the label of each "
            "column as classes=."
        )
    if given.shape != (n,):
        raise InvalidData(f"labels: got shape {given.shape}; expected ({n},), one for each row of probabilities.")
    if not bool((given == np.floor(given)).all()):
        raise InvalidData("labels: got numbers with a fraction; expected integers from 0. Encode them first.")
    if given.min() < 0 or given.max() >= k:
        raise InvalidData(
            f"labels: got labels from {given.min():.0f} to {given.max():.0f}; expected 0 to {k - 1} for {k} columns. "
            "Give the label of each column as classes= if they are called otherwise."
        )
    return given.astype(np.int64)


def _numeric(labels: Values) -> bool:
    try:
        return isinstance(labels, Tensor) or np.asarray(labels).dtype.kind in "biufc"
    except ValueError:  # ragged
        return False


def _items(values: Values, name: str, error: type[InvalidData | InvalidOption]) -> list[object]:
    """Labels of any kind, in a list."""
    array = np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values, dtype=object)
    if array.ndim != 1:
        raise error(f"{name}: got shape {array.shape}; expected one dimension, a label for each. Flatten it.")
    return [item.item() if isinstance(item, Tensor | np.generic) else item for item in array.tolist()]


def _numbered(names: list[object], k: int) -> dict[object, int]:
    try:
        numbers = {name: column for column, name in enumerate(names)}
    except TypeError as error:
        raise InvalidOption(f"classes: {error}; expected labels that can be looked up, like strings.") from error
    if len(names) != k or len(numbers) != k:
        raise InvalidOption(
            f"classes: got {len(names)} names, {len(numbers)} of them different, for {k} columns of probabilities; "
            "give each column's label, once."
        )
    return numbers


def _named(labels: list[object], n: int, numbers: dict[object, int]) -> Int64[np.ndarray, " n"]:
    if len(labels) != n:
        raise InvalidData(f"labels: got {len(labels)} labels for {n} rows of probabilities; give one for each.")
    columns = np.array([_looked_up(label, numbers) for label in labels], dtype=np.int64)
    if columns.min() < 0:
        shown = ", ".join(map(repr, list(numbers)[:12])) + (", ..." if len(numbers) > 12 else "")
        raise InvalidData(
            f"labels: got {labels[columns.argmin()]!r}, which is none of classes; expected one of {shown}. Drop such "
            "examples, or add a column of probabilities for them."
        )
    return columns


def _looked_up(label: object, numbers: dict[object, int]) -> int:
    try:
        return numbers.get(label, -1)
    except TypeError:  # unhashable
        return -1
