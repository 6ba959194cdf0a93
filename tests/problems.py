"""Regression problems whose every dense matrix is known: what the laws of the posterior are held against."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import jacana
from tests import oracles, zoo

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spec:
    """A problem without its dtype: network, number of examples, noise and prior."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, torch.dtype], Any]
    n: int
    noise_std: Any = 0.3
    prior_std: float | dict[str, float] = 1.0
    mean: str = "network"
    flat: bool = False  # y is (n,)
    m: int = 3


@dataclass(frozen=True, eq=False)
class Problem:
    """Data (x, y), new points x_new, and the Jacobians, prior means and posterior there by the oracles."""

    spec: Spec
    dtype: torch.dtype
    noise_std: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_std", self.spec.noise_std)

    @functools.cached_property
    def _case(self) -> zoo.Case:
        return zoo.Case(self.spec.name, self.spec.make, self.spec.inputs)

    @functools.cached_property
    def net(self) -> nn.Module:
        return self._case.net(self.dtype)

    @functools.cached_property
    def x(self) -> Any:
        return self._case.x(self.spec.n, self.dtype)

    @functools.cached_property
    def x_new(self) -> Any:
        return self._case.x(self.spec.m + 100, self.dtype)[: self.spec.m]

    @property
    def n(self) -> int:
        return self.spec.n

    @property
    def c(self) -> int:
        return self.m.shape[1]

    @property
    def p(self) -> int:
        return self.J.shape[1]

    @functools.cached_property
    def J(self) -> Array:
        return oracles.jacobian(self.net, self.x)

    @functools.cached_property
    def J_new(self) -> Array:
        return oracles.jacobian(self.net, self.x_new)

    @functools.cached_property
    def s(self) -> Array:
        return oracles.prior_deviations(self.net, self.spec.prior_std)

    @functools.cached_property
    def m(self) -> Array:
        found = oracles.outputs(self.net, self.x)
        return found if self.spec.mean == "network" else np.zeros_like(found)

    @functools.cached_property
    def m_new(self) -> Array:
        found = oracles.outputs(self.net, self.x_new)
        return found if self.spec.mean == "network" else np.zeros_like(found)

    @functools.cached_property
    def Y(self) -> Array:
        """(n, c): what the network says, and something else."""
        rng = np.random.default_rng(zlib.crc32(self.spec.name.encode()))
        values = oracles.outputs(self.net, self.x)
        return values + rng.normal(0.2, 1.0, values.shape)

    @property
    def y(self) -> Tensor:
        """As the user has it: (n,) or (n, c)."""
        return torch.from_numpy(self.shaped(self.Y).copy())

    @property
    def labels(self) -> Tensor:
        """(n,): the class that the targets say most of."""
        return torch.from_numpy(self.Y.argmax(1))

    def shaped(self, values: Array) -> Array:
        """(m, c) as the user gets it back."""
        return values[:, 0] if self.spec.flat else values

    @functools.cached_property
    def K(self) -> Array:
        return (self.J * self.s**2) @ self.J.T

    @functools.cached_property
    def K_new(self) -> Array:
        return (self.J_new * self.s**2) @ self.J_new.T

    @functools.cached_property
    def noise(self) -> Array:
        return oracles.noise_matrix(self.noise_std, self.n, self.c)

    @functools.cached_property
    def condition(self) -> float:
        return float(np.linalg.cond(self.K + self.noise))

    @property
    def known(self) -> dict[str, Any]:
        """What every oracle starts from."""
        return {"J": self.J, "s": self.s, "mean": self.m, "y": self.Y, "sigma": self.noise_std}

    @functools.cached_property
    def posterior(self) -> oracles.Posterior:
        return oracles.condition_on_functions(**self.known, J_new=self.J_new, mean_new=self.m_new)

    @functools.cached_property
    def at_data(self) -> oracles.Posterior:
        return oracles.condition_on_functions(**self.known, J_new=self.J, mean_new=self.m)

    @functools.cached_property
    def weights(self) -> oracles.Posterior:
        """Mean (p, 1) and covariance (p, p) of the weights' change."""
        return oracles.condition_on_functions(**self.known, J_new=np.eye(self.p), mean_new=np.zeros((self.p, 1)))

    @functools.cached_property
    def log_evidence(self) -> float:
        return oracles.log_evidence(**self.known)

    @functools.cached_property
    def size(self) -> float:
        """The scale of means: of what is predicted and of what is learned from."""
        return float(max(np.abs(self.Y).max(), np.abs(self.m_new).max(), np.abs(self.Y - self.m).max()))

    @property
    def noise_argument(self) -> Any:
        return torch.as_tensor(self.noise_std, dtype=torch.float64) if np.ndim(self.noise_std) else self.noise_std

    @functools.cached_property
    def gp(self) -> jacana.TangentGP:
        return jacana.TangentGP(self.net, prior_std=self.spec.prior_std, mean=self.spec.mean)

    def condition_on_data(self, method: Any = None) -> jacana.Posterior:
        """The package's posterior, one for each method: it is immutable, and every law looks at the same one."""
        if method not in self._posteriors:
            self._posteriors[method] = self.gp.condition(self.x, self.y, self.noise_argument, method=method)
        return self._posteriors[method]

    @functools.cached_property
    def _posteriors(self) -> dict[Any, jacana.Posterior]:
        return {}

    def close(self, got: Any, want: Any, what: str, *, scale: float | None = None, factor: float = 64.0) -> None:
        """To a small multiple of eps · cond(K + Σ)."""
        what = f"{self.spec.name}: {what}"
        oracles.assert_close(got, want, self.dtype, condition=self.condition, scale=scale, factor=factor, what=what)


