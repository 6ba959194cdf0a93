"""Evidence: the marginal likelihood, and its optimisation."""

from jacana.evidence.held_out import held_out as held_out
from jacana.evidence.left_out import left_out as left_out
from jacana.evidence.left_out import maximize_leave_one_out as maximize_leave_one_out
from jacana.evidence.maximize import maximize_evidence as maximize_evidence
