"""Readers of the shared photographs, as the shared networks take them: (n, 3, 32, 32), normalised."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.data import find

__all__ = ["CLASSES", "SHARED", "cifar10", "normalised", "tiny_imagenet"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Of CIFAR-10, in the order of the networks' outputs."""

SHARED = ("automobile", "bird", "cat", "dog", "frog", "ship", "truck")
"""Those that Tiny-ImageNet's file has too, and means the same by."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 32


def cifar10(folder: Path | None, part: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Images and labels (n,) of CIFAR-10, the first ``n`` in the file's shuffled order.

    Args:
        folder: The folder that the user named.
        part: ``"train"`` or ``"test"``.
        n: How many; all by default.

    Raises:
        MissingData: There is no such file.
    """
    return _read(find(folder, "cifar10_png.zip"), part, CLASSES, n)


def tiny_imagenet(
    folder: Path | None, part: str, classes: Sequence[str], n: int | None = None
) -> tuple[Tensor, Tensor]:
    """Images of some classes of Tiny-ImageNet at 32 by 32, and their places in ``classes``.

    Args:
        folder: The folder that the user named.
        part: ``"train"`` or ``"val"``.
        classes: Their names.
        n: How many; all by default, sorted by class as they are in the file.

    Raises:
        MissingData: There is no such file.
    """
    return _read(find(folder, "tinyimagenet9_jpeg.zip"), part, classes, n)


def normalised(images: Tensor) -> Tensor:
    """Images (n, 3, 32, 32) in [0, 1] with the channels' means taken off and their deviations divided out."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    return (images - mean) / std


def _read(path: Path, part: str, classes: Sequence[str], n: int | None) -> tuple[Tensor, Tensor]:
    places = {name: place for place, name in enumerate(classes)}
    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            words = name.split("/")
            if len(words) < 3 or words[0] != part or words[1] not in places or not words[-1]:
                continue
            with Image.open(io.BytesIO(archive.read(name))) as picture:
                small = picture.convert("RGB")
                if small.size != (_SIDE, _SIDE):
                    small = small.resize((_SIDE, _SIDE), Image.Resampling.BOX)
                images.append(np.asarray(small))
            labels.append(places[words[1]])
            if len(images) == n:
                break
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0
    return normalised(pixels), torch.tensor(labels)
