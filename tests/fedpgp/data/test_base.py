import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.settings import composed
from fedpgp.build import split_configured
from fedpgp.data import DATASETS, ArraySplit, Dataset, FileSplit, Subset, load_dataset, register
from fedpgp.data.base import data_root
from fedpgp.data.loading import validation_as_test, without_broken
from fedpgp.data.store import cache_folder
from fedpgp.errors import FedPGPError, unknown


def test_unknown_names_come_with_the_nearest_valid_ones():
    with pytest.raises(FedPGPError, match="unknown data set 'emojis'; did you mean emoji"):
        load_dataset("emojis")
    with pytest.raises(
        FedPGPError, match="option of data set emoji 'domain'; did you mean domains"
    ):
        load_dataset("emoji", domain="noto")
    with pytest.raises(FedPGPError, match="on_bad_image 'ignore'"):
        load_dataset("emoji", on_bad_image="ignore")
    with pytest.raises(FedPGPError, match="evaluate_on 'val'; choose one of test, validation"):
        load_dataset("emoji", evaluate_on="val")
    assert unknown("x", "qqqq", ["alpha", "beta"]) == "unknown x 'qqqq'; choose one of alpha, beta"
    assert unknown("x", "ALPHAA", ["alpha"]).endswith("did you mean alpha?")


def test_a_new_data_set_is_one_function():
    @register("two_images")
    def load(root, *, download=False, many: int = 2):
        split = ArraySplit(np.zeros((many, 4, 4, 3), np.uint8), np.arange(many))
        return Dataset("two_images", ["a", "b"], "{}", split, None, split)

    try:
        assert len(load_dataset("two_images").train) == 2
        assert len(load_dataset("two_images", many=1).train) == 1
    finally:
        del DATASETS["two_images"]


def test_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    assert data_root().parts[-3:] == (".cache", "fedpgp", "data")
    monkeypatch.setenv("FEDPGP_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root(tmp_path / "other") == tmp_path / "other"


def test_images_of_any_mode_come_as_rgb(tmp_path):
    modes = ["L", "RGB", "RGBA", "P", "CMYK", "1", "I;16"]
    for mode in modes:
        Image.new(mode, (6, 5)).save(
            tmp_path / f"{mode[0:4].replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}"
        )
    paths = sorted(path.name for path in tmp_path.iterdir())
    split = FileSplit(tmp_path, paths, [0] * len(paths))
    assert len(split) == len(modes)
    assert all(
        split.image(i).mode == "RGB" and split.image(i).size == (6, 5) for i in range(len(split))
    )
    assert split.labels.dtype == np.int64 and split.domains is None
    again = pickle.loads(pickle.dumps(split))
    assert again.image(0).size == (6, 5)


def test_fingerprint_follows_files_order_and_rows(tmp_path, draw):
    for name in "abc":
        draw(tmp_path / f"{name}.png", (9, 9, 9))
    split = FileSplit(tmp_path, ["a.png", "b.png", "c.png"], [0, 1, 2])
    same = FileSplit(tmp_path, ["a.png", "b.png", "c.png"], [0, 1, 2])
    assert split.fingerprint == same.fingerprint
    assert (
        split.fingerprint != FileSplit(tmp_path, ["b.png", "a.png", "c.png"], [0, 1, 2]).fingerprint
    )
    assert Subset(split, [0, 1]).fingerprint != Subset(split, [1, 0]).fingerprint
    draw(tmp_path / "b.png", (9, 9, 9), size=(50, 50))
    assert split.fingerprint == same.fingerprint, "a split that is in use does not look again"
    assert (
        FileSplit(tmp_path, ["a.png", "b.png", "c.png"], [0, 1, 2]).fingerprint != split.fingerprint
    )


def test_subset_keeps_rows_labels_and_domains_together():
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    subset = Subset(ArraySplit(pixels, [0, 1, 2, 3, 4], ["a", "b", "c", "d", "e"]), [3, 1])
    assert subset.labels.tolist() == [3, 1] and subset.domains == ["d", "b"]
    assert [subset.image(i).getpixel((0, 0)) for i in range(2)] == [(3, 3, 3), (1, 1, 1)]


@pytest.fixture
def broken_folder(tmp_path, draw):
    """9 images; a truncated JPEG, a text file named .png, an empty file."""
    for split in ("train", "test"):
        for i in range(3):
            draw(tmp_path / split / "cat" / f"{i}.jpg", size=(80, 80))
            draw(tmp_path / split / "dog" / f"{i}.jpg", size=(80, 80))
    good = (tmp_path / "train" / "cat" / "1.jpg").read_bytes()
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "train" / "dog" / "0.png").write_text("no image")
    (tmp_path / "test" / "dog" / "9.jpg").write_bytes(b"")
    return tmp_path


