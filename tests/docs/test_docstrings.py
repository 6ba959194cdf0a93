"""Every example in a docstring of the package runs and prints what it says."""

import doctest
import textwrap

import pytest

from tests.docs.examples import OPTIONS, ROOT, Checker, Example, docstrings, failures

SOURCE = ROOT / "src" / "jacana"


@pytest.mark.parametrize("example", list(docstrings(SOURCE)), ids=lambda example: example.name)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = failures(example)
    assert not report, report


def test_the_package_has_examples():
    assert "jacana" in {example.name for example in docstrings(SOURCE)}, "the package's own docstring has no example"


def test_a_wrong_example_is_reported(tmp_path):
    assert "Expected" in failures(Example("wrong", tmp_path / "wrong.py", 1, ">>> 1 + 1\n3"))
    assert "NameError" in failures(Example("unimported", tmp_path / "wrong.py", 1, ">>> torch.zeros(1)\n1"))
    assert not failures(Example("right", tmp_path / "right.py", 1, ">>> 1 + 1\n2"))


def test_decorated_and_nested_objects_are_found(tmp_path):
    text = '''
        """>>> 1
        1"""
        class Outer:
            """No example."""
            @property
            def inner(self):
                """One line.

                >>> 2
                2
                """
    '''
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text(textwrap.dedent(text))
    assert [e.name for e in docstrings(package)] == ["package.module", "package.module.Outer.inner"]


@pytest.mark.parametrize(
    ("want", "got", "agree"),
    [
        ("0.12\n", "0.1249\n", True),
        ("0.12\n", "0.135\n", False),
        ("tensor([1.0, 2.50])\n", "tensor([1.0000, 2.4999])\n", True),
        ("tensor([1.0, 2.50])\n", "tensor([1.0000, 2.4999, 3.0])\n", False),
        ("1.5e-03\n", "1.52e-03\n", True),
        ("1.5e-03\n", "1.52e-02\n", False),
        ("(3, 4)\n", "(3, 5)\n", False),
        ("a 1.0 b\n", "a 1.0 c\n", False),
    ],
)
def test_numbers_agree_to_the_digits_shown(want, got, agree):
    assert Checker().check_output(want, got, OPTIONS) is agree
    assert Checker().check_output(want, want, doctest.NORMALIZE_WHITESPACE)
