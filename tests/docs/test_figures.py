"""The figures of README and docs are those of the recorded runs."""

import json

import pytest

from experiments import pages
from tests.docs.examples import ROOT

RECORDS = sorted((ROOT / "results").glob("*.json"))


def recorded(name):
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_recorded_runs(page):
    text = page.read_text(encoding="utf-8")
    assert any(f"<!-- {mark} -->" in text for mark in pages.TABLES)
    assert pages.filled(text) == text, "run: python -m experiments.pages"


def test_a_table_that_is_not_of_its_record_is_replaced():
    page = "before\n<!-- digits -->\n| made up |\n<!-- end -->\nafter <!-- digits --> not at the end of a line\n"
    table = pages.digits(recorded("demo.json")["results"])
    wanted = page.replace("| made up |", table)
    assert pages.filled(page) == wanted
    assert pages.filled(wanted) == wanted


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_record_has_its_tables_in_the_results(path):
    marks = [mark for mark, (record, _) in pages.TABLES.items() if record == path.stem]
    readme, *docs = (page.read_text(encoding="utf-8") for page in pages.PAGES)
    assert marks
    short = [mark for mark in marks if mark.endswith("-short")]  # for those who ask first
    assert [mark for mark in short if f"<!-- {mark} -->" not in readme] == []
    assert [mark for mark in marks if mark not in short and f"<!-- {mark} -->" not in "".join(docs)] == []


def test_jacana_is_above_the_last_layer_and_not_below_fine_tuning():
    methods = recorded("demo.json")["results"]["digits"]["methods"]
    accuracy = {name: figures["accuracy"]["mean"] for name, figures in methods.items()}
    assert accuracy["no adaptation"] < 0.3 < accuracy["last layer"] < accuracy["Jacana"]
    assert accuracy["Jacana"] >= accuracy["fine-tuning"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_how_it_came_about(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert {"experiment", "command", "settings", "environment", "seconds", "results"} <= set(record)
    assert not record["command"]["quick"], "a quick run shows that the code works and nothing more"