def per_example(n: int, c: int) -> Array:
    return np.random.default_rng(n * c).uniform(0.2, 0.5, (n, c))


SPECS: tuple[Spec, ...] = (
    Spec("p < nc, c = 2", lambda: zoo.mlp(2, 2, 2), zoo.vectors(2), n=12),
    Spec("p > nc, c = 2", lambda: zoo.mlp(2, 8, 2), zoo.vectors(2), n=5),
    Spec("p < n, y (n,)", lambda: zoo.mlp(2, 3, 1), zoo.vectors(2), n=20, flat=True),
    Spec("p > n, y (n,)", zoo.Flat, zoo.vectors(3), n=6, flat=True),
    Spec("p > n, y (n, 1)", zoo.Flat, zoo.vectors(3), n=6),
    Spec("one noise an output", lambda: zoo.mlp(2, 3, 3), zoo.vectors(2), n=10, noise_std=np.array([0.2, 0.4, 0.8])),
    Spec("one noise an output, p > nc", lambda: zoo.mlp(2, 8, 2), zoo.vectors(2), n=4, noise_std=np.array([0.25, 0.7])),
    Spec("one noise an example", lambda: zoo.mlp(2, 3, 2), zoo.vectors(2), n=11, noise_std=per_example(11, 2)),
    Spec("one noise an example, p > nc", lambda: zoo.mlp(2, 8, 2), zoo.vectors(2), n=4, noise_std=per_example(4, 2)),
    Spec("n = 1, c = 1", lambda: zoo.mlp(2, 3, 1), zoo.vectors(2), n=1, flat=True),
    Spec("n = 1, c = 3", lambda: zoo.mlp(2, 3, 3), zoo.vectors(2), n=1, m=1),
    Spec("n = 1, p < c", lambda: nn.Linear(1, 4, bias=False), zoo.vectors(1), n=1, m=2, prior_std=0.8),
    Spec("mean zero", lambda: zoo.mlp(2, 4, 2), zoo.vectors(2), n=5, mean="zero"),
    Spec("scaled prior", lambda: zoo.mlp(2, 4, 2), zoo.vectors(2), n=7, prior_std=0.35),
    Spec("a prior each layer", lambda: zoo.mlp(2, 4, 2), zoo.vectors(2), n=5, prior_std={"0": 0.4, "2": 1.4}),
    Spec(
        "longest prefix wins",
        zoo.Residual,
        zoo.vectors(4),
        n=9,
        prior_std={"": 0.5, "first": 0.3, "first.bias": 1.1, "head": 0.9},
        mean="zero",
    ),
    Spec("images, BatchNorm", zoo.convolution, zoo.images(1, 5), n=4),
    Spec("tokens, padding row", zoo.Padded, zoo.tokens(4, 6), n=6),
    Spec("tied weights", zoo.Tied, zoo.tokens(4, 5), n=5, noise_std=np.array([0.3, 0.4, 0.5])),
    Spec("frozen and idle parameters", zoo.Raw, zoo.vectors(3), n=5),
)

BY_NAME = {spec.name: spec for spec in SPECS}
FLOATS: Mapping[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}


@functools.cache
def problem(name: str, dtype: torch.dtype = torch.float64) -> Problem:
    return Problem(BY_NAME[name], dtype)
