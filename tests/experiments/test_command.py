"""The shared command line and the record of a run."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import command


def test_what_is_not_given_is_stated(monkeypatch):
    monkeypatch.setenv("JACANA_DATA", "/somewhere")
    asked = command.parse("malaria", "", seeds=5, argv=[])
    assert (asked.data, asked.seeds, asked.quick, asked.progress) == (Path("/somewhere"), 5, False, True)
    asked = command.parse("malaria", "", seeds=5, argv=["--quick", "--data", "/here", "--no-progress"])
    assert (asked.data, asked.seeds, asked.quick, asked.progress) == (Path("/here"), 2, True, False)
    monkeypatch.delenv("JACANA_DATA")
    assert command.parse("malaria", "", seeds=5, argv=["--seeds", "3"]).data is None


def test_a_quick_run_never_overwrites_a_full_one():
    full = command.parse("sinusoids", "", seeds=5, argv=[])
    quick = command.parse("sinusoids", "", seeds=5, argv=["--quick"])
    assert full.path(".json") != quick.path(".json")


@pytest.mark.parametrize("argument", ["--seeds", "--workers"])
def test_nothing_done_by_nobody_is_refused(argument, capsys):
    with pytest.raises(SystemExit):
        command.parse("sinusoids", "", seeds=5, argv=[argument, "0"])
    assert argument in capsys.readouterr().err


@dataclass(frozen=True)
class Numbers:
    """Stands for an experiment's settings."""

    sizes: tuple[int, ...] = (1, 2)


def test_a_record_holds_settings_environment_and_results_as_plain_json(tmp_path):
    asked = command.parse("sinusoids", "", seeds=5, argv=["--out", str(tmp_path / "new")])
    results = {"a": np.float64(1.5), "b": torch.tensor([1.0, 2.0]), "c": float("nan"), "d": np.arange(2), 3: (None,)}
    path = command.record(asked.path(".json"), asked, settings={"all": Numbers()}, results=results, seconds=2.0)
    found = json.loads(path.read_text())
    assert found["results"] == {"a": 1.5, "b": [1.0, 2.0], "c": None, "d": [0, 1], "3": [None]}
    assert found["settings"] == {"all": {"sizes": [1, 2]}}
    assert found["command"]["seeds"] == 5
    assert found["environment"]["packages"]["torch"] == torch.__version__
    assert [entry.name for entry in path.parent.iterdir()] == ["sinusoids.json"]


def test_half_a_file_is_never_seen(tmp_path):
    path = command.write(tmp_path / "r.json", {"a": 1})
    with pytest.raises(TypeError):
        command.write(path, {"a": object()})
    assert command.read(path) == {"a": 1}
