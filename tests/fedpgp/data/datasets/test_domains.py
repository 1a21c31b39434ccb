"""DomainNet, Office-Caltech10, Office-Home and PACS, each on a small folder of exactly the public
layout; and that no class order hangs on PYTHONHASHSEED."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fedpgp.data import Subset, base_novel, few_shot, load_dataset, partition
from fedpgp.errors import FedPGPError

DOMAINS = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
TEN = [
    "bird",
    "feather",
    "headphones",
    "ice_cream",
    "teapot",
    "tiger",
    "whale",
    "windmill",
    "wine_glass",
    "zebra",
]
OFFICE = ["amazon", "caltech", "dslr", "webcam"]
OFFICE_TEN = [
    *("back_pack", "bike", "calculator", "headphones", "keyboard"),
    *("laptop_computer", "monitor", "mouse", "mug", "projector"),
]


def touch(folder, *files):
    for file in files:
        path = folder / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 6)).save(path)


def write_domainnet(folder, lists="txt", classes=("aircraft_carrier", "bird", "t-shirt", "zebra")):
    (folder / lists).mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for part, ids in (("train", (1, 2, 3)), ("test", (4,))):
            files = [
                (f"{domain}/{name}/{domain}_{label:03d}_{i:06d}.jpg", label)
                for label, name in enumerate(classes)
                if (domain, part, name) != ("painting", "train", "t-shirt")  # as published
                for i in ids
            ]
            touch(folder, *(file for file, _ in files))
            lines = "".join(f"{file} {label}\n" for file, label in files)
            (folder / lists / f"{domain}_{part}.txt").write_text(lines)


def write_fedbn(folder, domains, classes, per_class=3, prefix=None):
    """Images, and the pickles of FedBN: a pair of arrays, paths and class names."""
    for domain in domains:
        for part, ids in (("train", range(1, per_class)), ("test", [per_class])):
            files = [
                (f"{domain}/{name}/frame_{i:04d}.jpg", name)
                for name in reversed(classes)
                for i in ids
            ]
            touch(folder, *(file for file, _ in files))
            paths = np.array([f"{prefix or folder.name}/{file}" for file, _ in files])
            texts = np.array([name for _, name in files], dtype=object if part == "train" else None)
            (folder / f"{domain}_{part}.pkl").write_bytes(
                pickle.dumps((paths, texts), protocol=2 + (part == "test"))
            )


def named_by_folder(dataset):
    """An image's folder is its class's name and its domain's, in every split."""
    for split in (dataset.train, dataset.val, dataset.test):
        for path, label, domain in (
            zip(split.paths, split.labels, split.domains, strict=True) if split else ()
        ):
            if path.split("/")[-2] != dataset.class_names[label] or not path.startswith(domain):
                return False
    return True


@pytest.mark.parametrize("lists", ["txt", "splits", "."])
@pytest.mark.parametrize("folder", ["domainnet", "DomainNet"])
def test_domainnet_takes_its_classes_from_all_lists(tmp_path, folder, lists):
    write_domainnet(tmp_path / folder, lists)
    dataset = load_dataset("domainnet", tmp_path)
    assert dataset.class_names == ["aircraft_carrier", "bird", "t-shirt", "zebra"]
    assert (
        dataset.template == "a photo of a {}." and dataset.val is None and named_by_folder(dataset)
    )
    assert (len(dataset.train), len(dataset.test)) == (6 * 12 - 3, 6 * 4)
    assert list(dict.fromkeys(dataset.train.domains)) == DOMAINS
    assert dataset.notes == ("split: official lists",)
    assert dataset.train.image(0).mode == "RGB"
    painting = load_dataset("domainnet", tmp_path, domains=["painting"])
    assert painting.class_names == dataset.class_names and set(painting.train.labels.tolist()) == {
        0,
        1,
        3,
    }
    assert (len(painting.train), len(painting.test)) == (9, 4)


def test_domainnet_of_some_domains_needs_only_these(tmp_path):
    write_domainnet(tmp_path / "domainnet")
    (tmp_path / "domainnet" / "txt" / "real_test.txt").unlink()
    with pytest.raises(FedPGPError, match=r"real_test\.txt"):
        load_dataset("domainnet", tmp_path)
    dataset = load_dataset("domainnet", tmp_path, domains=["sketch", "clipart"])
    assert list(dict.fromkeys(dataset.test.domains)) == ["clipart", "sketch"]
    with pytest.raises(FedPGPError, match="domain of domainnet 'paintings'; did you mean painting"):
        load_dataset("domainnet", tmp_path, domains="paintings")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clipart/bird/x.jpg bird", "no path and label"),
        ("bird/x.jpg 1", "no path DOMAIN"),
        ("a/crow/x.jpg 1", "both"),
    ],
)
def test_damaged_lists_are_named(tmp_path, line, message):
    write_domainnet(tmp_path / "domainnet")
    (tmp_path / "domainnet" / "txt" / "quickdraw_train.txt").write_text(line)
    with pytest.raises(FedPGPError, match=f"quickdraw_train.txt.*{message}"):
        load_dataset("domainnet", tmp_path)


