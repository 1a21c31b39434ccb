"""Readers of public data sets without domains, each on a small folder of exactly the public
layout."""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import fedpgp.data.datasets.caltech101 as caltech_module
import fedpgp.data.datasets.eurosat as eurosat_module
from fedpgp.data import load_dataset
from fedpgp.data.files import Archive, Source
from fedpgp.errors import FedPGPError


def touch(folder: Path, *files: str) -> None:
    """Images of one grey each, from the file's name: what a label is checked against is the
    path."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (len(path.name), 9, 9)).save(path, "JPEG")


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def oxford_pets(root):
    breeds = {
        "Abyssinian": (1, 1, 1),
        "american_bulldog": (2, 2, 1),
        "British_Shorthair": (3, 1, 2),
    }
    lists = {"trainval": (1, 7), "test": (3, 100)}
    for part, numbers in lists.items():
        rows = [
            f"{b}_{n} {' '.join(map(str, ids))}"
            for b, ids in sorted(breeds.items(), reverse=True)
            for n in numbers
        ]
        text(root / "annotations" / f"{part}.txt", *rows)
        touch(root / "images", *(f"{b}_{n}.jpg" for b in breeds for n in numbers))
    (root / "images" / "Abyssinian_34.mat").touch()  # the archive has such


def flowers102(root):
    touch(root / "jpg", *(f"image_{i:05d}.jpg" for i in range(1, 7)))
    savemat(root / "imagelabels.mat", {"labels": np.array([[3, 1, 2, 3, 1, 2]], np.uint8)})
    savemat(
        root / "setid.mat",
        {"trnid": np.array([[1, 2]]), "valid": np.array([[3]]), "tstid": np.array([[4, 5, 6]])},
    )
    text(
        root / "cat_to_name.json",
        json.dumps({"2": "hard-leaved pocket orchid", "3": "azalea", "1": "pink primrose"}),
    )


def dtd(root):
    for texture in ("zigzagged", "banded"):
        touch(root / "images" / texture, *(f"{texture}_{i:04d}.jpg" for i in range(3)))
        (root / "images" / texture / ".directory").touch()
    (root / "images" / ".hidden").mkdir()
    for i, part in enumerate(("train", "val", "test")):
        for partition in (1, 2):
            rows = [f"{t}/{t}_{(i + partition - 1) % 3:04d}.jpg" for t in ("banded", "zigzagged")]
            text(root / "labels" / f"{part}{partition}.txt", *rows)


def caltech101(root):
    folders = ("accordion", "BACKGROUND_Google", "Faces", "airplanes", "Faces_easy", "Leopards")
    for folder in folders:
        touch(root / "101_ObjectCategories" / folder, *(f"image_{i:04d}.jpg" for i in range(1, 11)))


def food101(root):
    for dish in ("waffles", "apple_pie"):
        touch(root / "images" / dish, *(f"{i}.jpg" for i in range(4)))
    for part, ids in (("train", (0, 1, 2)), ("test", (3,))):
        files = {dish: [f"{dish}/{i}" for i in ids] for dish in ("waffles", "apple_pie")}
        text(root / "meta" / f"{part}.json", json.dumps(files))


def eurosat(root):
    for name in ("SeaLake", "River", "AnnualCrop"):
        touch(root / "2750" / name, *(f"{name}_{i}.jpg" for i in range(1, 11)))


def fgvc_aircraft(root):
    variants = ("707-320", "F/A-18", "Boeing 717")
    text(root / "variants.txt", *variants)
    for i, part in enumerate(("train", "val", "test")):
        text(
            root / f"images_variant_{part}.txt",
            *(f"{i}00000{k} {v}" for k, v in enumerate(variants)),
        )
        touch(root / "images", *(f"{i}00000{k}.jpg" for k in range(3)))


def stanford_cars(root):
    names = np.array([["AM General Hummer SUV 2000", "Audi TTS Coupe 2012"]], dtype=object)
    kind = [("bbox_x1", object), ("class", object), ("fname", object)]
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    train = np.array([[(39, 2, "00001.jpg"), (1, 1, "00002.jpg")]], dtype=kind)
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": train})
    test = np.array([[(3, 2, "00001.jpg")]], dtype=kind)  # one row: squeezed, it has no axis left
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": test})
    touch(root, "cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg")


def sun397(root):
    scenes = ("a/abbey", "a/apartment_building/outdoor", "z/zoo")
    text(root / "ClassName.txt", *(f"/{scene}" for scene in scenes))
    for part, letter in (("Training", "a"), ("Testing", "b")):
        text(root / f"{part}_01.txt", *(f"/{scene}/sun_{letter}.jpg" for scene in scenes))
        touch(root / "SUN397", *(f"{scene}/sun_{letter}.jpg" for scene in scenes))


def ucf101(root):
    actions = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    lists = root / "ucfTrainTestlist"
    text(lists / "classInd.txt", *(f"{i} {action}" for i, action in enumerate(actions, 1)))
    in_lists = ("ApplyEyeMakeup", "HandStandPushups", "YoYo")  # spelt in two ways
    text(
        lists / "trainlist01.txt",
        *(f"{a}/v_{a}_g08_c01.avi {i}" for i, a in enumerate(in_lists, 1)),
    )
    text(lists / "testlist01.txt", *(f"{a}/v_{a}_g01_c01.avi" for a in in_lists))
    for folder, action in zip(
        ("Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"), in_lists, strict=True
    ):
        touch(
            root / "UCF-101-midframes" / folder,
            f"v_{action}_g08_c01.jpg",
            f"v_{action}_g01_c01.jpg",
        )


@dataclass(frozen=True)
class Case:
    """A data set, where CoOp and torchvision put it, and what its reader must say of the
    folder ``write`` makes."""

    write: Callable[[Path], None]
    folders: tuple[str, ...]
    class_names: list[str]
    template: str
    sizes: tuple[int, int | None, int]
    file: str
    label: int
    images: str
    zhou: str | None
    note: str

    @property
    def name(self) -> str:
        return self.write.__name__


CASES = [
    Case(
        oxford_pets,
        ("oxford_pets", "oxford-iiit-pet"),
        ["abyssinian", "american_bulldog", "british_shorthair"],
        "a photo of a {}, a type of pet.",
        (6, None, 6),
        "images/British_Shorthair_7.jpg",
        2,
        "images",
        "OxfordPets",
        "official trainval and test",
    ),
    Case(
        flowers102,
        ("oxford_flowers", "flowers-102"),
        ["pink primrose", "hard-leaved pocket orchid", "azalea"],
        "a photo of a {}, a type of flower.",
        (2, 1, 3),
        "jpg/image_00001.jpg",
        2,
        "jpg",
        "OxfordFlowers",
        "official train, val and test",
    ),
    Case(
        dtd,
        ("dtd", "dtd/dtd"),
        ["banded", "zigzagged"],
        "{} texture.",
        (2, 2, 2),
        "images/zigzagged/zigzagged_0000.jpg",
        1,
        "images",
        "DescribableTextures",
        "official partition 1",
    ),
    Case(
        caltech101,
        ("caltech-101", "caltech101"),
        ["face", "leopard", "accordion", "airplane"],
        "a photo of a {}.",
        (20, 8, 12),
        "101_ObjectCategories/airplanes/image_0001.jpg",
        3,
        "101_ObjectCategories",
        "Caltech101",
        "our own, 50 % / 20 % / 30 %",
    ),
    Case(
        food101,
        ("food-101",),
        ["apple_pie", "waffles"],
        "a photo of {}, a type of food.",
        (6, None, 2),
        "images/waffles/2.jpg",
        1,
        "images",
        "Food101",
        "official train and test",
    ),
    Case(
        eurosat,
        ("eurosat",),
        ["Annual Crop Land", "River", "Sea or Lake"],
        "a centered satellite photo of {}.",
        (15, 6, 9),
        "2750/SeaLake/SeaLake_10.jpg",
        2,
        "2750",
        "EuroSAT",
        "our own, 50 % / 20 % / 30 %",
    ),
    Case(
        fgvc_aircraft,
        ("fgvc_aircraft", "fgvc-aircraft-2013b/data"),
        ["707-320", "F/A-18", "Boeing 717"],
        "a photo of a {}, a type of aircraft.",
        (3, 3, 3),
        "images/0000002.jpg",
        2,
        "images",
        None,
        "official train, val and test",
    ),
    Case(
        stanford_cars,
        ("stanford_cars",),
        ["2000 AM General Hummer SUV", "2012 Audi TTS Coupe"],
        "a photo of a {}.",
        (2, None, 1),
        "cars_train/00001.jpg",
        1,
        "",
        "StanfordCars",
        "official train and test",
    ),
    Case(
        sun397,
        ("sun397", "."),
        ["abbey", "outdoor apartment_building", "zoo"],
        "a photo of a {}.",
        (3, None, 3),
        "SUN397/a/apartment_building/outdoor/sun_a.jpg",
        1,
        "SUN397",
        "SUN397",
        "official partition 01",
    ),
    Case(
        ucf101,
        ("ucf101",),
        ["Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"],
        "a photo of a person doing {}.",
        (3, None, 3),
        "UCF-101-midframes/Handstand_Pushups/v_HandStandPushups_g08_c01.jpg",
        1,
        "UCF-101-midframes",
        "UCF101",
        "official list 01",
    ),
]
PLACES = [(case, folder) for case in CASES for folder in case.folders]
WITH_ZHOU = [case for case in CASES if case.zhou]


def rows(dataset):
    """All images: file -> (label, split)."""
    splits = {part: getattr(dataset, part) for part in ("train", "val", "test")}
    return {
        path: (int(label), part)
        for part, split in splits.items()
        if split is not None
        for path, label in zip(split.paths, split.labels, strict=True)
    }


@pytest.mark.parametrize(("case", "folder"), PLACES, ids=[f"{c.name}-{f}" for c, f in PLACES])
def test_public_layout(tmp_path, case, folder):
    case.write(tmp_path / folder)
    dataset = load_dataset(case.name, tmp_path)
    assert dataset.name == case.name
    assert dataset.class_names == case.class_names
    assert dataset.template == case.template
    assert (
        tuple(None if s is None else len(s) for s in (dataset.train, dataset.val, dataset.test))
        == case.sizes
    )
    files = rows(dataset)
    assert len(files) == sum(size or 0 for size in case.sizes), "no image is in two splits"
    assert files[case.file][0] == case.label
    assert case.note in dataset.notes[0]
    assert case.zhou is None or f"split_zhou_{case.zhou}.json" in dataset.notes[0]
    for split in (dataset.train, dataset.test):
        assert [split.image(i).size for i in range(len(split))] == [(8, 6)] * len(split), (
            "every path opens"
        )


@pytest.mark.parametrize("case", WITH_ZHOU, ids=lambda case: case.name)
def test_coops_split_wins_when_it_is_there(tmp_path, case):
    folder = tmp_path / case.folders[0]
    case.write(folder)
    official = load_dataset(case.name, tmp_path)
    content = {"train": [], "val": [], "test": []}
    for n, (path, (label, _)) in enumerate(rows(official).items()):
        inside = path.removeprefix(f"{case.images}/")
        content[("test", "train", "val")[n % 3]].append([inside, label, case.class_names[label]])
    (folder / f"split_zhou_{case.zhou}.json").write_text(json.dumps(content))
    dataset = load_dataset(case.name, tmp_path)
    assert dataset.class_names == case.class_names and dataset.template == case.template
    assert dataset.notes == (f"split: split_zhou_{case.zhou}.json (CoOp)",)
    assert {p: r[0] for p, r in rows(dataset).items()} == {
        p: r[0] for p, r in rows(official).items()
    }
    for part, expected in content.items():
        assert len(getattr(dataset, part)) == len(expected)
    assert dataset.train.image(0).size == (8, 6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_missing_data_says_what_from_where_how_large_and_where_to(tmp_path, case):
    with pytest.raises(FedPGPError) as error:
        load_dataset(case.name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"data set {case.name} is not in {tmp_path}: fetch ")
    assert re.search(r"\d [GM]i?B|hundred MB", message)
    assert str(tmp_path / case.folders[0]) in message and "FEDPGP_DATA" in message
    assert ("dataset.download=true" in message) == (case.name not in ("stanford_cars", "ucf101"))


def test_flowers_have_their_names_without_coops_file(tmp_path):
    flowers102(tmp_path / "flowers-102")
    (tmp_path / "flowers-102" / "cat_to_name.json").unlink()
    names = load_dataset("flowers102", tmp_path).class_names
    assert len(names) == 102
    assert [names[i] for i in (0, 2, 6, 15, 20)] == [
        "pink primrose",
        "canterbury bells",
        "moon orchid",
        "globe-flower",
        "fire lily",
    ]


def test_food_by_text_lists_and_other_spellings(tmp_path):
    food101(tmp_path / "food-101")
    before = rows(load_dataset("food101", tmp_path))
    for part in ("train", "test"):
        path = tmp_path / "food-101" / "meta" / f"{part}.json"
        text(path.with_suffix(".txt"), *sum(json.loads(path.read_text()).values(), []))
        path.unlink()
    assert rows(load_dataset("food101", tmp_path)) == before


def test_a_split_of_our_own_hangs_on_names_only(tmp_path):
    eurosat(tmp_path / "eurosat")
    before = rows(load_dataset("eurosat", tmp_path))
    assert rows(load_dataset("eurosat", tmp_path)) == before
    touch(tmp_path / "eurosat" / "2750" / "River", "River_11.jpg")
    after = rows(load_dataset("eurosat", tmp_path))
    assert sum(after[path] != row for path, row in before.items()) <= 2, (
        "a new file moves one over each border"
    )


DAMAGE = {
    "no JSON": "{",
    "no split of CoOp": json.dumps({"train": [["a.jpg", 0]]}),
    "label 0 is both": json.dumps(
        {"train": [["a.jpg", 0, "a"], ["b.jpg", 0, "b"]], "val": [], "test": []}
    ),
    "no image has label 1": json.dumps(
        {"train": [["a.jpg", 0, "a"], ["b.jpg", 2, "b"]], "val": [], "test": []}
    ),
    "its test split": json.dumps({"train": [["a.jpg", 0, "a"]], "val": [], "test": []}),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_split_of_coop_is_named(tmp_path, message):
    oxford_pets(tmp_path / "oxford_pets")
    (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").write_text(DAMAGE[message])
    with pytest.raises(FedPGPError, match=message):
        load_dataset("oxford_pets", tmp_path)


@pytest.mark.parametrize(
    ("write", "file", "content", "message"),
    [
        (
            oxford_pets,
            "annotations/test.txt",
            "Abyssinian_1 1 1",
            "line 1: .* has 3 columns, not 4",
        ),
        (oxford_pets, "annotations/test.txt", "Persian_1 1 1 1", "label 0 is both"),
        (dtd, "labels/val1.txt", "woven/woven_0001.jpg", "val1.txt lists woven/woven_0001.jpg"),
        (food101, "meta/test.txt", "pho/1", "test.txt lists pho/1"),
        (fgvc_aircraft, "images_variant_val.txt", "0000001 747", "val.txt names 747"),
        (sun397, "Testing_01.txt", "/b/bar/sun_x.jpg", "lists b/bar/sun_x.jpg"),
        (ucf101, "ucfTrainTestlist/testlist01.txt", "Fencing/v_1.avi", "names Fencing"),
        (ucf101, "ucfTrainTestlist/classInd.txt", "2 YoYo", "no image has label 0"),
        (flowers102, "setid.mat", "x", "setid.mat cannot be read"),
        (flowers102, "cat_to_name.json", '{"1": "a"}', "does not fit the 1 names"),
        (stanford_cars, "cars_test_annos_withlabels.mat", "", "withlabels.mat cannot be read"),
    ],
)
def test_damaged_lists_are_named(tmp_path, write, file, content, message):
    folders = {case.write: case.folders[0] for case in CASES}
    write(tmp_path / folders[write])
    (tmp_path / folders[write] / file).write_text(content)
    with pytest.raises(FedPGPError, match=message):
        load_dataset(write.__name__, tmp_path)


# Fetching, from a server of this process. ---------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a server that gives out ``tmp_path``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetched(tmp_path, monkeypatch, served):
    """EuroSAT's archive on a server."""
    eurosat(tmp_path / "made")
    packed = Path(shutil.make_archive(str(tmp_path / "EuroSAT"), "zip", tmp_path / "made"))
    archive = Archive(
        f"{served}/{packed.name}", hashlib.md5(packed.read_bytes()).hexdigest(), "eurosat"
    )
    monkeypatch.setattr(eurosat_module, "SOURCE", Source(archive.url, "1 MB", (archive,)))
    return packed


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_download_fetches_and_unpacks(tmp_path, fetched):
    assert len(load_dataset("eurosat", tmp_path / "data", download=True).train) == 15
    fetched.unlink()
    assert len(load_dataset("eurosat", tmp_path / "data", download=True).train) == 15, (
        "nothing is fetched twice"
    )


