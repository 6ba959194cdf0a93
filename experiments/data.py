"""Readers of the shared data; none of it lies in this repository."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MalariaMap", "MissingData", "find", "malaria_map", "mnist"]

ORIGINS = {
    "malaria_map.npz": (
        "the Malaria Atlas Project, https://data.malariaatlas.org: yearly 5 km rasters of the Plasmodium falciparum "
        "parasite rate (CC BY), as arrays Pf_Parasite_Rate_<BFA|CMR>_{mean,years,lon,lat} with mean[year, lat, lon], "
        "NaN outside the country"
    ),
    "cifar10_png.zip": (
        "CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html, as <train|test>/<class>/*.png, entries shuffled"
    ),
    "tinyimagenet9_jpeg.zip": (
        "Tiny-ImageNet, http://cs231n.stanford.edu/tiny-imagenet-200.zip, as <train|val>/<class>/<wnid>/*.JPEG"
    ),
    "resnet20-12fca82f.th": "https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2), folder pretrained_models",
    "resnet56-4bfd9763.th": "https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2), folder pretrained_models",
    "mnist.npz": "MNIST, https://yann.lecun.org/exdb/mnist (CC BY-SA 3.0), as arrays x_train, y_train, x_test, y_test",
}
"""Where the public original of each file is found."""


class MissingData(FileNotFoundError):
    """A data file is not where the user said."""


def find(folder: Path | None, name: str) -> Path:
    """The path of a data file.

    Args:
        folder: The folder that the user named.
        name: The file's name.

    Raises:
        MissingData: There is no such file; the message says where its original is found.
    """
    source = f"The public original is {ORIGINS[name]}."
    if folder is None:
        raise MissingData(
            f"No data folder is named, {name} was expected in one: give --data DIR or JACANA_DATA. {source}"
        )
    path = folder / name
    if not path.is_file() or not os.access(path, os.R_OK):
        raise MissingData(f"{path} is missing or cannot be read: put {name} there or name another folder. {source}")
    return path


def mnist(folder: Path | None, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) in [0, 1] and labels (n,) of MNIST, sorted by class as they are in the file.

    Args:
        folder: The folder that the user named.
        part: ``"train"`` or ``"test"``.

    Raises:
        MissingData: There is no such file.
    """
    with np.load(find(folder, "mnist.npz")) as arrays:
        return arrays[f"x_{part}"].astype(np.float32) / 255.0, arrays[f"y_{part}"].astype(np.int64)


@dataclass(frozen=True)
class MalariaMap:
    """Parasite rates of one country at the pixels that are valid in both years.

    Attributes:
        country: ISO code.
        position: Longitude and latitude in degrees of each pixel, (n, 2).
        source: Parasite rate in the source year, (n,).
        target: The same in the target year, (n,).
        inside: Which pixels of the raster these are, (latitudes, longitudes); row-major order is the order above.
        extent: West, east, south, north edge in degrees, as `matplotlib.axes.Axes.imshow` takes it.
    """

    country: str
    position: np.ndarray
    source: np.ndarray
    target: np.ndarray
    inside: np.ndarray
    extent: tuple[float, float, float, float]

    def raster(self, values: np.ndarray) -> np.ndarray:
        """Values at the pixels, (n,), as a raster, north up, NaN outside the country."""
        picture = np.full(self.inside.shape, np.nan)
        picture[self.inside] = values
        return picture


def malaria_map(folder: Path | None, country: str, *, source_year: int = 2012, target_year: int = 2016) -> MalariaMap:
    """Read one country's two years.

    Args:
        folder: Folder with ``malaria_map.npz``.
        country: "BFA" (Burkina Faso) or "CMR" (Cameroon).
        source_year: Year that the network is trained on.
        target_year: Year that it is adapted to.
    """
    with np.load(find(folder, "malaria_map.npz")) as stored:
        mean, years, lon, lat = (
            stored[f"Pf_Parasite_Rate_{country}_{part}"] for part in ("mean", "years", "lon", "lat")
        )
    if lat[0] < lat[-1]:
        lat, mean = lat[::-1], mean[:, ::-1]
    first, second = (mean[list(years).index(year)].astype(np.float64) for year in (source_year, target_year))
    inside = np.isfinite(first) & np.isfinite(second)
    latitude, longitude = np.meshgrid(lat, lon, indexing="ij")
    (west, east), (south, north) = _edges(lon), _edges(lat)
    return MalariaMap(
        country=country,
        position=np.stack([longitude[inside], latitude[inside]], axis=1).astype(np.float64),
        source=first[inside],
        target=second[inside],
        inside=inside,
        extent=(west, east, south, north),
    )


def _edges(centres: np.ndarray) -> tuple[float, float]:
    """The outer edges of evenly spaced pixels, from their centres."""
    half = 0.5 * abs(float(centres[1] - centres[0]))
    return float(centres.min()) - half, float(centres.max()) + half
