"""The package's shape: who may import whom, what stays private, what is exported and how it is documented.

Everything is read from the source text, so that an import which never runs is seen too.
"""

from __future__ import annotations

import ast
import graphlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import jacana

SOURCE = Path(__file__).resolve().parents[1] / "src" / "jacana"

ORDER = (
    "errors",
    "networks",
    "linearization",
    "likelihoods",
    "predictive",
    "operators",
    "solvers",
    "prediction",
    "posteriors",
    "evidence",
    "estimators",
    "metrics",
    "integrations",
)
"""The folders (or single modules) of the package; each imports only from itself and from those before it."""


class Module:
    """A source file, its dotted name and the names that its import statements reach."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        parts = path.relative_to(source.parent).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.tree = ast.parse(path.read_text(encoding="utf-8"))

    @property
    def layer(self) -> str | None:
        """The folder under the package that the module belongs to; None for the package itself."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else None

    def imports(self) -> Iterator[tuple[int, str, str | None]]:
        """Line, absolute module and imported name (None for ``import module``) of every import statement."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
                    base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
                yield from ((node.lineno, base, alias.name) for alias in node.names)


def modules(source: Path) -> dict[str, Module]:
    found = [Module(path, source) for path in sorted(source.rglob("*.py"))]
    return {module.name: module for module in found}


def edges(module: Module, among: dict[str, Module]) -> Iterator[tuple[int, str]]:
    """Line and name of each module of the package that ``module`` imports, as deep as the statement reaches."""
    for line, base, name in module.imports():
        deep = f"{base}.{name}" if name else base
        for target in (deep, base):
            if target in among:
                yield line, target
                break


def against_the_order(source: Path, order: tuple[str, ...] = ORDER) -> list[str]:
    found = modules(source)
    package = source.name
    bad = []
    for module in found.values():
        if module.layer is None:
            continue
        if module.layer not in order:
            bad.append(f"{module.name}: {module.layer} has no place in the order")
            continue
        for line, target in edges(module, found):
            layer = found[target].layer
            if layer is None:
                bad.append(f"{module.name}:{line} imports {package} itself, which imports everything")
            elif layer not in order or order.index(layer) > order.index(module.layer):
                bad.append(f"{module.name}:{line} imports {target}")
    return bad


def cycle(source: Path) -> list[str]:
    """A cycle of imports between modules, or nothing."""
    found = modules(source)
    graph = {name: {target for _, target in edges(module, found)} - {name} for name, module in found.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def imports_in_functions(source: Path) -> list[str]:
    return [
        f"{module.name}:{inner.lineno}"
        for module in modules(source).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def private_uses(source: Path) -> list[str]:
    """Private modules, names and attributes of other libraries, and private names that cross a module of our own."""
    bad = []
    for module in modules(source).values():
        aliases: dict[str, str] = {}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                aliases |= {a.asname or a.name.partition(".")[0]: a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                aliases |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        bad += [
            f"{module.name}:{line} imports {base}.{name}" if name else f"{module.name}:{line} imports {base}"
            for line, base, name in module.imports()
            if base != "__future__" and _is_private(f"{base}.{name}" if name else base)
        ]
        for node in sorted(ast.walk(module.tree), key=lambda node: getattr(node, "lineno", 0)):
            chain, root = [], node
            while isinstance(root, ast.Attribute):
                chain.append(root.attr)
                root = root.value
            if not (isinstance(root, ast.Name) and root.id in aliases and chain):
                continue
            foreign = aliases[root.id].partition(".")[0] not in (source.name, *sys.stdlib_module_names)
            if foreign and _is_private(chain[0]):
                bad.append(f"{module.name}:{node.lineno} uses {'.'.join([root.id, *reversed(chain)])}")
    return bad


def test_each_folder_imports_only_from_those_before_it():
    assert against_the_order(SOURCE) == []


def test_no_import_cycles():
    assert cycle(SOURCE) == []


def test_no_imports_inside_functions():
    assert imports_in_functions(SOURCE) == []


def test_nothing_private_crosses_a_border():
    assert private_uses(SOURCE) == []


# --- the face -------------------------------------------------------------------------------------------------------

FACE = Module(SOURCE / "__init__.py", SOURCE)


def test_the_face_is_explicit():
    """`__all__` is exactly what ``__init__.py`` imports by name from the package, sorted, with no star."""
    reached = {name for _, base, name in FACE.imports() if base.split(".")[0] == "jacana" and name is not None}
    assert "*" not in reached
    assert sorted(jacana.__all__) == sorted(reached | ({"__version__"} & set(jacana.__all__)))
    assert len(jacana.__all__) == len(set(jacana.__all__))


@pytest.mark.parametrize("name", jacana.__all__)
def test_every_public_name_is_documented_with_an_example(name):
    thing = getattr(jacana, name)
    if isinstance(thing, str):  # the version
        return
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing):
        inherited = [inspect.getdoc(base) for base in thing.__mro__[1:]]
        assert text not in inherited, f"{name} has its base's docstring, not its own"
    assert text.strip(), f"{name} has no docstring"
    if not inspect.ismodule(thing):
        assert ">>>" in text, f"{name} has no example"


@pytest.mark.parametrize("name", [n for n in jacana.__all__ if inspect.isclass(getattr(jacana, n))])
def test_every_public_method_is_documented(name):
    cls = getattr(jacana, name)
    bare = [
        key
        for key, value in vars(cls).items()
        if not key.startswith("_") and (callable(value) or isinstance(value, property | classmethod | staticmethod))
        if not inspect.getdoc(getattr(cls, key) if not isinstance(value, property) else value)
    ]
    assert bare == []


# --- the checks themselves are shown to fail ------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> Path:
    source = root / "jacana"
    for name, text in {"__init__.py": "", **files}.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return source


def test_an_import_against_the_order_is_found(tmp_path):
    source = write(
        tmp_path,
        {
            "errors.py": "",
            "networks/__init__.py": "",
            "networks/network.py": "from jacana.errors import E\nfrom jacana.operators.ntk import NTK\n",
            "operators/__init__.py": "",
            "operators/ntk.py": "from ..errors import E\nfrom jacana import errors\nimport jacana\n",
            "stray.py": "",
        },
    )
    assert against_the_order(source) == [
        "jacana.networks.network:2 imports jacana.operators.ntk",
        "jacana.operators.ntk:3 imports jacana itself, which imports everything",
        "jacana.stray: stray has no place in the order",
    ]


def test_a_cycle_is_found(tmp_path):
    files = {"operators/__init__.py": "", "operators/a.py": "from jacana.operators.b import B\n"}
    source = write(tmp_path, files | {"operators/b.py": "from . import a\n"})
    assert set(cycle(source)) == {"jacana.operators.a", "jacana.operators.b"}
    assert cycle(write(tmp_path / "clean", files | {"operators/b.py": ""})) == []


def test_an_import_in_a_function_is_found(tmp_path):
    source = write(tmp_path, {"errors.py": "def f():\n    if True:\n        import os\n    return os\n"})
    assert imports_in_functions(source) == ["jacana.errors:3"]


def test_private_uses_are_found(tmp_path):
    text = """\
    from __future__ import annotations
    import torch
    import torch.nn as nn
    from torch._C import _functorch
    from sklearn.utils._tags import Tags
    from torch.func import functional_call as call
    from jacana.networks.audit import _probe
    torch._dynamo.reset()
    nn.Module._call_impl
    torch.__version__
    self._mine
    """
    source = write(tmp_path, {"errors.py": text})
    assert private_uses(source) == [
        "jacana.errors:4 imports torch._C._functorch",
        "jacana.errors:5 imports sklearn.utils._tags.Tags",
        "jacana.errors:7 imports jacana.networks.audit._probe",
        "jacana.errors:8 uses torch._dynamo",
        "jacana.errors:9 uses nn.Module._call_impl",
    ]
