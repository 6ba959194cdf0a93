"""Comparing: with tolerances that follow eps and the condition number, bit for bit, and in distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]

# A tolerance above this share of the values compared with would let a wrong answer pass.
LOOSEST = 0.02


def eps(dtype: torch.dtype) -> float:
    """The rounding unit that the answer is owed in."""
    return float(torch.finfo(dtype).eps)


def _dense(value: Any) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def bound(dtype: torch.dtype, *, condition: float = 1.0, factor: float = 64.0) -> float:
    """The relative error allowed: a small multiple of eps · condition, refused where it would mean nothing."""
    allowed = factor * eps(dtype) * max(float(condition), 1.0)
    assert allowed <= LOOSEST, f"a tolerance of {allowed:.1e} is no test: choose a better conditioned problem"
    return allowed


def assert_close(
    got: Any,
    want: Any,
    dtype: torch.dtype,
    *,
    condition: float = 1.0,
    scale: float | None = None,
    factor: float = 64.0,
    what: str = "value",
) -> None:
    """Same shape, finite, and no entry off by more than `bound` times `scale` (default: the largest wanted)."""
    got, want = _dense(got), _dense(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert np.isfinite(want).all(), f"{what}: the oracle itself is not finite"
    assert np.isfinite(got).all(), f"{what}: {np.sum(~np.isfinite(got))} of {got.size} entries are not finite"
    if want.size == 0:
        return
    size = float(np.abs(want).max()) if scale is None else float(scale)
    allowed = bound(dtype, condition=condition, factor=factor) * size
    worst = float(np.abs(got - want).max())
    where = np.unravel_index(int(np.abs(got - want).argmax()), want.shape)
    assert worst <= allowed, (
        f"{what}: off by {worst:.3e} at {tuple(map(int, where))} (got {got[where]:.9g}, expected {want[where]:.9g}); "
        f"{allowed:.1e} allowed (eps {eps(dtype):.1e}, condition {condition:.1e}, scale {size:.1e})"
    )


def assert_gaussian_samples(samples: Any, mean: Any, covariance: Any, *, false_alarm: float = 1e-6) -> None:
    """Samples (N, d) are of N(mean, covariance): mean, covariance and shape, each at a third of the false-alarm rate.

    In coordinates where the law is standard normal: N |z̄|² is χ²(d); the d (d + 1) / 2 scaled entries of the scatter
    are, for N large, standard normal, so that their squares sum to a χ²; all N·d coordinates pass Kolmogorov and
    Smirnov's test.
    """
    samples, mean, covariance = _dense(samples), _dense(mean).reshape(-1), _dense(covariance)
    assert samples.ndim == 2, f"samples have shape {samples.shape}, expected two dimensions"
    count, d = samples.shape
    assert count >= 2000, "the approximation needs many samples"
    z = scipy.linalg.solve_triangular(np.linalg.cholesky(covariance), (samples - mean).T, lower=True).T
    shift = scipy.stats.chi2.sf(count * np.sum(z.mean(0) ** 2), d)
    assert shift > false_alarm / 3, f"the samples' mean is off (p = {shift:.1e})"
    scatter = np.sqrt(count) * (z.T @ z / count - np.eye(d)) / np.sqrt(1 + np.eye(d))
    spread = scipy.stats.chi2.sf(np.sum(scatter[np.triu_indices(d)] ** 2), d * (d + 1) // 2)
    assert spread > false_alarm / 3, f"the samples' covariance is off (p = {spread:.1e})"
    form = scipy.stats.kstest(z.reshape(-1), "norm").pvalue
    assert form > false_alarm / 3, f"the samples are not Gaussian (p = {form:.1e})"


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _tensor_state(tensor: Tensor) -> tuple[Any, ...]:
    return (
        id(tensor),
        tensor.data_ptr(),
        tensor._version,  # a swap and a swap back leave the same bits, but not the same version
        tuple(tensor.shape),
        tensor.dtype,
        tensor.requires_grad,
        _bits(tensor),
        None if tensor._backward_hooks is None else tuple(map(id, tensor._backward_hooks.values())),
    )


def _observe(net: nn.Module) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        label = path or type(net).__name__
        seen[f"identity of {label}"] = (id(module), type(module))
        seen[f"mode of {label}"] = module.training
        seen[f"attributes of {label}"] = tuple(module.__dict__)
        simple = int | float | str | bool | None
        seen[f"plain attributes of {label}"] = {k: v for k, v in module.__dict__.items() if isinstance(v, simple)}
        for kind in _HOOKS:
            held = getattr(module, kind, {})
            seen[f"{kind} of {label}"] = (id(held), tuple((key, id(hook)) for key, hook in held.items()))
        for kind in ("_parameters", "_buffers", "_modules"):
            seen[f"{kind} of {label}"] = tuple((key, id(value)) for key, value in getattr(module, kind).items())
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            seen[f"tensor {label}.{key}"] = _tensor_state(tensor)
            gradient = tensor.grad
            seen[f"gradient of {label}.{key}"] = None if gradient is None else _tensor_state(gradient)
    return seen


class Snapshot:
    """All that a network is, bit for bit: weights, buffers, mode, gradients, `requires_grad`, hooks, identities."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._before = _observe(net)

    def assert_unchanged(self) -> None:
        after = _observe(self._net)
        changed = [key for key in {**self._before, **after} if self._before.get(key) != after.get(key)]
        assert not changed, f"the network was changed: {', '.join(changed)}"
