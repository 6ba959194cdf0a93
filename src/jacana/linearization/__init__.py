"""Linearization: exact products with the Jacobian at θ0, and the kernel that is made of it."""

from jacana.linearization.gram import diagonal_blocks as diagonal_blocks
from jacana.linearization.gram import gram as gram
from jacana.linearization.gram import layer_grams as layer_grams
from jacana.linearization.gram import pull as pull
from jacana.linearization.gram import push as push
from jacana.linearization.linearization import Linearization as Linearization
from jacana.linearization.linearization import linearize as linearize
from jacana.linearization.memory import budget as budget
from jacana.linearization.memory import require as require
from jacana.linearization.prior import Prior as Prior
from jacana.linearization.prior import PriorStd as PriorStd
