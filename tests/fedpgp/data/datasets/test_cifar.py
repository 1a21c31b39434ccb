import pickle

import numpy as np
import pytest

from fedpgp.data import base_novel, load_dataset
from fedpgp.errors import FedPGPError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def planes(*colours):
    """Rows of 3072: each image of one colour, red plane first; the first pixel black."""
    rows = np.repeat(np.array(colours, dtype=np.uint8), 1024, axis=1)
    rows[:, [0, 1024, 2048]] = 0
    return rows


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(folder):
    for i in range(1, 6):
        dump(
            folder / f"data_batch_{i}",
            {"data": planes((255, 0, 0), (0, 0, i)), "labels": [i, 0], "filenames": ["x", "y"]},
        )
    dump(folder / "test_batch", {"data": planes((0, 255, 0)), "labels": [9]})
    dump(folder / "batches.meta", {"label_names": CIFAR10})


def write_cifar100(folder):
    dump(
        folder / "train",
        {"data": planes((1, 2, 3), (4, 5, 6)), "fine_labels": [99, 0], "coarse_labels": [13, 4]},
    )
    dump(folder / "test", {"data": planes((7, 8, 9)), "fine_labels": [4], "coarse_labels": [0]})
    names = [f"name_{i:02d}" for i in range(100)]
    dump(
        folder / "meta",
        {"fine_label_names": names, "coarse_label_names": list("abcdefghijklmnopqrst")},
    )


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-10/cifar-10-batches-py"])
def test_cifar10(tmp_path, folder):
    write_cifar10(tmp_path / folder)
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.class_names == CIFAR10 and dataset.template == "a photo of a {}."
    assert dataset.train.labels.tolist() == [
        1,
        0,
        2,
        0,
        3,
        0,
        4,
        0,
        5,
        0,
    ] and dataset.test.labels.tolist() == [9]
    red = dataset.train.image(0)
    assert (red.size, red.getpixel((31, 31)), red.getpixel((0, 0)), red.getpixel((1, 0))) == (
        (32, 32),
        (255, 0, 0),
        (0, 0, 0),
        (255, 0, 0),
    )
    assert dataset.train.image(9).getpixel((5, 5)) == (0, 0, 5)
    assert dataset.test.image(0).getpixel((5, 5)) == (0, 255, 0)
    assert dataset.val is None and base_novel(dataset.class_names) == (
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    )


def test_cifar100(tmp_path):
    write_cifar100(tmp_path / "cifar-100-python")
    dataset = load_dataset("cifar100", tmp_path)
    assert (dataset.class_names[0], dataset.class_names[-1]) == ("name_00", "name_99")
    assert dataset.train.labels.tolist() == [99, 0]
    assert dataset.superclasses[dataset.train.labels].tolist() == [13, 4], (
        "as the file's own coarse labels say"
    )
    assert np.bincount(dataset.superclasses).tolist() == [5] * 20


def test_missing_says_what_to_fetch_and_where_to_put_it(tmp_path):
    with pytest.raises(FedPGPError) as error:
        load_dataset("cifar10", tmp_path)
    for part in (
        "cifar-10-python.tar.gz",
        "162 MiB",
        f"{tmp_path}/cifar-10-batches-py/test_batch",
        "download=true",
    ):
        assert part in str(error.value)


def test_damaged_files_are_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    whole = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(whole[:300])
    with pytest.raises(FedPGPError, match="data_batch_3 cannot be read"):
        load_dataset("cifar10", tmp_path)
    dump(folder / "data_batch_3", {"data": planes((1, 1, 1)), "labels": [10]})
    with pytest.raises(FedPGPError, match="data_batch_3 is damaged"):
        load_dataset("cifar10", tmp_path)
    dump(folder / "data_batch_3", {"data": [1, 2, 3], "labels": [1]})
    with pytest.raises(FedPGPError, match="data_batch_3 is no CIFAR batch"):
        load_dataset("cifar10", tmp_path)
    (folder / "data_batch_3").unlink()
    with pytest.raises(FedPGPError, match="data_batch_3 cannot be read"):
        load_dataset("cifar10", tmp_path)


def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    write_cifar100(tmp_path / "cifar-100-python")
    dump(tmp_path / "cifar-100-python" / "test", Evil())
    with pytest.raises(FedPGPError, match=r"test cannot be read \(it names .*print"):
        load_dataset("cifar100", tmp_path)
