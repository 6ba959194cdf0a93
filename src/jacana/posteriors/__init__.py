"""Posteriors: a network's tangent process, before and after data; one file a method."""

from jacana.posteriors import families as families
from jacana.posteriors.cavity import Cavity as Cavity
from jacana.posteriors.cavity import cavity_of as cavity_of
from jacana.posteriors.dirichlet_regression import DirichletRegression as DirichletRegression
from jacana.posteriors.function_space import FunctionSpace as FunctionSpace
from jacana.posteriors.iterated import System as System
from jacana.posteriors.label_regression import LabelRegression as LabelRegression
from jacana.posteriors.laplace import Laplace as Laplace
from jacana.posteriors.last_layer import LastLayer as LastLayer
from jacana.posteriors.leave_one_out import LeaveOneOut as LeaveOneOut
from jacana.posteriors.map import MAP as MAP
from jacana.posteriors.method import Method as Method
from jacana.posteriors.mode import Mode as Mode
from jacana.posteriors.mode import mode_of as mode_of
from jacana.posteriors.nystrom_features import NystromFeatures as NystromFeatures
from jacana.posteriors.observations import Model as Model
from jacana.posteriors.observations import Observations as Observations
from jacana.posteriors.observations import observe as observe
from jacana.posteriors.one_hot_regression import OneHotRegression as OneHotRegression
from jacana.posteriors.pathwise import Pathwise as Pathwise
from jacana.posteriors.posterior import Posterior as Posterior
from jacana.posteriors.relinearized import Relinearized as Relinearized
from jacana.posteriors.stochastic_map import StochasticMAP as StochasticMAP
from jacana.posteriors.tangent_gp import TangentGP as TangentGP
from jacana.posteriors.variational import Variational as Variational
from jacana.posteriors.weight_space import WeightSpace as WeightSpace
