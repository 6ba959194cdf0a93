"""Rules: one file an operation, each beside its mathematics. A new file is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from jacana.linearization.rules.rule import Call as Call
from jacana.linearization.rules.rule import Decomposition as Decomposition
from jacana.linearization.rules.rule import Rule as Rule
from jacana.linearization.rules.rule import Use as Use

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def all_rules() -> list[Rule | Decomposition]:
    """Every rule there is, in no order."""
    kinds: list[Any] = [*_kinds(Rule), *_kinds(Decomposition)]
    return [kind() for kind in kinds]


def by_operation() -> dict[Callable[..., Any], Rule | Decomposition]:
    """The rule of each operation that has one."""
    return {operation: rule for rule in all_rules() for operation in rule.operations}


def _kinds(base: type) -> Iterator[type]:
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        if not getattr(kind, "__abstractmethods__", None):
            yield kind
        yield from _kinds(kind)
