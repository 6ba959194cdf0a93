"""The malaria experiment: its reader, its split, and the whole of it on a small invented country."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import data, malaria
from experiments.malaria_methods import Methods
from experiments.malaria_report import comparisons, show, table
from experiments.malaria_task import Settings, split, train

FOLDER = Path(os.environ.get("JACANA_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (FOLDER / "malaria_map.npz").is_file(), reason=f"no malaria_map.npz in {FOLDER}; name its folder in JACANA_DATA"
)

SMALL = Settings(
    width=20,
    source_points=200,
    test_points=100,
    sizes=(20, 60, 10**6),
    max_hyper=60,
    source_steps=300,
    tune_steps=(5, 20),
    tune_long_from=10,
)


@pytest.fixture(scope="module")
def country():
    """Sixteen by thirty pixels, some outside, with a level that moves between the years."""
    rng = np.random.default_rng(0)
    inside = rng.uniform(size=(16, 30)) < 0.9
    lat, lon = np.nonzero(inside)
    position = np.stack([lon / 10.0, -lat / 10.0], axis=1)
    before = 0.5 + 0.2 * np.sin(2 * position[:, 0]) * np.cos(position[:, 1])
    after = 0.8 * before - 0.1 + 0.02 * rng.normal(size=len(before))
    return data.MalariaMap("BFA", position, before, after, inside, (0.0, 3.0, -1.6, 0.0))


@pytest.mark.parametrize("folder", [None, Path("/nowhere")])
def test_missing_data_are_named_with_their_origin(folder):
    with pytest.raises(data.MissingData, match=r"malaria_map\.npz.*data\.malariaatlas\.org"):
        data.malaria_map(folder, "BFA")


@needs_data
@pytest.mark.parametrize(
    ("country", "pixels", "before", "after", "correlation"),
    [("BFA", 12_989, 0.680, 0.393, 0.55), ("CMR", 21_915, 0.329, 0.342, 0.74)],
)
def test_the_maps_are_those_that_the_data_folder_describes(country, pixels, before, after, correlation):
    found = data.malaria_map(FOLDER, country)
    assert found.position.shape == (pixels, 2)
    assert found.source.mean() == pytest.approx(before, abs=1e-3)
    assert found.target.mean() == pytest.approx(after, abs=1e-3)
    assert np.corrcoef(found.source, found.target)[0, 1] == pytest.approx(correlation, abs=5e-3)
    west, east, south, north = found.extent
    assert west < found.position[:, 0].min() < found.position[:, 0].max() < east
    assert south < found.position[:, 1].min() < found.position[:, 1].max() < north
    raster = found.raster(found.position[:, 1])
    rows = np.nanmean(raster[found.inside.any(axis=1)], axis=1)
    assert (np.diff(rows) < 0).all()  # north up


def test_no_pixel_is_in_two_parts_and_the_source_is_standardised(country):
    parts = split(country, SMALL, seed=3)
    together = np.concatenate([parts.source, parts.test, parts.pool])
    assert sorted(together) == list(range(len(country.position)))
    assert parts.inputs[parts.source].mean(0).abs().max() < 1e-5
    assert float(parts.before[parts.source].std(correction=0)) == pytest.approx(1.0)
    np.testing.assert_allclose(parts.after.numpy() * parts.scale + parts.centre, country.target)


def test_the_whole_of_it_on_an_invented_country(country):
    ticks = []
    part = malaria.run_part(country, SMALL, 0, lambda: ticks.append(1))
    assert len(ticks) == 1 + len(SMALL.sizes)
    everything = len(country.position) - 300
    assert [row["n"] for row in part["rows"]] == [n for n in (20, 60, everything) for _ in range(6)]
    error = {(row["method"], row["n"]): row["mse"] for row in part["rows"]}
    assert error["Jacana", everything] < error["no adaptation", everything]
    assert error["Jacana + RBF", everything] < error["no adaptation", everything]
    last = [row for row in part["rows"] if row["method"] == "Jacana"][-1]
    assert last["labels_for_hyper_parameters"] == SMALL.max_hyper
    assert last["setting"] in {candidate.name for candidate in SMALL.candidates()}
    assert len(part["drawing"]["mean"]) == len(country.position)


def test_test_pixels_decide_nothing(country):
    """What every method chooses is the same when the test pixels' targets are something else."""
    parts = split(country, SMALL, seed=0)
    net = train(parts, SMALL, seed=0)
    spoiled = parts.after.clone()
    spoiled[parts.test] = 1e3
    for other in (parts, dataclasses.replace(parts, after=spoiled)):
        answers = list(Methods(net, other, SMALL, 0).answers(20))
        if other is parts:
            expected = answers
    for first, second in zip(expected, answers, strict=True):
        np.testing.assert_array_equal(first.mean, second.mean)
        np.testing.assert_array_equal(first.std, second.std)


def test_training_repeats_itself(country, generators_untouched):
    parts = split(country, SMALL, seed=0)
    first, second = (train(parts, SMALL, seed=0) for _ in range(2))
    assert torch.equal(first(parts.inputs), second(parts.inputs))


def test_comparisons_are_paired():
    rows = [
        {"country": "BFA", "seed": seed, "n": 50, "method": method, "mse": base + gain, "nll": 0.0, "coverage": 0.95}
        | {"seconds": 1.0}
        for seed, base in enumerate((1.0, 2.0, 3.0))
        for method, gain in (("last layer", 0.0), ("Jacana", -0.1 - 0.001 * seed))
    ]
    [found] = comparisons(rows)
    assert found["jacana_is"] == "better"
    assert found["mean"] == pytest.approx(-0.101)
    assert "better" in show(rows)
    assert {row["method"]: row["mse"]["mean"] for row in table(rows)} == pytest.approx(
        {"last layer": 2.0, "Jacana": 1.899}
    )


@needs_data
def test_the_quick_run_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(malaria, "QUICK", dataclasses.replace(SMALL, countries=("BFA",), sizes=(20, 60)))
    asked = ["--quick", "--no-progress", "--seeds", "1", "--data", str(FOLDER), "--out", str(tmp_path)]
    malaria.main(asked)
    assert (tmp_path / "malaria-quick.png").stat().st_size > 10_000
    part = tmp_path / "malaria-quick-parts" / "BFA-0.json"
    before = part.stat().st_mtime_ns
    malaria.main(asked)
    assert part.stat().st_mtime_ns == before
    assert "Burkina Faso, 60 labels" in capsys.readouterr().out
