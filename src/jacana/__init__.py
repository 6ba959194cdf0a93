"""Jacana turns a trained network into a Gaussian process and adapts it to a new task by exact inference.

The whole pipeline, from a network to error bars:

    >>> import jacana, torch
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))  # a trained network
    >>> x, y = torch.linspace(-2, 2, 20).unsqueeze(1), torch.linspace(-2, 2, 20).sin()  # a new task
    >>> gp, likelihood = jacana.maximize_evidence(jacana.TangentGP(net), x, y)  # learn its scales
    >>> post = gp.condition(x, y, likelihood=likelihood)  # adapt
    >>> prediction = post.predict(torch.tensor([[0.5], [9.0]]))
    >>> bool(abs(prediction.mean[0] - 0.479) < 0.05), bool(prediction.std[1] > prediction.std[0])
    (True, True)
"""

import importlib
from typing import Any

from jacana import errors as errors
from jacana import metrics as metrics
from jacana.estimators import NTKClassifier as NTKClassifier
from jacana.estimators import NTKRegressor as NTKRegressor
from jacana.evidence import maximize_evidence as maximize_evidence
from jacana.evidence import maximize_leave_one_out as maximize_leave_one_out
from jacana.likelihoods import Bernoulli as Bernoulli
from jacana.likelihoods import Categorical as Categorical
from jacana.likelihoods import Gaussian as Gaussian
from jacana.likelihoods import HeteroscedasticGaussian as HeteroscedasticGaussian
from jacana.likelihoods import Likelihood as Likelihood
from jacana.likelihoods import Poisson as Poisson
from jacana.likelihoods import Tempered as Tempered
from jacana.likelihoods import Weighted as Weighted
from jacana.linearization import Linearization as Linearization
from jacana.linearization import explain as explain
from jacana.linearization import gram as gram
from jacana.linearization import linearize as linearize
from jacana.networks import with_head as with_head
from jacana.operators import NTK as NTK
from jacana.operators import Eigenpairs as Eigenpairs
from jacana.operators import EmpiricalFisher as EmpiricalFisher
from jacana.operators import Estimate as Estimate
from jacana.operators import Fisher as Fisher
from jacana.operators import Jacobian as Jacobian
from jacana.operators import Similarity as Similarity
from jacana.operators import compare_networks as compare_networks
from jacana.operators import compare_tasks as compare_tasks
from jacana.operators import estimate_log_determinant as estimate_log_determinant
from jacana.operators import estimate_trace as estimate_trace
from jacana.operators import top_eigenpairs as top_eigenpairs
from jacana.posteriors import MAP as MAP
from jacana.posteriors import DirichletRegression as DirichletRegression
from jacana.posteriors import FunctionSpace as FunctionSpace
from jacana.posteriors import GradientFlow as GradientFlow
from jacana.posteriors import Laplace as Laplace
from jacana.posteriors import LastLayer as LastLayer
from jacana.posteriors import LeaveOneOut as LeaveOneOut
from jacana.posteriors import NystromFeatures as NystromFeatures
from jacana.posteriors import OneHotRegression as OneHotRegression
from jacana.posteriors import Pathwise as Pathwise
from jacana.posteriors import Posterior as Posterior
from jacana.posteriors import Relinearized as Relinearized
from jacana.posteriors import StochasticMAP as StochasticMAP
from jacana.posteriors import TangentGP as TangentGP
from jacana.posteriors import Variational as Variational
from jacana.posteriors import WeightSpace as WeightSpace
from jacana.posteriors import families as families
from jacana.prediction import Prediction as Prediction
from jacana.predictive import LaplaceBridge as LaplaceBridge
from jacana.predictive import MonteCarlo as MonteCarlo
from jacana.predictive import Probit as Probit
from jacana.solvers import CG as CG
from jacana.solvers import SDD as SDD
from jacana.solvers import Cholesky as Cholesky
from jacana.solvers import Eigh as Eigh
from jacana.solvers import Solution as Solution
from jacana.solvers import preconditioners as preconditioners

__all__ = [
    "CG",
    "MAP",
    "NTK",
    "SDD",
    "Bernoulli",
    "Categorical",
    "Cholesky",
    "DirichletRegression",
    "Eigenpairs",
    "Eigh",
    "EmpiricalFisher",
    "Estimate",
    "Fisher",
    "FunctionSpace",
    "Gaussian",
    "GradientFlow",
    "HeteroscedasticGaussian",
    "Jacobian",
    "Laplace",
    "LaplaceBridge",
    "LastLayer",
    "LeaveOneOut",
    "Likelihood",
    "Linearization",
    "MonteCarlo",
    "NTKClassifier",
    "NTKRegressor",
    "NystromFeatures",
    "OneHotRegression",
    "Pathwise",
    "Poisson",
    "Posterior",
    "Prediction",
    "Probit",
    "Relinearized",
    "Similarity",
    "Solution",
    "StochasticMAP",
    "TangentGP",
    "Tempered",
    "Variational",
    "WeightSpace",
    "Weighted",
    "compare_networks",
    "compare_tasks",
    "errors",
    "estimate_log_determinant",
    "estimate_trace",
    "explain",
    "families",
    "gram",
    "linearize",
    "maximize_evidence",
    "maximize_leave_one_out",
    "metrics",
    "preconditioners",
    "top_eigenpairs",
    "with_head",
]

_EXTRAS = {"NeuralTangentKernel": "gpytorch", "NetworkMean": "gpytorch"}


def __getattr__(name: str) -> Any:
    """What needs an extra is imported when it is first asked for."""
    if name not in _EXTRAS:
        raise AttributeError(f"module 'jacana' has no attribute {name!r}")
    extra = _EXTRAS[name]
    try:
        return getattr(importlib.import_module(f"jacana.integrations.{extra}"), name)
    except ImportError as error:
        raise ImportError(f"jacana.{name} needs an extra: pip install 'jacana[{extra}]' ({error})") from error
