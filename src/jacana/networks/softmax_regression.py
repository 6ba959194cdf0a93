"""Softmax regression: new logits, linear in features, beside ones that are held fixed; convex, solved to rounding."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import logsumexp

from jacana.errors import NotConverged

__all__ = ["Logits", "fit_logits"]

_PENALTIES = tuple(float(10.0**power) for power in np.arange(2.0, -6.5, -0.5))
"""From logits whose prior standard deviation is a tenth to logits of a thousand."""
_FEW = 0.1
"""The penalty where nothing can be held out: logits of standard deviation three, as those of trained classifiers."""
_N_FOLDS = 5
_PATIENCE = 2
_ROUGHLY, _FINELY = 1e-6, 1e-9
"""Norms of the gradient, an example."""
_REACHED = 1e-6
"""The relative distance to the optimum from which on the user is warned."""
_N_CORRECTIONS = 10
_EQUAL = 2.0**-46
"""Features that vary by less, relatively, vary by rounding: 64 eps."""


class Logits(NamedTuple):
    """Logits of r outputs as functions of features φ: φ ``weight``ᵀ + ``bias``."""

    weight: Float64[np.ndarray, "r d"]
    bias: Float64[np.ndarray, " r"]


def fit_logits(
    features: Float64[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    fixed: Float64[np.ndarray, " n"] | None,
    r: int,
    penalty: float | None,
) -> Logits:
    """The r logits that make the labels most probable, up to a ridge penalty, beside fixed ones.

        min over W, b of  −Σᵢ log softmax(φᵢ Wᵀ + b, aᵢ)[yᵢ] + ½ λ s² ‖W‖²,     s² = (1/n) Σᵢ ‖φᵢ − φ̄‖²

    The biases are free; so features may be centred, and the answer does not change when they are moved, rotated or
    scaled. One s for all of them keeps their geometry: a feature that hardly varies would count for as much as any
    other if each were divided by its own.

    Args:
        features: φ.
        labels: 0, …, r − 1 for the new outputs, r for any of the fixed ones; each occurs.
        fixed: a, the log of the sum of the exponentials of the fixed logits; None where there are none.
        r: new outputs.
        penalty: λ, the reciprocal of the prior variance of a new logit at an average example. None takes the best of
            10², 10^1.5, … down to 10⁻⁶ by the log-probability of held-out fifths of the data, each class spread over
            them in the order of the data, and goes on no further after two falls; and .1 where a new output, or the
            fixed ones together, have a single example, so that none can be held out.

    Returns:
        Those of the smallest norm: without fixed ones the biases sum to zero.
    """
    mean = features.mean(axis=0)
    centred = features - mean
    s = float(np.sqrt((centred**2).sum(axis=1).mean()))
    if not s > _EQUAL * float(np.sqrt((features**2).sum(axis=1).mean())):
        s, centred = 1.0, np.zeros_like(centred)  # features that do not vary: only the biases are fitted
    basis = None
    if len(features) <= features.shape[1]:  # the optimum is in the span of the examples: as many coordinates do
        basis, upper = np.linalg.qr(centred.T)
        centred = np.ascontiguousarray(upper.T)
    task = _Task(centred / s, labels, fixed, r)
    penalty = _chosen(task) if penalty is None else penalty
    point = _corrected(task.objective(penalty), _minimized(task.objective(penalty), task.start, _FINELY))
    weight, bias = task.split(point)
    weight = (weight if basis is None else weight @ basis.T) / s
    if fixed is None:
        bias = bias - bias.mean()
    return Logits(weight, bias - weight @ mean)


def _chosen(task: _Task) -> float:
    """The penalty under which examples that are held out are most probable."""
    counts = np.bincount(task.labels, minlength=task.r)
    if counts.min() < 2:
        return _FEW
    place = np.empty(len(task.labels), dtype=np.int64)
    # Of each class, two and more examples in a row are in different folds, so that it is never held out whole.
    place[np.argsort(task.labels, kind="stable")] = np.arange(len(task.labels))
    folds = place % _N_FOLDS
    parts = [(task.where(folds != fold), task.where(folds == fold)) for fold in np.unique(folds)]
    points = [kept.start for kept, _ in parts]
    best, best_penalty, falls = -np.inf, _FEW, 0
    for penalty in _PENALTIES:
        points = [
            _minimized(kept.objective(penalty), point, _ROUGHLY) for (kept, _), point in zip(parts, points, strict=True)
        ]
        found = sum(held_out.log_probability(point) for (_, held_out), point in zip(parts, points, strict=True))
        falls = falls + 1 if found <= best else 0
        if found > best:
            best, best_penalty = found, penalty
        if falls == _PATIENCE:
            break
    return best_penalty


@final
@dataclass(frozen=True)
class _Task:
    """Standardised features with labels; a point is the weights (r, q), row by row, and then the biases (r,)."""

    features: Float64[np.ndarray, "n q"]
    labels: Int64[np.ndarray, " n"]
    fixed: Float64[np.ndarray, " n"] | None
    r: int

    def where(self, mask: np.ndarray) -> _Task:
        fixed = None if self.fixed is None else self.fixed[mask]
        return _Task(self.features[mask], self.labels[mask], fixed, self.r)

    def objective(self, penalty: float) -> _Objective:
        return _Objective(self, penalty)

    @property
    def start(self) -> Float64[np.ndarray, " p"]:
        """Biases that give each output about its share of the examples, and no weights."""
        counts = np.bincount(self.labels, minlength=self.r + 1).astype(np.float64)
        bias = np.log(counts[: self.r])
        if self.fixed is not None:
            bias += self.fixed.mean() - np.log(counts[self.r])
        return np.concatenate([np.zeros(self.r * self.features.shape[1]), bias])

    def split(self, point: Float64[np.ndarray, " p"]) -> Logits:
        weight = point[: -self.r].reshape(self.r, -1)
        return Logits(weight, point[-self.r :])

    def logits(self, point: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, "n r"]:
        weight, bias = self.split(point)
        return self.features @ weight.T + bias

    def log_probabilities(self, point: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, "n _"]:
        """Of the new outputs and, last, of all fixed ones together."""
        logits = self.logits(point)
        if self.fixed is not None:
            logits = np.concatenate([logits, self.fixed[:, None]], axis=1)
        return logits - logsumexp(logits, axis=1, keepdims=True)

    def log_probability(self, point: Float64[np.ndarray, " p"]) -> float:
        """Of all labels, where those of fixed outputs count as one."""
        return float(self.log_probabilities(point)[np.arange(len(self.labels)), self.labels].sum())


@final
class _Objective:
    """What is minimised, its gradient and its curvature."""

    def __init__(self, task: _Task, penalty: float) -> None:
        self.task, self._penalty = task, penalty
        hot = task.labels[:, None] == np.arange(task.r)
        self._hot = hot.astype(np.float64)
        self._at: bytes | None = None
        self._probabilities = self._hot

    def __call__(self, point: Float64[np.ndarray, " p"]) -> tuple[float, Float64[np.ndarray, " p"]]:
        log_p = self.task.log_probabilities(point)
        weight = self.task.split(point).weight
        value = -float(log_p[np.arange(len(log_p)), self.task.labels].sum())
        self._at, self._probabilities = point.tobytes(), np.exp(log_p[:, : self.task.r])
        gradient = self._joined(self._probabilities - self._hot, weight)
        return value + 0.5 * self._penalty * float((weight**2).sum()), gradient

    def curvature_times(
        self, point: Float64[np.ndarray, " p"], vector: Float64[np.ndarray, " p"]
    ) -> Float64[np.ndarray, " p"]:
        """The Hessian at ``point`` times a vector."""
        if point.tobytes() != self._at:
            self(point)
        moved = self._probabilities * self.task.logits(vector)
        moved = moved - self._probabilities * moved.sum(axis=1, keepdims=True)
        return self._joined(moved, self.task.split(vector).weight)

    def _joined(self, slopes: Float64[np.ndarray, "n r"], weight: np.ndarray) -> Float64[np.ndarray, " p"]:
        """What slopes in the logits are in weights, with the penalty's, and in biases."""
        biases = slopes.sum(axis=0)
        if self.task.fixed is None:
            biases = biases - biases.mean()  # all logits may rise together: exactly no slope there
        return np.concatenate([(slopes.T @ self.task.features + self._penalty * weight).ravel(), biases])


