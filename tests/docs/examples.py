"""Examples in docstrings and Markdown: where they stand, and how what they print is compared."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])

_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d*(?:[eE][+-]?\d+)?")
_FENCE = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


class Example(NamedTuple):
    """A docstring with an example: the object's dotted name, its file, line and text."""

    name: str
    path: Path
    line: int
    text: str


class Block(NamedTuple):
    """A fenced block of a page: its language, the line of its first code and the code."""

    language: str
    line: int
    code: str


class Checker(doctest.OutputChecker):
    """Numbers agree to the digits that the example shows; everything else as doctest has it."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        wanted, found = _NUMBER.findall(want), _NUMBER.findall(got)
        if len(wanted) != len(found) or not all(map(_close, wanted, found)):
            return False
        return super().check_output(_NUMBER.sub("#", want), _NUMBER.sub("#", got), optionflags)


def _close(wanted: str, found: str) -> bool:
    """Whether the numbers agree to one unit in the last place that is written."""
    mantissa, _, exponent = wanted.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(wanted) - float(found)) <= unit


def docstrings(source: Path) -> Iterator[Example]:
    """Every docstring under ``source`` that has an example.

    They are read from the text: `doctest.DocTestFinder` passes over what a decorator or a type checker wrapped.
    """
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield from _inside(ast.parse(path.read_text(encoding="utf-8")), module, path)


def _inside(node: ast.AST, name: str, path: Path) -> Iterator[Example]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and ">>>" in text:
            yield Example(name, path, node.body[0].lineno, text)
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _inside(child, f"{name}.{child.name}" if named else name, path)


def failures(example: Example) -> str:
    """Run an example with nothing imported for it, as a reader would; the report of what failed, or ""."""
    parsed = doctest.DocTestParser().get_doctest(
        example.text, {"__name__": "__main__"}, example.name, str(example.path), example.line - 1
    )
    report: list[str] = []
    doctest.DocTestRunner(checker=Checker(), optionflags=OPTIONS, verbose=False).run(parsed, out=report.append)
    return "".join(report)


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown page."""
    for match in _FENCE.finditer(page):
        yield Block(match["language"], page.count("\n", 0, match.start("code")) + 1, match["code"])
