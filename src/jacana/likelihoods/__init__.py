"""Likelihoods: how observations come from function values, one file each."""

from jacana.likelihoods.gaussian import Gaussian as Gaussian
