"""What Jacana is compared with, each as good as it can reasonably be made, one file a method."""

from experiments.baselines.ablr import ABLR
from experiments.baselines.rbf import RBFKernel, fit_rbf, rbf_gp
from experiments.baselines.ridge import features_of, last_layer
from experiments.baselines.tuning import FineTuned, fine_tune, fine_tune_grid

__all__ = [
    "ABLR",
    "FineTuned",
    "RBFKernel",
    "features_of",
    "fine_tune",
    "fine_tune_grid",
    "fit_rbf",
    "last_layer",
    "rbf_gp",
]
