"""Predictives: class probabilities from a Gaussian latent, one file a method; and what they know."""

from jacana.predictive.information import entropy as entropy
from jacana.predictive.information import mutual_information as mutual_information
from jacana.predictive.laplace_bridge import LaplaceBridge as LaplaceBridge
from jacana.predictive.monte_carlo import MonteCarlo as MonteCarlo
from jacana.predictive.predictive import Predictive as Predictive
from jacana.predictive.probit import Probit as Probit
