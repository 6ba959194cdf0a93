"""Operators: the Jacobian and the kernel as matrices that are known by their products."""

from jacana.operators.covariance import Covariance as Covariance
from jacana.operators.covariance import rounded as rounded
from jacana.operators.estimates import Estimate as Estimate
from jacana.operators.estimates import estimate_log_determinant as estimate_log_determinant
from jacana.operators.estimates import estimate_trace as estimate_trace
from jacana.operators.fisher import EmpiricalFisher as EmpiricalFisher
from jacana.operators.fisher import Fisher as Fisher
from jacana.operators.jacobian import Jacobian as Jacobian
from jacana.operators.norm_bound import norm_bound as norm_bound
from jacana.operators.normal import standard_normal as standard_normal
from jacana.operators.ntk import NTK as NTK
from jacana.operators.operator import Operator as Operator
from jacana.operators.similarity import Similarity as Similarity
from jacana.operators.similarity import compare_networks as compare_networks
from jacana.operators.similarity import compare_tasks as compare_tasks
from jacana.operators.spectrum import Eigenpairs as Eigenpairs
from jacana.operators.spectrum import top_eigenpairs as top_eigenpairs
from jacana.operators.spectrum import tridiagonal as tridiagonal
from jacana.operators.whitened import FisherRoot as FisherRoot
from jacana.operators.whitened import WhitenedFisher as WhitenedFisher
