"""GPyTorch: a network's tangent kernel, and the network itself as the mean, for any of its models.

Needs the extra ``gpytorch``: ``pip install 'jacana[gpytorch]'``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import gpytorch
import torch
from gpytorch.constraints import Positive
from torch import Tensor, nn

from jacana.errors import InvalidData, InvalidOption
from jacana.integrations.gpytorch_operator import TangentOperator
from jacana.integrations.gpytorch_tangent import Tangent
from jacana.linearization import (
    Linearization,
    Prior,
    fits,
    gram,
    group_diagonals,
    group_kernels,
    linearize,
    longest_prefix,
)
from jacana.networks import Data, Selection, differentiable
from jacana.solvers import CG

__all__ = ["NetworkMean", "NeuralTangentKernel"]

_KEPT = 4


class _Inputs:
    """GPyTorch's inputs (..., n, d) as what the network takes: n examples of some shape and dtype."""

    def __init__(self, shape: Sequence[int] | None, dtype: torch.dtype | None) -> None:
        if shape is not None and not all(isinstance(size, int) and size > 0 for size in shape):
            raise InvalidOption(f"input_shape: got {shape!r}; expected the shape of one example, e.g. (3, 32, 32).")
        self.shape = None if shape is None else tuple(shape)
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Of (n, d)."""
        if self.shape is not None:
            if x.shape[-1] != math.prod(self.shape):
                raise InvalidData(
                    f"x: got {x.shape[-1]} columns; expected {math.prod(self.shape)}, examples of shape {self.shape} "
                    "flattened: x.flatten(1)."
                )
            x = x.reshape(len(x), *self.shape)
        return x if self.dtype is None else x.to(self.dtype)


@final
class NeuralTangentKernel(gpytorch.kernels.Kernel):
    """k(x, x') = Σ_l s_l² J_l(x) J_l(x')ᵀ: the finite-width neural tangent kernel of a trained network.

    Its hyper-parameters are the prior standard deviations s_l, one or several; the network's weights are not, unless
    ``learn_weights``. It is computed by :func:`jacana.gram` in float64, exactly, and given in the dtype of x; what does
    not depend on hyper-parameters is computed once for the same data. It has gradients with respect to the inputs.

    A network with c outputs gives c rows for each example, side by side, as GPyTorch's multitask models have them.

    Args:
        net: any trained module, or a linearization. It is copied.
        parameters: which of them to linearize in, see :func:`jacana.linearize`.
        output: takes the tensor (n, c) from what the network returns.
        input_shape: the shape of one example. GPyTorch's data are (n, d): flatten images, ``x.flatten(1)``, and say
            here what shape they have.
        input_dtype: what the network takes, where that is not the dtype of x: ``torch.long`` for token ids that are
            held as numbers.
        prior_std: initial s: a number; a mapping from dotted prefixes to numbers, each learned by itself; or "layers"
            for one a layer.
        learn_weights: make the network's weights hyper-parameters too. The mean does not see them.
        matrix_free: True gives an operator that is known by its products and never formed, False the matrix; by
            default an operator where the matrix would not fit. Its solves and determinants are those of ``solver``,
            as long as the kernel stands alone in a model (its prior_std is a scale already); in sums and products of
            kernels they are GPyTorch's. It has gradients with respect to prior_std and noise alone.
        solver: of the operator; by default ``jacana.CG(rtol=1e-6)``.
        batch_shape: none but the empty one.

    Raises:
        InvalidOption: a batch of kernels, or prefixes that name nothing.
        InvalidData: data that the network cannot take.

    References:
        Maddox et al. 2021 (arXiv 2103.01439), section 3; Gardner et al. 2018 (arXiv 1809.11165) for GPyTorch.

    Example:
        >>> import gpytorch, jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> kernel = gpytorch.kernels.ScaleKernel(jacana.NeuralTangentKernel(net)) + gpytorch.kernels.RBFKernel()
        >>> kernel(torch.randn(5, 2)).shape
        torch.Size([5, 5])
    """

    has_lengthscale = False

    def __init__(
        self,
        net: nn.Module | Linearization,
        parameters: Selection = None,
        output: Callable[[Any], Tensor] | None = None,
        *,
        input_shape: Sequence[int] | None = None,
        input_dtype: torch.dtype | None = None,
        prior_std: float | Mapping[str, float] | str = 1.0,
        learn_weights: bool = False,
        matrix_free: bool | None = None,
        solver: CG | None = None,
        batch_shape: torch.Size | None = None,
    ) -> None:
        if batch_shape:
            raise InvalidOption(
                f"batch_shape: got {tuple(batch_shape)}; one network has one kernel. Use several kernels."
            )
        super().__init__()
        self._lin = net if isinstance(net, Linearization) else linearize(net, parameters, output)
        self._inputs = _Inputs(input_shape, input_dtype)
        if isinstance(prior_std, str) and prior_std != "layers":
            raise InvalidOption(f"prior_std: got {prior_std!r}; expected a number, a mapping, or 'layers'.")
        given = dict.fromkeys(self._lin.layers, 1.0) if isinstance(prior_std, str) else prior_std
        stds = Prior.of(self._lin.network, given).stds
        self.groups: tuple[str, ...] = tuple(given) if isinstance(given, Mapping) else ("",)
        of = [self.groups.index(longest_prefix(name, self.groups) or "") for name in self._lin.names]
        used = sorted(set(of))
        self.groups = tuple(self.groups[i] for i in used)
        self._members = [[1.0 if i == j else 0.0 for j in of] for i in used]
        dtype = self._lin.dtype if self._lin.dtype == torch.float64 else torch.get_default_dtype()
        initial = torch.tensor([stds[of.index(i)] for i in used], dtype=dtype)
        self.register_parameter("raw_prior_std", nn.Parameter(torch.zeros_like(initial)))
        self.register_constraint("raw_prior_std", Positive())
        self.prior_std = initial
        self.weights = nn.ParameterList(
            [nn.Parameter(value.clone()) for value in self._lin.network.values] if learn_weights else []
        )
        self._kept: list[tuple[Tensor, Tensor, bool, list[Tensor]]] = []
        self._warned = False
        if matrix_free and len(self.weights):
            raise InvalidOption("matrix_free: an operator has no gradients with respect to weights; leave one out.")
        self._matrix_free = matrix_free
        self._tangent = Tangent(self._lin, self._inputs, self._members, CG(rtol=1e-6) if solver is None else solver)

    def __call__(self, x1: Tensor, x2: Tensor | None = None, diag: bool = False, **words: Any) -> Any:
        """As every kernel of GPyTorch's; an operator is given as it is, because it is lazy itself."""
        if diag or words or self.active_dims is not None or not self._as_operator(x1, x1 if x2 is None else x2):
            return super().__call__(x1, x2, diag=diag, **words)
        first = x1.unsqueeze(1) if x1.ndim == 1 else x1
        second = first if x2 is None or x2 is x1 else x2.unsqueeze(1) if x2.ndim == 1 else x2
        operator = self._operator(first, second)
        if gpytorch.settings.lazily_evaluate_kernels.off():  # inside another kernel: GPyTorch will solve
            self._warn(*operator.shape)
        return operator

    def _as_operator(self, x1: Tensor, x2: Tensor) -> bool:
        if self._matrix_free is not None:
            return self._matrix_free and x1.ndim <= 2 and x2.ndim <= 2
        if x1.ndim > 2 or x2.ndim > 2 or len(self.weights) or x1.requires_grad or x2.requires_grad:
            return False
        rows, columns = (len(x) * self.num_outputs_per_input(x1, x1) for x in (x1, x2))
        return not fits(8 * (len(self.groups) + 4) * rows * columns, self._lin.device)

    def _operator(self, x1: Tensor, x2: Tensor) -> TangentOperator:
        dtype = x1.dtype if x1.is_floating_point() else self.raw_prior_std.dtype
        return TangentOperator(self.prior_std.to(dtype), tangent=self._tangent, x1=x1.detach(), x2=x2.detach())

    @property
    def prior_std(self) -> Tensor:
        """s, one for each of ``groups``."""
        return self.raw_prior_std_constraint.transform(self.raw_prior_std)

    @prior_std.setter
    def prior_std(self, value: Any) -> None:
        new = torch.as_tensor(value).to(self.raw_prior_std).expand(self.raw_prior_std.shape)
        self.initialize(raw_prior_std=self.raw_prior_std_constraint.inverse_transform(new))

    @property
    def linearization(self) -> Linearization:
        """The network as it is linearized."""
        return self._lin

    @property
    def is_stationary(self) -> bool:
        """It is not."""
        return False

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:  # noqa: ARG002 - GPyTorch's signature
        """C."""
        flat = x1.unsqueeze(1) if x1.ndim == 1 else x1.reshape(-1, *x1.shape[-2:])[0]
        return self._lin.findings(self._lin.examples(self._inputs(flat.detach()))).n_outputs

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Any:
        """The kernel between two sets of data, (..., n·c, m·c), or its diagonal (..., n·c)."""
        if last_dim_is_batch:
            raise InvalidOption("last_dim_is_batch: a network takes all dimensions at once; leave it out.")
        if params:
            raise InvalidOption(f"{', '.join(params)}: unknown to NeuralTangentKernel.")
        if not diag and self._as_operator(x1, x2):
            operator = self._operator(x1, x2)
            self._warn(*operator.shape)
            return operator
        batch: torch.Size = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])  # type: ignore[no-untyped-call]
        firsts, seconds = (x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (x1, x2))
        made = [self._kernel(first, second, diag=diag) for first, second in zip(firsts, seconds, strict=True)]
        kernel = torch.stack(made).reshape(*batch, *made[0].shape)
        if not diag:
            self._warn(*kernel.shape[-2:])
        return kernel

    def _kernel(self, x1: Tensor, x2: Tensor, *, diag: bool) -> Tensor:
        """Of one pair of sets, (n, d) and (m, d)."""
        dtype = x1.dtype if x1.is_floating_point() else self.raw_prior_std.dtype
        same = x1 is x2 or (x1.shape == x2.shape and torch.equal(x1, x2))
        if diag and not same:
            return self._kernel(x1, x2, diag=False).diagonal()
        stds = self.prior_std.to(torch.float64)
        wants_graph = torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad)
        if wants_graph or len(self.weights) > 0:  # which move: nothing is kept
            shares = self._afresh(x1, None if same and not x2.requires_grad else x2, diag=diag)
        else:
            shares = self._computed(x1.detach(), None if same else x2.detach(), diag=diag)
        total = sum(std.square() * share for std, share in zip(stds, shares, strict=True))
        if not isinstance(total, Tensor):
            raise InvalidOption("parameters: the selection is empty.")
        return total.to(dtype)

    def _afresh(self, x1: Tensor, x2: Tensor | None, *, diag: bool) -> list[Tensor]:
        """The shares with s = 1, at the present weights and with gradients where they are asked for."""
        words: dict[str, Any] = {"outputs": "diagonal"} if diag else {}
        if len(self.weights):
            words["weights"] = dict(zip(self._lin.names, self.weights, strict=True))
        given = self._inputs(x1), None if x2 is None or diag else self._inputs(x2)
        if len(self.groups) == 1:
            return [gram(self._lin, *given, **words)]
        found = gram(self._lin, *given, layers=list(self._lin.names), **words)
        return [
            torch.stack([found[name] for name, member in zip(self._lin.names, members, strict=True) if member]).sum(0)
            for members in self._members
        ]

    def _computed(self, x1: Tensor, x2: Tensor | None, *, diag: bool) -> list[Tensor]:
        """The shares with s = 1, from what is kept if these data have been seen before."""
        for i, (first, second, was_diag, shares) in enumerate(self._kept):
            if was_diag == diag and _equal(first, x1) and _equal(second, x1 if x2 is None else x2):
                self._kept.append(self._kept.pop(i))
                return shares
        lin, inputs = self._lin, self._inputs
        one = lin.examples(inputs(x1), "x1")
        if diag:
            shares = group_diagonals(lin, one, self._members)
        else:
            other = None if x2 is None else lin.examples(inputs(x2), "x2")
            shares = group_kernels(lin, one, other, self._members)
        if fits(4 * sum(share.nbytes for share in shares), lin.device):
            self._kept = [*self._kept[1 - _KEPT :], (x1.clone(), (x1 if x2 is None else x2).clone(), diag, shares)]
        return shares

    def _warn(self, rows: int, columns: int) -> None:
        most = gpytorch.settings.max_cholesky_size.value()
        if rows <= most or rows != columns or self._warned:  # what is between two sets is not solved with
            return
        self._warned = True
        warnings.warn(
            f"NeuralTangentKernel: {rows} rows are more than gpytorch.settings.max_cholesky_size ({most}), above which "
            "GPyTorch solves by conjugate gradients to a loose tolerance; means may be wrong by tens of per cent. Work "
            f"inside gpytorch.settings.max_cholesky_size({rows}), or with jacana.TangentGP.",
            stacklevel=4,
        )


