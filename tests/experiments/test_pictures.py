"""Photographs and the networks trained on them: the shared files say what they should."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments import data, pictures, resnet

FOLDER = Path(os.environ.get("JACANA_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not all(
        (FOLDER / name).is_file() for name in ("cifar10_png.zip", "tinyimagenet9_jpeg.zip", "resnet20-12fca82f.th")
    ),
    reason=f"no cifar10_png.zip, tinyimagenet9_jpeg.zip and resnet20-12fca82f.th in {FOLDER}; name it in JACANA_DATA",
)


def test_missing_data_are_named_with_their_origin():
    with pytest.raises(data.MissingData, match=r"cifar10_png\.zip.*cs\.toronto"):
        pictures.cifar10(None, "train")
    with pytest.raises(data.MissingData, match=r"resnet56.*akamaster"):
        resnet.trained(Path("/nowhere"), 56)


def test_an_archive_is_read_in_its_order(tmp_path):
    colours = {"train/cat/a.png": (255, 0, 0), "train/ship/b.png": (0, 255, 0), "test/cat/c.png": (0, 0, 255)}
    with zipfile.ZipFile(tmp_path / "cifar10_png.zip", "w") as archive:
        for name, colour in colours.items():
            with archive.open(name, "w") as file:
                Image.new("RGB", (32, 32), colour).save(file, "png")
    images, labels = pictures.cifar10(tmp_path, "train")
    assert labels.tolist() == [3, 8]
    red = pictures.normalised(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 32, 32))
    torch.testing.assert_close(images[0], red)
    assert len(pictures.cifar10(tmp_path, "train", 1)[0]) == 1


def test_the_network_has_the_published_shape():
    net = resnet.ResNet(3)
    assert sum(p.numel() for p in net.parameters()) == 269_722
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@needs_data
def test_the_trained_network_knows_the_photographs():
    net = resnet.trained(FOLDER)
    images, labels = pictures.cifar10(FOLDER, "test", 500)
    with torch.no_grad():
        assert float((net(images).argmax(1) == labels).float().mean()) > 0.88  # 91.7 % of all; false alarm 1e-3


@needs_data
def test_without_adaptation_it_knows_three_in_five_of_tiny_imagenet():
    images, labels = pictures.tiny_imagenet(FOLDER, "val", pictures.SHARED)
    assert len(images) == 1250
    logits = [pictures.CLASSES.index(name) for name in pictures.SHARED]
    with torch.no_grad():
        found = resnet.trained(FOLDER)(images)[:, logits].argmax(1)
    assert round(float((found == labels).float().mean()), 3) == 0.613
