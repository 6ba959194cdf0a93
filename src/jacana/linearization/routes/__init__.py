"""Routes: the exact ways to a Jacobian-vector product, best first; the probe takes the first that is right."""

from jacana.linearization.routes.double_backward import DoubleBackward as DoubleBackward
from jacana.linearization.routes.forward import Forward as Forward
from jacana.linearization.routes.forward import ForwardUnfused as ForwardUnfused
from jacana.linearization.routes.route import Route as Route
from jacana.linearization.routes.rows import Rows as Rows
from jacana.linearization.routes.rows import rows as rows

ROUTES: tuple[type[Route], ...] = (Forward, ForwardUnfused, DoubleBackward, Rows)
