"""TangentGP: a trained network as a Gaussian process whose kernel is its own Jacobian."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from jacana.errors import InvalidOption
from jacana.likelihoods import Likelihood
from jacana.linearization import Linearization, Prior, PriorStd, dense_kernel, diagonal_blocks, linearize, push
from jacana.networks import Data, Examples
from jacana.operators import standard_normal
from jacana.posteriors.choice import Choice, choose
from jacana.posteriors.method import Method
from jacana.posteriors.observations import Model, as_likelihood, observe, valid_temperature
from jacana.posteriors.posterior import Posterior
from jacana.posteriors.relinearize import relinearized, same_start
from jacana.prediction import Prediction, Source

__all__ = ["TangentGP"]


@final
class TangentGP:
    """f(x) = m(x) + J(x) δ, δ ~ N(0, S): the network's tangent at θ0, with a Gaussian prior on the weight change.

    Its kernel is J S Jᵀ, the finite-width neural tangent kernel. The object is immutable; conditioning it gives a
    :class:`Posterior`.

    Args:
        net: a network, or a linearization of one where parameters, output or call are chosen:
            ``TangentGP(jacana.linearize(net, parameters="head"))``.
        prior_std: the standard deviation of the weight change; a number, or a mapping from dotted name prefixes.
            Learn it with :func:`maximize_evidence`.
        mean: ``"network"``: m(x) = f(x; θ0) / T, adaptation starts from what the network says; ``"zero"``: m(x) = 0.
        temperature: T; above one where logits are overconfident on the new task. Learned with the scales by
            :func:`maximize_evidence` for class labels.
        progress: show a bar for work of over a second.

    Raises:
        InvalidOption: a scale that is not positive, or an unknown mean.
        UnsupportedNetwork: a network that cannot be linearized.

    References:
        Maddox, Tang, Garcia Moreno, Wilson, Damianou 2021 (arXiv 2103.01439), equation 3.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> gp = jacana.TangentGP(net, prior_std=0.5)
        >>> x = torch.linspace(-1, 1, 9).unsqueeze(1)
        >>> post = gp.condition(x, x.sin(), noise_std=0.1)
        >>> post.predict(x).std.shape, post.predict(x, observed=True).interval(0.9)[0].shape
        (torch.Size([9, 1]), torch.Size([9, 1]))
        >>> bool(torch.equal(gp.predict(x).mean, net(x).double()))
        True
    """

    def __init__(
        self,
        net: nn.Module | Linearization,
        prior_std: PriorStd = 1.0,
        mean: str = "network",
        temperature: float | int = 1.0,
        *,
        progress: bool = True,
    ) -> None:
        if mean not in ("network", "zero"):
            raise InvalidOption(f"mean: got {mean!r}; expected 'network' (the network's own output) or 'zero'.")
        lin = net if isinstance(net, Linearization) else linearize(net)
        self._model = Model(lin, Prior.of(lin.network, prior_std), mean == "zero", valid_temperature(temperature))
        self._progress = bool(progress)

    @classmethod
    def of(cls, model: Model, *, progress: bool = True) -> TangentGP:
        """The process with a prior that was made by other means."""
        gp = cls.__new__(cls)
        vars(gp).update(_model=model, _progress=progress)
        return gp

    @property
    def model(self) -> Model:
        """The prior."""
        return self._model

    @property
    def linearization(self) -> Linearization:
        """The linearized network."""
        return self._model.lin

    @property
    def prior_std(self) -> PriorStd:
        """The prior scale as it was given."""
        return self._model.prior.given

    @property
    def mean(self) -> str:
        """``"network"`` or ``"zero"``."""
        return "zero" if self._model.zero_mean else "network"

    @property
    def temperature(self) -> float:
        """T, by which the network's outputs are divided."""
        return self._model.temperature

    @property
    def progress(self) -> bool:
        """Whether long work shows a bar."""
        return self._progress

    def predict(self, x: Data) -> Prediction:
        """The prior at m examples: mean m(x), covariance J S Jᵀ.

        Raises:
            InvalidData: examples that cannot be used.
        """
        examples = self._model.lin.examples(x).copied()
        flat = self._model.lin.findings(examples).flat
        return Prediction(_PriorSource(self._model, examples), flat=flat, observed=False)

    def condition(
        self,
        x: Data,
        y: Any = None,
        noise_std: Any = None,
        *,
        likelihood: Likelihood | None = None,
        method: Method | None = None,
    ) -> Posterior:
        """The posterior given n observations: exact for y = f(x) + ε, with other likelihoods by :class:`Laplace`.

        Args:
            x: n examples, or a DataLoader of (input, target). What is in a DataLoader or a memory map
                (``numpy.load(..., mmap_mode="r")``) stays there with ``Pathwise()`` and ``FunctionSpace(CG())``, which
                read it again at every pass.
            y: targets, (n, c) or (n,); labels from 0 for :class:`Categorical`.
            noise_std: σ of ε: a number, (c,) or (n, c); short for ``likelihood=Gaussian(noise_std)``.
            likelihood: how y comes from f.
            method: for Gaussian noise :class:`FunctionSpace`, :class:`WeightSpace`, :class:`Pathwise`,
                :class:`NystromFeatures` or :class:`LastLayer`; for any likelihood :class:`Laplace`, :class:`MAP`,
                :class:`GradientFlow`, :class:`Relinearized`, :class:`StochasticMAP` or :class:`Variational`; for
                labels also :class:`OneHotRegression` or :class:`DirichletRegression`. By default :class:`Laplace`, and
                with Gaussian noise the smaller side is factorised: function space where the observations n·c are no
                more than the parameters p, else weight space; the other, if that does not fit in memory, or takes over
                a minute by count and the other less.
                Where neither fits, or takes under an hour, also function space by conjugate gradients,
                ``FunctionSpace(CG())``. What was taken is the posterior's ``method``, and why its ``reason``.

        Raises:
            InvalidData: data that cannot be used, or of another shape than the network's outputs.
            InvalidOption: no noise, or an impossible one; an unknown method.
            NotPositiveDefinite: a noise so small that the covariance cannot be factorised in float64.
            InsufficientMemory: it would not fit.

        Warns:
            LongWork: no method was named, and the one that was taken will need over an hour.
        """
        chosen = as_likelihood(noise_std, likelihood)
        if method is not None and not isinstance(method, Method):
            raise InvalidOption(
                f"method: got {method!r}; expected an object with its options, jacana.FunctionSpace() or "
                "jacana.WeightSpace(), or None for the cheaper."
            )
        observations = observe(self._model, x, y, chosen, streams=method is not None and method.streams)
        choice = choose(observations) if method is None else Choice(method, "as asked")
        choice.method.check(chosen)
        state = choice.method.condition(observations, progress=self._progress)
        return Posterior(choice.method, state, choice.reason)

    def relinearize(self, post: Posterior) -> TangentGP:
        """The network's tangent at the mean of a posterior, with the prior where it was: a step towards fine-tuning.

        A step of Gauss and Newton on the log posterior of the network itself, Ψ(θ) = log p(y | f(x; θ) / T)
        − ½ (θ − θ0)ᵀ S⁻¹ (θ − θ0) / T², on the data of ``post``; it is cut until Ψ is not below where it was: no step
        makes it worse. Condition the process on the same data again: its posterior is that of the tangent at the
        new point. Costs a few passes of the data through the network. :class:`Relinearized` goes on to the
        network's own mode, and makes the posterior there. After :class:`GradientFlow` it is where that ended.

        Args:
            post: a posterior of this process, or of one with another prior, which then goes on.

        Raises:
            InvalidOption: no posterior, that of another network, or a prior mean of zero.

        References:
            Antorán et al. 2022 (arXiv 2206.08900), for the evidence at a point that is no mode of the network.

        Example:
            >>> import jacana, torch
            >>> _ = torch.manual_seed(0)
            >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
            >>> x = torch.linspace(-2, 2, 30).unsqueeze(1)
            >>> gp, y = jacana.TangentGP(net), (3 * x).sin()
            >>> post = gp.condition(x, y, noise_std=0.1)
            >>> again = gp.relinearize(post).condition(x, y, noise_std=0.1)
            >>> bool((again.predict(x).mean - y).norm() < (net(x) - y).norm())
            True
        """
        if not isinstance(post, Posterior):
            raise InvalidOption(f"post: got {type(post).__name__}; expected what gp.condition(x, y, ...) gives.")
        if not same_start(self._model, post.observations.model):
            raise InvalidOption("post: got the posterior of another network; expected one of this process.")
        return TangentGP.of(relinearized(post.observations, post.weights), progress=self._progress)

    def __repr__(self) -> str:
        return (
            f"TangentGP({self.linearization}, prior_std={self.prior_std}, mean={self.mean!r}"
            f"{'' if self.temperature == 1.0 else f', temperature={self.temperature:.6g}'})"
        )


class _PriorSource(Source):
    def __init__(self, model: Model, x: Examples) -> None:
        self._model, self._x = model, x

    def mean(self) -> Float64[Tensor, "m c"]:
        return self._model.mean(self._x)

    def variance(self) -> Float64[Tensor, "m c"]:
        return diagonal_blocks(self._model.lin, self._x, self._model.prior).diagonal(dim1=1, dim2=2)

    def covariance(self) -> Float64[Tensor, "mc mc"]:
        return dense_kernel(self._model.lin, self._x, None, self._model.prior)

    def sample(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "n m c"]:
        lin = self._model.lin
        weights = standard_normal(lin.n_parameters, n, generator=generator, device=lin.device)
        changes = push(lin, self._x, self._model.prior.vector(lin.device).unsqueeze(1) * weights)
        mean = self.mean()
        return mean + changes.T.reshape(n, *mean.shape)

    def blocks(self) -> Float64[Tensor, "m c c"]:
        return diagonal_blocks(self._model.lin, self._x, self._model.prior)

    @property
    def likelihood(self) -> None:
        return None
