"""Solvers: factor once, solve many times; one file a method."""

from jacana.solvers.cholesky import Cholesky as Cholesky
from jacana.solvers.cholesky import Factor as Factor
