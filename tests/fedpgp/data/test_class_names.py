"""Class names: text whatever YAML made of them, and no two that a prompt cannot tell apart."""

import unicodedata

import pytest

from experiments.settings import composed
from fedpgp.build import split_configured
from fedpgp.clip import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.data import Dataset, load_dataset
from fedpgp.data.class_names import as_names, check_names, check_template, told_apart
from fedpgp.errors import FedPGPError
from fedpgp.task import Task
from tests.helpers.small import _clip

MAC = unicodedata.normalize("NFD", "café")


def test_what_yaml_reads_is_a_name():
    assert as_names([7, 1.5, True, False, None, "cat", MAC]) == [
        "7",
        "1.5",
        "true",
        "false",
        "null",
        "cat",
        "café",
    ]
    assert composed(["dataset=folder", "dataset.root=x", "dataset.class_names=[7,'007',null,no]"])[
        "dataset"
    ]["class_names"] == [7, "007", None, "no"]


@pytest.mark.parametrize("values", ["cat", {"cat": 1}, [["cat"]], 7])
def test_what_is_no_list_of_names_is_refused(values):
    with pytest.raises(FedPGPError, match="dataset.class_names"):
        as_names(values)


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "cat"),
        ("Cat", "cat"),
        ("tea_cup", "tea cup"),
        ("tea  cup", "tea_cup"),
        ("ﬁsh", "fish"),  # a ligature
        ("ＡＢ", "ab"),  # full width
        ("1", 1),
        ("cat", "cat\u200b"),  # a zero-width space
        ("\ufeffcat", "cat"),  # a byte order mark
    ],
)
def test_two_names_that_are_one_in_a_prompt_are_refused_by_name(names):
    with pytest.raises(FedPGPError) as error:
        as_names(["dog", *names])
    assert all(repr(str(name)) in str(error.value) for name in names)


@pytest.mark.parametrize("name", ["", " ", "_", "__ ", "\u200b"])
def test_a_name_that_says_nothing_is_refused(name):
    with pytest.raises(FedPGPError, match="says nothing in a prompt"):
        check_names(["cat", name])


@pytest.mark.parametrize("template", ["a {} {0}", "a {{}} b", "{} {", "} {}", "a {}, a {}", "a", 5])
def test_a_template_has_one_place_and_no_other_braces(template):
    with pytest.raises(FedPGPError, match="the place of the class name"):
        check_template(template)


def test_other_names_are_left_as_they_are():
    names = ["tea_cup", "Zebra", "C++", "C", "Maße", "Masse", "日本", "🙂", "a.b", "x-y", "x y"]
    assert as_names(names) == names


def images(root, draw, *folders):
    for folder in folders:
        for i in range(3):
            draw(root / folder / f"{i}.png")
    return root


def test_folders_named_after_numbers_and_yaml_s_own_words(tmp_path, draw):
    root = images(
        tmp_path,
        draw,
        *(f"{part}/{name}" for part in ("train", "test") for name in ("1", "2", "true", "null")),
    )
    assert load_dataset("folder", root).class_names == ["1", "2", "null", "true"]
    data = load_dataset("folder", root, class_names=[2, True, 1, None])
    assert data.class_names == ["2", "true", "1", "null"] and set(data.train.labels) == {0, 1, 2, 3}
    with pytest.raises(
        FedPGPError, match="class_names lacks: 1, null; a name that YAML takes for a number"
    ):
        load_dataset("folder", root, class_names=[2, True])


@pytest.mark.parametrize("other", ["Cat", "cat_", " cat"])
def test_a_class_that_differs_between_splits_in_its_writing_alone(tmp_path, draw, other):
    root = images(tmp_path, draw, "train/cat", "train/dog", f"test/{other}", "test/dog")
    with pytest.raises(FedPGPError, match=f"'{other}'.*rename one"):
        load_dataset("folder", root)


def test_a_folder_that_is_written_otherwise_than_the_class_list_is_named_with_it(tmp_path, draw):
    root = images(tmp_path, draw, "train/Tea_cup", "test/Tea_cup")
    with pytest.raises(FedPGPError, match=r"class_names lacks: Tea_cup \(tea cup there\)"):
        load_dataset("folder", root, class_names=["tea cup", "dog"])


def test_every_participant_of_a_deployment_has_the_same_names(tmp_path, draw):
    root = images(tmp_path, draw, "train/7", "test/7", "train/true", "test/true")
    config = composed(
        [
            "partition=own",
            "protocol=personal",
            "dataset=folder",
            "dataset.class_names=[7,true,null]",
            "clients=1",
        ]
    )
    server = split_configured(config).dataset
    config["dataset"]["root"], config["partition"]["client"] = str(root), 0
    node = split_configured(config).dataset
    assert server.class_names == node.class_names == ["7", "true", "null"]
    config["dataset"]["template"] = None
    del config["partition"]["client"]
    with pytest.raises(FedPGPError, match="dataset.template=None needs exactly one {}"):
        split_configured(config)  # the server says so, before a node comes


def test_every_data_set_has_composed_names():
    assert Dataset("x", [MAC], "{}", None, None, None).class_names == ["café"]


@pytest.mark.parametrize("pair", [("Tea_Cup", "tea cup"), ("a &amp; b", "a & b"), ("it’s", "it's")])
def test_two_names_that_are_the_same_tokens_are_refused_by_the_model(pair):
    with pytest.raises(FedPGPError) as error:
        Task(_clip(), ["dog", *pair]).class_set(range(3))
    assert all(repr(name) in str(error.value) for name in pair)
    assert Task(_clip(), ["dog", *pair]).class_set((0, 2)).names == ["dog", pair[1]]


def test_a_name_that_the_tokenizer_leaves_out_is_refused():
    """SigLIP's tokenizers have no punctuation."""
    canonical = import_open_clip().SimpleTokenizer(clean="canonicalize")
    task = Task(FrozenCLIP(_clip().model, canonical), ["c", "???"])
    with pytest.raises(FedPGPError, match="class '\\?\\?\\?' has no token of this model"):
        task.class_set((0, 1))
    assert task.class_set((0,)).names == ["c"]


def test_emoji_of_several_are_not_their_parts():
    as_names(["\U0001f469\u200d\U0001f373", "\U0001f469\U0001f373"])


def test_answers_tell_classes_of_one_name_apart():
    names = ["missile", "dog", "missile", "missile (2)", "missile"]
    assert told_apart(names) == ["missile", "dog", "missile (3)", "missile (2)", "missile (4)"]


def test_a_published_list_may_have_a_name_twice():
    assert (
        Task(_clip(), ["missile", "dog", "missile"]).class_set(range(3)).names.count("missile") == 2
    )
