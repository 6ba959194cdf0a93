"""Operators: the Jacobian and the kernel as matrices that are known by their products."""

from jacana.operators.fisher import EmpiricalFisher as EmpiricalFisher
from jacana.operators.fisher import Fisher as Fisher
from jacana.operators.jacobian import Jacobian as Jacobian
from jacana.operators.ntk import NTK as NTK
from jacana.operators.operator import Operator as Operator
