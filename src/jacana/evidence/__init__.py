"""Evidence: the marginal likelihood, and its optimisation."""

from jacana.evidence.maximize import maximize_evidence as maximize_evidence