@pytest.mark.parametrize("source", ["lists", "pickles", "folders"])
def test_domainnet10_has_one_order_whatever_it_is_read_from(tmp_path, source):
    folder = tmp_path / "DomainNet"
    if source == "pickles":
        write_fedbn(folder, DOMAINS, TEN)
    else:
        write_domainnet(folder, classes=("aircraft_carrier", *reversed(TEN), "zigzag"))
    if source == "folders":
        for path in (folder / "txt").iterdir():
            path.unlink()
    dataset = load_dataset("domainnet10", tmp_path)
    assert dataset.class_names == TEN and named_by_folder(dataset)
    assert (
        list(dict.fromkeys(dataset.train.domains))
        == list(dict.fromkeys(dataset.test.domains))
        == DOMAINS
    )
    assert len(dataset.test) == 60 and set(dataset.test.labels.tolist()) == set(range(10))
    assert len(dataset.train) == {"lists": 180, "pickles": 120, "folders": 180}[source]
    assert {"lists": "official lists", "pickles": "FedBN's pickles", "folders": "our own, 20%"}[
        source
    ] in dataset.notes[0]
    assert len(load_dataset("domainnet10", tmp_path, domains=["real"]).test) == 10


@pytest.mark.parametrize("prefix", [None, "../data/office_caltech_10", "elsewhere"])
def test_office_caltech10(tmp_path, prefix):
    folder = tmp_path / "office_caltech_10"
    write_fedbn(folder, OFFICE, OFFICE_TEN, prefix=prefix)
    dataset = load_dataset("office_caltech10", tmp_path)
    assert dataset.class_names == OFFICE_TEN and named_by_folder(dataset)
    assert (len(dataset.train), len(dataset.test)) == (80, 40)
    assert dataset.train.domains == [d for d in OFFICE for _ in range(20)]
    assert (
        dataset.train.paths[0] == "amazon/projector/frame_0001.jpg" and dataset.train.labels[0] == 9
    )
    assert dataset.train.image(0).size == (8, 6)
    (folder / "dslr_test.pkl").unlink()  # without its pickles: by folders
    by_folder = load_dataset("office_caltech10", tmp_path)
    assert by_folder.class_names == OFFICE_TEN and named_by_folder(by_folder)
    assert (len(by_folder.train), len(by_folder.test)) == (80, 40) and "our own" in by_folder.notes[
        0
    ]


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "dslr_test.pkl cannot be read .it names .*print"),
        (
            (np.array(["a/b/c.jpg"]), np.array(["sofa"])),
            "dslr_test.pkl is no pair of paths and names",
        ),
        (
            (np.array(["a/b/c.jpg", "x"]), np.array(["mug"])),
            "dslr_test.pkl is no pair of paths and names",
        ),
    ],
)
def test_a_pickle_is_read_safely(tmp_path, content, message):
    write_fedbn(tmp_path / "office_caltech_10", OFFICE, OFFICE_TEN)
    (tmp_path / "office_caltech_10" / "dslr_test.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(FedPGPError, match=message):
        load_dataset("office_caltech10", tmp_path)


@pytest.mark.parametrize(
    ("folder", "domains"),
    [
        ("OfficeHomeDataset_10072016", ["Art", "Clipart", "Product", "Real World"]),
        ("office_home", ["art", "clipart", "product", "real_world"]),
    ],
)
def test_office_home(tmp_path, folder, domains):
    for domain in domains:
        for name in ("TV", "Alarm_Clock", "Backpack"):
            if (domain, name) != (domains[0], "TV"):
                touch(tmp_path / folder / domain / name, *(f"{i:05d}.jpg" for i in range(1, 11)))
    dataset = load_dataset("office_home", tmp_path)
    assert (
        dataset.class_names == ["Alarm_Clock", "Backpack", "TV"]
        and dataset.template == "a photo of a {}."
    )
    assert (len(dataset.train), len(dataset.test)) == (88, 22)
    assert list(dict.fromkeys(dataset.train.domains)) == ["art", "clipart", "product", "real_world"]
    for path, label in zip(dataset.test.paths, dataset.test.labels, strict=True):
        assert path.split("/")[1] == dataset.class_names[label]
    assert dataset.train.image(len(dataset.train) - 1).size == (8, 6)
    art = load_dataset("office_home", tmp_path, domains="art")
    assert art.class_names == dataset.class_names, (
        "a site that has one domain counts classes as all do"
    )


def write_pacs(root, published=True):
    classes = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        files = [
            (f"{domain}/{name}/pic_{i:03d}.jpg", k)
            for k, name in enumerate(classes, 1)
            for i in range(10)
        ]
        touch(root / "images", *(file for file, _ in files))
        parts = {"train": files[:70:2] + files[1:70:10], "crossval": files[3:70:10], "test": files}
        if domain == "sketch":
            parts["train"].append(("sketch/dog/n02103406_4068-1.png", 1))
        if not published:
            parts["test"] = files[5:70:10]
        (root / "splits").mkdir(exist_ok=True)
        for part, rows in parts.items():
            lines = "".join(f"{file} {label}\n" for file, label in rows)
            (root / "splits" / f"{domain}_{part}_kfold.txt").write_text(lines)


def test_pacs_tests_on_nothing_it_trains_on(tmp_path):
    write_pacs(tmp_path / "pacs")
    dataset = load_dataset("pacs", tmp_path)
    assert dataset.class_names == [
        "dog",
        "elephant",
        "giraffe",
        "guitar",
        "horse",
        "house",
        "person",
    ]
    assert named_by_folder(dataset) and not set(dataset.train.paths) & set(dataset.test.paths)
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (4 * 42, None, 4 * 28)
    write_pacs(tmp_path / "pacs", published=False)
    dataset = load_dataset("pacs", tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (4 * 42, 28, 28)
    (tmp_path / "pacs" / "splits" / "photo_test_kfold.txt").write_text("photo/dog/pic_001.jpg 0\n")
    with pytest.raises(
        FedPGPError, match=r"photo_test_kfold\.txt: photo/dog/pic_001\.jpg 0 is no image"
    ):
        load_dataset("pacs", tmp_path)


def test_pacs_by_folders(tmp_path):
    write_pacs(tmp_path / "made")
    (tmp_path / "PACS").mkdir()
    (tmp_path / "made" / "images").rename(tmp_path / "PACS" / "kfold")
    dataset = load_dataset("pacs", tmp_path)
    assert named_by_folder(dataset) and (len(dataset.train), len(dataset.test)) == (224, 56)
    assert load_dataset("pacs", tmp_path, domains=["photo", "art_painting"]).test.domains == (
        ["art_painting"] * 14 + ["photo"] * 14
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("domainnet", "domainnet/clipart and "),
        ("domainnet10", "domainnet/clipart and "),
        ("office_caltech10", "office_caltech_10/amazon"),
        ("office_home", "office_home/art"),
        ("pacs", "pacs/images/art_painting"),
    ],
)
def test_missing_data_says_what_from_where_how_large_and_where_to(tmp_path, name, wanted):
    with pytest.raises(FedPGPError, match=r"fetch .*(\d [GM]i?B|hundred MB)") as error:
        load_dataset(name, tmp_path, download=True)
    assert f"{tmp_path}/{wanted}" in str(error.value)


def every_subset(root):
    """All the subsets a run makes of each data set, each image's folder compared with its
    class's and domain's name.

    Returns:
        Data set -> class names, and (path, label) of every subset: the same whatever the process.
    """
    report = {}
    for name in ("domainnet", "domainnet10", "office_caltech10", "office_home", "pacs"):
        data = load_dataset(name, root)
        clients = 2 * len(set(data.train.domains))
        parts = partition(
            data.train.labels,
            clients,
            "domain_dirichlet",
            0,
            domains=data.train.domains,
            test_labels=data.test.labels,
            test_domains=data.test.domains,
            beta=1.0,
        )
        subsets = [data.train, data.test]
        subsets += [
            Subset(split, rows)
            for split, mine in zip(subsets[:2], parts, strict=True)
            for rows in mine
        ]
        subsets += [Subset(data.train, few_shot(data.train.labels, 2, seed)) for seed in (0, 1)]
        for half in base_novel(data.class_names):
            subsets.append(Subset(data.test, np.flatnonzero(np.isin(data.test.labels, half))))
        subsets += [Subset(subset, np.arange(len(subset))[::-2]) for subset in subsets]
        pairs = []
        for subset in subsets:
            files = [
                os.path.relpath(subset.describe(i)).split(os.sep)[-3:] for i in range(len(subset))
            ]
            for (where, folder, _), label, domain in zip(
                files, subset.labels, subset.domains, strict=True
            ):
                assert (where, folder) == (domain, data.class_names[label])
            pairs.append(
                [
                    ["/".join(file), int(label)]
                    for file, label in zip(files, subset.labels, strict=True)
                ]
            )
        report[name] = [data.class_names, pairs]
    return report


def test_images_labels_and_names_stay_together_whatever_the_hash_seed(tmp_path):
    write_domainnet(tmp_path / "domainnet", classes=("aircraft_carrier", *TEN, "zigzag"))
    write_fedbn(tmp_path / "office_caltech_10", OFFICE, OFFICE_TEN, per_class=4)
    for domain in ("art", "clipart", "product", "real_world"):
        for name in ("TV", "Alarm_Clock", "Backpack", "Fork"):
            touch(tmp_path / "office_home" / domain / name, *(f"{i:05d}.jpg" for i in range(1, 11)))
    write_pacs(tmp_path / "pacs")
    command = (
        "import json, runpy, sys; "
        "print(json.dumps(runpy.run_path(sys.argv[1])['every_subset'](sys.argv[2])))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", command, __file__, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2023")
    ]
    here = every_subset(tmp_path)  # under this process's own seed
    for run in runs:
        out, errors = run.communicate()
        assert run.returncode == 0, errors
        assert json.loads(out) == here
    assert here["domainnet10"][0] == TEN and here["office_caltech10"][0] == OFFICE_TEN
    assert here["domainnet"][0] == ["aircraft_carrier", *TEN, "zigzag"]
