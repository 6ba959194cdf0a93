"""Inquiry: what has been found out about a network, by the kind of input."""

from __future__ import annotations

import threading
from typing import Any, final

from jacana.linearization.columns import Columns
from jacana.linearization.factors import are_faster
from jacana.linearization.keeping import Keeping, keeping
from jacana.linearization.probe import Findings, probe
from jacana.networks import Examples, Network, differentiable

__all__ = ["Inquiry"]


@final
class Inquiry:
    """Each question is put to the network once for each kind of input, and the answer remembered.

    Args:
        network: the network.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._findings: dict[tuple[Any, ...], Findings] = {}
        self._keeping: dict[tuple[Any, ...], Keeping] = {}
        self._factored: dict[tuple[Any, ...], bool] = {}
        self._doubted: set[tuple[Any, ...]] = set()
        self._guard = threading.RLock()
        self.columns = Columns()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_guard"}  # a lock cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _guard=threading.RLock())

    def findings(self, examples: Examples) -> Findings:
        """What the probe found for inputs like these; one lone example is probed again when more come."""
        key = _key(examples)
        with self._guard:
            if key not in self._findings:
                self._findings[key] = probe(self._network, examples.detached())
            return self._findings[key]

    def keeping(self, examples: Examples) -> Keeping:
        """How graphs for inputs like these are kept."""
        key = _key(examples)
        with self._guard:
            if key not in self._keeping:
                route = self.findings(examples).route
                few = examples[[0, len(examples) - 1]] if len(examples) > 1 else examples[:1]
                with differentiable():
                    self._keeping[key] = keeping(self._network, few.detached(), route)
            return self._keeping[key]

    def factored(self, examples: Examples) -> bool:
        """Whether what is kept of inputs like these are factors rather than graphs."""
        key = _key(examples)
        with self._guard:
            if key not in self._factored:
                found = self.findings(examples), self.keeping(examples)
                self._factored[key] = are_faster(self._network, *found, examples)
            return self._factored[key]

    def trusts(self, examples: Examples) -> bool:
        """Whether blocks of inputs like these have always been what the probe found."""
        return _key(examples) not in self._doubted

    def doubt(self, examples: Examples) -> None:
        """Look at each block of inputs like these from now on."""
        with self._guard:
            self._doubted.add(_key(examples))
            self._findings[_key(examples)] = probe(self._network, examples.detached(), thorough=True)


def _key(examples: Examples) -> tuple[Any, ...]:
    return (*examples.kind, examples.shapes, len(examples) > 1)  # a network may branch on shapes
