"""What README and docs say is so: their code runs, their links lead somewhere, their commands exist, their figures
are those of the recorded runs."""

import importlib.util
import re

import pytest

from tests.docs.examples import PAGES, ROOT, blocks

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_code_runs(page, tmp_path, monkeypatch):
    """The Python blocks of a page run from top to bottom, as one program."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            lines = "\n" * (block.line - 1)  # a traceback then names the page's own line
            exec(compile(lines + block.code, str(page), "exec"), namespace)


@pages
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"#]+)', text)
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pages
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)(?:\$ )?make ([a-z]+)", text, re.MULTILINE)) <= targets
    modules = set(re.findall(r"python -m ((?:experiments|benchmarks)[\w.]*)", text))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_the_readme_has_code():
    assert any(block.language == "python" for block in blocks((ROOT / "README.md").read_text(encoding="utf-8")))
