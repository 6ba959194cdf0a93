"""Checkpoint: where a long solution stands, on disk, so that another process can go on from there."""

from __future__ import annotations

import os
import time
import warnings
import zlib
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["Checkpoint"]


@final
class Checkpoint:
    """X of a solution under way, in a file of its own for each right-hand side.

    A file is replaced at once or not at all. One that cannot be written is said so and costs nothing else; one that
    cannot be read, or is of other data, is not used.

    Args:
        folder: made if it is not there.
        right: B, which names the file.
        every: seconds between two files.
    """

    def __init__(self, folder: str | Path, right: Float64[Tensor, "n k"], every: float) -> None:
        name = f"{zlib.crc32(right.cpu().contiguous().numpy().data):08x}-{right.shape[0]}x{right.shape[1]}"
        self.path = Path(folder) / f"solution-{name}.safetensors"
        self._every, self._last, self._said = every, time.monotonic(), False

    def load(self, like: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"] | None:
        """What is there, if it is of this shape and finite."""
        try:
            x = load_file(str(self.path))["x"]
        except Exception:  # noqa: BLE001 - no file, or none that can be read
            return None
        fits = x.shape == like.shape and x.dtype == torch.float64 and bool(torch.isfinite(x).all())
        return x.to(like.device) if fits else None

    def keep(self, x: Float64[Tensor, "n k"], *, now: bool = False) -> None:
        """Write it, if it is time to, or ``now``."""
        if not now and time.monotonic() - self._last < self._every:
            return
        self._last = time.monotonic()
        partial = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"x": x.cpu().contiguous()}, str(partial))
            partial.replace(self.path)
        except Exception as error:  # noqa: BLE001 - a full disk must not cost the solution
            partial.unlink(missing_ok=True)
            if not self._said:
                warnings.warn(
                    f"checkpoint: {self.path} cannot be written ({error}); the solution goes on without.", stacklevel=4
                )
            self._said = True
