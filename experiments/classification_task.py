"""The task of the classification experiment: its settings, the photographs, and the network that meets them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import jacana
from experiments.data import mnist
from experiments.pictures import CLASSES, SHARED, normalised, tiny_imagenet
from experiments.resnet import trained

__all__ = ["OTHERS", "QUICK", "Photographs", "Settings", "load", "source"]

OTHERS = ("deer", "monkey")
"""The classes of Tiny-ImageNet's file that no label names: its deer are gazelles, and CIFAR-10 has no monkeys."""

DRAW = 20_210_303
"""Seed of what is drawn once, for all seeds and methods: the test images and those of MNIST."""


@dataclass(frozen=True)
class Settings:
    """Every number that decides what a method says with some labels and a seed.

    Attributes:
        depth: Of the ResNet.
        test_images: Of the seven classes; the file's part "val" has no more.
        other_images: Of the two other classes, from both parts of the file, which have no more.
        mnist_images: Of MNIST's test part.
        rates: Learning rates that fine-tuning chooses from.
        epochs: Lengths that it chooses from, all of one run a rate.
        batch_size: Images a step, at most.
        momentum: Of stochastic gradient descent.
        folds: Of every cross-validation; ``many_folds`` from ``many`` labels a class.
        held_out: Share of the labels that a temperature is learned from.
        inverse_penalties: Values of C that the logistic regression chooses from.
        samples: Of the posterior, for the mutual information of laplace-torch.
        simulations: Draws of labels behind the calibration error of a model that is calibrated.
        block: Images in one pass of a prediction.
    """

    depth: int = 20
    test_images: int = 1250
    other_images: int = 2200
    mnist_images: int = 1000
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    epochs: tuple[int, ...] = (10, 30)
    batch_size: int = 32
    momentum: float = 0.9
    folds: int = 5
    many: int = 50
    many_folds: int = 3
    held_out: float = 0.2
    inverse_penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
    samples: int = 1000
    simulations: int = 1000
    block: int = 250


QUICK = Settings(
    test_images=70,
    other_images=20,
    mnist_images=20,
    rates=(1e-3, 1e-2),
    epochs=(1,),
    inverse_penalties=(1e-2, 1.0),
    samples=50,
    simulations=50,
)


@dataclass(frozen=True)
class Photographs:
    """Normalised images (n, 3, 32, 32), and places in `SHARED` as labels (n,).

    Attributes:
        pool: Images that labels are drawn from; none of them is a test image.
        pool_labels: Their labels.
        test: Images that every figure is of.
        test_labels: Their labels.
        outside: By name, images of no class that the network has an output for.
    """

    pool: Tensor
    pool_labels: Tensor
    test: Tensor
    test_labels: Tensor
    outside: dict[str, Tensor]

    def draw(self, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
        """Labelled images, as many of each class, class after class in turn; more labels of a seed hold its fewer.

        Args:
            per_class: Labels a class.
            seed: Of the draw.

        Raises:
            ValueError: A class has fewer images.
        """
        rng, labels = np.random.default_rng(seed), self.pool_labels.numpy()
        drawn = [rng.permutation(np.flatnonzero(labels == k))[:per_class] for k in range(len(SHARED))]
        short = [name for name, some in zip(SHARED, drawn, strict=True) if len(some) < per_class]
        if short or per_class < 1:
            raise ValueError(
                f"per_class: got {per_class}, expected 1 or more, and as many images of each class: too few "
                f"{', '.join(short) or 'of all'}; ask for fewer labels."
            )
        chosen = np.stack(drawn, axis=1).ravel()
        return self.pool[chosen], self.pool_labels[chosen]


@functools.lru_cache(maxsize=1)
def load(folder: Path | None, settings: Settings) -> Photographs:
    """Read the photographs; a process reads them once.

    The test images are of the file's part "val" and the labels of its part "train". A photograph that is in both parts,
    as one of the birds is, is a test image and no label.

    Args:
        folder: The folder that the user named.
        settings: Of the experiment.

    Raises:
        MissingData: A file is not there.
        ValueError: A part has fewer images than the settings ask for.
    """
    rng = np.random.default_rng(DRAW)

    def some(images: Tensor, count: int, what: str) -> np.ndarray:
        if len(images) < count:
            raise ValueError(f"{what}: the file has {len(images)} images, expected {count}; use the published file.")
        return rng.permutation(len(images))[:count]

    images, labels = tiny_imagenet(folder, "val", SHARED)
    chosen = some(images, settings.test_images, "test_images")
    test, test_labels = images[chosen], labels[chosen]
    others = torch.cat([tiny_imagenet(folder, part, OTHERS)[0] for part in ("train", "val")])
    digits = torch.from_numpy(mnist(folder, "test")[0])
    outside = {
        "others": others[some(others, settings.other_images, "other_images")],
        "mnist": _in_colour(digits[some(digits, settings.mnist_images, "mnist_images")]),
    }
    pool, pool_labels = tiny_imagenet(folder, "train", SHARED)
    known = {image.numpy().tobytes() for image in test}
    new = torch.tensor([image.numpy().tobytes() not in known for image in pool])
    return Photographs(pool[new], pool_labels[new], test, test_labels, outside)


def source(folder: Path | None, settings: Settings) -> nn.Module:
    """The ResNet trained on CIFAR-10, with the outputs of the shared classes alone.

    Raises:
        MissingData: There is no such file.
    """
    return jacana.with_head(trained(folder, settings.depth), [CLASSES.index(name) for name in SHARED], layer="linear")


def _in_colour(digits: Tensor) -> Tensor:
    """Digits (n, 28, 28) in [0, 1] as the network takes images: a black frame, three channels, normalised."""
    framed = pad(digits, (2, 2, 2, 2)).unsqueeze(1)
    return normalised(framed.expand(-1, 3, -1, -1))
