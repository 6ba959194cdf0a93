"""Photographs: a network trained on CIFAR-10 meets Tiny-ImageNet's photographs of the same classes, with few labels.

ResNet-20, trained on the ten classes of CIFAR-10, is adapted to the seven that Tiny-ImageNet has too, at 32 by 32
pixels. Every method starts from its seven logits and sees 5, 20, 50 or 200 labels a class, drawn at random; the 1,250
test images are the file's own part "val". Compared are

* *no adaptation*;
* *last layer*: logistic regression on the last features, standardised, its penalty by cross-validation;
* *fine-tuning*: all parameters by stochastic gradient descent with momentum, batch normalisation in evaluation mode;
  learning rate and epochs have the greatest accuracy in stratified cross-validation (five-fold; three-fold from 50
  labels a class), among equal ones the greatest log-probability, and are then run on all labels;
* *the same with a temperature*, learned from a fifth of the labels that everything else does without;
* *the same picked on test*: what the best of the grid on the test set reaches, which nobody can choose honestly; with
  a temperature of the test set; and with laplace-torch in the last layer, where it is installed;
* *Jacana*: classification with the network's tangent kernel; its mean moved along the network's own gradient flow;
  relinearized, up to ten steps to the network's own mode; by one-hot and by Dirichlet regression; in the last layer
  alone; in all parameters but those of batch normalisation.

Figures: accuracy; negative log-likelihood and Brier score; expected calibration error, and what of it is beyond that of
a calibrated model with the same probabilities; how well images of no class are told from the test images, by the
area under the ROC curve: photographs of two other classes, and handwritten digits, for the first three seeds, and of
Jacana up to 50 labels a class: with 200 its kernel with these images alone takes most of an hour. The score is the
entropy of the probabilities; that of the mutual information, for Jacana and laplace-torch, is on record too.
Seconds are CPU seconds of all threads, of fitting, every choice included.

    python -m experiments.classification --data DIR [--out DIR] [--labels 5 20] [--methods jacana fine-tuning]
        [--seeds N] [--workers N] [--threads N] [--quick]

Each number of labels has a record of its own, ``<out>/classification-<labels>.json``; the picture is of all that lie in
the folder. What is finished lies in ``<out>/classification-parts``, one file a number of labels, seed and method, and
at last in the record. A later run with the same settings continues from both; what is on record stays there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from experiments import command, plots
from experiments.classification_methods import METHODS, Methods, group, unavailable
from experiments.classification_metrics import figures
from experiments.classification_report import draw, show, summary
from experiments.classification_task import QUICK, Photographs, Settings, load, source
from experiments.parallel import each

__all__ = ["Case", "Job", "Plan", "asks_outside", "main", "parse", "plan", "run", "run_case", "run_job", "threads_of"]

SEEDS = {5: 10, 20: 10, 50: 3, 200: 3}
"""Labels a class to repetitions."""

MOST_SEEDS = {"jacana-one-hot": 3, "jacana-dirichlet": 3, "jacana-no-norms": 3}
"""Of variants. They are looked at on the test images alone."""

OUTSIDE_SEEDS = 3
"""Seeds that are asked of images of no class: there are three times as many of these as of test images."""

OUTSIDE_LABELS = 50
"""Labels a class up to which Jacana is."""

QUICK_LABELS = 3


@dataclass(frozen=True)
class Case:
    """What has a figure of its own: labels a class, a seed and a method."""

    labels: int
    seed: int
    method: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.labels}-{self.seed}-{self.method}"


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        seeds: Labels a class to number of seeds.
        methods: Those that can run here, in the order of tables.
        left_out: The others, and why.
        threads: In each process.
    """

    seeds: dict[int, int]
    methods: tuple[str, ...]
    left_out: dict[str, str]
    threads: int

    def cases(self, labels: int) -> list[Case]:
        """All of one number of labels a class."""
        return [
            Case(labels, seed, method)
            for seed in range(self.seeds[labels])
            for method in self.methods
            if seed < MOST_SEEDS.get(method, self.seeds[labels])
        ]


@dataclass(frozen=True)
class Job:
    """Cases of one draw of labels that share work, and the files to write."""

    folder: Path | None
    settings: Settings
    cases: dict[Case, Path]
    threads: int


def run_case(case: Case, methods: Methods, photographs: Photographs, settings: Settings) -> dict[str, Any]:
    """Fit one method, and measure what it says.

    Args:
        case: Which.
        methods: Of the case's labels and seed.
        photographs: All photographs.
        settings: All settings.
    """
    fitted = methods.fit(case.method)
    start = time.process_time()
    test = fitted.predict(photographs.test)
    predicting = time.process_time() - start
    outside = {name: fitted.predict(images) for name, images in photographs.outside.items() if asks_outside(case)}
    found = figures(test, photographs.test_labels.numpy(), outside, simulations=settings.simulations)
    timed = {"seconds": fitted.seconds, "seconds_predicting": predicting}
    return {**dataclasses.asdict(case), **found, **timed, "picked": fitted.picked}


def asks_outside(case: Case) -> bool:
    """Whether a case is asked of images of no class too."""
    few = case.labels <= OUTSIDE_LABELS or not case.method.startswith("jacana")
    return few and case.method not in MOST_SEEDS and case.seed < OUTSIDE_SEEDS


