"""``folder``: which layouts are known, which are refused, and that nothing is left out without a
word."""

import os
import shutil
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.settings import composed, parse
from fedpgp.build import load_configured, split_configured
from fedpgp.data import load_dataset
from fedpgp.data.files import hold_out, image_files
from fedpgp.data.layouts import LAYOUTS, SPLITS
from fedpgp.errors import FedPGPError


@pytest.fixture
def make(tmp_path):
    """Writes images at these paths (``many`` numbered ones where a path ends in /); returns the
    root."""
    template = tmp_path / "image.jpg"
    Image.new("RGB", (12, 10), "red").save(template)

    def write(*paths, many=4):
        root = tmp_path / "root"
        for path in paths:
            for file in [f"{path}{i}.jpg" for i in range(many)] if path.endswith("/") else [path]:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(template, root / file)
        return root

    return write


def content(split):
    """(domain, path) of each image."""
    return set(zip(split.domains or [None] * len(split), split.paths, strict=True))


def test_classes_alone_are_split_by_file(make):
    data = load_dataset("folder", make("cat/", "dog/", many=10))
    assert data.class_names == ["cat", "dog"] and data.train.domains is None and data.notes == ()
    assert (len(data.train), len(data.test)) == (14, 6)


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Train", "Valid", "TEST"), ("training", "validation", "testing")],
)
def test_splits_under_their_usual_names(make, names):
    data = load_dataset(
        "folder", make(*(f"{part}/{name}/" for part in names for name in ("cat", "dog")))
    )
    assert data.class_names == ["cat", "dog"] and data.notes == ()
    for split, part in zip((data.train, data.val, data.test), names, strict=True):
        assert len(split) == 8 and all(path.startswith(f"{part}/") for path in split.paths)


def test_sites_with_classes_and_sites_with_splits_side_by_side(make):
    root = make(
        "oslo/cat/", "oslo/dog/", "bern/train/cat/", "bern/test/cat/", "bern/val/dog/", many=10
    )
    data = load_dataset("folder", root)
    assert data.class_names == ["cat", "dog"]
    assert set(data.train.domains) == set(data.test.domains) == {"bern", "oslo"}
    bern = {path for domain, path in content(data.train) if domain == "bern"}
    assert bern == {f"bern/train/cat/{i}.jpg" for i in range(10)}
    assert {path for domain, path in content(data.test) if domain == "bern"} == {
        f"bern/test/cat/{i}.jpg" for i in range(10)
    }
    assert content(data.val) == {("bern", f"bern/val/dog/{i}.jpg") for i in range(10)}
    assert sum(domain == "oslo" for domain in data.test.domains) == 6


def test_a_node_reads_its_own_site_as_a_simulation_reads_all(make):
    """The same images for training and for testing, whichever way a site is laid out."""
    root = make("oslo/cat/", "oslo/dog/", "bern/train/cat/", "bern/test/cat/", many=10)
    whole = load_dataset("folder", root)
    for site in ("oslo", "bern"):
        mine = load_dataset("folder", root / site)
        assert mine.train.domains is None
        for part in ("train", "test"):
            expected = {path for domain, path in content(getattr(whole, part)) if domain == site}
            assert {f"{site}/{path}" for path in getattr(mine, part).paths} == expected


def test_a_site_may_be_moved_and_renamed(make, tmp_path):
    """The split hangs on the names of class and file alone: no test image becomes a training
    one."""
    root = make("oslo/cat/", "oslo/dog/", many=10)
    before = load_dataset("folder", root / "oslo")
    whole = load_dataset("folder", root)
    (root / "oslo").rename(tmp_path / "moved")
    after = load_dataset("folder", tmp_path / "moved")
    assert (
        after.test.paths
        == before.test.paths
        == [path.removeprefix("oslo/") for path in whole.test.paths]
    )


