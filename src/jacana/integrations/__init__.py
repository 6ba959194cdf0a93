"""Integrations: Jacana's kernels in other libraries, one file each; each needs an extra of its own."""
