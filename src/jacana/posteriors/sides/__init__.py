"""Sides: the data's, the parameters', or products alone: where the algebra of one and the same posterior is done."""

from jacana.posteriors.sides.kernel import KernelSide as KernelSide
from jacana.posteriors.sides.products import ProductPrecision as ProductPrecision
from jacana.posteriors.sides.products import ProductSide as ProductSide
from jacana.posteriors.sides.side import Precision as Precision
from jacana.posteriors.sides.side import Side as Side
from jacana.posteriors.sides.side import Spread as Spread
from jacana.posteriors.sides.weights import WeightSide as WeightSide
