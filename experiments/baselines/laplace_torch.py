"""laplace-torch as its documentation has it: after training, in the last layer, prior by marginal likelihood.

It is no dependency: pip install laplace-torch (0.3 was tried here; Daxberger et al. 2021, arXiv 2106.14806).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import entr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["LaplaceTorch", "fit_laplace_torch", "version"]


@dataclass(frozen=True)
class LaplaceTorch:
    """A fitted approximation.

    Attributes:
        model: The library's object.
        prior_precision: That its marginal likelihood chose.
    """

    model: Any
    prior_precision: float

    def predict(self, x: Tensor, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (m, c) by the probit approximation, and mutual information (m,) of label and weights in nats.

        Args:
            x: Images.
            samples: Of the linearized posterior, for the mutual information.
            seed: Of the samples.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            p = self.model(x, pred_type="glm", link_approx="probit").double().numpy()
            drawn = self.model.predictive_samples(x, pred_type="glm", n_samples=samples, generator=generator)
        q = drawn.double().numpy()
        return p, entr(q.mean(axis=0)).sum(axis=1) - entr(q).sum(axis=2).mean(axis=0)


def version() -> str | None:
    """The version that is installed; None where there is none."""
    try:
        return importlib.metadata.version("laplace-torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def fit_laplace_torch(net: nn.Module, x: Tensor, labels: Tensor, *, batch_size: int) -> LaplaceTorch:
    """Kronecker-factored Laplace approximation of the last layer, around weights that training has found.

    Args:
        net: The trained network; it is given to the library as it is, so hand over a copy.
        x: The images that it was trained on.
        labels: Their classes, (n,).
        batch_size: Images in one pass.
    """
    library = importlib.import_module("laplace")
    loader = DataLoader(TensorDataset(x, labels), batch_size=batch_size)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # it reminds every user that the link is a probit by default
        model = library.Laplace(net, "classification", subset_of_weights="last_layer", hessian_structure="kron")
        model.fit(loader)
        model.optimize_prior_precision(pred_type="glm", method="marglik", link_approx="probit")
    return LaplaceTorch(model, float(model.prior_precision.mean()))
