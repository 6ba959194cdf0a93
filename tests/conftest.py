"""What every test stands on: shapes checked by machine, random numbers of its own, torch's switches left alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# The shape annotations of the package are checked at every call that a test makes. The command line of pyproject.toml
# asks for the same; this holds also where pytest is started without it.
if "jacana" not in sys.modules:
    jaxtyping.install_import_hook("jacana", "beartype.beartype")

# Examples that are the same at every run, and no clock in the verdict.
settings.register_profile(
    "jacana", deadline=None, derandomize=True, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jacana")


def switches() -> dict[str, object]:
    """Process-wide settings of torch that a linearization may have to turn, and must turn back."""
    return {
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),
        "efficient attention": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math attention": torch.backends.cuda.math_sdp_enabled(),
        "attention fast path": torch.backends.mha.get_fastpath_enabled(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Each test starts from the same seeds; afterwards every switch stands where it stood."""
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    before = switches()
    yield
    after = switches()
    torch.random.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    changed = {key: (value, after[key]) for key, value in before.items() if after[key] != value}
    assert not changed, f"a switch of torch was left turned: {changed}"


def generators() -> tuple[bytes, str]:
    """The state of the global random generators of torch and numpy; Python's is drawn from by beartype itself."""
    return torch.random.get_rng_state().numpy().tobytes(), str(np.random.get_state())  # noqa: NPY002


@pytest.fixture
def generators_untouched() -> Iterator[None]:
    """The global random generators end as they began: for calls that have no business drawing from them."""
    before = generators()
    yield
    after = generators()
    assert after[0] == before[0], "torch's global generator was used"
    assert after[1] == before[1], "numpy's global generator was used"


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the annotations checked by machine.

    Where the package's own checks are on trial; and where thousands of small calls, each checked in the contracts and
    in other tests, would take half as long again.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The test runs with one and with two threads inside torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The network's dtype."""
    return request.param
