"""Auto: the preconditioner that was the faster where it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jacana.operators import Covariance, WhitenedFisher
from jacana.solvers.preconditioners.pivoted_cholesky import PivotedCholesky
from jacana.solvers.preconditioners.preconditioner import Preconditioner, Prepared
from jacana.solvers.preconditioners.subset import Subset

__all__ = ["Auto"]


@final
@dataclass(frozen=True)
class Auto(Preconditioner):
    """:class:`PivotedCholesky` for a kernel of data, whose columns are cheap; :class:`Subset` for a Fisher matrix.

    Example:
        >>> import jacana
        >>> jacana.CG().preconditioner
        Auto()
    """

    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared:
        found = Subset() if isinstance(covariance.kernel, WhitenedFisher) else PivotedCholesky()
        return found.prepare(covariance, progress=progress)
