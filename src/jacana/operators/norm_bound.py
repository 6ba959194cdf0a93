"""Norm bound: a number that the largest eigenvalue does not exceed, but for a probability that is stated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.operators.normal import standard_normal

__all__ = ["norm_bound"]


def norm_bound(
    times: Callable[[Float64[Tensor, "n k"]], Float64[Tensor, "n k"]],
    n: int,
    *,
    device: torch.device,
    generator: torch.Generator,
    n_steps: int = 10,
    n_probes: int = 8,
    failure: float = 1e-6,
    progress: bool = False,
) -> float:
    """A bound of ‖B‖₂ for a symmetric B, from the powers of B on random vectors.

        ‖B‖ ≤ max over z ~ N(0, I) of (zᵀ B^q z / ε)^(1/q),     q = 2 · n_steps,     (2 ε / π)^(n_probes / 2) = failure

    For one z it fails only if (z·u)² < ε for the leading eigenvector u, with a probability of at most √(2 ε / π); the
    largest of several fails only if all do. zᵀ B^q z = ‖B^(q/2) z‖² is what a power iteration passes through; Lanczos'
    method has no more of it. The bound is too large by a factor of about (k / ε)^(1/q), k the number of eigenvalues
    near the largest: 1.2 where they fall, 1.7 for the identity of size 1,000.

    Cost: n_steps · n_probes products, and n · n_probes numbers.

    Args:
        times: V ↦ B V.
        n: the size of B.
        device: where the vectors are.
        generator: of the probes.
        n_steps: q / 2.
        n_probes: how many z.
        failure: the probability that it is no bound.
        progress: show a bar if it takes more than a second.

    References:
        Dixon 1983, Estimating extremal eigenvalues and condition numbers of matrices, theorem 1.
    """
    vectors = standard_normal(n, n_probes, generator=generator, device=device)
    logs = torch.zeros(n_probes, dtype=torch.float64, device=device)
    bar = tqdm(range(n_steps), desc="bound", unit="step", delay=1.0, leave=False, disable=not progress)
    for _ in bar:
        vectors = times(vectors)
        sizes = torch.linalg.vector_norm(vectors, dim=0)
        logs += sizes.log()
        vectors = vectors / torch.where(sizes > 0.0, sizes, 1.0)
    log_epsilon = math.log(math.pi / 2.0) + 2.0 / n_probes * math.log(failure)
    return math.exp((2.0 * float(logs.max()) - log_epsilon) / (2 * n_steps))