def test_a_broken_image_is_named(broken_folder):
    split = load_dataset("folder", broken_folder).train
    bad = [i for i, path in enumerate(split.paths) if path.endswith(("cat/1.jpg", "0.png"))]
    assert len(bad) == 2
    for i in bad:
        with pytest.raises(
            FedPGPError, match=rf"{split.paths[i]} cannot be read.*on_bad_image=skip"
        ):
            split.image(i)


def test_skip_leaves_broken_images_out_and_counts_them(broken_folder):
    dataset = load_dataset("folder", broken_folder, on_bad_image="skip")
    assert (len(dataset.train), len(dataset.test)) == (5, 6)
    assert np.bincount(dataset.train.labels).tolist() == [2, 3]
    assert [dataset.train.image(i).size for i in range(5)] == [(80, 80)] * 5
    assert dataset.notes[-1].startswith("3 broken images left out: ")
    assert all(name in dataset.notes[-1] for name in ("0.png", "1.jpg", "9.jpg"))
    # Remembered: the same answer again, and a new one after a repair.
    assert len(load_dataset("folder", broken_folder, on_bad_image="skip").train) == 5
    (broken_folder / "train" / "dog" / "0.png").unlink()
    assert len(load_dataset("folder", broken_folder, on_bad_image="skip").train) == 5
    assert "2 broken images" in load_dataset("folder", broken_folder, on_bad_image="skip").notes[-1]


def test_a_healthy_data_set_is_left_alone(tmp_path, draw):
    draw(tmp_path / "a.png", (1, 2, 3))
    healthy = FileSplit(tmp_path, ["a.png"], [0])
    dataset = Dataset("x", ["a"], "{}", healthy, None, healthy)
    assert without_broken(dataset) is dataset


def truncated(path):
    Image.new("RGB", (80, 80), "red").save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:300])


def enormous(path):
    Image.new("1", (500, 500)).save(path, format="PNG")


BREAK = {  # kind -> makes an image that is broken in this way
    "missing": lambda path: None,
    "dangling link": lambda path: path.symlink_to(path.parent / "gone.jpg"),
    "link to itself": lambda path: path.symlink_to(path),
    "zero bytes": lambda path: path.touch(),
    "truncated": truncated,
    "a text": lambda path: path.write_text("no image"),
    "a folder": lambda path: path.mkdir(),
    "a decompression bomb": enormous,
    "a float image of NaN": lambda path: Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(
        path, "TIFF"
    ),
}


@pytest.mark.parametrize("kind", BREAK)
def test_skip_means_skip_whatever_is_wrong_and_error_names_it(tmp_path, draw, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / name, (1, 2, 3))
    BREAK[kind](tmp_path / "bad.jpg")
    split = FileSplit(tmp_path, ["a.jpg", "bad.jpg", "b.jpg"], [0, 1, 2], ["x", "y", "z"])
    assert len(split.fingerprint) == 64
    with pytest.raises(FedPGPError, match=r"bad\.jpg cannot be read \(.*on_bad_image=skip"):
        split.image(1)
    for _ in range(2):  # looked at, and known
        dataset = without_broken(
            Dataset("x", list("abc"), "{}", split, split, FileSplit(tmp_path, ["a.jpg"], [0]))
        )
        for kept in (dataset.train, dataset.val):
            assert kept.labels.tolist() == [0, 2] and kept.domains == ["x", "z"]
            assert (
                len(kept.fingerprint) == 64
                and [kept.image(i).size for i in range(2)] == [(12, 10)] * 2
            )
        assert dataset.notes == (
            f"2 broken images left out: {tmp_path}/bad.jpg, {tmp_path}/bad.jpg",
        )


