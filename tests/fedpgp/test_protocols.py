"""Every protocol: who trains what, who is tested on what, and what is refused."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.settings import choices, composed
from fedpgp.client_table import client_table
from fedpgp.data import ArraySplit, Dataset, load_dataset
from fedpgp.data.datasets.emoji import GROUPS
from fedpgp.data.joint import join
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import auroc, select, summarize
from fedpgp.evaluation.figures import BESIDE
from fedpgp.federation import Federation
from fedpgp.methods import METHODS
from fedpgp.protocols import PROTOCOLS, SplitRequest, label_of, split_clients
from fedpgp.protocols.base import _hold_out
from fedpgp.task import Task
from fedpgp.training import TrainingSettings
from tests.helpers.golden import golden_clip

ANIMALS = ["cat", "dog", "lion", "horse", "bird", "wolf"]
THINGS = ["car", "cup", "house", "table"]
DOMAINS = ["photo", "sketch", "clipart"]
BY_DOMAIN = {"scheme": "domain_dirichlet", "beta": 0.5}


def split(classes: int, images: int, seed: int) -> ArraySplit:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % classes)
    pixels = rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    return ArraySplit(pixels, labels, [DOMAINS[i % 3] for i in rng.integers(0, 3, images)])


def dataset(name: str, names: list[str], template: str = "a photo of a {}.") -> Dataset:
    return Dataset(
        name, names, template, split(len(names), 240, 0), None, split(len(names), 120, 1)
    )


WORLD = {
    "animals": dataset("animals", ANIMALS),
    "things": dataset("things", THINGS, "a drawing of a {}."),
    "more": dataset("more", ANIMALS[:4]),
}


def load(spec) -> Dataset:
    return WORLD[spec["name"]]


def split_data(
    protocol: str, scheme=BY_DOMAIN, clients=6, shots=None, seed=0, data="animals", **options
):
    request = SplitRequest(WORLD[data], clients, seed, shots, scheme, load)
    return split_clients(request, {"name": protocol, **options})


def federation(federated_split, name="fedpgp", **options) -> Federation:
    method = METHODS[name]
    data = federated_split.dataset
    settings = (
        method.Settings(rank=2, personal_init="normal") if name == "fedpgp" else method.Settings()
    )
    task = Task(golden_clip(), data.class_names, template=data.templates, n_ctx=4, dtype=np_dtype())
    rng = np.random.default_rng(3)

    def features(part):
        raw = rng.normal(size=(len(getattr(data, part)), 16))
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)

    cached = {part: features(part) for part in ("train", "test")}
    training = TrainingSettings(epochs=1, batch_size=8, lr=0.05)
    return Federation(
        method(settings, task), data, federated_split, cached.__getitem__, training, **options
    )


def np_dtype():
    import torch

    return torch.float64


def run(fed: Federation, rounds: int = 2) -> list[dict]:
    """A few rounds by hand; the rows of the last evaluation."""
    shared, states = fed.models.initial_shared(), {}
    able = [c for c, client_split in enumerate(fed.federated_split.clients) if client_split.trains]
    for round in range(1, rounds + 1):
        results = list(fed.train(shared, able, round, states.get))
        states |= {r.client: r.state for r in results}
        shared = {name: np.mean([r.update[name] for r in results], axis=0) for name in shared}
    table = {row["id"]: row["domain"] for row in client_table(fed.federated_split)}
    results = fed.evaluate(
        shared, range(fed.num_clients), states.get, zero_shot=True, server_round=rounds
    )
    return [
        {"id": r.client, "domain": table[r.client], **r.metrics}
        for r in sorted(results, key=lambda r: r.client)
    ]


SETTINGS = {
    "base2novel": {},
    "cross_class": {
        "scheme": {"scheme": "pathological"},
        "clients": 2,
        "datasets": ["animals", "things"],
    },
    "cross_dataset": {"targets": ["things"]},
    "cross_domain": {"targets": ["more"]},
    "dirichlet": {"scheme": {"scheme": "dirichlet", "beta": 0.5}},
    "leave_one_domain_out": {"held_out": "sketch"},
    "lifelong": {"tasks": 2, "rounds_per_task": 1},
    "multidomain": {"domains": "all"},
    "personal": {"base": "all"},
    "unseen_clients": {"adapt_epochs": 1},
}
FIGURES = {
    "base2novel": {"local", "base", "novel"},
    "cross_class": {"local", "base", "novel"},
    "cross_dataset": {"local", "datasets.things"},
    "cross_domain": {"local", "datasets.more"},
    "dirichlet": {"local"},
    "leave_one_domain_out": {"local", "unseen", "domains.sketch"},
    "lifelong": {"local", "tasks.2.1", "tasks.2.2"},
    "multidomain": {"local", *(f"domains.{d}" for d in DOMAINS)},
    "personal": {"local", "base"},
    "unseen_clients": {"local", "unseen"},
}

HELD_OUT = ("base2novel", "cross_class")
"""Protocols with images of unknown classes by their default options."""


def test_names_of_conf_are_those_of_the_code():
    assert set(choices()["protocol"]) == set(PROTOCOLS) == set(SETTINGS)
    for name in PROTOCOLS:
        given = composed([f"protocol={name}"])["protocol"]
        assert set(given) == {
            "name",
            *(field.name for field in dataclasses.fields(PROTOCOLS[name])),
        }, name
        assert (
            PROTOCOLS[name](**{k: v for k, v in given.items() if k != "name"}) == PROTOCOLS[name]()
        ), name


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_protocol_measures_its_figures_the_same_twice(name):
    first, second = (run(federation(split_data(name, **SETTINGS[name]))) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    found = {key.split(".", 1)[1] for row in first for key in row if "." in key}
    detected = {figure for figure in BESIDE if figure.startswith(("auroc", "fpr95"))}
    assert found & {*BESIDE} == {*BESIDE} - (set() if name in HELD_OUT else detected)
    found -= {*BESIDE}
    assert found == FIGURES[name]
    summary = summarize(first)
    for model in ("zero_shot", "global", "personal"):
        assert (summary[model]["unseen"] is not None) == any(
            f.startswith(("unseen", "datasets")) for f in found
        )
    other = split_data(name, seed=1, **SETTINGS[name])
    assert (
        any(
            len(a.train) != len(b.train) or (a.train != b.train).any() or a.trains != b.trains
            for a, b in zip(other.clients, split_data(name, **SETTINGS[name]).clients, strict=True)
        )
        or name == "cross_class"
    )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_no_client_trains_what_it_is_tested_on(name):
    given = split_data(name, **SETTINGS[name])
    phases = any(client_split.phases for client_split in given.clients)
    if not phases:  # clients whose images arrive later have no validation images
        given = split_data(name, selection="validation", **SETTINGS[name])
    train = given.dataset.train
    owners = np.concatenate([client_split.train for client_split in given.clients])
    assert len(owners) == len(set(owners.tolist()))
    for client_split in given.clients:
        assert set(train.labels[client_split.train]) <= set(client_split.classes)
        for eval_set in client_split.eval_sets.values():
            assert set(getattr(given.dataset, eval_set.split).labels[eval_set.indices]) <= set(
                eval_set.classes
            ) and len(eval_set.indices)
        if client_split.trains and not phases:
            kept = client_split.eval_sets["val"].indices
            assert client_split.eval_sets["val"].split == "train" and not set(kept) & set(owners)
            assert 0 < len(kept) < len(client_split.train)


def test_an_eval_set_that_is_no_figure_is_refused(monkeypatch):
    """Its accuracy would be nowhere."""
    chosen, split = PROTOCOLS["personal"], PROTOCOLS["personal"].split_clients

    def renamed(self, request):
        given = split(self, request)
        clients = [
            replace(client, eval_sets={**client.eval_sets, "late": client.eval_sets["local"]})
            for client in given.clients
        ]
        return replace(given, clients=clients)

    monkeypatch.setattr(chosen, "split_clients", renamed)
    with pytest.raises(FedPGPError, match="an eval set is called late, which is no figure.*local"):
        split_data("personal", **SETTINGS["personal"])


def test_leave_one_domain_out_leaves_the_domain_out():
    given = split_data("leave_one_domain_out", held_out="sketch", clients=6)
    assert {client_split.domain for client_split in given.clients} == {"photo", "clipart"} and len(
        given.clients
    ) == 4
    whole = np.flatnonzero(np.array(given.dataset.test.domains) == "sketch")
    assert all(
        (client_split.eval_sets["unseen"].indices == whole).all() for client_split in given.clients
    )
    summary = summarize(run(federation(given)))["personal"]
    assert summary["domains"]["sketch"] == summary["unseen"] and set(summary["domains"]) == set(
        DOMAINS
    )


def test_a_held_out_domain_is_tested_on_all_of_its_images_where_the_table_says_so():
    """FedPGP, commit d43045b33f42, data_utils.py, line 97: the test set is the domain's train
    and test set together."""
    plain = split_data("leave_one_domain_out", held_out="sketch")
    given = split_data("leave_one_domain_out", held_out="sketch", held_out_images="all")
    data, new = plain.dataset, given.dataset
    sketches = [
        np.flatnonzero(np.array(part.domains) == "sketch") for part in (data.test, data.train)
    ]
    expected = [
        part._open(i).tobytes()
        for part, rows in zip((data.test, data.train), sketches, strict=True)
        for i in rows
    ]
    labels = np.concatenate([data.test.labels[sketches[0]], data.train.labels[sketches[1]]])
    for before, client_split in zip(plain.clients, given.clients, strict=True):
        eval_set = client_split.eval_sets["unseen"]
        assert [new.test._open(row).tobytes() for row in eval_set.indices] == expected
        assert new.test.labels[eval_set.indices].tolist() == labels.tolist()
        assert client_split.train.tolist() == before.train.tolist()
        assert (
            client_split.eval_sets["local"].indices.tolist()
            == before.eval_sets["local"].indices.tolist()
        )
    with pytest.raises(FedPGPError, match="held_out_images 'train'"):
        split_data("leave_one_domain_out", held_out="sketch", held_out_images="train")


def test_domains_own_is_the_mean_of_the_domains_clients():
    rows = run(federation(split_data("multidomain")))
    photo = [row["personal.local"] for row in rows if row["domain"] == "photo"]
    assert summarize(rows)["personal"]["domains"]["photo"] == pytest.approx(np.mean(photo))


@pytest.mark.parametrize("protocol", ["cross_dataset", "cross_domain"])
def test_a_client_may_train_among_its_own_classes_alone(protocol):
    """boschresearch/FedTPG, commit f141c2994b5a, federated/client.py: the model is given the
    client's own class names, with ImageNet's clients too."""
    options = {"targets": ["more"], "scheme": {"scheme": "pathological"}, "clients": 3}
    plain, own = (
        split_data(protocol, **options),
        split_data(protocol, train_labels="own", **options),
    )
    for before, client_split in zip(plain.clients, own.clients, strict=True):
        mine = set(WORLD["animals"].train.labels[client_split.train].tolist())
        assert (
            set(client_split.classes) == mine
            and len(mine) == 2
            and len(before.classes) == len(ANIMALS)
        )
        assert (
            client_split.eval_sets["local"].classes == before.eval_sets["local"].classes
        )  # what is asked stays the same
    with pytest.raises(FedPGPError, match="train_labels 'mine'"):
        split_data(protocol, train_labels="mine", **options)


def test_targets_keep_their_own_classes_and_templates():
    given = split_data("cross_dataset", targets=["things"])
    eval_set = given.clients[0].eval_sets["datasets.things"]
    names = [given.dataset.class_names[c] for c in eval_set.classes]
    assert names == THINGS and len(eval_set.indices) == 120
    right = [THINGS[label] for label in WORLD["things"].test.labels]
    assert [
        given.dataset.class_names[given.dataset.test.labels[row]] for row in eval_set.indices
    ] == right
    assert federation(given).class_set(eval_set.classes).sentences[0] == "a drawing of a car."
    assert federation(given).base.sentences[0] == "a photo of a cat."


def test_unseen_clients_get_the_global_prompt_or_adapt_it():
    plain, adapted = (split_data("unseen_clients", share=0.34, adapt_epochs=e) for e in (0, 2))
    unseen = [c for c, client_split in enumerate(plain.clients) if not client_split.trains]
    assert len(unseen) == 2 and [s.trains for s in plain.clients] == [
        s.trains for s in adapted.clients
    ]
    rows, rows_adapted = run(federation(plain)), run(federation(adapted))
    for client in unseen:
        assert (
            rows[client]["personal.unseen"]
            == rows[client]["global.unseen"]
            == rows_adapted[client]["global.unseen"]
        )
        assert "personal.local" not in rows[client]
    assert {row["trains"] for row in client_table(federation(adapted).federated_split)} == {
        True,
        False,
    }
    for name in ("coop", "promptfl"):
        assert "personal.unseen" in run(federation(plain, name))[unseen[0]]


def test_cross_class_trains_and_answers_among_the_clients_own_block():
    given = split_data("cross_class", {"scheme": "pathological"}, 2, datasets=["animals", "things"])
    assert [client_split.domain for client_split in given.clients] == ["animals", "things"]
    assert [client_split.classes for client_split in given.clients] == [(0, 1, 2), (6, 7)]
    assert given.novel_classes == (3, 4, 5, 8, 9) and given.clients[1].eval_sets[
        "novel"
    ].classes == (8, 9)
    # FedTPG's nine data sets by their numbers of base classes: blocks of about 20
    # classes make its 30 clients.
    sizes = [50, 19, 98, 51, 51, 50, 199, 24, 51]
    halves = [(tuple(range(n)), ()) for n in sizes]
    assert PROTOCOLS["cross_class"]._clients(halves, 30) == [2, 1, 5, 3, 3, 2, 10, 1, 3]
    summary = summarize(run(federation(given)))["global"]
    assert set(summary["domains_base"]) == set(summary["domains_novel"]) == {"animals", "things"}


@pytest.mark.parametrize(("base", "known"), [("all", "base"), ("others", "local")])
def test_novel_images_are_told_from_known_ones_among_base_classes(base, known):
    """Against the logits of all test images under the base classes."""
    scheme = {"scheme": "pathological"}
    given = split_data("base2novel", scheme, 3, base=base)
    fed = federation(given)
    (row, *_) = run(fed, rounds=0)
    test, classes = given.dataset.test, fed.class_set(given.base_classes)
    logits = fed.method.task.logit_scale * fed.inputs.features("test") @ classes.zero_shot.mT
    client_split = given.clients[0]
    novel = np.flatnonzero(np.isin(test.labels, given.novel_classes))
    mine = client_split.eval_sets[known].indices
    assert client_split.unknown.indices.tolist() == novel.tolist()
    softmax, energy = logits.softmax(-1).amax(-1).numpy(), logits.exp().sum(-1).log().numpy()
    assert row["zero_shot.auroc"] == pytest.approx(auroc(softmax[mine], softmax[novel]))
    assert row["zero_shot.auroc_energy"] == pytest.approx(auroc(energy[mine], energy[novel]))


def test_unknown_to_a_client_are_the_classes_that_it_does_not_have():
    scheme = {"scheme": "pathological"}
    for base in ("others", "all"):
        given = split_data("personal", scheme, 3, local_labels="own", base=base)
        labels = given.dataset.test.labels
        for client_split in given.clients:
            own = client_split.eval_sets["local"].allowed_labels
            unknown = client_split.unknown
            assert unknown.known == "local"
            others = np.flatnonzero(~np.isin(labels, own))
            assert unknown.indices.tolist() == others.tolist()
    assert all(f"{model}.fpr95" in run(federation(given))[0] for model in ("global", "personal"))
    for options in ({"base": "all"}, {"local_labels": "own"}):
        assert split_data("personal", scheme, 3, **options).clients[0].unknown is None


def test_local_labels_own_are_the_clients_classes():
    scheme = {"scheme": "pathological"}
    given = split_data("personal", scheme, 3, local_labels="own", base="others")
    for client_split in given.clients:
        assert client_split.eval_sets["local"].allowed_labels == tuple(
            sorted(set(given.dataset.train.labels[client_split.train]))
        )
        others = given.dataset.test.labels[client_split.eval_sets["base"].indices]
        assert (
            not set(others) & set(client_split.eval_sets["local"].allowed_labels)
            and client_split.eval_sets["base"].allowed_labels is None
        )


def test_class_halves_by_label_or_alphabet():
    assert split_data("base2novel").base_classes == (0, 1, 2)
    assert split_data("base2novel", class_order="alphabet").base_classes == (4, 0, 1)


def test_which_round_is_reported():
    def record(round, local, val):
        block = {
            "local": local,
            "base": 50.0,
            "novel": 40.0,
            "unseen": None,
            "val": val,
            "domains": {"a": local},
        }
        return {
            "round": round,
            "zero_shot": None,
            "global": block,
            "personal": {**block, "std_clients": {"local": 1.0}},
        }

    records = [record(r, 10.0 * r, val) for r, val in enumerate([99, 1, 7, 7, 5, 3, 2])]
    last, rounds = select(records, "last")
    assert rounds == [6] and last["personal"]["local"] == 60 and last["zero_shot"] is None
    five, rounds = select(records, "last_five")
    assert (
        rounds == [2, 3, 4, 5, 6]
        and five["personal"]["local"] == 40
        and five["personal"]["domains"] == {"a": 40}
    )
    assert five["personal"]["hm3"] == pytest.approx(3 / (1 / 40 + 1 / 50 + 1 / 40))
    best, rounds = select(records, "validation")
    assert rounds == [2] and best["personal"]["local"] == 20
    assert select(records[:1], "last_five")[1] == [0] and select([], "last")[1] == []


def test_the_joint_data_set_is_its_members_one_after_the_other():
    joint, members = join([WORLD["animals"], WORLD["things"]], ["animals", "things"])
    assert joint.class_names == ANIMALS + THINGS and len(joint.test) == 240
    assert members[1].classes == (6, 7, 8, 9) and members[1].test.tolist() == list(range(120, 240))
    assert (np.asarray(joint.test.image(125)) == WORLD["things"].test.pixels[5]).all()
    assert joint.test.describe(125) == "number 5"


def test_groups_of_emoji_are_data_sets_of_their_own():
    whole = load_dataset("emoji")
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(whole.class_names)
    part = load_dataset("emoji", groups="food", domains=["noto"])
    assert part.class_names == [name for name in whole.class_names if name in GROUPS["food"]]
    assert set(part.test.labels) == set(range(6)) and set(part.test.domains) == {"noto"}
    first = part.test.describe(0)
    row = next(i for i in range(len(whole.test)) if whole.test.describe(i) == first)
    assert whole.class_names[whole.test.labels[row]] == part.class_names[part.test.labels[0]]
    with pytest.raises(FedPGPError, match="unknown group of emoji 'foood'; did you mean food"):
        load_dataset("emoji", groups=["foood"])


@pytest.mark.parametrize(
    ("name", "clients"), [(name, 10 if name == "cross_class" else 24) for name in sorted(PROTOCOLS)]
)
def test_every_protocol_splits_the_embedded_federation_with_its_defaults(name, clients):
    config = composed([f"protocol={name}"])
    emoji = load_dataset("emoji")
    parts = PROTOCOLS[name]().values(emoji)
    assert parts == (
        ["noto", "twemoji", "fluent", "fluent_flat", "high_contrast", "openmoji"] if parts else ()
    )
    protocol = {**config["protocol"], **({PROTOCOLS[name].parts: parts[0]} if parts else {})}
    scheme = config["partition"]
    request = SplitRequest(emoji, clients, 0, None, scheme, lambda spec: load_dataset(**spec))
    given = split_clients(request, protocol)
    assert len(given.clients) == (20 if parts else clients)
    if name == "cross_dataset":
        trained = {given.dataset.class_names[c] for c in given.base_classes}
        assert trained == {n for g in ("animals", "food", "faces", "people") for n in GROUPS[g]}
        assert set(given.clients[0].eval_sets) - {"local"} == {
            f"datasets.emoji {g}" for g in ("travel", "activities", "objects", "symbols")
        }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dirichlet", {"scheme": {"scheme": "iid"}}, "label shift; partition=iid has none"),
        ("multidomain", {"scheme": {"scheme": "iid"}}, "needs clients of one domain each"),
        ("leave_one_domain_out", {}, "protocol.held_out has no value"),
        ("leave_one_domain_out", {"held_out": "sketsh"}, "did you mean sketch"),
        ("cross_dataset", {"targets": []}, "protocol.targets is empty"),
        ("cross_dataset", {"targets": "things"}, "protocol.targets='things' is no list"),
        (
            "cross_dataset",
            {"targets": ["things"], "source": "x"},
            "protocol.source='x' holds no options",
        ),
        ("cross_dataset", {"targets": [{"group": "x"}]}, "protocol.targets has"),
        ("cross_domain", {"targets": ["things"]}, "things has classes that animals has not"),
        ("cross_domain", {}, "knows no variants of animals"),
        ("cross_class", {}, "partition=pathological, not domain_dirichlet"),
        (
            "cross_class",
            {"scheme": {"scheme": "pathological"}, "datasets": ["things"]},
            "does not name animals",
        ),
        (
            "cross_class",
            {"scheme": {"scheme": "pathological"}, "datasets": ["animals", "things"], "clients": 1},
            "2 data sets need a client each",
        ),
        (
            "cross_class",
            {"scheme": {"scheme": "pathological"}, "datasets": ["animals", "things"], "clients": 4},
            "use clients=2 or fewer",
        ),
        ("unseen_clients", {"share": 1.0}, "protocol.share=1.0"),
        ("unseen_clients", {"adapt_epochs": -1}, "protocol.adapt_epochs=-1"),
        ("unseen_clients", {"clients": 1}, "needs 2 or more"),
        ("personal", {"selection": "best"}, "unknown protocol.selection 'best'"),
        ("personal", {"validation_share": 1}, "protocol.validation_share=1"),
        ("personal", {"base": "some"}, "unknown protocol.base 'some'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name, settings, message):
    with pytest.raises(FedPGPError, match=message):
        split_data(name, **settings)


def test_labels_of_data_sets():
    assert (
        label_of({"name": "emoji", "groups": ["food", "faces"], "domains": "noto"})
        == "emoji food faces noto"
    )


@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_validation_leaves_a_client_something_to_train_on(fraction):
    """Two images of two classes: rounding class by class would take both."""
    assert len(_hold_out(np.array([0, 1]), fraction, 0, 0)) == 1


def newcomers(given):
    return [c for c, client_split in enumerate(given.clients) if not client_split.trains]


def held(given, clients, part):
    """Rows of a split that these clients have."""
    own = [given.clients[c].train if part == "train" else given.clients[c].test for c in clients]
    return np.sort(np.concatenate(own))


def test_newcomers_with_a_label_shift_share_their_images_in_other_proportions():
    about = {"scheme": {"scheme": "dirichlet", "beta": 0.1}, "share": 0.5, "clients": 8}
    plain = split_data("unseen_clients", **about)
    even = split_data("unseen_clients", shift="label", unseen_beta=1e4, **about)
    late = newcomers(plain)
    assert newcomers(even) == late and len(late) == 4
    for part in ("train", "test"):
        assert (held(plain, late, part) == held(even, late, part)).all()
    for client in set(range(8)) - set(late):
        assert (plain.clients[client].train == even.clients[client].train).all()
    labels = plain.dataset.train.labels
    whole = np.bincount(labels[held(plain, late, "train")], minlength=len(ANIMALS))
    for client in late:  # a quarter of each class
        counts = np.bincount(labels[even.clients[client].train], minlength=len(ANIMALS))
        assert np.abs(counts - whole / 4).max() <= 2
    assert any(
        np.abs(np.bincount(labels[plain.clients[c].train], minlength=6) - whole / 4).max() > 2
        for c in late
    )


@pytest.mark.parametrize("scheme", [BY_DOMAIN, {"scheme": "dirichlet", "beta": 0.5}])
def test_newcomers_of_a_domain_that_nobody_else_has(scheme):
    given = split_data("unseen_clients", scheme, shift="domain", unseen_domain="sketch", share=0.34)
    late = newcomers(given)
    for part in ("train", "test"):
        domains = np.array(getattr(given.dataset, part).domains)
        assert set(domains[held(given, late, part)]) == {"sketch"}
        others = [c for c in range(6) if c not in late]
        assert set(domains[held(given, others, part)]) == {"photo", "clipart"}
        assert len(held(given, range(6), part)) == len(domains)
    with pytest.raises(FedPGPError, match="needs protocol.unseen_domain, one of .*sketch"):
        split_data("unseen_clients", shift="domain")
    with pytest.raises(FedPGPError, match="unknown protocol.unseen_domain 'noto'"):
        split_data("unseen_clients", shift="domain", unseen_domain="noto")


def test_newcomers_of_classes_that_nobody_else_has():
    scheme = {"scheme": "dirichlet", "beta": 0.5}
    given = split_data("unseen_clients", scheme, shift="classes", unseen_classes=0.34, share=0.34)
    late = newcomers(given)
    new = set(given.clients[late[0]].classes)
    assert len(new) == 2 and new | set(given.base_classes) == set(range(6))
    assert not new & set(given.base_classes)
    for client, client_split in enumerate(given.clients):
        classes = new if client in late else set(given.base_classes)
        assert set(client_split.classes) == classes
        for eval_set in client_split.eval_sets.values():
            assert set(eval_set.classes) == classes
            assert set(given.dataset.test.labels[eval_set.indices]) <= classes
        assert set(given.dataset.train.labels[client_split.train]) <= classes
    found = {key for row in run(federation(given)) for key in row}
    assert {"personal.local", "personal.unseen"} <= found
    with pytest.raises(FedPGPError, match="unknown protocol.shift 'class'; did you mean classes"):
        split_data("unseen_clients", shift="class")
