"""Linearization: exact products with the Jacobian at θ0, and the kernel that is made of it."""

from jacana.linearization.batch import Batch as Batch
from jacana.linearization.explain import Explanation as Explanation
from jacana.linearization.explain import explain as explain
from jacana.linearization.gram import gram as gram
from jacana.linearization.kernel import dense_kernel as dense_kernel
from jacana.linearization.kernel import diagonal_blocks as diagonal_blocks
from jacana.linearization.kernel import group_diagonals as group_diagonals
from jacana.linearization.kernel import group_kernels as group_kernels
from jacana.linearization.kernel import kernel_and_blocks as kernel_and_blocks
from jacana.linearization.kernel import layer_kernels as layer_kernels
from jacana.linearization.kernel import pull as pull
from jacana.linearization.kernel import push as push
from jacana.linearization.linearization import Linearization as Linearization
from jacana.linearization.linearization import linearize as linearize
from jacana.linearization.memory import budget as budget
from jacana.linearization.memory import fits as fits
from jacana.linearization.memory import require as require
from jacana.linearization.prior import Prior as Prior
from jacana.linearization.prior import PriorStd as PriorStd
from jacana.linearization.prior import longest_prefix as longest_prefix
from jacana.linearization.products import Products as Products
from jacana.linearization.products import valid_memory_budget as valid_memory_budget
