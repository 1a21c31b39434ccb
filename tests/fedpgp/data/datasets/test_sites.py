"""Data sets of centres, hospitals and users, each on a small folder of exactly the public
layout."""

import json

import numpy as np
import pytest
from PIL import Image

from fedpgp.data import Dataset, load_dataset
from fedpgp.errors import FedPGPError
from fedpgp.protocols import SplitRequest, split_clients

CENTRES = ["bcn", "vidir_molemax", "vidir_modern", "rosendahl", "msk", "vienna_dias"]
LESIONS = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]


def touch(folder, *files):
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6)).save(path)


def write_isic(folder, images="ISIC_2019_Training_Input_preprocessed"):
    """FLamby, commit edacf54d5211: dataset_creation_scripts/train_test_split, and what
    resize_images.py writes. Two classes a centre; centre 5 has one."""
    lines, number = [",".join(["image", *LESIONS, "target,center,fold,fold2"])], 0
    for centre in range(6):
        for target in (1, centre) if centre != 1 else (1,):
            for fold in ("train", "train", "test"):
                number += 1
                name = f"ISIC_{number:07d}"
                truth = [f"{float(target == k)}" for k in range(9)]
                lines.append(",".join([name, *truth, f"{target},{centre},{fold},{fold}_{centre}"]))
                touch(folder / images, f"{name}.jpg")
    (folder / "train_test_split").write_text("\n".join(lines) + "\n")


def write_camelyon(folder):
    """WILDS, commit 472677590de3: datasets/camelyon17_dataset.py and
    dataset_preprocessing/camelyon17/generate_final_metadata.py."""
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for row in range(100):
        centre, tumor, split = row % 5, row // 5 % 2, int(row >= 80)
        patient, node = f"{20 * centre + 4:03d}", row // 50
        place = f"{1000 + row},{64 * row}"
        slide = 10 * centre + node
        lines.append(f"{row},{patient},{node},{place},{tumor},{slide},{centre},{split}")
        name = f"patient_{patient}_node_{node}"
        touch(folder / "patches" / name, f"patch_{name}_x_{1000 + row}_y_{64 * row}.png")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


USERS = {"59769174@N00": 12, "10000001@N01": 10, "22222222@N02": 10, "99999999@N09": 3}


def write_flair(folder, images="small_images"):
    """apple/ml-flair, commit afb9203d9b23: README.md, "Download the dataset". Every user has three
    images of several labels, and as many of one as :data:`USERS` says."""
    records = []
    for user, single in USERS.items():
        for i in range(single + 3):
            name = f"{149000 + len(records)}"
            labels = [["animal"], ["plant"]][i % 2] if i < single else ["plant", "structure"]
            about = {"user_id": user, "image_id": name, "fine_grained_labels": ["x", "y"]}
            records.append({**about, "labels": labels, "partition": "train"})
            touch(folder / images, f"{name}.jpg")
    (folder / "labels_and_metadata.json").write_text(json.dumps(records))
    (folder / "label_relationship.txt").write_text("x plant\n")


def natural(dataset: Dataset, clients: int, **options):
    scheme = {"scheme": "natural", **options}
    return split_clients(SplitRequest(dataset, clients, 0, None, scheme), {"name": "personal"})


@pytest.mark.parametrize(
    "images", ["ISIC_2019_Training_Input_preprocessed", "ISIC_2019_Training_Input"]
)
def test_fed_isic2019(tmp_path, images):
    write_isic(tmp_path / "fed_isic2019", images)
    dataset = load_dataset("fed_isic2019", tmp_path)
    assert len(dataset.class_names) == 8 and dataset.class_names[1] == "melanocytic nevus"
    assert dataset.class_names[7] == "squamous cell carcinoma"
    assert (len(dataset.train), len(dataset.test)) == (22, 11) and dataset.val is None
    assert dataset.train.domains[:4] == ["bcn"] * 4 and dataset.test.domains[-1] == "vienna_dias"
    assert dataset.train.labels[:4].tolist() == [1, 1, 0, 0]
    assert dataset.train.paths[0] == f"{images}/ISIC_0000001.jpg"
    assert dataset.notes == (f"split: FLamby's; images: {images}",)
    assert dataset.train.image(21).mode == "RGB"
    clients = natural(dataset, 6).clients
    assert [client.domain for client in clients] == CENTRES
    assert [len(client.train) for client in clients] == [4, 2, 4, 4, 4, 4]
    assert [len(client.test) for client in clients] == [2, 1, 2, 2, 2, 2]
    some = load_dataset("fed_isic2019", tmp_path, domains=["msk", "bcn"])
    assert list(dict.fromkeys(some.test.domains)) == ["bcn", "msk"]
    assert some.class_names == dataset.class_names


@pytest.mark.parametrize(
    ("line", "named"),
    [("ISIC_1,8,0,train", "target '8'"), ("ISIC_1,0,6,train", "center '6'")]
    + [("ISIC_1,0,0,val", "fold 'val'"), ("ISIC_1,0", "row 2 has too few columns")],
)
def test_a_list_that_is_not_flambys_is_named(tmp_path, line, named):
    write_isic(tmp_path / "fed_isic2019")
    path = tmp_path / "fed_isic2019" / "train_test_split"
    path.write_text(f"image,target,center,fold\n{line}\n")
    with pytest.raises(FedPGPError, match=f"train_test_split.*{named}"):
        load_dataset("fed_isic2019", tmp_path)
    path.write_text("image,target,fold\n")
    with pytest.raises(FedPGPError, match="train_test_split has no column 'center'"):
        load_dataset("fed_isic2019", tmp_path)


