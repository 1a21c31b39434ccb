"""How an image is opened: every reader alike."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.predict import _opened
from fedpgp.data import FileSplit, load_dataset
from fedpgp.data.images import PUBLISHED, Reading, _silence_pillow, as_rgb, read_image
from fedpgp.errors import FedPGPError

SHOWN = np.zeros(
    (24, 40, 3), np.uint8
)  # what a person sees: red above, blue below, white on the left
SHOWN[:12, :, 0] = SHOWN[12:, :, 2] = 250
SHOWN[:, :8] = 250
# EXIF orientation -> the pixels that a camera stores for it (CIPA DC-008, section 4.6.4)
STORED = {
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
    """Writes an image whose EXIF data say how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(
        path.suffix[1:], {}
    )
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif, **lossless)
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", FORMATS)
def test_a_turned_image_is_upright_for_every_reader(tmp_path, ending, orientation):
    path = turned(tmp_path / f"turned.{ending}", orientation)
    read = {
        "file": read_image(path),
        "content": read_image(path.read_bytes()),
        "split": FileSplit(tmp_path, [path.name], [0]).image(0),
        "predict": next(_opened([path], Reading(), {})),
    }
    for reader, image in read.items():
        assert (image.mode, image.size) == ("RGB", (40, 24)), reader
        np.testing.assert_allclose(
            np.asarray(image, int), SHOWN, atol=60 if ending == "jpg" else 0, err_msg=reader
        )
        assert np.abs(np.asarray(image, int) - SHOWN).mean() < 3, reader


def test_a_hub_table_and_a_folder_of_the_same_turned_images_are_read_alike(tmp_path, monkeypatch):
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
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])}
    )
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet(
        str(tmp_path / "table" / "train.parquet")
    )
    inside = load_dataset("hub", tmp_path, repo="table", test=None).train
    for i in range(8):
        np.testing.assert_array_equal(folder.train.image(i), hub.train.image(i))
    np.testing.assert_array_equal(inside.image(0), folder.train.image(5))


def test_damaged_exif_data_cost_an_image_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0131] = 6, "a maker of cameras", "its software"
    as_text, as_fraction = b"\x01\x0f\x00\x02\x00\x00\x00\x13", b"\x01\x0f\x00\x05\x00\x00\x00\x01"
    damaged = exif.tobytes().replace(as_text, as_fraction)
    with Image.fromarray(np.ascontiguousarray(STORED[6])) as image:
        image.save(tmp_path / "x.jpg", exif=damaged)
        image.save(tmp_path / "y.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with pytest.raises(AttributeError):
        ImageOps.exif_transpose(Image.open(tmp_path / "x.jpg"))
    assert read_image(tmp_path / "x.jpg").size == (40, 24)
    assert read_image(tmp_path / "y.jpg").size == (24, 40), "nothing says how"


def test_what_was_known_of_an_image_by_an_older_reading_is_not_served(tmp_path, monkeypatch):
    """The fingerprint, which is in the key of all caches, follows the way images are decoded."""
    turned(tmp_path / "x.jpg", 6)
    now = FileSplit(tmp_path, ["x.jpg"], [0]).fingerprint
    for other in (Reading("white"), Reading("none", (0, 4095))):
        assert FileSplit(tmp_path, ["x.jpg"], [0], reading=other).fingerprint != now
    monkeypatch.setattr("fedpgp.data.images.VERSION", "1")
    assert FileSplit(tmp_path, ["x.jpg"], [0]).fingerprint != now


GREEN, HIDDEN = (
    (0, 200, 0),
    (10, 20, 30),
)  # what is seen, and the colour that a drawing program leaves under alpha 0


def cut_out(path):
    """Writes an image that is green on the left, half green in its middle and
    transparent on the right."""
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, :2], pixels[:, 2:4], pixels[:, 4:] = (*GREEN, 255), (*GREEN, 128), (*HIDDEN, 0)
    image = Image.fromarray(pixels)
    if path.suffix == ".gif" or path.stem == "palette":  # a palette has no half transparent colour
        pixels[..., 3] = np.where(pixels[..., 3] > 128, 255, 0)
        palette = Image.fromarray(np.uint8(pixels[..., 3] == 0))
        palette.putpalette([*GREEN, *HIDDEN])
        palette.save(path, transparency=1 if path.suffix == ".gif" else bytes([255, 0]))
    else:
        image.save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff", "a.gif", "palette.png"])
def test_transparent_pixels_are_white_or_as_the_file_has_them(tmp_path, name):
    path = cut_out(tmp_path / name)
    white, none = (np.asarray(read_image(path, Reading(ground))) for ground in ("white", "none"))
    assert white[0, 0].tolist() == none[0, 0].tolist() == list(GREEN)
    assert white[0, 5].tolist() == [255, 255, 255] and none[0, 5].tolist() == list(HIDDEN)
    if white[0, 2].tolist() != [255, 255, 255]:
        assert white[0, 2].tolist() == [127, 227, 127] and none[0, 2].tolist() == list(
            GREEN
        )  # 128/255 of green
    np.testing.assert_array_equal(none, np.asarray(Image.open(path).convert("RGB")))


def test_grey_with_alpha_and_one_transparent_colour(tmp_path):
    Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8)).save(tmp_path / "la.png")
    Image.fromarray(np.array([[[9, 9, 9], [8, 8, 8]]], np.uint8)).save(
        tmp_path / "rgb.png", transparency=(8, 8, 8)
    )
    Image.fromarray(np.array([[3, 4]], np.uint8)).save(tmp_path / "l.png", transparency=4)
    for name, seen in (("la", 7), ("rgb", 9), ("l", 3)):
        pixels = np.asarray(read_image(tmp_path / f"{name}.png", Reading("white")))
        assert pixels[0].tolist() == [[seen] * 3, [255] * 3], name


