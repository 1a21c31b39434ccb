"""How a picture is opened: every reader alike."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from experiments.predict import _read
from fedpgp.data import FileSplit, load_dataset
from fedpgp.data.pictures import read_picture

SHOWN = np.zeros((24, 40, 3), np.uint8)  # what a person sees: red above, blue below, white on the left
SHOWN[:12, :, 0] = SHOWN[12:, :, 2] = 250
SHOWN[:, :8] = 250
STORED = {  # EXIF orientation -> the pixels that a camera stores for it (CIPA DC-008, section 4.6.4)
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.transpose(1, 0, 2),
    6: SHOWN.transpose(1, 0, 2)[::-1],
    7: SHOWN.transpose(1, 0, 2)[::-1, ::-1],
    8: SHOWN.transpose(1, 0, 2)[:, ::-1],
}
FORMATS = ["jpg", "png", "webp", "tiff"]


def turned(path, orientation):
    """Writes a picture whose EXIF data say how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(path.suffix[1:], {})
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif, **lossless)
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", FORMATS)
def test_a_turned_picture_is_upright_for_every_reader(tmp_path, ending, orientation):
    path = turned(tmp_path / f"turned.{ending}", orientation)
    read = {
        "file": read_picture(path),
        "content": read_picture(path.read_bytes()),
        "split": FileSplit(tmp_path, [path.name], [0]).image(0),
        "predict": _read([path])[0][path],
    }
    for reader, image in read.items():
        assert (image.mode, image.size) == ("RGB", (40, 24)), reader
        np.testing.assert_allclose(np.asarray(image, int), SHOWN, atol=60 if ending == "jpg" else 0, err_msg=reader)
        assert np.abs(np.asarray(image, int) - SHOWN).mean() < 3, reader


def test_a_hub_table_and_a_folder_of_the_same_turned_pictures_are_read_alike(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    for split in ("train", "test"):
        for orientation in STORED:
            place = tmp_path / "folder" / split / ("cat" if orientation < 7 else "dog")
            place.mkdir(parents=True, exist_ok=True)
            turned(place / f"{orientation}.jpg", orientation)
    folder = load_dataset("folder", tmp_path / "folder")
    hub = load_dataset("hub", tmp_path, repo="folder")  # the files themselves
    table = {
        "image": [{"bytes": (tmp_path / "folder/train/cat/6.jpg").read_bytes(), "path": None}],
        "label": [0],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "table" / "train.parquet"))
    inside = load_dataset("hub", tmp_path, repo="table", test=None).train
    for i in range(8):
        np.testing.assert_array_equal(folder.train.image(i), hub.train.image(i))
    np.testing.assert_array_equal(inside.image(0), folder.train.image(5))


def test_damaged_exif_data_cost_a_picture_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0131] = 6, "a maker of cameras", "its software"
    as_text, as_fraction = b"\x01\x0f\x00\x02\x00\x00\x00\x13", b"\x01\x0f\x00\x05\x00\x00\x00\x01"
    damaged = exif.tobytes().replace(as_text, as_fraction)
    with Image.fromarray(np.ascontiguousarray(STORED[6])) as image:
        image.save(tmp_path / "x.jpg", exif=damaged)
        image.save(tmp_path / "y.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with pytest.raises(AttributeError):
        ImageOps.exif_transpose(Image.open(tmp_path / "x.jpg"))
    assert read_picture(tmp_path / "x.jpg").size == (40, 24)
    assert read_picture(tmp_path / "y.jpg").size == (24, 40), "nothing says how"


def test_what_was_known_of_a_picture_by_an_older_reading_is_not_served(tmp_path, monkeypatch):
    """The fingerprint, which is in the key of all caches, follows the way pictures are decoded."""
    turned(tmp_path / "x.jpg", 6)
    now = FileSplit(tmp_path, ["x.jpg"], [0]).fingerprint
    monkeypatch.setattr("fedpgp.data.base.VERSION", "1")
    assert FileSplit(tmp_path, ["x.jpg"], [0]).fingerprint != now
