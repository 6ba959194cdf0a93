"""The similarity experiment on invented digits: a bright bar whose place is the class."""

import json

import numpy as np
import pytest
import torch

from experiments import pages, similarity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 1500), ("test", 400)):
        labels = np.sort(np.arange(n) % 10)
        images = rng.integers(0, 60, (n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 3 : 2 * label + 6, 4:24] = 250
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels.astype(np.uint8)}
    path = tmp_path_factory.mktemp("data")
    np.savez(path / "mnist.npz", **arrays)
    return path


def test_halves_are_what_they_say(folder):
    settings = similarity.Settings(per_half=100)
    images, labels = similarity.mnist(folder, "train")
    assert images.max() <= 1.0
    halves = similarity.halves(images, labels, 0, settings)
    assert {name: len(y) for name, (_, y) in halves.items()} == dict.fromkeys(
        ("first", "second", "lower", "upper"), 100
    )
    assert halves["lower"][1].max() <= 4
    assert halves["upper"][1].min() >= 5
    both = torch.cat([halves["first"][0], halves["second"][0]]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 200


def test_networks_start_where_their_seed_says():
    first, again, other = similarity.network(0), similarity.network(0), similarity.network(1)
    weights = [torch.nn.utils.parameters_to_vector(net.parameters()) for net in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_whole_of_it(folder, tmp_path, capsys):
    words = ["--quick", "--data", str(folder), "--out", str(tmp_path), "--no-progress", "--workers", "1"]
    similarity.main([*words, "--seeds", "2"])
    record = json.loads((tmp_path / "similarity-quick.json").read_text(encoding="utf-8"))
    results = record["results"]
    assert set(results["pairs"]) == set(similarity.PAIRS)
    assert set(results["tasks"]) == set(similarity.TASKS)
    for kind, measure in (("pairs", "cka"), ("tasks", "cosine")):
        for layers in results[kind].values():
            assert set(layers) == {"all", *similarity.LAYERS}
            assert all(0.0 <= value[measure]["mean"] <= 1.0 for value in layers.values())
    first, second = (run["pairs"]["same half, trained twice"]["all"]["cka"] for run in results["runs"])
    assert results["pairs"]["same half, trained twice"]["all"]["cka"]["mean"] == pytest.approx((first + second) / 2)
    assert (tmp_path / "similarity-quick.png").stat().st_size > 10_000
    assert "halves by class" in capsys.readouterr().out
    assert len(pages.similarity_of_networks(results).splitlines()) == 2 + len(similarity.PAIRS)
    assert len(pages.similarity_of_tasks(results).splitlines()) == 2 + len(similarity.TASKS)
