"""Likelihoods: how observations come from function values, one file each."""

from jacana.likelihoods.bernoulli import Bernoulli as Bernoulli
from jacana.likelihoods.categorical import Categorical as Categorical
from jacana.likelihoods.gaussian import Gaussian as Gaussian
from jacana.likelihoods.heteroscedastic_gaussian import HeteroscedasticGaussian as HeteroscedasticGaussian
from jacana.likelihoods.likelihood import Likelihood as Likelihood
from jacana.likelihoods.nodes import Nodes as Nodes
from jacana.likelihoods.poisson import Poisson as Poisson
from jacana.likelihoods.scaled import Scaled as Scaled
from jacana.likelihoods.scaled import layers as layers
from jacana.likelihoods.scaled import sharpness_of as sharpness_of
from jacana.likelihoods.scaled import unscaled as unscaled
from jacana.likelihoods.scaled import weights_of as weights_of
from jacana.likelihoods.tempered import Tempered as Tempered
from jacana.likelihoods.weighted import Weighted as Weighted
