"""Solvers: factor once and solve many times, iterate to a stated tolerance, or follow a slope; one file a method."""

from jacana.solvers import preconditioners as preconditioners
from jacana.solvers.cg import CG as CG
from jacana.solvers.chebyshev import Flowed as Flowed
from jacana.solvers.chebyshev import Height as Height
from jacana.solvers.chebyshev import flow as flow
from jacana.solvers.cholesky import Cholesky as Cholesky
from jacana.solvers.direct import Direct as Direct
from jacana.solvers.direct import Factor as Factor
from jacana.solvers.eigh import Eigh as Eigh
from jacana.solvers.form_bound import form_bound as form_bound
from jacana.solvers.form_bound import form_bounds as form_bounds
from jacana.solvers.goal import Goal as Goal
from jacana.solvers.goal import SmallFormError as SmallFormError
from jacana.solvers.goal import SmallResidual as SmallResidual
from jacana.solvers.goal import SmallSampleError as SmallSampleError
from jacana.solvers.goal import SmallVarianceError as SmallVarianceError
from jacana.solvers.log_determinant import LogDeterminant as LogDeterminant
from jacana.solvers.log_determinant import log_determinant as log_determinant
from jacana.solvers.sdd import SDD as SDD
from jacana.solvers.solution import Solution as Solution
from jacana.solvers.solver import Iterative as Iterative
