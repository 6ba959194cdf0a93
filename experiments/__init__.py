"""The paper's experiments, one module each, behind one shared command line.

Run one with ``python -m experiments.<name> [--data DIR] [--out DIR] [--quick] [--seeds N]``.
"""