@pytest.mark.parametrize("folder", ["camelyon17_v1.0", "camelyon17"])
def test_camelyon17(tmp_path, folder):
    write_camelyon(tmp_path / folder)
    dataset = load_dataset("camelyon17", tmp_path)
    assert dataset.class_names == ["normal tissue", "tumor tissue"]
    assert (len(dataset.train), len(dataset.test)) == (80, 20)
    assert all(
        (split.root / path).exists()
        for split in (dataset.train, dataset.test)
        for path in split.paths
    )
    for split in (dataset.train, dataset.test):
        for path, label, hospital in zip(split.paths, split.labels, split.domains, strict=True):
            row = int(path.split("_x_")[1].split("_")[0]) - 1000
            assert (row // 5 % 2, f"hospital{row % 5 + 1}") == (label, hospital)
            assert (row >= 80) == (split is dataset.test)
    assert dataset.test.image(0).mode == "RGB"
    clients = natural(dataset, 10, clients_per_site=2).clients
    assert [client.domain for client in clients] == [f"hospital{i // 2 + 1}" for i in range(10)]
    assert {(len(client.train), len(client.test)) for client in clients} == {(8, 2)}
    owned = np.concatenate([client.train for client in clients])
    assert sorted(owned.tolist()) == list(range(80))


def test_a_share_of_camelyon17_hangs_on_names_alone(tmp_path):
    write_camelyon(tmp_path / "camelyon17_v1.0")
    half = load_dataset("camelyon17", tmp_path, share=0.5)
    assert (len(half.train), len(half.test)) == (40, 10)
    assert "0.5 of the patches" in half.notes[0]
    one = load_dataset("camelyon17", tmp_path, share=0.5, domains="hospital3")
    assert set(one.train.paths) < set(half.train.paths) and set(one.test.labels) == {0, 1}
    for share in (0, 1.5):
        with pytest.raises(FedPGPError, match="dataset.share"):
            load_dataset("camelyon17", tmp_path, share=share)


def test_a_row_that_is_not_of_wilds_is_named(tmp_path):
    write_camelyon(tmp_path / "camelyon17")
    path = tmp_path / "camelyon17" / "metadata.csv"
    path.write_text(path.read_text() + "100,004,0,1,1,0,0,5,0\n")
    with pytest.raises(FedPGPError, match="metadata.csv: a patch of patient 004 has center '5'"):
        load_dataset("camelyon17", tmp_path)


@pytest.mark.parametrize("images", ["small_images", "raw_images"])
def test_flair_has_images_of_one_label_of_users_with_enough(tmp_path, images):
    write_flair(tmp_path / "flair", images)
    dataset = load_dataset("flair", tmp_path)
    assert dataset.class_names == ["animal", "plant", "structure"]
    assert (len(dataset.train), len(dataset.test)) == (10 + 8 + 8, 2 + 2 + 2)
    assert set(dataset.train.labels.tolist()) == {0, 1}
    records = json.loads((tmp_path / "flair" / "labels_and_metadata.json").read_text())
    about = {f"{images}/{r['image_id']}.jpg": r for r in records}
    for split in (dataset.train, dataset.test):
        for path, label, user in zip(split.paths, split.labels, split.domains, strict=True):
            assert about[path]["labels"] == [dataset.class_names[label]]
            assert about[path]["user_id"] == user
    assert dataset.train.image(0).mode == "RGB"
    clients = natural(dataset, 3).clients
    assert {client.domain for client in clients} == {u for u, many in USERS.items() if many >= 10}
    assert all(len(client.train) >= 8 and len(client.test) == 2 for client in clients)


def test_flair_takes_the_users_with_the_most_images(tmp_path):
    write_flair(tmp_path / "FLAIR")
    one = load_dataset("flair", tmp_path, users=1)
    assert set(one.train.domains) == {"59769174@N00"}
    two = load_dataset("flair", tmp_path, users=2)
    assert set(two.test.domains) == {"59769174@N00", "10000001@N01"}
    assert set(load_dataset("flair", tmp_path, users=4, min_images=3).test.domains) == set(USERS)
    with pytest.raises(FedPGPError, match=r"dataset.users=4 .*min_images=10: 3 users of"):
        load_dataset("flair", tmp_path, users=4)
    for options in ({"users": 0}, {"users": 1.5}, {"min_images": 1}):
        with pytest.raises(FedPGPError, match=f"dataset.{next(iter(options))}"):
            load_dataset("flair", tmp_path, **options)
    (tmp_path / "FLAIR" / "labels_and_metadata.json").write_text('[{"user_id": "a"}]')
    with pytest.raises(FedPGPError, match="labels_and_metadata.json is no list of images"):
        load_dataset("flair", tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("fed_isic2019", "fed_isic2019/ISIC_2019_Training_Input_preprocessed"),
        ("camelyon17", "camelyon17_v1.0/metadata.csv"),
        ("flair", "flair/small_images"),
    ],
)
def test_missing_data_says_what_from_where_how_large_and_where_to(tmp_path, name, wanted):
    with pytest.raises(FedPGPError, match=r"fetch .*\d GB") as error:
        load_dataset(name, tmp_path, download=True)
    assert f"{tmp_path}/{wanted}" in str(error.value)