def test_an_image_that_was_missing_is_read_when_it_is_there(tmp_path, draw):
    draw(tmp_path / "a.png", (1, 2, 3))

    def kept():
        split = FileSplit(tmp_path, ["a.png", "b.png"], [0, 1])
        return len(without_broken(Dataset("x", ["a", "b"], "{}", split, None, split)).train)

    assert kept() == 1
    draw(tmp_path / "b.png", (1, 2, 3))
    assert kept() == 2


@pytest.fixture
def ordinary_user():
    """Root may open everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_an_image_that_may_not_be_opened_is_tried_again(draw, monkeypatch, ordinary_user):
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("FEDPGP_CACHE", f"{folder}/cache")
        for name in ("a.png", "b.png"):
            draw(Path(folder) / name, (1, 2, 3))
        (Path(folder) / "b.png").chmod(0)

        def kept():
            split = FileSplit(Path(folder), ["a.png", "b.png"], [0, 1])
            return len(without_broken(Dataset("x", ["a", "b"], "{}", split, None, split)).train)

        assert kept() == kept() == 1
        (Path(folder) / "b.png").chmod(0o600)  # changes neither size nor time of the file
        assert kept() == 2


def test_a_split_of_broken_images_alone_is_refused(tmp_path, draw):
    draw(tmp_path / "a.png", (1, 2, 3))
    good, bad = FileSplit(tmp_path, ["a.png"], [0]), FileSplit(tmp_path, ["b.png"], [0])
    with pytest.raises(FedPGPError, match=r"none of the 1 test images can be read \(.*b\.png …\)"):
        without_broken(Dataset("x", ["a"], "{}", good, None, bad))
    assert without_broken(Dataset("x", ["a"], "{}", good, bad, good)).val is None


def test_a_damaged_record_of_broken_images_is_made_anew(broken_folder, tmp_path, caplog):
    assert len(load_dataset("folder", broken_folder, on_bad_image="skip").train) == 5
    records = list(cache_folder().glob("unreadable-*.json"))
    assert len(records) == 2
    for record in records:
        record.write_text("{}")
    assert len(load_dataset("folder", broken_folder, on_bad_image="skip").train) == 5
    assert "is damaged and made anew" in caplog.text


def test_broken_images_are_left_out_where_no_record_of_them_can_be_kept(
    broken_folder, tmp_path, monkeypatch
):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("FEDPGP_CACHE", str(tmp_path / "a file"))
    assert len(load_dataset("folder", broken_folder, on_bad_image="skip").train) == 5


def test_a_node_with_images_of_its_own_skips_too(broken_folder):
    overrides = [
        "partition=own",
        "protocol=personal",
        "dataset=folder",
        "dataset.class_names=[cat,dog]",
        "clients=2",
    ]
    config = composed([*overrides, f"dataset.root={broken_folder}", "dataset.on_bad_image=skip"])
    config["partition"]["client"] = 1
    federated_split = split_configured(config)
    assert len(federated_split.clients[1].train) == 5 and not len(federated_split.clients[0].train)
    assert federated_split.dataset.notes[-1].startswith("3 broken images left out")


def test_validation_images_in_the_place_of_test_images():
    pixels = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    labels, domains = [0] * 10 + [1] * 9 + [2], ["x", "y"] * 10
    train, test = ArraySplit(pixels, labels, domains), ArraySplit(pixels[:3], [0, 1, 2])
    plain = Dataset("some", ["a", "b", "c"], "{}", train, None, test)
    new = validation_as_test(plain)
    kept = {int(np.asarray(new.test.image(i))[0, 0, 0]) for i in range(len(new.test))}
    trained = {int(np.asarray(new.train.image(i))[0, 0, 0]) for i in range(len(new.train))}
    assert kept | trained == set(range(20)) and not kept & trained
    pairs = sorted(zip(new.test.labels.tolist(), new.test.domains, strict=True))
    assert pairs == [
        (0, "x"),
        (0, "y"),
        (1, "x"),
        (1, "y"),
    ]  # 5, 5, 4 and 5 images; class c's only one is trained on
    assert "4 training images" in new.notes[0]
    own = ArraySplit(pixels[:2], [0, 1])
    new = validation_as_test(Dataset("some", ["a", "b", "c"], "{}", train, own, test))
    assert new.test is own and new.train is train and new.val is None
    with pytest.raises(FedPGPError, match="some has neither validation nor training images"):
        validation_as_test(Dataset("some", ["a"], "{}", None, None, test))
