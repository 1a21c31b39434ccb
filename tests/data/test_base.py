import pickle

import numpy as np
import pytest
from PIL import Image

from fedpgp.data import DATASETS, ArraySplit, Dataset, FileSplit, Subset, load_dataset, register
from fedpgp.data.base import data_root, validation_as_test, without_broken
from fedpgp.errors import FedPGPError, unknown


def test_unknown_names_come_with_the_nearest_valid_ones():
    with pytest.raises(FedPGPError, match="unknown data set 'emojis'; did you mean emoji"):
        load_dataset("emojis")
    with pytest.raises(FedPGPError, match="option of data set emoji 'domain'; did you mean domains"):
        load_dataset("emoji", domain="noto")
    with pytest.raises(FedPGPError, match="on_bad_image 'ignore'"):
        load_dataset("emoji", on_bad_image="ignore")
    with pytest.raises(FedPGPError, match="evaluate_on 'val'; choose one of test, validation"):
        load_dataset("emoji", evaluate_on="val")
    assert unknown("x", "qqqq", ["alpha", "beta"]) == "unknown x 'qqqq'; choose one of alpha, beta"
    assert unknown("x", "ALPHAA", ["alpha"]).endswith("did you mean alpha?")


def test_a_new_data_set_is_one_function():
    @register("two_pictures")
    def load(root, *, download=False, many: int = 2):
        split = ArraySplit(np.zeros((many, 4, 4, 3), np.uint8), np.arange(many))
        return Dataset("two_pictures", ["a", "b"], "{}", split, None, split)

    try:
        assert len(load_dataset("two_pictures").train) == 2
        assert len(load_dataset("two_pictures", many=1).train) == 1
    finally:
        del DATASETS["two_pictures"]


def test_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    assert data_root().parts[-3:] == (".cache", "fedpgp", "data")
    monkeypatch.setenv("FEDPGP_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root(tmp_path / "other") == tmp_path / "other"


def test_pictures_of_any_mode_come_as_rgb(tmp_path):
    modes = ["L", "RGB", "RGBA", "P", "CMYK", "1", "I;16"]
    for mode in modes:
        Image.new(mode, (6, 5)).save(tmp_path / f"{mode[0:4].replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}")
    paths = sorted(path.name for path in tmp_path.iterdir())
    split = FileSplit(tmp_path, paths, [0] * len(paths))
    assert len(split) == len(modes)
    assert all(split.image(i).mode == "RGB" and split.image(i).size == (6, 5) for i in range(len(split)))
    assert split.labels.dtype == np.int64 and split.domains is None
    again = pickle.loads(pickle.dumps(split))
    assert again.image(0).size == (6, 5)


def test_fingerprint_follows_files_order_and_rows(tmp_path, draw):
    for name in "abc":
        draw(tmp_path / f"{name}.png", (9, 9, 9))
    split = FileSplit(tmp_path, ["a.png", "b.png", "c.png"], [0, 1, 2])
    same = FileSplit(tmp_path, ["a.png", "b.png", "c.png"], [0, 1, 2])
    assert split.fingerprint == same.fingerprint
    assert split.fingerprint != FileSplit(tmp_path, ["b.png", "a.png", "c.png"], [0, 1, 2]).fingerprint
    assert Subset(split, [0, 1]).fingerprint != Subset(split, [1, 0]).fingerprint
    draw(tmp_path / "b.png", (9, 9, 9), size=(50, 50))
    assert split.fingerprint == same.fingerprint, "a split that is in use does not look again"
    assert FileSplit(tmp_path, ["a.png", "b.png", "c.png"], [0, 1, 2]).fingerprint != split.fingerprint


def test_subset_keeps_rows_labels_and_domains_together():
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    subset = Subset(ArraySplit(pixels, [0, 1, 2, 3, 4], ["a", "b", "c", "d", "e"]), [3, 1])
    assert subset.labels.tolist() == [3, 1] and subset.domains == ["d", "b"]
    assert [subset.image(i).getpixel((0, 0)) for i in range(2)] == [(3, 3, 3), (1, 1, 1)]


@pytest.fixture
def broken_folder(tmp_path, draw):
    """9 pictures; a truncated JPEG, a text file named .png, an empty file."""
    for split in ("train", "test"):
        for i in range(3):
            draw(tmp_path / split / "cat" / f"{i}.jpg", size=(80, 80))
            draw(tmp_path / split / "dog" / f"{i}.jpg", size=(80, 80))
    good = (tmp_path / "train" / "cat" / "1.jpg").read_bytes()
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "train" / "dog" / "0.png").write_text("no picture")
    (tmp_path / "test" / "dog" / "9.jpg").write_bytes(b"")
    return tmp_path


def test_a_broken_picture_is_named(broken_folder):
    split = load_dataset("folder", broken_folder).train
    bad = [i for i, path in enumerate(split.paths) if path.endswith(("cat/1.jpg", "0.png"))]
    assert len(bad) == 2
    for i in bad:
        with pytest.raises(FedPGPError, match=rf"{split.paths[i]} cannot be read.*on_bad_image=skip"):
            split.image(i)


def test_skip_leaves_broken_pictures_out_and_counts_them(broken_folder, caplog):
    dataset = load_dataset("folder", broken_folder, on_bad_image="skip")
    assert (len(dataset.train), len(dataset.test)) == (5, 6)
    assert np.bincount(dataset.train.labels).tolist() == [2, 3]
    assert [dataset.train.image(i).size for i in range(5)] == [(80, 80)] * 5
    assert dataset.notes[-1].startswith("3 broken images left out: ")
    assert "0.png" in caplog.text and "1.jpg" in caplog.text and "9.jpg" in caplog.text
    # Remembered: the same answer again, and a new one after a repair.
    assert len(load_dataset("folder", broken_folder, on_bad_image="skip").train) == 5
    (broken_folder / "train" / "dog" / "0.png").unlink()
    assert len(load_dataset("folder", broken_folder, on_bad_image="skip").train) == 5
    assert "2 broken images" in load_dataset("folder", broken_folder, on_bad_image="skip").notes[-1]


def test_skip_leaves_out_a_file_that_is_gone_and_a_healthy_data_set_alone(tmp_path, draw):
    draw(tmp_path / "a.png", (1, 2, 3))
    gone = FileSplit(tmp_path, ["a.png", "b.png"], [0, 1])
    healthy = FileSplit(tmp_path, ["a.png"], [0])
    dataset = without_broken(Dataset("x", ["a", "b"], "{}", gone, None, healthy))
    assert dataset.train.labels.tolist() == [0]
    assert dataset.test is healthy
    with pytest.raises(FedPGPError, match=r"b\.png cannot be read"):
        _ = gone.fingerprint


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
    assert pairs == [(0, "x"), (0, "y"), (1, "x"), (1, "y")]  # 5, 5, 4 and 5 pictures; class c's only one is trained on
    assert "4 training images" in new.notes[0]
    own = ArraySplit(pixels[:2], [0, 1])
    new = validation_as_test(Dataset("some", ["a", "b", "c"], "{}", train, own, test))
    assert new.test is own and new.train is train and new.val is None
    with pytest.raises(FedPGPError, match="some has neither validation nor training images"):
        validation_as_test(Dataset("some", ["a"], "{}", None, None, test))