@final
class NetworkMean(gpytorch.means.Mean):
    """m(x) = f(x; θ0): the network's own output as the mean of a GPyTorch model.

    Args:
        net: any trained module, or a linearization. It is copied.
        output: takes the tensor (n, c) from what the network returns.
        input_shape: as for :class:`NeuralTangentKernel`.
        input_dtype: as there.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> jacana.NetworkMean(net)(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        net: nn.Module | Linearization,
        output: Callable[[Any], Tensor] | None = None,
        *,
        input_shape: Sequence[int] | None = None,
        input_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._lin = net if isinstance(net, Linearization) else linearize(net, None, output)
        self._inputs = _Inputs(input_shape, input_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) for one output, (..., n, c) for several; with gradients with respect to x."""
        flat = x.reshape(-1, x.shape[-1])
        dtype = x.dtype if x.is_floating_point() else self._lin.dtype
        given: Data = self._inputs(flat)
        if torch.is_grad_enabled() and x.requires_grad:
            examples = self._lin.examples(given, graph=True)
            self._lin.findings(examples)
            with differentiable():
                out = self._lin.network(self._lin.network.values, examples)
        else:
            out = self._lin(given)
        out = out.to(dtype).reshape(*x.shape[:-1], -1)
        return out.squeeze(-1) if out.shape[-1] == 1 else out


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
