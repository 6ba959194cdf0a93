"""MAP: the mode alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from jacana.posteriors.at_mode import AtMode, ModeState
from jacana.posteriors.method import State
from jacana.posteriors.mode import Mode
from jacana.posteriors.point import PointState
from jacana.posteriors.sides import Side

__all__ = ["MAP"]


@final
@dataclass(frozen=True)
class MAP(AtMode):
    """The most probable weights of the linear model, and nothing of what else they could be.

        δ̂ = argmax log p(y | m + J δ) − ½ δᵀ S⁻¹ δ

    Newton's method, each step solved on one side or by conjugate gradients on exact Fisher products. Where log p is
    concave in f, as for classes and counts, the answer is the same from any start. Its class probabilities are those of
    the mode; variances, samples and the evidence are refused: :class:`Laplace` has them for one more factorisation.

    Args:
        method: where the algebra is done, as for :class:`Laplace`.

    Raises:
        InvalidOption: another method; a variance, a sample or the evidence is asked for.

    Warns:
        NotConverged: the mode was not reached.

    References:
        Maddox et al. 2021 (arXiv 2103.01439), section 4.2; their regulariser is not squared and their loss counts the
        data twice, this one is the negative log posterior.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))
        >>> x, labels = torch.randn(30, 2), torch.arange(30) % 2
        >>> post = jacana.TangentGP(net).condition(x, labels, likelihood=jacana.Categorical(), method=jacana.MAP())
        >>> post.weights.shape, post.predict(x).probabilities().shape
        (torch.Size([102]), torch.Size([30, 2]))
    """

    def state(self, side: Side, mode: Mode, *, progress: bool) -> State:
        return _MAPState(self, side, mode, progress=progress)


@final
class _MAPState(PointState, ModeState):
    """A point."""

    name: ClassVar[str] = "MAP()"