def run(
    asked: command.Command, settings: Settings, planned: Plan, labels: int
) -> tuple[list[dict[str, Any]], list[Any]]:
    """All cases of one number of labels; what is on disk from an earlier run with these settings is not done again.

    Returns:
        A row a case, those on record among them, and the environments that they were made in.
    """
    fingerprint = json.loads(json.dumps(dataclasses.asdict(settings)))
    rows, environments = _recorded(asked.path(f"-{labels}.json"), fingerprint)
    paths = {case: asked.path("-parts") / f"{case.name}.json" for case in planned.cases(labels)}
    missing: dict[tuple[int, str], dict[Case, Path]] = {}
    for case, path in paths.items():
        if case.name not in rows and not (path.is_file() and command.read(path)["settings"] == fingerprint):
            missing.setdefault((case.seed, group(case.method)), {})[case] = path
    each(
        run_job,
        [Job(asked.data, settings, cases, planned.threads) for cases in missing.values()],
        ticks=sum(map(len, missing.values())),
        description=f"{labels} labels a class",
        progress=asked.progress,
        workers=asked.workers,
    )
    parts = {case.name: command.read(path) for case, path in paths.items() if case.name not in rows}
    for part in parts.values():
        undated = {key: value for key, value in part["environment"].items() if key != "date"}
        environments += [undated] if undated not in environments else []
    rows |= {name: part["part"] for name, part in parts.items()}
    return sorted(rows.values(), key=lambda row: (row["seed"], list(METHODS).index(row["method"]))), environments


def _recorded(path: Path, fingerprint: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[Any]]:
    """Rows by the names of their cases, and their environments, of a record with these settings."""
    if not path.is_file():
        return {}, []
    record = command.read(path)
    if any(record["settings"].get(key) != value for key, value in fingerprint.items()):
        return {}, []
    found = record["results"]
    return {Case(row["labels"], row["seed"], row["method"]).name: row for row in found["rows"]}, found["environments"]


def run_job(job: Job, tick: Callable[[], None]) -> None:
    """The cases of one job; each is written as soon as it is there."""
    photographs, net = load(job.folder, job.settings), source(job.folder, job.settings)
    first = next(iter(job.cases))
    test = photographs.test, photographs.test_labels
    with threads_of(job.threads):
        methods = Methods(net, *photographs.draw(first.labels, first.seed), test, job.settings, first.seed)
        for case, path in job.cases.items():
            part = run_case(case, methods, photographs, job.settings)
            command.write(path, {"settings": job.settings, "environment": command.environment(), "part": part})
            tick()


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Torch, and the linear algebra of numpy and scipy, work with so many threads; their settings are put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def plan(options: argparse.Namespace, *, quick: bool) -> Plan:
    """What the command line asks for; methods that cannot run here are left out."""
    sizes = options.labels or ([QUICK_LABELS] if quick else list(SEEDS))
    usual = {size: 1 if quick else SEEDS.get(size, 10 if size < 50 else 3) for size in sizes}
    wanted = [method for method in METHODS if method in (options.methods or METHODS)]
    left_out = {method: why for method in wanted if (why := unavailable(method)) is not None}
    return Plan(
        seeds={size: options.seeds or usual[size] for size in sorted(sizes)},
        methods=tuple(method for method in wanted if method not in left_out),
        left_out=left_out,
        threads=options.threads,
    )


def parse(argv: list[str] | None) -> tuple[command.Command, Plan]:
    """Read the shared command line, and this experiment's own options."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="python -m experiments.classification")
    own.add_argument("--labels", type=int, nargs="+")
    own.add_argument("--methods", choices=list(METHODS), nargs="+")
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--seeds", type=int)
    options, rest = own.parse_known_args(argv)
    for name in ("labels", "threads"):
        given = getattr(options, name)
        if given is not None and min(given if isinstance(given, list) else [given]) < 1:
            own.error(f"--{name}: got {given}, expected 1 or more")
    asked = command.parse(
        "classification",
        "Photographs of Tiny-ImageNet after CIFAR-10, few labels a class. Of its own: --labels N [N ...] a class "
        f"(default: {' '.join(map(str, SEEDS))}), --threads N in each process (default: 1), --methods NAME [NAME ...] "
        f"of {', '.join(METHODS)}. By default fewer seeds from 50 labels a class.",
        seeds=max(SEEDS.values()),
        quick_seeds=1,
        argv=rest if options.seeds is None else [*rest, "--seeds", str(options.seeds)],
    )
    return asked, plan(options, quick=asked.quick)


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    asked, planned = parse(argv)
    for method, why in planned.left_out.items():
        print(f"{method} is left out: {why}")
    if not planned.methods:
        raise SystemExit("no method is left")
    settings = QUICK if asked.quick else Settings()
    for labels in planned.seeds:
        start = time.perf_counter()
        rows, environments = run(asked, settings, planned, labels)
        found = summary(rows)
        stated = {
            **dataclasses.asdict(settings),
            **dataclasses.asdict(planned),
            "units": "nats; CPU seconds of all threads, of fitting",
        }
        results = {**found, "environments": environments, "rows": rows}
        took = time.perf_counter() - start
        path = command.record(asked.path(f"-{labels}.json"), asked, settings=stated, results=results, seconds=took)
        print(show(found), path, sep="\n")
    records = map(command.read, asked.out.glob(asked.path("-[0-9]*.json").name))
    table = sorted((row for one in records for row in one["results"]["table"]), key=lambda row: row["labels"])
    with plots.style():
        print(plots.save(draw(table), asked.path(".png")))


if __name__ == "__main__":
    main()