def test_a_run_from_before_layouts_keeps_its_split(make):
    """Its configuration has no dataset.layout; the site's name was part of what decided."""
    root = make("oslo/cat/", "bern/cat/", many=30)
    config = composed(["dataset=folder", f"dataset.root={root}"])
    new = load_configured(config).test.paths
    del config["dataset"]["layout"]
    old = load_configured(config).test.paths
    files = [(site, "cat", f"{i}.jpg") for site in ("bern", "oslo") for i in range(30)]
    assert set(old) == {"/".join(file) for file in hold_out(files, 0.3, 0)} != set(new)


@pytest.mark.parametrize(
    ("paths", "readings", "layout", "train"),
    [
        # Half of a split, beside other folders or alone: its test images were training ones.
        (
            ("train/cat/", "photo/cat/"),
            ("split (train)", "sites of these names (photo, train)"),
            "SITE/CLASS",
            6,
        ),
        (("test/cat/",), ("split (test)", "sites of these names (test)"), "SITE/CLASS", 3),
        (("train/cat/", "eval/cat/"), ("split (train)", "sites"), "SITE/CLASS", 6),
        (
            ("train_images/cat/", "TestSet/cat/"),
            ("split (TestSet, train_images)", "sites"),
            "SITE/CLASS",
            6,
        ),
        # Images on two levels.
        (("cat/", "cat/old/"), ("classes (cat)", "folders of classes (cat)"), "CLASS", 3),
        (
            ("photo/cat/", "photo/x.jpg"),
            ("classes (photo)", "folders of classes (photo)"),
            "SITE/CLASS",
            3,
        ),
        # A split without folders of its classes.
        (
            ("train/", "test/"),
            ("a split whose images lie in test and train", "classes of these names"),
            "CLASS",
            6,
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_both(make, paths, readings, layout, train):
    root = make(*paths)
    with pytest.raises(FedPGPError, match="can be read in two ways") as error:
        load_dataset("folder", root)
    for text in (*readings, f"dataset.layout={layout}"):
        assert text in str(error.value)
    assert len(load_dataset("folder", root, layout=layout).train) == train


def test_the_site_that_is_at_fault_is_named(make):
    root = make("oslo/cat/", "bern/train/cat/")
    with pytest.raises(FedPGPError, match=rf"{root}/bern can be read in two ways"):
        load_dataset("folder", root)
    with pytest.raises(FedPGPError, match=rf"{root}/bern has no folder test"):
        load_dataset("folder", make("oslo/train/cat/", "oslo/test/cat/"), layout="SITE/SPLIT/CLASS")


def test_one_setting_of_the_layout_serves_a_simulation_and_its_nodes(make):
    root = make("oslo/cat/", "oslo/cat/old/", "bern/cat/")
    with pytest.raises(
        FedPGPError, match=rf"{root}/oslo can be read in two ways.* set dataset.layout=SITE/CLASS$"
    ):
        load_dataset("folder", root)
    words = [
        "dataset=folder",
        "dataset.class_names=[cat]",
        "dataset.layout=SITE/CLASS",
        "protocol=personal",
        "clients=2",
    ]
    whole = split_configured(composed([*words, "partition=natural", f"dataset.root={root}"]))
    own = composed([*words, "partition=own"])
    own["dataset"]["root"], own["partition"]["client"] = str(root / "oslo"), 1
    assert len(split_configured(own).clients[1].train) == len(whole.clients[1].train) == 3


def test_a_class_may_be_called_train(make):
    data = load_dataset("folder", make("bus/", "train/"))
    assert data.class_names == ["bus", "train"]
    data = load_dataset("folder", make("bus/", "train/", "x/bus/", "x/train/"), layout="SITE/CLASS")
    assert set(data.train.domains) == {"x"}


def test_layouts_that_cannot_be(make):
    with pytest.raises(FedPGPError, match="layout 'class'; did you mean CLASS"):
        load_dataset("folder", make("cat/"), layout="class")
    with pytest.raises(FedPGPError, match="val and valid, two folders of one split"):
        load_dataset("folder", make("train/cat/", "test/cat/", "val/cat/", "valid/cat/"))


def test_images_that_are_nowhere_a_layout_has_them(make):
    with pytest.raises(
        FedPGPError, match=r"no images in .* there are some elsewhere: a/b/c/d/0\.jpg; it must hold"
    ):
        load_dataset("folder", make("a/b/c/d/"))


@pytest.mark.parametrize(
    "ending",
    [".jfif", ".avif", ".jpe", ".jp2", ".JPG", ".webp", ".tiff", ".bmp", ".gif", ".ico", ".tga"],
)
def test_what_pillow_opens_is_read(tmp_path, ending):
    kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(ending.lower())
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / split / "cat" / f"x{ending}", kind)
    data = load_dataset("folder", tmp_path)
    assert data.train.image(0).size == (32, 32) and data.notes == ()
    assert image_files(tmp_path / "train" / "cat") == [f"x{ending}"], "of published data sets too"


def test_whatever_is_not_used_is_counted_and_named_once(make):
    root = make("train/cat/", "test/cat/", "train/owl/", "test/fox/")
    make(
        "top.jpg",
        "train/beside.jpg",
        "train/cat/old/",
        "extra/cat/",
        "train/cat/.hidden.jpg",
        ".git/cat/",
        "__MACOSX/cat/",
    )
    for name in ("a.svg", "b.svg", "c.txt", "d.h5", "e.heic", "f.eps", "g"):
        (root / "test" / "cat" / name).write_text("x")
    for name in ("train/empty", "test/empty"):
        (root / name).mkdir()
    os.mkfifo(root / "test" / "cat" / "pipe.jpg")
    data = load_dataset("folder", root)
    assert (len(data.train), len(data.test)) == (8, 8)
    assert sorted(data.notes) == sorted(
        [
            "not read: 8 files of kinds that are no images or that Pillow cannot read (2 .svg, "
            "1 without an ending, 1 .eps, 1 .h5, 1 .heic, …): test/cat/a.svg …",
            "not read: 2 images beside the folders of the classes: top.jpg …",
            "not read: 4 images in folders beside train and test: extra/cat/0.jpg …",
            "not read: 4 images in deeper folders: train/cat/old/0.jpg …",
            "folders without images: test/empty, train/empty",
            "classes without training images: fox",
            "classes without test images: owl",
        ]
    )


def test_links_are_followed_and_a_circle_is_walked_once(make):
    root = make("cat/", "dog/")
    (root / "cat" / "circle").symlink_to(root)
    (root / "fox").symlink_to(root / "dog")
    (root / "cat" / "gone.jpg").symlink_to(root / "nowhere")
    data = load_dataset("folder", root)
    assert data.class_names == ["cat", "dog", "fox"] and len(data.train) + len(data.test) == 13
    kept = load_dataset("folder", root, on_bad_image="skip")
    assert len(kept.train) + len(kept.test) == 12


def test_a_name_with_bytes_that_are_no_text(make):
    """The system has file names that UTF-8 has not."""
    root = make("cat/", "dog/")
    strange = os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(root / "cat" / "0.jpg", root / "cat" / strange)
    (root / "cat" / os.fsdecode(b"\xff.svg")).touch()
    data = load_dataset("folder", root, on_bad_image="skip")
    split = data.train if f"cat/{strange}" in data.train.paths else data.test
    row = split.paths.index(f"cat/{strange}")
    assert split.image(row).size == (12, 10) and len(split.fingerprint) == 64
    assert split.describe(row).endswith(r"cat/caf\xe9.jpg") and split.describe(row).encode()
    assert "\\xff.svg" in "".join(data.notes).encode().decode()
    (root / "cat" / strange).write_text("broken")
    note = load_dataset("folder", root, on_bad_image="skip").notes[-1]
    assert r"caf\xe9.jpg" in note and note.encode()
    shutil.copytree(root / "dog", root / os.fsdecode(b"caf\xe9"))
    with pytest.raises(FedPGPError, match=r"the name of class caf\\xe9 is not UTF-8 text"):
        load_dataset("folder", root)


def test_control_characters_reach_no_table_and_no_terminal(make):
    root = make("cat/", "dog/", "cat/\x1b[2Jx.svg", "cat/a\nb.jpg")
    data = load_dataset("folder", root)
    assert r"cat/\x1b[2Jx.svg" in data.notes[0] and data.notes[0].isprintable()
    split = next(split for split in (data.train, data.test) if "cat/a\nb.jpg" in split.paths)
    assert split.describe(split.paths.index("cat/a\nb.jpg")).endswith(r"cat/a\nb.jpg")
    with pytest.raises(FedPGPError, match=r"the name of class fox\\n is not UTF-8 text"):
        load_dataset("folder", make("fox\n/"))


def test_a_setting_with_bytes_that_are_no_text_is_refused_in_words():
    for argument in ("dataset.root=/data/caf\udce9", "dataset.root='/data/caf\udce9'"):
        with pytest.raises(FedPGPError, match=r"/data/caf\\xe9'? has bytes that are not UTF-8"):
            parse([argument])


def test_a_root_with_bytes_that_are_no_text(make):
    root = make("cat/", "dog/").rename(os.fsdecode(os.fsencode(make().parent) + b"/caf\xe9"))
    data = load_dataset("folder", root)
    assert len(data.train.fingerprint) == 64 and data.train.image(0).size == (12, 10)


def test_folders_written_on_a_mac_are_the_same_classes(make):
    """macOS decomposes names: the same word has other bytes."""
    mac, other = unicodedata.normalize("NFD", "café"), "café"
    data = load_dataset("folder", make(f"train/{mac}/", f"test/{other}/", f"oslo {mac}/x.txt"))
    assert data.class_names == [other]
    assert (
        (len(data.train), len(data.test)) == (4, 4) and data.test.image(0) and data.train.image(0)
    )
    data = load_dataset(
        "folder", make().parent / "root", class_names=[mac, "tea"], layout="SPLIT/CLASS"
    )
    assert data.class_names == [other, "tea"]


@pytest.mark.parametrize("site", ["train", "test", "Valid"])
def test_a_site_that_is_named_like_a_split(make, site):
    """Its training images may be meant as test images."""
    root = make(f"{site}/train/cat/", f"{site}/test/cat/", "oslo/train/cat/", "oslo/test/cat/")
    with pytest.raises(FedPGPError, match=f"in two ways.*{site}.*SITE/SPLIT/CLASS"):
        load_dataset("folder", root)
    data = load_dataset("folder", root, layout="SITE/SPLIT/CLASS")
    assert sorted({path.split("/")[1] for path in data.train.paths}) == ["train"]


FOLDERS = st.sampled_from(["train", "test", "val", "cat", "dog", "oslo", "bern", "Test"])
TREES = st.dictionaries(
    st.lists(FOLDERS, max_size=4).map(tuple), st.integers(1, 3), min_size=1, max_size=7
)


@settings(max_examples=150, deadline=None)
@given(TREES, st.sampled_from([None, None, *LAYOUTS]))
def test_every_image_is_used_once_or_counted_or_the_folder_is_refused(tree, layout):
    with tempfile.TemporaryDirectory() as root:
        for parts, many in tree.items():
            folder = Path(root, *parts)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(many):
                (folder / f"{i}.png").touch()
        try:
            data = load_dataset("folder", root, layout=layout)
        except FedPGPError:
            return
        used = [
            (path, part)
            for part in ("train", "val", "test")
            for path in getattr(getattr(data, part), "paths", ())
        ]
        assert len({path for path, _ in used}) == len(used), "in one split only"
        counted = sum(int(note.split()[2]) for note in data.notes if note.startswith("not read"))
        assert len(used) + counted == sum(tree.values())
        for path, part in used:
            named = [
                SPLITS[name.lower()] for name in path.split("/")[:-2] if name.lower() in SPLITS
            ]
            if layout is None and named:
                assert part == named[0], "what lies in a folder of a split is of that split"
