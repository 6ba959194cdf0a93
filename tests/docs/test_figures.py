"""The figures of README and docs are those of the recorded runs."""

import json
import re

import pytest

from experiments.digits_report import markdown
from tests.docs.examples import ROOT

RECORDS = sorted((ROOT / "results").glob("*.json"))


def recorded(name):
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_digits_are_those_of_the_recorded_demo(page):
    table = markdown(recorded("demo.json")["results"]["digits"])
    assert table in (ROOT / page).read_text(encoding="utf-8")


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
    mentioned = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{path.stem}\b", mentioned), f"docs/results.md says nothing of {path.name}"
