"""The command line that the experiments share, and the record that each of them leaves."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Command", "environment", "parse", "read", "record", "write"]

PACKAGES = ("jacana", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")


@dataclasses.dataclass(frozen=True)
class Command:
    """What the user asked for.

    Attributes:
        name: The experiment's name; its files are ``<name>.json`` and ``<name>.png``.
        data: Folder with the shared data, or None where neither ``--data`` nor ``JACANA_DATA`` names one.
        out: Folder for results.
        quick: Whether to run the small version, which shows that the code works and nothing more.
        seeds: Number of repetitions; seeds are 0, 1, ...
        progress: Whether to show progress bars.
        workers: Processes that share independent parts of the work, one thread each; None stands for one a core.
    """

    name: str
    data: Path | None
    out: Path
    quick: bool
    seeds: int
    progress: bool
    workers: int | None = None

    def path(self, suffix: str) -> Path:
        """The result file with this suffix; a quick run has names of its own and never overwrites a full one."""
        return self.out / f"{self.name}{'-quick' if self.quick else ''}{suffix}"


def parse(
    name: str, description: str, *, seeds: int, quick_seeds: int = 2, argv: Sequence[str] | None = None
) -> Command:
    """Read the shared command line.

    Args:
        name: The experiment's name.
        description: What it does, for ``--help``.
        seeds: Default number of repetitions.
        quick_seeds: The same for ``--quick``.
        argv: Arguments in place of ``sys.argv[1:]``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the data (default: $JACANA_DATA)")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("results"), help="folder for JSON and PNG")
    parser.add_argument("--quick", action="store_true", help="a small version that only shows that everything runs")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"repetitions (default: {seeds}; quick: {quick_seeds})")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the work (default: one a core)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")
    given = parser.parse_args(argv)
    repetitions = given.seeds if given.seeds is not None else quick_seeds if given.quick else seeds
    if repetitions < 1:
        parser.error(f"--seeds: got {repetitions}, expected 1 or more")
    if given.workers is not None and given.workers < 1:
        parser.error(f"--workers: got {given.workers}, expected 1 or more")
    data = given.data if given.data is not None else os.environ.get("JACANA_DATA")
    return Command(
        name=name,
        data=Path(data) if data else None,
        out=given.out,
        quick=given.quick,
        seeds=repetitions,
        progress=not given.no_progress,
        workers=given.workers,
    )


def record(
    path: Path, command: Command, *, settings: Mapping[str, Any], results: Any, seconds: float | None = None
) -> Path:
    """Write the JSON record of a run: command, settings, environment and results, in one step.

    Args:
        path: The file; its folder is made where it is missing.
        command: What the user asked for.
        settings: Every number that decides the results.
        results: All numbers that came out.
        seconds: Wall time of the whole run.
    """
    asked = dataclasses.asdict(command)  # folders by their last name: where a machine has them is no part of a record
    body = {
        "experiment": command.name,
        "command": {key: value.name if isinstance(value, Path) else value for key, value in asked.items()},
        "settings": dict(settings),
        "environment": environment(),
        "seconds": seconds,
        "results": results,
    }
    return write(path, body)


def environment() -> dict[str, Any]:
    """Versions, machine, date and commit: what someone needs who repeats the run."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "packages": versions,
        "machine": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def write(path: Path, body: Any) -> Path:
    """Write JSON by way of a temporary file, so that a reader never meets half a file."""
    text = json.dumps(_plain(body), indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read(path: Path) -> Any:
    """Read what `write` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    """Turn numpy, paths, dataclasses and non-finite numbers (as null: JSON has none) into plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def _commit(root: Path) -> str | None:
    """The commit that is checked out at ``root``, read from the files: git itself need not be installed."""
    git = root / ".git"
    try:
        if git.is_file():  # a worktree: one line, "gitdir: <folder>"
            git = root / git.read_text(encoding="utf-8").split(":", 1)[1].strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / (git / "commondir").read_text(encoding="utf-8").strip() if (git / "commondir").exists() else git
        if (common / name).exists():
            return (common / name).read_text(encoding="utf-8").strip()
        packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