def test_the_ground_is_an_option_of_people_s_images_and_the_same_in_predict(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            cut_out(tmp_path / split / name / "x.png")
    for options, corner in (({}, [255] * 3), ({"background": "none"}, list(HIDDEN))):
        image = load_dataset("folder", tmp_path, **options).train.image(0)
        assert np.asarray(image)[0, 5].tolist() == corner
        path = tmp_path / "train/cat/x.png"
        np.testing.assert_array_equal(
            next(_opened([path], Reading.of({"name": "folder", **options}), {})), image
        )
    with pytest.raises(FedPGPError, match="background 'wite'; did you mean white"):
        load_dataset("folder", tmp_path, background="wite")
    assert Reading.of({"name": "emoji"}).background == "white", "predict is given people's images"
    assert PUBLISHED.background == "none"


def test_deep_grey_is_scaled_alike_for_all_images(tmp_path):
    ramp = np.arange(0, 60000, 10000, dtype=np.uint16)[None]
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp // 2).save(tmp_path / "dark.png")
    Image.fromarray(ramp.astype(">u2")).save(tmp_path / "big_endian.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("deep.png", "big_endian.tif", "wide.tif"):
        grey = np.asarray(read_image(tmp_path / name))
        assert grey[0, :, 0].tolist() == grey[0, :, 2].tolist() == [0, 39, 78, 117, 156, 195], (
            name
        )  # value / 257
    assert np.asarray(read_image(tmp_path / "dark.png"))[0, :, 0].tolist() == [
        0,
        19,
        39,
        58,
        78,
        97,
    ]
    told = Reading("none", (0, 25000))
    assert np.asarray(read_image(tmp_path / "dark.png", told))[0, :, 0].tolist() == [
        0,
        51,
        102,
        153,
        204,
        255,
    ]
    assert np.asarray(read_image(tmp_path / "deep.png", told))[0, :, 0].tolist() == [
        0,
        102,
        204,
        255,
        255,
        255,
    ]


def test_float_images_are_read_by_their_finite_values(tmp_path):
    values = np.array([[-1.0, 0.0, 1.0, 3.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "sound.tif")
    values[0, 1] = np.nan
    Image.fromarray(np.append(values, [[np.inf]], 1).astype(np.float32)).save(
        tmp_path / "holes.tif"
    )
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nothing.tif")
    assert np.asarray(read_image(tmp_path / "sound.tif"))[0, :, 0].tolist() == [0, 64, 128, 255]
    assert np.asarray(read_image(tmp_path / "holes.tif"))[0, :, 0].tolist() == [0, 0, 128, 255, 0]
    with pytest.raises(
        FedPGPError, match=r"nothing\.tif cannot be read \(none of its pixels is a finite number\)"
    ):
        FileSplit(tmp_path, ["nothing.tif"], [0]).image(0)


@pytest.mark.parametrize("limits", [[0], "0,1", [5, 5], [0, None], [0, float("nan")], 7])
def test_a_range_of_grey_that_cannot_work_is_refused(limits):
    with pytest.raises(FedPGPError, match="dataset.grey_range"):
        Reading.of({"grey_range": limits})


def test_pillow_s_own_warnings_stay_off_the_terminal(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(SHOWN).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with Image.open(path) as image:
            image.getexif()
        assert heard, "Pillow has something to say of this image"
        heard.clear()
        _silence_pillow.cache_clear()
        assert read_image(path).size == (40, 24)
        assert not heard


def test_what_pillow_logs_stays_off_the_terminal_too(tmp_path, caplog):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.tif")
    content = bytearray((tmp_path / "x.tif").read_bytes())
    samples = content.index(b"\x15\x01\x03\x00\x01\x00\x00\x00")  # the tag of samples per pixel
    content[samples + 8 : samples + 10] = b"\xff\x0f"
    (tmp_path / "x.tif").write_bytes(content)
    _silence_pillow.cache_clear()
    with pytest.raises(FedPGPError, match=r"x\.tif cannot be read"):
        FileSplit(tmp_path, ["x.tif"], [0]).image(0)
    assert not caplog.records


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match="no file, but a pipe, a socket or a device"):
            read_image(place)


@pytest.mark.parametrize("background", ["white", "none"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16", "F"])
def test_an_image_in_strips_is_the_whole_one(mode, background, monkeypatch):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 30, 4), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 60_000, (40, 30), dtype=np.uint16))
    elif mode == "F":
        values = rng.normal(size=(40, 30)).astype(np.float32)
        values[3, 4] = np.nan
        image = Image.fromarray(values)
    elif mode != "RGBA":
        image = image.convert(mode)
    if mode in ("P", "L"):
        image.info["transparency"] = 5
    reading = Reading(background=background)
    whole = as_rgb(image, reading)
    monkeypatch.setattr("fedpgp.data.images.STRIP", 100)
    np.testing.assert_array_equal(as_rgb(image, reading), whole)


def test_large_images_are_read_one_at_a_time(tmp_path, monkeypatch):
    Image.fromarray(SHOWN).save(tmp_path / "a.png")
    monkeypatch.setattr("fedpgp.data.images.LARGE", 10)
    with ThreadPoolExecutor(4) as pool:
        sizes = {image.size for image in pool.map(read_image, [tmp_path / "a.png"] * 8)}
    assert sizes == {(40, 24)}


def test_a_program_for_ghostscript_is_no_image(tmp_path):
    """Pillow looks at the content, not at the name, and would run it."""
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(text)
    assert Image.open(tmp_path / "a.png").format == "EPS"
    with pytest.raises(UnidentifiedImageError):
        read_image(tmp_path / "a.png")
