"""Every public data set in miniature: its own layout, with CoOp's lists where CoOp has some, and a
few small images a class."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fedpgp.data.datasets.cifar import SUPERCLASSES
from fedpgp.data.datasets.domainnet import DOMAINS, TEN
from fedpgp.data.datasets.fed_isic2019 import CLASSES as ISIC_CLASSES
from fedpgp.data.datasets.fed_isic2019 import IMAGES as ISIC_IMAGES
from fedpgp.data.datasets.office_caltech10 import CLASSES as OFFICE_CLASSES
from fedpgp.data.datasets.office_caltech10 import DOMAINS as OFFICE_DOMAINS

CLASSES = 30
"""Of each data set without domains; CIFAR has its own number, since it is part of its layout."""
IMAGES = {"train": 16, "val": 1, "test": 2}
"""Of each class."""
IN_DOMAINS = {"train": 8, "test": 6}
"""Of each class and domain."""
IN_CIFAR = {10: {"train": 30, "test": 30}, 100: {"train": 4, "test": 3}}
"""Of each class, by the number of classes."""

ZHOU = {
    "oxford_pets": ("oxford_pets", "images", "OxfordPets"),
    "flowers102": ("oxford_flowers", "jpg", "OxfordFlowers"),
    "dtd": ("dtd", "images", "DescribableTextures"),
    "caltech101": ("caltech-101", "101_ObjectCategories", "Caltech101"),
    "food101": ("food-101", "images", "Food101"),
    "eurosat": ("eurosat", "2750", "EuroSAT"),
    "stanford_cars": ("stanford_cars", "", "StanfordCars"),
    "sun397": ("sun397", "SUN397", "SUN397"),
    "ucf101": ("ucf101", "UCF-101-midframes", "UCF101"),
}
"""Data set -> CoOp's folder, its folder of images, and the name in its list's name."""
VARIANTS = {
    "imagenet_sketch": "imagenet-sketch/images",
    "imagenet_a": "imagenet-adversarial/imagenet-a",
    "imagenet_r": "imagenet-rendition/imagenet-r",
}
_FIRST = ("red", "small", "wooden", "old", "wild", "tall")
_SECOND = ("kettle", "falcon", "harbour", "tree", "river")
NAMES = [f"{first}_{second}" for first in _FIRST for second in _SECOND]


def public_data(root: Path) -> Path:
    """Write every data set of the published tables below ``root``, and return it."""
    for folder, images, name in ZHOU.values():
        _zhou(root / folder, images, name)
    _aircraft(root / "fgvc_aircraft")
    _imagenet(root)
    _cifar(root)
    _domainnet(root / "domainnet")
    _fedbn(root / "office_caltech_10")
    _isic(root / "fed_isic2019")
    return root


def picture(path: Path, label: int, number: int) -> None:
    """Write a small JPEG: a colour of its class, with noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(label).integers(0, 256, 3)
    noise = np.random.default_rng([label, number]).integers(-60, 61, (24, 32, 3))
    Image.fromarray(np.uint8(np.clip(colour + noise, 0, 255))).save(path, "JPEG")


def _zhou(folder: Path, images: str, name: str) -> None:
    parts: dict[str, list] = {}
    for part, count in IMAGES.items():
        rows = []
        for label, class_name in enumerate(NAMES):
            for i in range(count):
                where = "cars_test" if part == "test" else "cars_train"
                below = where if not images else class_name
                file = f"{below}/{class_name}_{part}_{i}.jpg"
                picture(folder / images / file, label, number_of(part, i))
                rows.append([file, label, class_name])
        parts[part] = rows
    (folder / f"split_zhou_{name}.json").write_text(json.dumps(parts))


def number_of(part: str, number: int) -> int:
    """Return a number that differs between images of a class."""
    return 1000 * ("train", "val", "test").index(part) + number


