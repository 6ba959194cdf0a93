"""The sinusoids, small."""

import json

import numpy as np
import pytest
import torch

from experiments import sinusoids

SMALL = sinusoids.Settings(seeds=1, tasks=2, epochs=100, ablr_sources=(1, 2), ablr_starts=1, ablr_steps=20)


def test_a_curve_is_drawn_as_the_paper_says():
    curves = [sinusoids.draw(np.random.default_rng(seed), 10, 400) for seed in range(50)]
    assert all(0.1 <= c.amplitude <= 5 and 0 <= c.phase <= 2 * np.pi and 0.5 <= c.frequency <= 2 for c in curves)
    assert all(c.x.shape == (10, 1) and np.abs(c.x).max() <= 5 for c in curves)
    residuals = np.concatenate([(c.test_y - c(c.test_x)) / c.amplitude for c in curves])
    # 20,000 residuals: the standard error of their standard deviation is .5 %.
    assert residuals.std() == pytest.approx(0.01, rel=0.03)


def test_training_fits_the_source_and_repeats_itself(generators_untouched):
    curve = sinusoids.draw(np.random.default_rng(0), 10, 0)
    settings = sinusoids.Settings(epochs=200)
    first, second = (sinusoids.train(curve, settings, seed=0) for _ in range(2))
    x = torch.as_tensor(curve.x, dtype=torch.float32)
    assert torch.equal(first(x), second(x))
    assert ((first(x)[:, 0] - torch.as_tensor(curve.y)) ** 2).mean().item() < 0.5 * float(curve.y.var())


def test_every_method_answers_every_task_and_both_spaces_agree():
    ticks = []
    part = sinusoids.run_seed((SMALL, 0), lambda: ticks.append(1))
    assert len(ticks) == 1 + SMALL.tasks
    assert len(part["tasks"]) == 5 * SMALL.tasks
    for row in part["tasks"]:
        assert np.isfinite([row["rmse"], row["nll"]]).all()
        assert 0.0 <= row["coverage"] <= 1.0
    assert part["differ"]["mean_in_stds"] < 1e-2
    assert part["differ"]["std_relative"] < 1e-2


def test_the_quick_run_leaves_a_record_and_a_picture(tmp_path, capsys):
    sinusoids.main(["--quick", "--no-progress", "--seeds", "1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "sinusoids-quick.json").read_text())
    assert set(record["results"]) == {"tasks", "table", "spaces_differ_by"}
    assert record["settings"]["settings"]["momentum"] == 0.9
    assert (tmp_path / "sinusoids-quick.png").stat().st_size > 10_000
    assert capsys.readouterr().out.strip().endswith("sinusoids-quick.png")
