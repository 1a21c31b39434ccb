"""Training and evaluation of a small federation with two domains, compared with plain loops."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from fedpgp.build import _encoded
from fedpgp.client_table import client_table
from fedpgp.data import ArraySplit, Dataset
from fedpgp.data.augment import AugmentedSplit
from fedpgp.data.features import encode_split
from fedpgp.data.joint import join
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import summarize
from fedpgp.evaluation.samples import samples
from fedpgp.federation import Federation
from fedpgp.methods import METHODS
from fedpgp.prompts import starting_context
from fedpgp.protocols import SplitRequest, split_clients
from fedpgp.task import Task
from fedpgp.training import TrainingSettings
from tests.helpers.golden import golden_clip

NAMES = ["cat", "dog", "airplane", "ship", "clover", "rose"]
DOMAINS = ["photo", "sketch"]


def split(images: int, seed: int) -> ArraySplit:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % len(NAMES))
    pixels = rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    return ArraySplit(pixels, labels, [DOMAINS[i % 2] for i in rng.integers(0, 2, images)])


DATASET = Dataset("made up", NAMES, "a photo of a {}.", split(240, 0), None, split(120, 1))
FEATURES = {
    name: torch.nn.functional.normalize(
        torch.randn(n, 16, generator=torch.Generator().manual_seed(n)).double(), dim=-1
    )
    for name, n in (("train", 240), ("test", 120))
}


def federation(
    name="fedpgp", protocol=None, scheme=None, clients=4, shots=None, **options
) -> Federation:
    method = METHODS[name]
    settings = {"personal_init": "normal", "rank": 2} if name == "fedpgp" else METHODS[name].small
    task = Task(golden_clip(), NAMES, n_ctx=4, dtype=torch.float64)
    protocol = {"name": "base2novel", **(protocol or {})}
    scheme = scheme or {"scheme": "domain_dirichlet", "beta": 0.5}
    return Federation(
        method(method.Settings(**settings), task),
        DATASET,
        split_clients(SplitRequest(DATASET, clients, 0, shots, scheme), protocol),
        lambda part: FEATURES[part].numpy(),
        TrainingSettings(epochs=1, batch_size=8, lr=0.05),
        patches=lambda part: FEATURES[part][:, None].numpy(),
        mirrored=lambda part: FEATURES[part].flip(1).numpy(),
        features_raw=lambda part: 3 * FEATURES[part].numpy(),
        **options,
    )


def one_round(fed: Federation) -> tuple[dict, dict]:
    shared, states = fed.models.initial_shared(), {}
    updates = []
    for result in fed.train(shared, range(fed.num_clients), 1, states.get):
        states[result.client] = result.state
        updates.append((result.num_examples, result.update))
    total = sum(n for n, _ in updates)
    return {name: sum(n / total * update[name] for n, update in updates) for name in shared}, states


@pytest.mark.parametrize("base", ["all", "others"])
def test_figures_against_a_plain_loop(base):
    options = {"scheme": {"scheme": "pathological"}, "clients": 3} if base == "others" else {}
    fed = federation(protocol={"base": base}, **options)
    shared, states = one_round(fed)
    names = {"base": [0, 1, 2], "novel": [3, 4, 5]}
    from fedpgp.text import PromptedTextEncoder

    for result in fed.evaluate(shared, [2, 0, 1], states.get, zero_shot=True):
        client_split = fed.federated_split.clients[result.client]
        state = states[result.client]
        p_G = torch.from_numpy(shared["p_G"])
        contexts = {"global": p_G, "personal": p_G + state["U"] @ state["V"]}
        own = {int(label) for label in DATASET.train.labels[client_split.train]}
        rows = {"local": client_split.test.tolist()}
        for part, labels in names.items():
            rows[part] = [
                i
                for i in range(len(DATASET.test))
                if DATASET.test.labels[i] in labels
                and client_split.domain in (None, DATASET.test.domains[i])
                and not (part == "base" and base == "others" and DATASET.test.labels[i] in own)
            ]
        for model, context in {"zero_shot": None, **contexts}.items():
            for figure, chosen in rows.items():
                labels = names["novel" if figure == "novel" else "base"]
                classes = [NAMES[c] for c in labels]
                if context is None:
                    text = golden_clip().encode_texts([f"a photo of a {c}." for c in classes])
                else:
                    text = PromptedTextEncoder(golden_clip(), classes, 4)(context)
                right = [
                    labels[int((text @ FEATURES["test"][i]).argmax())] == DATASET.test.labels[i]
                    for i in chosen
                ]
                key = f"{model}.{figure}"
                if chosen:
                    assert result.metrics[key] == pytest.approx(100 * np.mean(right), abs=1e-9), key
                else:
                    assert key not in result.metrics
    assert {r.client for r in fed.evaluate(shared, [2, 0], states.get)} == {0, 2}


def test_a_client_owns_one_domain_and_no_novel_image():
    fed = federation()
    seen = np.concatenate([client_split.train for client_split in fed.federated_split.clients])
    assert len(seen) == len(set(seen.tolist())) == int((DATASET.train.labels < 3).sum())
    for client_split, row in zip(
        fed.federated_split.clients, client_table(fed.federated_split), strict=True
    ):
        assert {DATASET.train.domains[i] for i in client_split.train} == {client_split.domain}
        assert {DATASET.test.domains[i] for i in client_split.test} == {client_split.domain}
        assert row["train_images"] == len(client_split.train) == sum(row["train_counts"].values())
        assert set(row["test_counts"]) <= set(row["train_counts"]) <= set(NAMES[:3])


def test_methods_report_the_models_they_have():
    rows = {}
    for name in METHODS:
        fed = federation(name)
        shared, states = one_round(fed) if fed.method.learns else ({}, {})
        table = {row["id"]: row["domain"] for row in client_table(fed.federated_split)}
        results = fed.evaluate(shared, range(4), states.get, zero_shot=True)
        rows[name] = summarize(
            [{"id": r.client, "domain": table[r.client], **r.metrics} for r in results]
        )
    assert rows["coop"]["global"] is None and rows["coop"]["personal"] is not None
    assert rows["promptfl"]["global"] == rows["promptfl"]["personal"]
    assert (
        rows["zero_shot"]["global"]
        == rows["zero_shot"]["personal"]
        == rows["zero_shot"]["zero_shot"]
    )
    assert rows["fedpgp"]["global"] != rows["fedpgp"]["personal"]
    assert set(rows["fedpgp"]["personal"]["domains"]) == set(DOMAINS)


def test_only_declared_tensors_are_updates_and_states_differ():
    fed = federation()
    results = list(fed.train(fed.models.initial_shared(), range(4), 1, lambda client: None))
    assert all(set(r.update) == {"p_G"} and set(r.state) == {"U", "V"} for r in results)
    assert not torch.equal(results[0].state["U"], results[1].state["U"])


@pytest.mark.parametrize("name", ["fedpgp", "coop"])
def test_cohort_size_changes_nothing(name):
    shared = federation(name).models.initial_shared()
    whole, single = (
        {
            r.client: r
            for r in federation(name, cohort_size=k).train(shared, range(4), 1, lambda client: None)
        }
        for k in (4, 1)
    )
    for client in range(4):
        for key, tensor in whole[client].state.items():
            torch.testing.assert_close(tensor, single[client].state[key], rtol=1e-10, atol=1e-12)


def test_kept_optimizer_state_stays_with_its_client():
    fed = federation(keep_optimizer=True)
    first = {
        r.client: r for r in fed.train(fed.models.initial_shared(), [0, 1], 1, lambda client: None)
    }
    assert set(first[0].state) == {"U", "V"} | {
        f"optimizer/{what}/{n}" for what in ("momentum", "step") for n in ("p_G", "U", "V")
    }
    shared = {"p_G": first[0].update["p_G"]}
    both = {r.client: r for r in fed.train(shared, [0, 1], 2, lambda c: first[c].state)}
    alone = next(iter(fed.train(shared, [1], 2, lambda c: first[c].state)))
    torch.testing.assert_close(both[1].state["U"], alone.state["U"], rtol=1e-10, atol=1e-12)
    fresh = next(
        iter(
            federation().train(shared, [1], 2, lambda c: {n: first[c].state[n] for n in ("U", "V")})
        )
    )
    assert not torch.equal(alone.state["U"], fresh.state["U"])


def test_an_optimizer_state_of_one_count_is_read():
    """As private states were written before every tensor had its own."""
    fed = federation(keep_optimizer=True)
    shared = fed.models.initial_shared()
    now = next(iter(fed.train(shared, [1], 1, lambda client: None))).state
    old = {n: t for n, t in now.items() if not n.startswith("optimizer/step/")}
    old["optimizer/step"] = now["optimizer/step/U"]
    results = [next(iter(fed.train(shared, [1], 2, lambda c, s=s: s))).state for s in (now, old)]
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_local_labels_own_never_answers_another_class():
    fed = federation(
        protocol={"local_labels": "own"}, scheme={"scheme": "pathological"}, clients=3
    )  # one class a client
    result = next(iter(fed.evaluate(fed.models.initial_shared(), [0], lambda client: None)))
    assert result.metrics["personal.local"] == 100.0
    assert result.metrics["personal.base"] < 100.0


def test_a_sample_is_a_small_image():
    """A photograph of megabytes is not sent to be shown at the width of a thumb; a small
    image stays as it is."""
    fed = federation()
    fed.inputs.dataset = replace(
        DATASET, test=ArraySplit(np.zeros((120, 600, 300, 3), dtype=np.uint8), DATASET.test.labels)
    )
    shared, states = one_round(fed)
    (sample,) = samples(fed.evaluator, shared, [1], states.get, 1, fed.seed, server_round=1)
    assert Image.open(io.BytesIO(sample["png"])).size == (128, 256)


def test_samples_show_test_images_with_the_personal_answer():
    fed = federation()
    shared, states = one_round(fed)
    found = samples(fed.evaluator, shared, [1], states.get, 4, fed.seed, server_round=1)
    assert len(found) == 4 and all(
        s["client"] == 1 and s["png"].startswith(b"\x89PNG") for s in found
    )
    assert all(
        s["correct"] == (s["label"] == s["predicted"]) and 0 < s["confidence"] <= 1 for s in found
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients"),
        ({"shots": 0}, "shots"),
        ({"shots": 999}, "shots"),
        ({"protocol": {"name": "base2nove"}}, "base2novel"),
        ({"protocol": {"base": "some"}}, "protocol.base"),
        ({"scheme": {"scheme": "dirichlet", "beta": -1}}, "beta"),
        ({"scheme": {"scheme": "dirichlett"}}, "dirichlet"),
        ({"clients": 10, "scheme": {"scheme": "pathological"}}, "class"),
        ({"clients": 200}, "200 clients|clients=200"),
        ({"protocol": {"bse": "all"}}, "protocol.*base"),
        (
            {"protocol": {"base": "others"}, "scheme": {"scheme": "iid"}},
            "client 0 has no test image for base accuracy",
        ),
        ({"protocol": {"local_labels": "mine"}}, "local_labels"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options, message):
    with pytest.raises(FedPGPError, match=message):
        federation(**options)


@pytest.mark.parametrize("rank", [0, -1, 5, 1000])
def test_rank_out_of_range(rank):
    task = Task(golden_clip(), NAMES, n_ctx=4, dtype=torch.float64)
    with pytest.raises(FedPGPError, match=f"method.rank={rank}.*(between 1 and 4|1 or more)"):
        method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(rank=rank), task)
        method.init_personal(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("n_ctx", "init"), [(0, "normal"), (None, "normal"), (5, "a photo of a"), (4, "")]
)
def test_context_length_out_of_range(n_ctx, init):
    with pytest.raises(FedPGPError, match="n_ctx|context_init"):
        Task(golden_clip(), NAMES, n_ctx=n_ctx, context_init=init)


def test_fewer_context_vectors_than_the_phrase_has_leave_its_other_words_before_the_class_name():
    """MaPLe (muzairkhattak/multimodal-prompt-learning, commit 69bce21ae8ed, trainers/maple.py,
    lines 84 to 92, 121 and 131): "a photo of a {class}." is tokenized, n_ctx = 2 tokens are
    replaced by learned ones that start at their embeddings. So before training the features are
    those of the whole sentence."""
    task = Task(golden_clip(), NAMES, n_ctx=2, context_init="a photo of a", dtype=torch.float64)
    context = starting_context(task.clip, 2, "a photo of a", np.random.default_rng(0))
    assert context.shape == (2, task.clip.width) and task.fixed_words == "of a"
    classes = task.class_set(range(len(NAMES)))
    sentences = task.clip.encode_texts([f"a photo of a {name}." for name in NAMES]).double()
    torch.testing.assert_close(classes.encoder(2)(context), sentences, rtol=1e-5, atol=1e-6)
    changed = classes.encoder(2)(context.flip(0))
    assert not torch.allclose(changed, sentences, atol=1e-2)
    with pytest.raises(
        FedPGPError, match="n_ctx=1 ends inside a word .* end at [2-9], [3-9] tokens"
    ):
        Task(golden_clip(), NAMES, n_ctx=1, context_init="bokehlicious photo")


@pytest.mark.parametrize(("name", "what"), [("fedmvp", "mirrored"), ("promptsrc", "features")])
def test_what_training_alone_reads_is_not_made_of_test_images(name, what):
    fed = federation(name)
    assert getattr(fed.inputs.images("train"), what).shape == (len(DATASET.train), 16)
    assert (
        fed.inputs.images("train").pixels is not None
        and fed.inputs.images("test").pixels is not None
    )
    assert getattr(fed.inputs.images("test"), what) is None


@pytest.mark.parametrize("trained", [240, 9])
def test_training_images_of_a_held_out_domain_are_encoded_once(trained, tmp_path):
    """With the others of the training split; where training reads few of them, alone."""
    federated_split = split_clients(
        SplitRequest(DATASET, 2, 0, None, {"scheme": "domain"}),
        {"name": "leave_one_domain_out", "held_out": "sketch", "held_out_images": "all"},
    )
    dataset, clip, told = federated_split.dataset, golden_clip(), []
    encoded = partial(
        _encoded,
        str(tmp_path),
        dataset,
        lambda: clip,
        lambda: np.arange(trained),
        lambda done, total, what: told.append(total if done == total else 0),
        "features",
    )
    features, held_out = encoded("test"), DATASET.train.domains.count("sketch")
    encoded("train")
    assert sum(told) == (120 + 240 if trained == 240 else 120 + held_out + 9)
    pixels = torch.stack([clip.preprocess(dataset.test.image(i)) for i in range(len(dataset.test))])
    torch.testing.assert_close(
        torch.from_numpy(features), clip.encode_images(pixels).float(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("all_rows", [True, False])
@pytest.mark.parametrize("views", [1, 3, None])
def test_a_mirrored_feature_is_of_the_image_that_is_seen(views, all_rows, tmp_path):
    """In a joint data set too, whose parts are encoded one by one, and where only a few images
    are."""
    (joint, _), clip = (
        join(
            [DATASET, Dataset("other", NAMES, "{}", split(60, 9), None, split(6, 10))],
            ["made up", "other"],
        ),
        golden_clip(),
    )
    rows = [0, 7, len(DATASET.train), len(joint.train) - 1]
    used = np.arange(len(joint.train)) if all_rows else np.array(rows)
    encoded = partial(
        _encoded,
        str(tmp_path),
        joint,
        lambda: clip,
        lambda: used,
        lambda *told: None,
    )
    task = Task(clip, joint.class_names, n_ctx=4, dtype=torch.float64)
    fed = Federation(
        METHODS["fedmvp"](METHODS["fedmvp"].Settings(), task),
        joint,
        split_clients(SplitRequest(DATASET, 2, 0, 4, {"scheme": "iid"}), {"name": "personal"}),
        partial(encoded, "features"),
        TrainingSettings(epochs=2, batch_size=8, lr=0.05, views=views),
        mirrored=partial(encoded, "mirrored"),
    )
    fed.inputs.encode()
    plain = [path for path in tmp_path.glob("*-train-*.safetensors") if "-view" not in path.name]
    parts = 2 if all_rows else 1  # of both kinds, plain and mirrored
    assert len(plain) == (2 * parts if views == 1 else 0), "nobody reads them"
    seen = fed.inputs.training_images()
    for view in range(views or 2):
        index = torch.tensor(rows) + view * len(joint.train)
        pixels, found = seen.pixels[index], seen.mirrored[index]
        torch.testing.assert_close(found, clip.encode_images(pixels.flip(-1)), rtol=0, atol=1e-6)
    if not all_rows and views:
        with pytest.raises(IndexError):
            seen.mirrored[torch.tensor([3])]


def test_live_views_are_the_cached_ones_encoded_anew(tmp_path):
    """Both ways of training on augmented images see the same view under the same number, and
    train."""
    clip = golden_clip()

    def source(part, view=None):
        images = getattr(DATASET, part)
        if view is not None:
            images = AugmentedSplit(images, view, clip.image_size)
        return encode_split(
            clip, images, cache_dir=tmp_path, dataset_name="made_up", split_name=f"{part}-{view}"
        )

    def made(views):
        settings = TrainingSettings(epochs=2, batch_size=8, lr=0.05, views=views)
        task = Task(clip, NAMES, n_ctx=4, dtype=torch.float64)
        method = METHODS["promptfl"](METHODS["promptfl"].Settings(), task)
        federated_split = split_clients(
            SplitRequest(DATASET, 2, 0, 4, {"scheme": "iid"}), {"name": "personal"}
        )
        return Federation(method, DATASET, federated_split, source, settings)

    cached, live = made(4), made(None)
    cached.inputs.encode()
    index = torch.tensor([[0, 241], [500, 3 * 240 + 7]])
    found = cached.inputs.training_images().features[index]
    # The cache keeps float32.
    torch.testing.assert_close(
        found, live.inputs.training_images().features[index], rtol=0, atol=1e-6
    )
    assert not torch.allclose(
        found[0, 0], cached.inputs.features("train")[0]
    )  # augmented, not plain
    for fed in (cached, live):
        before = fed.models.initial_shared()
        assert all(
            not np.array_equal(r.update["p_G"], before["p_G"])
            for r in fed.train(before, [0, 1], 1, {}.get)
        )


@pytest.mark.parametrize(("wrong", "said"), [({"U": torch.zeros(3, 3)}, "3, 3"), ({}, "missing")])
def test_a_private_state_of_another_shape_is_named(wrong, said):
    fed = federation()
    shared = fed.models.initial_shared()
    state = {**{n: t for n, t in fed.models.initial_state(2).items() if n != "U"}, **wrong}
    with pytest.raises(FedPGPError, match=f"state of client 2 is not one of .*: U is .*{said}"):
        list(fed.train(shared, [2], 1, {2: state}.get))
    with pytest.raises(FedPGPError, match="state of client 2 is not one of method=fedpgp"):
        list(fed.evaluate(shared, [2], {2: state}.get))