def test_an_unpacking_that_was_killed_is_no_data_set(tmp_path, fetched):
    root = tmp_path / "data"
    touch(root / "eurosat" / "2750" / "River", "River_1.jpg")
    (root / ".eurosat.unfinished").touch()
    with pytest.raises(
        FedPGPError, match=r"not unpacked to the end.*remove .*\.eurosat\.unfinished"
    ):
        load_dataset("eurosat", root)
    assert len(load_dataset("eurosat", root, download=True).train) == 15
    assert len(load_dataset("eurosat", root).train) == 15


def test_a_download_that_fails_says_what_to_do_by_hand(tmp_path, fetched):
    fetched.unlink()
    with pytest.raises(
        FedPGPError,
        match="EuroSAT.zip cannot be fetched .*by hand .1 MB. and unpack it in .*eurosat",
    ):
        load_dataset("eurosat", tmp_path / "data", download=True)


def test_an_archive_inside_an_archive_is_unpacked_too(tmp_path, monkeypatch, served):
    caltech101(tmp_path / "made")
    (tmp_path / "outer" / "caltech-101").mkdir(parents=True)
    inside = tmp_path / "outer" / "caltech-101" / "101_ObjectCategories"
    shutil.make_archive(str(inside), "gztar", tmp_path / "made")
    shutil.make_archive(str(tmp_path / "caltech-101"), "zip", tmp_path / "outer")
    archive = replace(caltech_module.SOURCE.archives[0], url=f"{served}/caltech-101.zip", md5=None)
    monkeypatch.setattr(caltech_module, "SOURCE", Source(archive.url, "1 MB", (archive,)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "caltech-101.zip").write_bytes(b"what a broken download left")
    assert len(load_dataset("caltech101", tmp_path / "data", download=True).train) == 20
