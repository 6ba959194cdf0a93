"""Families: the Gaussians of the weights among which :class:`~jacana.Variational` takes the best; one file a family."""

from jacana.posteriors.families.family import Family as Family
from jacana.posteriors.families.family import Spreads as Spreads
from jacana.posteriors.families.full_covariance import FullCovariance as FullCovariance
from jacana.posteriors.families.mean_field import MeanField as MeanField
