"""ImageNet, its variants and Tiny-ImageNet, each on a small folder of exactly the public layout."""

import pytest
from PIL import Image

from fedpgp.data import load_dataset
from fedpgp.errors import FedPGPError
from fedpgp.protocols import SplitRequest, split_clients

IDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
    "n01496331": "electric ray",
    "n01498041": "stingray",
    "n01514668": "rooster",
    "n01514859": "hen",
    "n01518878": "ostrich",
    "n01530575": "brambling",
}


def touch(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / file, "JPEG")


def names(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text(
        "".join(f"{wnid} {name}\n" for wnid, name in IDS.items())
    )


@pytest.mark.parametrize("folder", ["imagenet/images", "imagenet"])
def test_imagenet(tmp_path, folder):
    names(tmp_path / "imagenet")
    for wnid in ("n01491361", "n01440764", "n01484850"):
        touch(
            tmp_path / folder,
            *(f"train/{wnid}/{wnid}_{i}.JPEG" for i in range(2)),
            f"val/{wnid}/ILSVRC_{wnid}.JPEG",
        )
    dataset = load_dataset("imagenet", tmp_path)
    assert dataset.class_names == ["tench", "great white shark", "tiger shark"]
    assert dataset.template == "a photo of a {}."
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (6, None, 3)
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (
        dataset.test.paths[2] == "val/n01491361/ILSVRC_n01491361.JPEG"
        and dataset.test.labels[2] == 2
    )
    assert "classnames.txt (CoOp)" in dataset.notes[0]
    assert dataset.train.image(0).size == (8, 6)


def test_imagenet_wants_its_validation_images_sorted(tmp_path):
    names(tmp_path / "imagenet")
    touch(tmp_path / "imagenet", "train/n01440764/a.JPEG", "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(FedPGPError, match="val must have one folder a class"):
        load_dataset("imagenet", tmp_path)
    touch(tmp_path / "imagenet", "val/n01443537/a.JPEG")
    with pytest.raises(FedPGPError, match="n01443537 is not one of them"):
        load_dataset("imagenet", tmp_path)


VARIANTS = [
    ("imagenet_sketch", "imagenet-sketch/images"),
    ("imagenet_a", "imagenet-adversarial/imagenet-a"),
    ("imagenet_a", "imagenet-a"),
    ("imagenet_r", "imagenet-rendition/imagenet-r"),
]


@pytest.mark.parametrize(("name", "folder"), VARIANTS)
def test_variants_have_their_own_labels_and_no_training_images(tmp_path, name, folder):
    names(tmp_path / "imagenet")  # a copy beside the images, or ImageNet's own
    touch(tmp_path / folder, "n01518878/b.jpg", "n01443537/a.jpg", "n01518878/c.jpg")
    (tmp_path / folder / "README.txt").touch()
    dataset = load_dataset(name, tmp_path)
    assert dataset.class_names == ["goldfish", "ostrich"]
    assert dataset.train is None and dataset.val is None
    assert dataset.test.labels.tolist() == [0, 1, 1]
    with pytest.raises(FedPGPError, match=f"data set {name} has no training images"):
        split_clients(SplitRequest(dataset, 2, 0, None, {"scheme": "iid"}), {"name": "personal"})
    touch(tmp_path / folder, "n99999999/a.jpg")
    with pytest.raises(FedPGPError, match="n99999999 is no class"):
        load_dataset(name, tmp_path)


def test_names_without_coops_file_are_open_clips(tmp_path):
    touch(tmp_path / "imagenet-a", "n01443537/a.jpg", "n01518878/b.jpg", "n15075141/c.jpg")
    dataset = load_dataset("imagenet_a", tmp_path)
    assert dataset.class_names == ["goldfish", "ostrich", "toilet paper"]
    assert "open_clip's" in dataset.notes[0] and "classnames.txt" in dataset.notes[0]


def test_imagenetv2_counts_folders_as_numbers(tmp_path):
    folder = tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    names(tmp_path / "imagenetv2")
    touch(folder, *(f"{label}/{label}.jpeg" for label in (10, 2, 0, 1)))
    dataset = load_dataset("imagenetv2", tmp_path)
    assert dataset.class_names == list(IDS.values()) and dataset.train is None
    found = dict(zip(dataset.test.paths, dataset.test.labels.tolist(), strict=True))
    assert found == {"0/0.jpeg": 0, "1/1.jpeg": 1, "2/2.jpeg": 2, "10/10.jpeg": 10}
    touch(folder, "11/a.jpeg")
    with pytest.raises(FedPGPError, match="11: its name must be a label from 0 to 10"):
        load_dataset("imagenetv2", tmp_path)


def tiny(folder):
    folder.mkdir(parents=True)
    ids = ("n02124075", "n04067472", "n01443537")  # the published list is not sorted either
    (folder / "wnids.txt").write_text("\n".join(ids))
    (folder / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian "
        "cat\nn04067472\treel\n"
    )
    for wnid in ids:
        touch(folder / "train" / wnid / "images", *(f"{wnid}_{k}.JPEG" for k in range(2)))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").touch()
    touch(folder / "val" / "images", "val_0.JPEG", "val_1.JPEG")
    (folder / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn04067472\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t0\t0\t1\t1\n"
    )
    touch(folder / "test" / "images", "test_0.JPEG")


def test_tiny_imagenet(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    tiny(folder)
    dataset = load_dataset("tiny_imagenet", tmp_path)
    assert dataset.class_names == ["goldfish", "Egyptian cat", "reel"]
    assert dataset.template == "a photo of a {}."
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (6, None, 2)
    assert dict(zip(dataset.test.paths, dataset.test.labels.tolist(), strict=True)) == {
        "val/images/val_0.JPEG": 2,
        "val/images/val_1.JPEG": 0,
    }
    assert dataset.train.paths[0] == "train/n01443537/images/n01443537_0.JPEG"
    assert dataset.train.image(0).size == dataset.test.image(1).size == (8, 6)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\n")
    with pytest.raises(FedPGPError, match="val_annotations.txt: .* names no class"):
        load_dataset("tiny_imagenet", tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("imagenet", "imagenet/images/train"),
        ("imagenetv2", "imagenetv2/imagenetv2-matched-frequency-format-val"),
        ("imagenet_sketch", "imagenet-sketch/images"),
        ("imagenet_a", "imagenet-adversarial/imagenet-a"),
        ("imagenet_r", "imagenet-rendition/imagenet-r"),
        ("tiny_imagenet", "tiny-imagenet-200/wnids.txt"),
    ],
)
def test_missing_data_says_what_from_where_how_large_and_where_to(tmp_path, name, wanted):
    with pytest.raises(FedPGPError, match=r"fetch .*\d [GM]i?B") as error:
        load_dataset(name, tmp_path, download=True)  # nothing of ImageNet is fetched by itself
    assert f"{tmp_path}/{wanted}" in str(error.value)
