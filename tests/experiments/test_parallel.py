"""Work in processes: results in order, ticks counted, threads limited, exceptions handed on."""

import os

import pytest
import torch

from experiments.parallel import each


def square(item, tick):
    tick()
    return item**2, os.getpid(), torch.get_num_threads()


def fail(item, tick):
    raise TimeoutError(f"item {item}")  # the very exception that waiting for a result raises


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_from_one_thread_each(workers):
    before = torch.get_num_threads()
    found = each(square, range(5), ticks=5, description="squares", progress=False, workers=workers)
    assert [value for value, _, _ in found] == [0, 1, 4, 9, 16]
    assert {threads for _, _, threads in found} == {1}
    assert torch.get_num_threads() == before
    assert (os.getpid() in {process for _, process, _ in found}) == (workers == 1)


def test_the_bar_counts_the_ticks(capsys):
    each(square, range(2), ticks=2, description="squares", workers=2)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_ends_it(workers):
    with pytest.raises(TimeoutError, match="item 0"):
        each(fail, range(2), ticks=2, description="fails", progress=False, workers=workers)
