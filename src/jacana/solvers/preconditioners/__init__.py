"""Preconditioners: approximate solutions of (K + Σ) x = b that make an iteration short; one file a method."""

from jacana.solvers.preconditioners.auto import Auto as Auto
from jacana.solvers.preconditioners.diagonal import Diagonal as Diagonal
from jacana.solvers.preconditioners.nystrom import Nystrom as Nystrom
from jacana.solvers.preconditioners.pivoted_cholesky import PivotedCholesky as PivotedCholesky
from jacana.solvers.preconditioners.preconditioner import Preconditioner as Preconditioner
from jacana.solvers.preconditioners.preconditioner import Prepared as Prepared
from jacana.solvers.preconditioners.subset import Subset as Subset
