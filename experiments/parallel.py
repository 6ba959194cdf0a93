"""Repetitions side by side: one process a core, one thread each.

Networks of this size are slower with two threads than with one; two seeds at once are twice as fast.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

__all__ = ["each"]

T = TypeVar("T")
R = TypeVar("R")

_done: Synchronized[int] | None = None
"""In a worker: how many parts all workers have finished."""


def each(
    function: Callable[[T, Callable[[], None]], R],
    items: Iterable[T],
    *,
    ticks: int,
    description: str,
    progress: bool = True,
    workers: int | None = None,
) -> list[R]:
    """Call ``function(item, tick)`` for each item, as many at a time as there are cores.

    Args:
        function: A function of a module; it calls ``tick()`` after each of its parts, for the progress bar. The
            script that starts all this needs its ``if __name__ == "__main__"``, as with every pool of processes.
        items: What it is called with.
        ticks: How many ticks there will be in all.
        description: For the progress bar.
        progress: Whether to show it.
        workers: Processes, in place of one a core.

    Returns:
        The results in the order of the items. The first exception ends it and is raised.
    """
    jobs = list(items)
    processes = min(workers or _cores(), len(jobs))
    if processes <= 1:
        with tqdm(total=ticks, desc=description, disable=not progress) as bar, _one_thread():

            def tick() -> None:
                bar.update()

            return [function(job, tick) for job in jobs]
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's locked thread pool
    done: Synchronized[int] = context.Value("q", 0)
    with (
        tqdm(total=ticks, desc=description, disable=not progress) as bar,
        ProcessPoolExecutor(processes, context, _start, (done,)) as pool,
    ):
        futures: list[Future[R]] = [pool.submit(_call, function, item) for item in jobs]
        try:
            for future in futures:
                while not _wait(future, 0.5):
                    bar.update(done.value - bar.n)
            bar.update(done.value - bar.n)
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wait(future: Future[R], seconds: float) -> bool:
    try:
        future.result(timeout=seconds)
    except TimeoutError:
        if future.done():  # the function's own
            raise
        return False
    return True


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch, and the linear algebra of numpy and scipy, work with one thread; their settings are put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _start(done: Synchronized[int]) -> None:
    global _done  # noqa: PLW0603 - the only way into a worker for what cannot be pickled
    _done = done
    torch.set_num_threads(1)
    threadpool_limits(1)


def _call(function: Callable[[T, Callable[[], None]], R], item: T) -> R:
    return function(item, _tick)


def _tick() -> None:
    if _done is not None:
        with _done.get_lock():
            _done.value += 1
