"""Slow, obvious and independent: what the package's answers are compared with.

Nothing here imports `jacana`. Jacobians are loops of `torch.autograd.grad` over the user's own network, one output of
one example at a time; posteriors are the textbook's formulas on dense float64 matrices; leave-one-out refits n times.
`test_oracles.py` holds the oracles against each other and shows that the comparing helpers fail on a wrong value.
"""

from tests.oracles.compare import Snapshot, assert_close, assert_gaussian_samples, bound, eps
from tests.oracles.gaussian import (
    LeftOut,
    Posterior,
    condition_exactly,
    condition_on_functions,
    condition_on_weights,
    leave_one_out_by_refitting,
    log_evidence,
    noise_matrix,
)
from tests.oracles.jacobian import (
    call,
    differences,
    jacobian,
    outputs,
    parameter_names,
    prior_deviations,
)
from tests.oracles.laplace import Laplace, laplace, log_likelihood, score
from tests.oracles.likelihoods import (
    bernoulli,
    categorical,
    curvature,
    gauss_newton,
    gaussian,
    heteroscedastic,
    poisson,
)

__all__ = [
    "Laplace",
    "LeftOut",
    "Posterior",
    "Snapshot",
    "assert_close",
    "assert_gaussian_samples",
    "bernoulli",
    "bound",
    "call",
    "categorical",
    "condition_exactly",
    "condition_on_functions",
    "condition_on_weights",
    "curvature",
    "differences",
    "eps",
    "gauss_newton",
    "gaussian",
    "heteroscedastic",
    "jacobian",
    "laplace",
    "leave_one_out_by_refitting",
    "log_evidence",
    "log_likelihood",
    "noise_matrix",
    "outputs",
    "parameter_names",
    "poisson",
    "prior_deviations",
    "score",
]
