"""The paper's figures of Fisher products: the networks, the rivals, and the whole of it, small."""

import json

import numpy as np
import pytest
import torch

import jacana
from benchmarks.products import Competitors
from experiments import fisher_speed, pages
from experiments.cifar_networks import alexnet, preresnet, wide_resnet


@pytest.mark.parametrize(
    ("make", "millions"),
    [(alexnet, 2.472), (lambda: preresnet(56), 0.856), (lambda: preresnet(110), 1.731), (lambda: preresnet(164), 1.704),
     (wide_resnet, 36.479)],
)  # fmt: skip
def test_networks_are_of_the_size_that_their_papers_say(make, millions):
    with torch.device("meta"):
        net = make()
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


def test_rivals_multiply_with_the_same_matrix():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    v = {name: torch.randn_like(value) for name, value in net.named_parameters()}
    rivals = Competitors(net, x, v)
    exact = jacana.Fisher(net, x, jacana.Categorical()) @ torch.cat([piece.flatten() for piece in v.values()])
    for product in (
        rivals.double_backward(),
        rivals.finite_difference(1e-6),
        rivals.finite_difference(1e-6, kept=False),
    ):
        got = torch.cat([piece.flatten() for piece in product])
        assert float((got - exact).norm() / exact.norm()) < 1e-5


def test_the_whole_of_it(tmp_path, capsys):
    threads = torch.get_num_threads()
    fisher_speed.main(["--quick", "--out", str(tmp_path), "--no-progress", "--threads", str(threads)])
    record = json.loads((tmp_path / "fisher_speed-quick.json").read_text(encoding="utf-8"))
    (row,) = record["results"]["rows"]
    assert set(fisher_speed.WAYS) < set(row["median"])
    errors = np.array(list(row["error"]["finite difference"].values()))
    assert row["error"]["Jacana, exact"] < 1e-5 < errors.min() < errors.max()
    assert (tmp_path / "fisher_speed-quick.png").stat().st_size > 10_000
    assert "AlexNet" in capsys.readouterr().out
    assert len(pages.fisher_speed(record["results"]).splitlines()) == 3