def _aircraft(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for part, count in IMAGES.items():
        lines = []
        for label, name in enumerate(NAMES):
            for i in range(count):
                file = f"{number_of(part, i):04d}{label:03d}"
                picture(folder / "images" / f"{file}.jpg", label, number_of(part, i))
                lines.append(f"{file} {name}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))


def _imagenet(root: Path) -> None:
    ids = [f"n{1_000_000 + label:08d}" for label in range(CLASSES)]
    names = "".join(f"{wnid} {name}\n" for wnid, name in zip(ids, NAMES, strict=True))
    for label, wnid in enumerate(ids):
        for part, folder in (("train", "train"), ("test", "val")):
            for i in range(IMAGES[part]):
                file = root / "imagenet" / "images" / folder / wnid / f"{wnid}_{i}.JPEG"
                picture(file, label, number_of(part, i))
        v2 = root / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(label)
        picture(v2 / "a.jpeg", label, 5000)
        for number, folder in enumerate(VARIANTS.values()):
            if label % 2 == 0 or "sketch" in folder:  # A and R have a part of the classes
                picture(root / folder / wnid / "a.JPEG", label, 6000 + number)
    (root / "imagenet" / "classnames.txt").write_text(names)


def _cifar(root: Path) -> None:
    ten = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    hundred = [f"{NAMES[i % CLASSES]}_{'abcd'[i // CLASSES]}" for i in range(100)]

    def rows(classes: int, part: str) -> tuple[np.ndarray, list[int]]:
        labels = list(range(classes)) * IN_CIFAR[classes][part]
        rng = np.random.default_rng([classes, len(part)])
        base = np.random.default_rng(classes).integers(0, 200, (classes, 1))
        return np.uint8(base[labels] + rng.integers(0, 56, (len(labels), 3072))), labels

    def dump(path: Path, content: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content, protocol=2))

    batches = root / "cifar-10-batches-py"
    data, labels = rows(10, "train")
    for i in range(5):
        dump(batches / f"data_batch_{i + 1}", {"data": data[i::5], "labels": labels[i::5]})
    data, labels = rows(10, "test")
    dump(batches / "test_batch", {"data": data, "labels": labels})
    dump(batches / "batches.meta", {"label_names": ten})
    folder = root / "cifar-100-python"
    for part in ("train", "test"):
        data, labels = rows(100, part)
        coarse = [SUPERCLASSES[label] for label in labels]
        content = {"data": data, "fine_labels": labels, "coarse_labels": coarse}
        dump(folder / part, content)
    dump(folder / "meta", {"fine_label_names": hundred, "coarse_label_names": NAMES[:20]})


def _in_domains(domains: list[str], classes: list[str]) -> Iterator[tuple[str, str, str, int, int]]:
    """Yield (part, domain, class, label, number) of each image."""
    for domain in domains:
        for part, count in IN_DOMAINS.items():
            for label, name in enumerate(classes):
                for i in range(count):
                    yield part, domain, name, label, number_of(part, i)


def _domainnet(folder: Path) -> None:
    classes = sorted([*TEN, "aircraft_carrier", "t-shirt"])
    lists: dict[tuple[str, str], list[str]] = {}
    for part, domain, name, label, number in _in_domains(list(DOMAINS), classes):
        file = f"{domain}/{name}/{domain}_{label:03d}_{number:06d}.jpg"
        picture(folder / file, label, number)
        lists.setdefault((domain, part), []).append(f"{file} {label}\n")
    (folder / "txt").mkdir()
    for (domain, part), lines in lists.items():
        (folder / "txt" / f"{domain}_{part}.txt").write_text("".join(lines))


def _fedbn(folder: Path) -> None:
    lists: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for part, domain, name, label, number in _in_domains(list(OFFICE_DOMAINS), OFFICE_CLASSES):
        file = f"{domain}/{name}/frame_{number:04d}.jpg"
        picture(folder / file, label, number)
        lists.setdefault((domain, part), []).append((f"office_caltech_10/{file}", name))
    for (domain, part), rows in lists.items():
        content = tuple(np.array(column) for column in zip(*rows, strict=True))
        (folder / f"{domain}_{part}.pkl").write_bytes(pickle.dumps(content, protocol=2))


def _isic(folder: Path) -> None:
    lines = ["image,target,center,fold\n"]
    kinds = [str(label) for label in range(len(ISIC_CLASSES))]
    for part, centre, name, label, number in _in_domains(list(map(str, range(6))), kinds):
        image = f"ISIC_{number:04d}{centre}{name}"
        picture(folder / ISIC_IMAGES[0] / f"{image}.jpg", label, number)
        lines.append(f"{image},{label},{centre},{part}\n")
    (folder / "train_test_split").write_text("".join(lines))