def _minimized(objective: _Objective, start: Float64[np.ndarray, " p"], tolerance: float) -> Float64[np.ndarray, " p"]:
    """Newton's method in a trust region; it goes as far as differences of the objective can be told from rounding."""
    found = minimize(
        objective,
        start,
        jac=True,
        hessp=objective.curvature_times,
        method="trust-ncg",
        options={"gtol": tolerance * len(objective.task.labels), "maxiter": 1000},
    )
    point: Float64[np.ndarray, " p"] = found.x
    return point


def _corrected(objective: _Objective, point: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
    """Newton's steps while they make the gradient smaller, which has digits where the objective has none left.

    Warns:
        NotConverged: the last step is no small one.
    """
    gradient = objective(point)[1]
    reached = np.inf
    for _ in range(_N_CORRECTIONS):
        here = point

        def curvature_times(vector: np.ndarray, here: np.ndarray = here) -> np.ndarray:
            return objective.curvature_times(here, vector.ravel())

        curvature = LinearOperator((len(point), len(point)), matvec=curvature_times, dtype=np.float64)
        step = cg(curvature, -gradient, rtol=1e-6, maxiter=1000)[0]
        reached = float(np.linalg.norm(step)) / max(1.0, float(np.linalg.norm(point)))
        after = objective(point + step)[1]
        if not np.linalg.norm(after) < np.linalg.norm(gradient):
            break
        point, gradient = point + step, after
    if not reached <= _REACHED:
        warnings.warn(
            f"with_head: the fit of the new outputs stopped at a relative distance of about {reached:.1e} from the "
            f"optimum, where {_REACHED:.0e} was asked for; give a larger penalty=, or scale the features.",
            NotConverged,
            stacklevel=5,
        )
    return point
