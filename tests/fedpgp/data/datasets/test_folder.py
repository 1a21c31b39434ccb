import numpy as np
import pytest

from fedpgp.data import load_dataset
from fedpgp.errors import FedPGPError, shown


def write_splits(root, draw):
    for split, many in (("train", 3), ("val", 1), ("test", 2)):
        for name in ("tea_cup", "Zebra", "apple"):
            for i in range(many):
                draw(root / split / name / f"{i}.JPG")
    (root / "train" / "apple" / ".hidden.jpg").touch()
    (root / "train" / "apple" / "notes.txt").touch()
    (root / ".git").mkdir()


def test_train_and_test_folders(tmp_path, draw):
    write_splits(tmp_path, draw)
    dataset = load_dataset("folder", tmp_path)
    assert dataset.class_names == ["Zebra", "apple", "tea_cup"]
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (9, 3, 6)
    assert dataset.train.domains is None
    for split in (dataset.train, dataset.val, dataset.test):
        for path, label in zip(split.paths, split.labels, strict=True):
            assert path.split("/")[1] == dataset.class_names[label]
    with pytest.raises(
        FedPGPError, match="unknown option of data set folder 'templates'; did you mean template"
    ):
        load_dataset("folder", tmp_path, templates="x")


def test_class_names_may_be_given_so_that_all_sites_agree(tmp_path, draw):
    write_splits(tmp_path, draw)
    names = ["tea_cup", "lamp", "apple", "Zebra"]
    dataset = load_dataset("folder", tmp_path, class_names=names)
    assert dataset.class_names == names and set(dataset.train.labels) == {0, 2, 3}
    with pytest.raises(FedPGPError, match="class_names lacks: Zebra"):
        load_dataset("folder", tmp_path, class_names=["tea_cup", "apple"])
    some = load_dataset("folder", tmp_path, class_names=names[:2], unknown_classes="skip")
    assert set(some.train.labels) == {0} and len(some.test) == 2
    assert any("dataset.class_names lacks: Zebra, apple" in note for note in some.notes)
    for given, said in (("skip", "no images in"), ("drop", "unknown_classes 'drop'")):
        with pytest.raises(FedPGPError, match=said):
            load_dataset("folder", tmp_path, class_names=["lamp", "sofa"], unknown_classes=given)


def write_domains(root, draw, many=20):
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            for i in range(many):
                draw(root / domain / name / f"{i:02d}.png")
    draw(root / "photo" / "owl" / "only.png")


def test_domain_folders_are_split_by_file(tmp_path, draw):
    write_domains(tmp_path, draw)
    dataset = load_dataset("folder", tmp_path)
    assert dataset.class_names == ["cat", "dog", "owl"]
    assert not set(dataset.train.paths) & set(dataset.test.paths)
    assert len(dataset.train) + len(dataset.test) == 81
    for domain in ("photo", "sketch"):
        for label in (0, 1):
            test = [
                d == domain and y == label
                for d, y in zip(dataset.test.domains, dataset.test.labels, strict=True)
            ]
            assert sum(test) == 6  # 0.3 of 20
    assert "photo/owl/only.png" in dataset.train.paths, "a class of one image can be trained"
    again = load_dataset("folder", tmp_path)
    assert again.test.paths == dataset.test.paths
    assert load_dataset("folder", tmp_path, split_seed=1).test.paths != dataset.test.paths
    assert len(load_dataset("folder", tmp_path, test_share=0.5).test) == 40
    for path, domain, label in zip(
        dataset.train.paths, dataset.train.domains, dataset.train.labels, strict=True
    ):
        assert path.split("/")[:2] == [domain, dataset.class_names[label]]


def test_a_new_file_moves_at_most_one_other(tmp_path, draw):
    write_domains(tmp_path, draw)
    before = set(load_dataset("folder", tmp_path).test.paths)
    draw(tmp_path / "photo" / "cat" / "new.png")
    after = set(load_dataset("folder", tmp_path).test.paths)
    assert len(before - after) <= 1


def test_what_is_no_such_folder_is_refused(tmp_path, draw):
    with pytest.raises(FedPGPError, match="is no folder"):
        load_dataset("folder", tmp_path / "nowhere")
    with pytest.raises(FedPGPError, match="no images in"):
        load_dataset("folder", tmp_path)
    write_domains(tmp_path, draw, many=2)
    for option, values in {"test_share": (1, None, "x"), "split_seed": ("x", None)}.items():
        for value in values:
            with pytest.raises(FedPGPError, match=f"dataset.{option}={shown(value)}"):
                load_dataset("folder", tmp_path, **{option: value})
    for template in ("a photo", "{} {}", None, 5):
        with pytest.raises(FedPGPError, match="needs exactly one {}"):
            load_dataset("folder", tmp_path, template=template)
    assert np.array_equal(load_dataset("folder", tmp_path).train.labels.shape, (5,))
